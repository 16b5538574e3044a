"""A residual network (He et al. 2015, "Deep Residual Learning for Image Recognition")."""

import torch
from torch import nn

from maas_ray.tasks.networks.pixels import Pixels

_LARGE = 96  # pixels; larger images are first reduced to a quarter of their size, as in He et al. for ImageNet


class _Norm(nn.GroupNorm):
    """Group norm with 16 channels per group (Wu and He 2018).

    Unlike batch norm it keeps no running statistics, so training on any number of workers and serving compute the same
    function.

    Args:
        channels: channels of the input.
        silent: return zeros at first. It must be set here, because ZeRO 3 shards a module once it is constructed.
    """

    def __init__(self, channels: int, *, silent: bool = False) -> None:
        self.silent = silent
        super().__init__(channels // 16 if channels % 16 == 0 else 1, channels)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.silent:
            nn.init.zeros_(self.weight)


class _Block(nn.Module):
    """Two 3×3 convolutions, added to the input."""

    def __init__(self, incoming: int, outgoing: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(incoming, outgoing, 3, stride=stride, padding=1, bias=False),
            _Norm(outgoing),
            nn.ReLU(),
            nn.Conv2d(outgoing, outgoing, 3, padding=1, bias=False),
            _Norm(outgoing, silent=True),  # a block starts as the identity (Goyal et al. 2017)
        )
        alike = incoming == outgoing and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity()
            if alike
            else nn.Sequential(nn.Conv2d(incoming, outgoing, 1, stride=stride, bias=False), _Norm(outgoing))
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layers(values) + self.shortcut(values))


class ResidualNetwork(nn.Module):
    """Stages of blocks, each stage twice as wide and half as large as the one before; then the mean over positions.

    Args:
        shape: (channels, height, width) of an image.
        labels: number of classes.
        blocks: number of blocks of each stage.
        width: channels of the first stage.
        dropout: fraction of the last values dropped in training.
        mean, std: see `Pixels`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        labels: int,
        blocks: tuple[int, ...],
        width: int,
        dropout: float,
        mean: list[float],
        std: list[float],
    ) -> None:
        super().__init__()
        channels, height, rows = shape
        self.pixels = Pixels(mean, std)
        if min(height, rows) >= _LARGE:
            first = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
            self.stem = nn.Sequential(first, _Norm(width), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
        else:
            first = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            self.stem = nn.Sequential(first, _Norm(width), nn.ReLU())
        layers: list[nn.Module] = []
        incoming = width
        for stage, count in enumerate(blocks):
            outgoing = width << stage
            for index in range(count):
                layers.append(_Block(incoming, outgoing, stride=2 if stage and not index else 1))
                incoming = outgoing
        self.stages = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(incoming, labels)
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: [B, C, H, W], uint8 or normalised → logits [B, labels]."""
        values = self.pixels(pixel_values).to(next(self.parameters()).dtype)
        logits: torch.Tensor = self.classifier(self.stages(self.stem(values)))
        return logits
