"""Tables: columns of numbers and categories to what a network computes with. What is predicted is each task's affair.

A column is a number where every value in a sample of 10,000 training rows is one, else a category; a spec may say so
of any. Missing numbers and categories are filled, and numbers scaled, by statistics of the training split, in training
and in serving alike. A category that training has not seen is `unknown`, which counts as none: it adds nothing to what
the network sums up.
"""

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, create_model, model_validator
from pydantic_core import PydanticKnownError

from maas_ray.errors import RequestError
from maas_ray.tasks.base import (
    REST,
    Column,
    Forward,
    NetworkSpec,
    OptionalTensor,
    RequestRow,
    Row,
    Task,
    TaskSpec,
    TensorSpec,
    UnlearntError,
)
from maas_ray.tasks.tables.cells import Cell, category, cell, number
from maas_ray.tasks.tables.cells import numbers as numbers_of
from maas_ray.tasks.tables.features import TableFeatures
from maas_ray.tasks.traits import Trait

if TYPE_CHECKING:
    import torch


_OTHER = "other"


class TableSpec(TaskSpec):
    """What tasks on tables have in common."""

    target: str = Field(min_length=1)
    """Column to predict."""
    features: tuple[str, ...] | None = Field(None, min_length=1)
    """Columns to predict it from. None: all others that the sources have."""
    exclude: tuple[str, ...] = ()
    """Columns to leave out where `features` is not given: identifiers, or what is known only afterwards."""
    numeric: tuple[str, ...] = ()
    """Columns that are numbers. Others are where every value in a sample of 10,000 training rows is one."""
    categorical: tuple[str, ...] = ()
    """Columns that are categories, whatever they look like."""
    fill_numbers: Literal["mean", "median", "mode"] = "mean"
    """What a missing number becomes: this statistic of its column in training; `median` and `mode` are those of a
    sample of 10,000 rows."""
    fill_categories: Literal["mode", "unknown"] = "mode"
    """What a missing category becomes: the commonest in training, or one that is none."""
    scale: Literal["standard", "minmax", "none"] = "standard"
    """How numbers are scaled: to mean 0 and standard deviation 1, to [0, 1], or not at all."""
    fit_rows: int = Field(1_000_000, ge=10_000)
    """How many training rows statistics are of, and categories are counted in: the first in the order of hashes of
    their content, and so a sample of all. Labels to predict are those of all rows."""
    max_categories: int = Field(256, ge=1)
    """Categories of a column that are told apart, the commonest ones; others are `unknown`, in training too."""

    @model_validator(mode="after")
    def _columns_fit(self) -> "TableSpec":
        if self.features is not None:
            if self.exclude:
                raise ValueError("exclude: is for where `features` is not given; leave one of them out.")
            if self.target in self.features:
                raise ValueError(f"features: holds the target {self.target!r}; leave it out.")
        for name in ("features", "exclude", "numeric", "categorical"):
            given = getattr(self, name) or ()
            if twice := [column for column, count in Counter(given).items() if count > 1]:
                raise ValueError(f"{name}: {twice[0]!r} stands twice; keep one.")
        if both := set(self.numeric) & set(self.categorical):
            raise ValueError(f"categorical: {min(both)!r} stands in `numeric` too; keep one.")
        stray = [
            column
            for column in (*self.numeric, *self.categorical)
            if column in (self.target, *self.exclude) or (self.features is not None and column not in self.features)
        ]
        if stray:
            raise ValueError(f"numeric, categorical: {stray[0]!r} is none of the columns to predict from.")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(self.features or (REST,)), self.target)

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("features",)

    def parse_row(self, row: Row) -> Row | None:
        """`features`, the cells by column; `target`. None where the target or every cell is missing."""
        given = row[REST] if self.features is None else {name: row[name] for name in self.features}
        exclude = self.exclude
        try:
            features = {name: cell(value) for name, value in given.items() if name not in exclude}
        except ValueError:  # which, is looked for only then
            features = {name: _cell(name, value) for name, value in given.items() if name not in exclude}
        for name in self.numeric:
            if name in features:
                _number(name, features[name])
        target = _cell(self.target, row[self.target])
        if target is None or all(value is None for value in features.values()):
            return None
        return {"features": features, "target": self.parse_target(target)}

    @abstractmethod
    def parse_target(self, target: float | str) -> float | str:
        """The target in the type that this task predicts.

        Raises:
            ValueError: it has none.
        """


