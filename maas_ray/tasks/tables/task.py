"""Base of tasks on tables: encodes columns of numbers and categories. Targets are left to each task.

A column holds numbers if every value in a sample of 10,000 training rows is a number, else categories; a spec may
decide otherwise. Missing numbers and categories are filled, and numbers scaled, by statistics of the training split,
in training as in serving. A category that training has not seen is `unknown`: it adds nothing to the network's sum.
"""

import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maas_ray.errors import InvalidError, RequestError, UnlearntError
from maas_ray.tasks.cells import Cell, category, cell, indices, number
from maas_ray.tasks.cells import numbers as numbers_of
from maas_ray.tasks.network import Forward
from maas_ray.tasks.rows import Column, OptionalTensor, RequestRow, Row, TensorSpec
from maas_ray.tasks.tables.features import CategoryColumn, TableFeatures, is_number
from maas_ray.tasks.tables.requests import TableRow, attribute, request_type
from maas_ray.tasks.tables.spec import TableSpec
from maas_ray.tasks.task import Task
from maas_ray.tasks.traits import Trait

if TYPE_CHECKING:
    import torch

_OTHER = "other"
# Numbers as people write them: a decimal comma, signs between thousands, a currency or per cent.
_WRITTEN_NUMBER = re.compile(
    r"[$€£¥]? ?[+-]?(?:\d{1,3}(?:[.,'’ \u00a0\u202f]\d{3})+|\d+)(?:[.,]\d+)?[ \u00a0]?[%$€£¥]?"
)


