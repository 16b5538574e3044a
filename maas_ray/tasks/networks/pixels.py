"""Normalisation of pixels inside a network."""

import torch
from torch import nn


class Pixels(nn.Module):
    """Normalises uint8 pixels, in training as in serving. Floats are taken as already normalised.

    Args:
        mean: per-channel mean of the training pixels, scaled to [0, 1].
        std: per-channel standard deviation, in the same scale.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W]"""
        if pixel_values.is_floating_point():
            return pixel_values
        return (pixel_values.to(self.mean.dtype) / 255.0 - self.mean) / self.std
