"""Rows on their way through a task: raw cells, stored columns, tensors of requests and answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, overload

import numpy as np
from pydantic import BaseModel, ConfigDict

from maas_ray.bodies import Body

Row = dict[str, Any]
"""One example by column name."""

REST = "*"
"""In `TaskSpec.columns`: every column of a row that is not named there, as a dict."""


OPTIONAL_PREFIX = "optional/"
"""Prefix, in a raw row, of columns that a task reads if a source has them (`TaskSpec.optional`)."""


@dataclass(frozen=True)
class Column:
    """A stored column: numpy dtype name and the shape of one row's value (`()` for a scalar)."""

    dtype: str
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of the Open Inference Protocol: name, datatype such as `FP32`, shape with -1 for any."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    optional: ClassVar[bool] = False
    """True if values may be missing."""


@dataclass(frozen=True)
class OptionalTensor(TensorSpec):
    """A tensor whose values may be missing.

    A missing value is null in JSON. In binary data and for the task it is NaN, or an empty string.
    """

    optional: ClassVar[bool] = True


class Ragged(Sequence[np.ndarray]):
    """Arrays of different lengths, laid end to end.

    Args:
        values: their elements.
        lengths: the number of elements of each, int64.
    """

    def __init__(self, values: np.ndarray, lengths: np.ndarray) -> None:
        self.values, self.lengths = values, lengths
        self._ends = np.cumsum(lengths).tolist()

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        return self.values[self._ends[index - 1] if index else 0 : self._ends[index]]


@dataclass(frozen=True)
class Packing:
    """Rows of a ragged column are laid end to end and cut every `length` elements."""

    column: str
    length: int


@dataclass(frozen=True)
class Steps:
    """A table whose rows are steps of time series: rows are joined in order, and the end of each series is held out.

    Args:
        values: columns of numbers. If the first holds a list, the row is a whole series.
        series: column that tells series apart. None: all rows of a file are one series.
        time: column to order by. None: rows are in order already.
        window: steps that an example needs; windows overlap where a long series is cut, so that none is lost.
        stride: steps from one window to the next.
        time_format: format of `time`, as for Python's `strptime`. None: numbers or ISO 8601.
    """

    values: tuple[str, ...]
    series: str | None
    time: str | None
    window: int = 1
    stride: int = 1
    time_format: str | None = None


class RequestRow(Body):
    """One row of a plain request, in a task's own words. Field docstrings become the API's documentation."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    @classmethod
    def sample(cls, inputs: Sequence[TensorSpec]) -> dict[str, Any]:
        """A row to try, as JSON: the fields with `examples`, and the required ones.

        Args:
            inputs: the tensors of the model that is to answer it.
        """
        plain: dict[Any, Any] = {str: "Hello", bool: False}
        return {
            name: field.examples[0] if field.examples else plain.get(field.annotation, 0)
            for name, field in cls.model_fields.items()
            if field.examples or field.is_required()
        }


class AnswerRow(BaseModel):
    """One row of a plain answer, in a task's own words."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


def shortest(value: np.float32) -> float:
    """The number with the fewest digits that is the same in fp32: 0.1, not 0.10000000149."""
    return float(str(value))
