"""A recurrent network over time series."""

import torch
from torch import nn


class RecurrentForecaster(nn.Module):
    """Reads the context with a recurrent network and predicts the offset of each later step from the last value.

    Args:
        cell: `RNN`, `GRU` or `LSTM`, as torch.nn calls them.
        channels: number of values of a step; the first is the target.
        hidden: width of each layer.
        layers: number of recurrent layers.
        horizon: number of steps to predict.
        dropout: fraction of the values between layers dropped in training.
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
