"""The fields that all tasks on tables share, and a raw row as cells by column."""

from abc import abstractmethod
from collections import Counter
from typing import Literal

from pydantic import Field, model_validator

from maas_ray.tasks.rows import REST, Row
from maas_ray.tasks.tables.cells import cell, cell_of, number_of
from maas_ray.tasks.task import TaskSpec


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
            features = {name: cell_of(name, value) for name, value in given.items() if name not in exclude}
        for name in self.numeric:
            if name in features:
                number_of(name, features[name])
        target = cell_of(self.target, row[self.target])
        if target is None or all(value is None for value in features.values()):
            return None
        return {"features": features, "target": self.parse_target(target)}

    @abstractmethod
    def parse_target(self, target: float | str) -> float | str:
        """The target in the type that this task predicts.

        Raises:
            ValueError: it has none.
        """
