"""Networks from scratch that read token ids."""

import torch
from torch import nn

_CELLS: dict[str, type[nn.RNN] | type[nn.GRU] | type[nn.LSTM]] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class AttentionPool(nn.Module):
    """Attention-weighted means of a sequence's vectors, concatenated.

    Args:
        width: width of a vector.
        heads: number of means.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.hidden, self.score = nn.Linear(width, width), nn.Linear(width, heads, bias=False)

    def forward(self, states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """states: [B, T, width], attention_mask: [B, T] → [B, heads × width]."""
        scores = self.score(torch.tanh(self.hidden(states))).masked_fill(attention_mask[..., None] == 0, -torch.inf)
        pooled: torch.Tensor = scores.softmax(1).transpose(1, 2) @ states
        return pooled.flatten(1)


class AttentionNetwork(nn.Module):
    """Embeddings, attention pooling, one hidden layer, classifier.

    Args:
        vocabulary: number of token ids.
        labels: number of logits.
        embedding: width of an embedding.
        hidden: width of the layer before the classifier.
        heads: number of weighted means.
        dropout: share of values dropped in training.
    """

    def __init__(self, vocabulary: int, labels: int, embedding: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.embedding, self.dropout = nn.Embedding(vocabulary, embedding), nn.Dropout(dropout)
        self.pool = AttentionPool(embedding, heads)
        self.classifier = nn.Sequential(
            nn.Linear(heads * embedding, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, labels)
        )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[B, T] each → logits [B, labels]."""
        states = self.dropout(self.embedding(input_ids))
        logits: torch.Tensor = self.classifier(self.pool(states, attention_mask))
        return logits


class RecurrentNetwork(nn.Module):
    """Embeddings, a recurrent network over the tokens without padding, and a classifier.

    Args:
        vocabulary: number of token ids.
        labels: number of logits.
        cell: `rnn`, `gru` or `lstm`.
        bidirectional: add a second recurrent network that reads from the end.
        embedding: width of an embedding.
        hidden: width of the state in each direction.
        layers: recurrent layers.
        pooling: `attention`, `mean` or `last`, for logits of the text; None for logits of each token.
        dropout: share of values dropped in training.
    """

    def __init__(
        self,
        vocabulary: int,
        labels: int,
        cell: str,
        bidirectional: bool,
        embedding: int,
        hidden: int,
        layers: int,
        pooling: str | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding, self.dropout, self.pooling = nn.Embedding(vocabulary, embedding), nn.Dropout(dropout), pooling
        self.recurrent = _CELLS[cell](
            embedding,
            hidden,
            num_layers=layers,
            bidirectional=bidirectional,
            batch_first=True,
            dropout=dropout if layers > 1 else 0.0,
        )
        self.directions = 2 if bidirectional else 1
        if pooling == "attention":
            self.pool = AttentionPool(self.directions * hidden, 1)
        self.classifier = nn.Linear(self.directions * hidden, labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[B, T] each → logits [B, labels], or [B, T, labels]. The mask is ones, then zeros."""
        embedded = self.dropout(self.embedding(input_ids))
        # Packing makes the direction that reads from the end begin at the text's end, not at the padding's.
        lengths = attention_mask.sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, last = self.recurrent(packed)
        if self.pooling == "last":
            final = last[0] if isinstance(last, tuple) else last  # [layers × directions, B, hidden]
            pooled = final[-self.directions :].transpose(0, 1).flatten(1)
        else:
            pooled, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=input_ids.shape[1])
        if self.pooling == "attention":
            pooled = self.pool(pooled, attention_mask)
        elif self.pooling == "mean":
            pooled = pooled.sum(1) / lengths.to(pooled.device, pooled.dtype)[:, None]  # states of padding are zero
        logits: torch.Tensor = self.classifier(self.dropout(pooled))
        return logits
