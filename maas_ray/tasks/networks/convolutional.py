"""A convolutional network for images."""

import torch
from torch import nn

from maas_ray.tasks.networks.pixels import Pixels


class ConvolutionalNetwork(nn.Module):
    """Blocks of 3×3 convolution, group norm, ReLU and 2×2 max pooling; then a classifier.

    It uses group norm with one group (Wu and He 2018) because batch norm keeps running statistics; without them,
    training on any number of workers and serving compute the same function. Pixel normalisation is part of the
    network, so that its input is uint8 pixels everywhere.

    Args:
        shape: (channels, height, width) of an image.
        labels: number of classes.
        channels: output channels of each block.
        hidden: width of the layer before the classifier.
        dropout: fraction of that layer's values dropped in training.
        mean, std: see `Pixels`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        labels: int,
        channels: tuple[int, ...],
        hidden: int,
        dropout: float,
        mean: list[float],
        std: list[float],
    ) -> None:
        super().__init__()
        self.pixels = Pixels(mean, std)
        incoming, height, width = shape
        blocks: list[nn.Module] = []
        for outgoing in channels:
            blocks += [nn.Conv2d(incoming, outgoing, 3, padding=1, bias=False), nn.GroupNorm(1, outgoing), nn.ReLU()]
            if min(height, width) >= 2:
                blocks.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            incoming = outgoing
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(incoming * height * width, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, labels),
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values: [B, C, H, W], uint8 or normalised → logits [B, labels]."""
        values = self.pixels(pixel_values).to(next(self.parameters()).dtype)
        logits: torch.Tensor = self.classifier(self.features(values))
        return logits
