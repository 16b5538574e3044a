"""The convolutional network. Imported where it is built, since it imports torch."""

import torch
from torch import nn


class ConvolutionalNetwork(nn.Module):
    """Blocks of 3×3 convolution, group norm, ReLU and 2×2 max pooling; then a classifier.

    Group norm with one group (Wu and He 2018), not batch norm: it holds no running statistics, so training on
    N workers and serving compute the same function.

    Pixel normalisation is part of the network, so that uint8 pixels go in wherever it runs.

    Args:
        shape: (channels, height, width) of an image.
        labels: number of classes.
        channels: output channels of each block.
        hidden: width of the layer before the classifier.
        dropout: share of that layer's values dropped in training.
        mean: per-channel mean of the training pixels, scaled to [0, 1].
        std: per-channel standard deviation, likewise.
    """

    mean: torch.Tensor
    std: torch.Tensor

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
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
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
        """pixel_values: [B, C, H, W] uint8 → logits [B, labels]."""
        dtype = next(self.parameters()).dtype
        scaled = (pixel_values.to(self.mean.dtype) / 255.0 - self.mean) / self.std
        logits: torch.Tensor = self.classifier(self.features(scaled.to(dtype)))
        return logits
