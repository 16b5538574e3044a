"""Tables: columns of numbers and categories to what a network computes with. What is predicted is each task's affair.

A column is a number where every value in a sample of 10,000 training rows is one, else a category; a spec may say so
of any. Missing numbers and categories are filled, and numbers scaled, by statistics of the training split, in training
and in serving alike. A category that training has not seen is `unknown`, which counts as none: it adds nothing to what
the network sums up.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maas_ray.errors import RequestError
from maas_ray.tasks.network import Forward
from maas_ray.tasks.rows import Column, OptionalTensor, RequestRow, Row, TensorSpec, UnlearntError
from maas_ray.tasks.tables.cells import Cell, category, cell, number
from maas_ray.tasks.tables.cells import numbers as numbers_of
from maas_ray.tasks.tables.features import TableFeatures
from maas_ray.tasks.tables.requests import TableRow, attribute, request_type
from maas_ray.tasks.tables.spec import TableSpec
from maas_ray.tasks.task import Task
from maas_ray.tasks.traits import Trait

if TYPE_CHECKING:
    import torch

_OTHER = "other"


class TableTask(Task):
    """A fitted task on tables."""

    spec: TableSpec
    unit = "rows"
    kind = "predict"
    request: ClassVar[type[RequestRow]] = TableRow

    def __init__(self, spec: TableSpec, features: TableFeatures) -> None:
        super().__init__(spec)
        self.features = features
        self.request = request_type(features)  # type: ignore[misc]  # fields by the data's columns
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
            value = getattr(row, attribute(tensor.name))
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
