"""A network for speech: convolutions that shorten time, LSTMs, and scores of each label at each step."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class ConvolutionalRecurrentNetwork(nn.Module):
    """1-D convolutions, each halving time, then LSTMs (Amodei et al. 2015, "Deep Speech 2", in small).

    Frames behind a row's end are set to zero after each convolution and hidden from the LSTM by packing, so a row's
    scores do not depend on its padding. For the same reason there is no normalisation over time or rows.

    Args:
        bins: number of features of a frame.
        labels: number of scores of a step.
        halvings: number of convolutions.
        channels: output channels of the convolutions.
        hidden: width of each LSTM in each direction.
        layers: number of LSTMs.
        bidirectional: add LSTMs that read from the end.
        dropout: fraction of values dropped in training before and after the LSTMs, and between them.
    """

    def __init__(
        self,
        bins: int,
        labels: int,
        halvings: int,
        channels: int,
        hidden: int,
        layers: int,
        bidirectional: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        widths = (bins, *[channels] * halvings)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(incoming, outgoing, 3, stride=2, padding=1) for incoming, outgoing in pairwise(widths)
        )
        self.dropout = nn.Dropout(dropout)
        self.recurrent = nn.LSTM(
            channels,
            hidden,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )
        width = hidden * (2 if bidirectional else 1)
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, labels)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of each step.

        Args:
            features: [B, frames, bins]
            lengths: [B], frames of each row; at least one.

        Returns:
            logits [B, steps, labels], and the steps of each row [B].
        """
        frames = features.to(next(self.parameters()).dtype).transpose(1, 2)
        for convolution in self.convolutions:
            frames = torch.relu(convolution(_masked(frames, lengths)))
            lengths = (lengths + 1) // 2
        steps = self.dropout(_masked(frames, lengths)).transpose(1, 2)
        packed = pack_padded_sequence(steps, lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True, total_length=steps.shape[1])
        logits: torch.Tensor = self.classifier(self.dropout(self.norm(hidden)))
        return logits, lengths


def _masked(frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """[B, C, T] with zeros after each row's length."""
    inside = torch.arange(frames.shape[2], device=frames.device) < lengths[:, None]
    return frames * inside[:, None].to(frames.dtype)
