"""Recurrent networks over series. Imported where one is built, since it imports torch."""

import torch
from torch import nn


class RecurrentForecaster(nn.Module):
    """A recurrent network reads the context; what it then knows says how far each later step lies from the last one.

    Args:
        cell: `RNN`, `GRU` or `LSTM`, as torch.nn calls them.
        channels: values of a step; the first is foretold.
        hidden: width of each layer.
        layers: recurrent layers.
        horizon: steps to foretell.
        dropout: share of the values between layers dropped in training.
    """

    def __init__(self, cell: str, channels: int, hidden: int, layers: int, horizon: int, dropout: float) -> None:
        super().__init__()
        between = dropout if layers > 1 else 0.0
        self.recurrent = getattr(nn, cell)(channels, hidden, layers, batch_first=True, dropout=between)
        self.forecast = nn.Linear(hidden, horizon)

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """context: [B, steps, channels] → [B, horizon]."""
        context = context.to(self.forecast.weight.dtype)
        states, _ = self.recurrent(context)
        result: torch.Tensor = context[:, -1, :1] + self.forecast(states[:, -1])
        return result