def _cell(name: str, value: Any) -> Cell:
    try:
        return cell(value)
    except ValueError as error:
        raise ValueError(f"column {name!r} holds {error}; leave it out by `exclude` or `features`") from error


def _number(name: str, value: Cell) -> float:
    try:
        return number(value)
    except ValueError as error:
        raise ValueError(f"column {name!r} is a number: {error}") from error


# --- requests --------------------------------------------------------------------------------------


class TableRow(RequestRow):
    """A row of a table: a number, a text or null for each of the model's columns; one that is left out is missing."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | str | bool | None]


def _as_category(value: Any) -> Any:
    try:
        return category(cell(value)) or None
    except (ValueError, OverflowError):
        return value


def _as_number(value: Any) -> Any:
    try:
        found = number(cell(value))
    except ValueError:
        if isinstance(value, str):  # which pydantic may read otherwise
            raise PydanticKnownError("float_type") from None
        return value
    return None if math.isnan(found) else found


_Number = Annotated[float | None, Field(allow_inf_nan=False), BeforeValidator(_as_number)]
_Category = Annotated[str | None, BeforeValidator(_as_category)]


def _attribute(column: str) -> str:
    """A column's name as a field of a request: its own, unless that has a meaning in Python's classes."""
    return f"column:{column}" if column.startswith("_") or hasattr(RequestRow, column) else column


def _request(features: TableFeatures) -> type[RequestRow]:
    """The row that a model of these columns takes."""
    numbers = {column.name for column in features.numbers}
    fields: dict[str, Any] = {
        _attribute(name): (_Number if name in numbers else _Category, Field(None, alias=name))
        for name in features.order
    }
    found: type[RequestRow] = create_model("TableRow", __base__=RequestRow, **fields)
    return found


# --- the task --------------------------------------------------------------------------------------


class TableTask(Task):
    """A fitted task on tables."""

    spec: TableSpec
    unit = "rows"
    kind = "predict"
    request: ClassVar[type[RequestRow]] = TableRow

    def __init__(self, spec: TableSpec, features: TableFeatures) -> None:
        super().__init__(spec)
        self.features = features
        self.request = _request(features)  # type: ignore[misc]  # fields by the data's columns
        # All categories of all columns lie one after the other, from 1; 0 is what training has not seen.
        self._places, start = {}, 1
        for column in features.categories:
            self._places[column.name] = {value: start + place for place, value in enumerate(column.categories)}
            start += len(column.categories)
        self.categories = start - 1
        """Categories of all columns together."""
        numbers = {column.name for column in features.numbers}
        self._inputs = tuple(
            OptionalTensor(name, "FP64" if name in numbers else "BYTES", (-1,)) for name in features.order
        )

    @property
    @abstractmethod
    def outputs_of_network(self) -> int:
        """Numbers that a network gives for a row."""

    @property
    def stored(self) -> dict[str, Column]:
        """`numbers` and `categories`, where there are such columns, and what `encode_target` gives."""
        found = {}
        if self.features.numbers:
            found["numbers"] = Column("float32", (len(self.features.numbers),))
        if self.features.categories:
            found["categories"] = Column("int32", (len(self.features.categories),))
        return found

    def encode_columns(self, cells: Mapping[str, Sequence[Cell]], rows: int) -> dict[str, np.ndarray]:
        """Cells by column → `numbers` float32 [rows, n], scaled; `categories` int32 [rows, n], places of all of them.

        Raises:
            ValueError: a column of numbers holds a text.
        """
        found: dict[str, np.ndarray] = {}
        if self.features.numbers:
            numbers = np.empty((rows, len(self.features.numbers)), np.float32)
            for place, column in enumerate(self.features.numbers):
                try:
                    values = numbers_of(cells[column.name])
                except ValueError:  # without the value, so that such rows are counted together
                    raise UnlearntError(f"column {column.name!r} holds a text, where training has numbers") from None
                values = np.where(np.isnan(values), column.fill, values)
                with np.errstate(over="ignore"):  # what is beyond float32 is infinite, and so is what comes of it
                    numbers[:, place] = (values - column.center) / column.scale
            found["numbers"] = numbers
        if self.features.categories:
            categories = np.empty((rows, len(self.features.categories)), np.int32)
            for place, group in enumerate(self.features.categories):
                known, fill = self._places[group.name], group.fill or ""
                categories[:, place] = [known.get(category(value) or fill, 0) for value in cells[group.name]]
            found["categories"] = categories
        return found

    def encode(self, rows: list[Row]) -> dict[str, Any]:
        cells = {name: [row["features"].get(name) for row in rows] for name in self.features.order}
        return self.encode_columns(cells, len(rows)) | self.encode_target([row["target"] for row in rows])

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """Columns as they came: missing is what nothing was given for; a category that is not told apart is `other`."""
        found = []
        for column in self.features.numbers:
            cells = [row["features"].get(column.name) for row in rows]
            found.append(Trait("column", column.name, np.array([number(value) for value in cells], np.float64)))
        for group in self.features.categories:
            known = self._places[group.name]
            names = [category(row["features"].get(group.name)) for row in rows]
            told = [name if name in known else _OTHER if name else None for name in names]
            found.append(Trait("column", group.name, told))
        return found

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Cells by column as the network has them: what was missing is filled."""
        found: dict[str, Any] = {}
        for place, column in enumerate(self.features.numbers):
            value = float(stored["numbers"][place]) * column.scale + column.center
            found[column.name] = float(f"{value:.6g}")
        for place, group in enumerate(self.features.categories):
            start = next(iter(self._places[group.name].values()), 1)
            at = int(stored["categories"][place])
            found[group.name] = group.categories[at - start] if at else _OTHER
        return {name: found[name] for name in self.features.order}

    @abstractmethod
    def encode_target(self, targets: list[Any]) -> dict[str, np.ndarray]:
        """The stored column of the targets.

        Raises:
            ValueError: one cannot be predicted.
        """

    def collate(self, batch: Mapping[str, np.ndarray]) -> dict[str, "torch.Tensor"]:
        import torch

        return {name: torch.from_numpy(np.ascontiguousarray(batch[name])) for name in self.stored if name in batch}

    @staticmethod
    def network_outputs(model: Forward, batch: Mapping[str, "torch.Tensor"]) -> "torch.Tensor":
        """fp32 [B, outputs_of_network]"""
        columns = {name: batch[name] for name in ("numbers", "categories") if name in batch}
        outputs: torch.Tensor = model(**columns)
        return outputs.float()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    def to_inputs(self, row: RequestRow) -> dict[str, Any]:
        found = {}
        for tensor in self.inputs:
            value = getattr(row, _attribute(tensor.name))
            if tensor.datatype == "FP64":
                found[tensor.name] = np.array(math.nan if value is None else value, np.float64)
            else:
                found[tensor.name] = np.array(value or "", object)
        return found

    def network_answers(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> "torch.Tensor":
        """`inputs` → fp32 [n, outputs_of_network].

        Raises:
            RequestError: a number is not finite; names the column.
        """
        import torch

        cells: dict[str, list[Cell]] = {}
        for name, values in inputs.items():
            if values.dtype.kind == "f" and np.isinf(values).any():
                raise RequestError(f"{name} holds a number that is not finite.", param=name, code="invalid_value")
            cells[name] = list(map(cell, values.tolist()))
        stored = self.encode_columns(cells, len(next(iter(cells.values()))))
        with torch.inference_mode():
            return self.network_outputs(model, {name: torch.from_numpy(values) for name, values in stored.items()})


# --- networks --------------------------------------------------------------------------------------


class Linear(NetworkSpec):
    """Linear regression; for classes, logistic regression."""

    type: Literal["linear"] = "linear"
    """Which network."""

    def build(self, task: Any) -> "torch.nn.Module":
        return _network(task, ())


class Mlp(NetworkSpec):
    """A multi-layer perceptron."""

    type: Literal["mlp"] = "mlp"
    """Which network."""
    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((64, 64), min_length=1)
    """Widths of the hidden layers, the first next to the columns."""
    activation: Literal["relu", "gelu", "tanh"] = "relu"
    """What stands behind each of them."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of each hidden layer's values dropped in training."""

    def build(self, task: Any) -> "torch.nn.Module":
        activation = {"relu": "ReLU", "gelu": "GELU", "tanh": "Tanh"}[self.activation]
        return _network(task, self.hidden_sizes, activation=activation, dropout=self.dropout)


def _network(task: TableTask, hidden: tuple[int, ...], **options: Any) -> "torch.nn.Module":
    from maas_ray.tasks.networks.table import TableNetwork

    features = task.features
    return TableNetwork(
        numbers=len(features.numbers),
        categories=len(features.categories),
        values=task.categories,
        hidden=hidden,
        outputs=task.outputs_of_network,
        **options,
    )
