"""The fields that all tasks on tables share, and raw rows as cells by column."""

from abc import abstractmethod
from collections import Counter
from typing import Any, Literal

from pydantic import Field, model_validator

from maas_ray.errors import InvalidError
from maas_ray.tasks.cells import cell, cell_of, number_of
from maas_ray.tasks.rows import REST, Row
from maas_ray.tasks.task import TaskSpec


class TableSpec(TaskSpec):
    """The fields that tasks on tables share."""

    target: str = Field(min_length=1)
    """Column to predict."""
    features: tuple[str, ...] | None = Field(None, min_length=1)
    """Columns to predict it from. None: all other columns of the sources."""
    exclude: tuple[str, ...] = ()
    """Columns to drop if `features` is not given: identifiers, or values that are known only afterwards."""
    numeric: tuple[str, ...] = ()
    """Columns that hold numbers. Other columns do if every value in a sample of 10,000 training rows is a number."""
    categorical: tuple[str, ...] = ()
    """Columns that hold categories, even if all values look like numbers."""
    fill_numbers: Literal["mean", "median", "mode"] = "mean"
    """Replacement of a missing number: this statistic of its column in training. `median` and `mode` are taken over a
    sample of 10,000 rows."""
    fill_categories: Literal["mode", "unknown"] = "mode"
    """Replacement of a missing category: the most frequent one in training, or `unknown`."""
    scale: Literal["standard", "minmax", "none"] = "standard"
    """Scaling of numbers: to mean 0 and standard deviation 1, to [0, 1], or none."""
    fit_rows: int = Field(1_000_000, ge=10_000)
    """Number of training rows to compute statistics and count categories on: the first in the order of their content
    hashes, which is a random sample. Labels to predict are collected from all rows."""
    max_categories: int = Field(256, ge=1)
    """Number of distinct categories of a column, the most frequent ones; others are `unknown`, in training too."""

    @model_validator(mode="after")
    def _columns_fit(self) -> "TableSpec":
        if self.features is not None:
            if self.exclude:
                raise InvalidError(
                    "conflicting_fields", "exclude: cannot be combined with `features`; remove one of them."
                )
            if self.target in self.features:
                raise InvalidError("target_in_features", f"features: contains the target {self.target!r}; remove it.")
        for name in ("features", "exclude", "numeric", "categorical"):
            given = getattr(self, name) or ()
            if twice := [column for column, count in Counter(given).items() if count > 1]:
                raise InvalidError("duplicate_column", f"{name}: {twice[0]!r} is listed twice; keep one.")
        if both := set(self.numeric) & set(self.categorical):
            raise InvalidError("conflicting_fields", f"categorical: {min(both)!r} is also in `numeric`; keep one.")
        stray = [
            column
            for column in (*self.numeric, *self.categorical)
            if column in (self.target, *self.exclude) or (self.features is not None and column not in self.features)
        ]
        if stray:
            raise InvalidError(
                "unknown_column", f"numeric, categorical: {stray[0]!r} is not one of the columns to predict from."
            )
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        return (*(self.features or (REST,)), self.target)

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("features",)

    @property
    def drops(self) -> tuple[str, ...]:
        return tuple(name for name in self.exclude if name != self.target)

    def parse_row(self, row: Row) -> Row | None:
        """`features`, the cells by column, and `target`. None if the target or every cell is missing."""
        values = row[REST] if self.features is None else {name: row[name] for name in self.features}
        exclude = self.exclude
        try:
            features = {name: cell(value) for name, value in values.items() if name not in exclude}
        except InvalidError:  # search again, slowly, for the column to name
            features = {name: cell_of(name, value) for name, value in values.items() if name not in exclude}
        for name in self.numeric:
            if name in features:
                number_of(name, features[name])
        target = self.parse_target(row[self.target])
        if target is None or all(value is None for value in features.values()):
            return None
        return {"features": features, "target": target}

    @abstractmethod
    def parse_target(self, target: Any) -> float | str | None:
        """The target in the type that this task predicts; None if it is missing.

        Raises:
            InvalidError: it is not of that type.
        """