class TableTask(Task):
    """A fitted task on tables."""

    spec: TableSpec
    unit = "rows"
    kind = "predict"
    request: ClassVar[type[RequestRow]] = TableRow

    def __init__(self, spec: TableSpec, features: TableFeatures) -> None:
        super().__init__(spec)
        self.features = features
        self.request = request_type(features)  # type: ignore[misc]  # its fields are the data's columns
        # Categories of all columns are numbered consecutively from 1; 0 is a category that training has not seen.
        self._indices, start = {}, 1
        for column in features.categories:
            self._indices[column.name] = indices(column.categories, start)
            start += len(column.categories)
        self.categories = start - 1
        """Number of categories of all columns together."""
        numbers = {column.name for column in features.numbers}
        self._inputs = tuple(
            OptionalTensor(name, "FP64" if name in numbers else "BYTES", (-1,)) for name in features.order
        )

    @property
    @abstractmethod
    def outputs_of_network(self) -> int:
        """Number of outputs of a network for a row."""

    @property
    def stored(self) -> dict[str, Column]:
        """`numbers` and `categories`, if there are such columns, and the columns of `encode_target`."""
        columns = {}
        if self.features.numbers:
            columns["numbers"] = Column("float32", (len(self.features.numbers),))
        if self.features.categories:
            columns["categories"] = Column("int32", (len(self.features.categories),))
        return columns

    @property
    def remarks(self) -> list[str]:
        """Columns of categories that may have been meant as numbers."""
        columns = (column for column in self.features.categories if column.name not in self.spec.categorical)
        return [remark for column in columns if (remark := _remark(column))]

    def encode_columns(self, cells: Mapping[str, Sequence[Cell]], rows: int) -> dict[str, np.ndarray]:
        """Cells by column → `numbers` float32 [rows, n], scaled; `categories` int32 [rows, n], indices.

        Raises:
            UnlearntError: a column of numbers holds a text.
        """
        encoded: dict[str, np.ndarray] = {}
        if self.features.numbers:
            numbers = np.empty((rows, len(self.features.numbers)), np.float32)
            for index, column in enumerate(self.features.numbers):
                try:
                    values = numbers_of(cells[column.name])
                except InvalidError:  # the message omits the value, so that such rows are counted together
                    raise UnlearntError(f"column {column.name!r} holds a text, but numbers in training") from None
                values = np.where(np.isnan(values), column.fill, values)
                with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite
                    numbers[:, index] = (values - column.center) / column.scale
            encoded["numbers"] = numbers
        if self.features.categories:
            categories = np.empty((rows, len(self.features.categories)), np.int32)
            for index, group in enumerate(self.features.categories):
                known, fill = self._indices[group.name], group.fill or ""
                categories[:, index] = [known.get(category(value) or fill, 0) for value in cells[group.name]]
            encoded["categories"] = categories
        return encoded

    def encode(self, rows: list[Row]) -> dict[str, Any]:
        cells = {name: [row["features"].get(name) for row in rows] for name in self.features.order}
        return self.encode_columns(cells, len(rows)) | self.encode_target([row["target"] for row in rows])

    def traits(self, rows: list[Row], encoded: Mapping[str, Any]) -> list[Trait]:
        """Columns before filling: empty cells are missing, and rare categories are `other`."""
        traits = []
        for column in self.features.numbers:
            cells = [row["features"].get(column.name) for row in rows]
            traits.append(Trait("column", column.name, np.array([number(value) for value in cells], np.float64)))
        for group in self.features.categories:
            known = self._indices[group.name]
            names = [category(row["features"].get(group.name)) for row in rows]
            values = [name if name in known else _OTHER if name else None for name in names]
            traits.append(Trait("column", group.name, values))
        return traits

    def describe(self, stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Cells by column as the network sees them, with missing ones filled."""
        cells: dict[str, Any] = {}
        for index, column in enumerate(self.features.numbers):
            value = float(stored["numbers"][index]) * column.scale + column.center
            cells[column.name] = float(f"{value:.6g}")
        for index, group in enumerate(self.features.categories):
            start = next(iter(self._indices[group.name].values()), 1)
            code = int(stored["categories"][index])
            cells[group.name] = group.categories[code - start] if code else _OTHER
        return {name: cells[name] for name in self.features.order}

    @abstractmethod
    def encode_target(self, targets: list[Any]) -> dict[str, np.ndarray]:
        """The stored columns of the targets.

        Raises:
            UnlearntError: a target does not occur in the training split.
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
        inputs = {}
        for tensor in self.inputs:
            value = getattr(row, attribute(tensor.name))
            if tensor.datatype == "FP64":
                inputs[tensor.name] = np.array(math.nan if value is None else value, np.float64)
            else:
                inputs[tensor.name] = np.array(value or "", object)
        return inputs

    def network_answers(self, model: Forward, inputs: Mapping[str, np.ndarray]) -> "torch.Tensor":
        """`inputs` → fp32 [n, outputs_of_network].

        Raises:
            RequestError: a number is not finite; names the column.
        """
        import torch

        cells: dict[str, list[Cell]] = {}
        for name, values in inputs.items():
            if values.dtype.kind == "f" and np.isinf(values).any():
                raise RequestError(
                    f"{name} holds an infinite number; send a finite one, or null if it is missing.",
                    param=name,
                    code="invalid_value",
                )
            cells[name] = list(map(cell, values.tolist()))
        stored = self.encode_columns(cells, len(next(iter(cells.values()))))
        with torch.inference_mode():
            return self.network_outputs(model, {name: torch.from_numpy(values) for name, values in stored.items()})


def _remark(column: CategoryColumn) -> str:
    """The values that made categories of a column whose other values are numbers. Empty: there are none."""
    name, count = column.name, len(column.categories)
    texts = [category for category in column.categories if not is_number(category)]
    written = [text for text in texts if _WRITTEN_NUMBER.fullmatch(text)]
    if written and 2 * (count - len(texts) + len(written)) > count:
        return (
            f"column {name!r} holds {count} categories, because {written[0]!r} is not a number of Python. If it is "
            "one, set the source's `decimal: ','` (csv) or change how it is written; if these are categories, list "
            "the column under `categorical`."
        )
    if texts and 2 * len(texts) <= count:
        some = ", ".join(map(repr, texts[:3]))
        return (
            f"column {name!r} holds {count} categories, because {some} is not a number. If that means a missing value, "
            f"set it under the source's `missing` (csv) or `numeric: [{name}]`, which quarantines such rows; if these "
            "are categories, list the column under `categorical`."
        )
    return ""
