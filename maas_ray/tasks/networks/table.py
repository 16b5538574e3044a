"""Networks over the columns of a table."""

import math

import torch
from torch import nn


class Columns(nn.Module):
    """A linear map of all columns: numbers, and one-hot categories.

    The map of the one-hot categories is an embedding. Its row 0 is for categories that training has not seen; it stays
    zero, because their one-hot vector is zero.

    Args:
        numbers: number of columns of numbers.
        categories: number of columns of categories.
        values: number of categories of all columns together.
        outgoing: width of the result.
    """

    def __init__(self, numbers: int, categories: int, values: int, outgoing: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(numbers + categories)  # the bound of nn.Linear with as many inputs
        self.bias = nn.Parameter(torch.empty(outgoing).uniform_(-bound, bound))
        self.numbers = _Weights(numbers, outgoing, bound) if numbers else None
        self.categories = _Rows(values, outgoing, bound) if categories else None

    def forward(self, numbers: torch.Tensor | None = None, categories: torch.Tensor | None = None) -> torch.Tensor:
        """Numbers [B, numbers] float, categories [B, categories] int → [B, outgoing]."""
        result = self.bias
        if self.numbers is not None and numbers is not None:
            result = result + self.numbers(numbers.to(self.bias.dtype))
        if self.categories is not None and categories is not None:
            result = result + self.categories(categories).sum(1)
        return result


class _Weights(nn.Linear):
    def __init__(self, incoming: int, outgoing: int, bound: float) -> None:
        self._bound = bound
        super().__init__(incoming, outgoing, bias=False)

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -self._bound, self._bound)


class _Rows(nn.Embedding):
    def __init__(self, values: int, outgoing: int, bound: float) -> None:
        self._bound = bound
        super().__init__(1 + values, outgoing, padding_idx=0)

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -self._bound, self._bound)
        self._fill_padding_idx_with_zero()


class TableNetwork(nn.Module):
    """A linear map of the columns; with hidden layers, a multi-layer perceptron.

    Args:
        numbers, categories, values: see `Columns`.
        hidden: widths of the hidden layers.
        outputs: width of the result.
        activation: activation after each hidden layer, by its name in torch.nn.
        dropout: fraction of each hidden layer's values dropped in training.
    """

    def __init__(
        self,
        numbers: int,
        categories: int,
        values: int,
        hidden: tuple[int, ...],
        outputs: int,
        activation: str = "ReLU",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        first, *rest = (*hidden, outputs)
        self.columns = Columns(numbers, categories, values, first)
        layers: list[nn.Module] = []
        for incoming, outgoing in zip(hidden, rest, strict=True):
            layers += [getattr(nn, activation)(), nn.Dropout(dropout), nn.Linear(incoming, outgoing)]
        self.layers = nn.Sequential(*layers)

    def forward(self, numbers: torch.Tensor | None = None, categories: torch.Tensor | None = None) -> torch.Tensor:
        """Columns in the form of `Columns.forward` → [B, outputs]."""
        result: torch.Tensor = self.layers(self.columns(numbers, categories))
        return result
