"""The networks from scratch that `network:` names for speech; modules of `maas_ray.tasks.networks`."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from maas_ray.errors import DataError
from maas_ray.tasks.network import NetworkSpec
from maas_ray.tasks.speech.features import HALVINGS, Frames

if TYPE_CHECKING:
    import torch


class ConvLstm(NetworkSpec):
    """Two convolutions that shorten time to a quarter, then LSTMs; trained from scratch by CTC (Graves et al. 2006)."""

    type: Literal["conv-lstm"] = "conv-lstm"
    """Which network."""
    channels: int = Field(128, ge=1)
    """Output channels of the convolutions."""
    hidden_size: int = Field(128, ge=1)
    """Width of an LSTM, in each direction."""
    layers: int = Field(2, ge=1)
    """Number of LSTMs."""
    bidirectional: bool = True
    """Add LSTMs that read the clip from its end."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Fraction of values dropped in training between the layers."""

    def build(self, task: Any) -> "torch.nn.Module":
        if not isinstance(task.frontend, Frames):
            raise DataError(
                f"network.type: conv-lstm needs `features`, but the dataset was prepared with the processor in "
                f"{task.spec.processor}. Use `pretrained`, or prepare it without `processor`.",
                code="wrong_features",
            )
        from maas_ray.tasks.networks.recurrent_ctc import ConvolutionalRecurrentNetwork

        return ConvolutionalRecurrentNetwork(
            bins=task.frontend.shape[1],
            labels=1 + len(task.frontend.characters),
            halvings=HALVINGS,
            channels=self.channels,
            hidden=self.hidden_size,
            layers=self.layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout,
        )
