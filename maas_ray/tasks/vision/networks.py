"""The networks from scratch that `network:` names for tasks on images; modules of `maas_ray.tasks.networks`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from maas_ray.tasks.network import NetworkSpec

if TYPE_CHECKING:
    import torch


class Cnn(NetworkSpec):
    """A convolutional network, from scratch."""

    type: Literal["cnn"] = "cnn"
    """Which network."""
    channels: tuple[int, ...] = Field((32, 64, 128), min_length=1)
    """Output channels of each convolution block."""
    hidden_size: int = Field(128, ge=1)
    """Width of the layer before the classifier."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Fraction of that layer's values dropped in training."""

    def build(self, task: Any) -> "torch.nn.Module":
        from maas_ray.tasks.networks.convolutional import ConvolutionalNetwork

        return ConvolutionalNetwork(
            shape=task.shape,
            labels=len(task.features.labels),
            channels=self.channels,
            hidden=self.hidden_size,
            dropout=self.dropout,
            mean=task.features.mean,
            std=task.features.std,
        )


class ResNet(NetworkSpec):
    """A residual network, from scratch (He et al. 2015). The first layer keeps the size of images below 96 pixels."""

    type: Literal["resnet"] = "resnet"
    """Which network."""
    blocks: tuple[Annotated[int, Field(ge=1)], ...] = Field((2, 2, 2), min_length=1, max_length=8)
    """Number of blocks of two convolutions in each stage. Each stage halves the size and doubles the channels."""
    width: int = Field(32, ge=1)
    """Channels of the first stage."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Fraction of the values before the classifier dropped in training."""

    def build(self, task: Any) -> "torch.nn.Module":
        from maas_ray.tasks.networks.residual import ResidualNetwork

        return ResidualNetwork(
            shape=task.shape,
            labels=len(task.features.labels),
            blocks=self.blocks,
            width=self.width,
            dropout=self.dropout,
            mean=task.features.mean,
            std=task.features.std,
        )
