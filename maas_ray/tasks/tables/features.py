"""Columns of a table as fitted on the training split: their types, statistics of numbers, and categories."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from statistics import median, multimode

import numpy as np

from maas_ray.errors import DataError
from maas_ray.spec import Spec
from maas_ray.tasks.cells import Cell, category, number, numbers
from maas_ray.tasks.rows import Row
from maas_ray.tasks.tables.spec import TableSpec

# Sample of rows that decides which columns are numbers, and that medians are taken over. Rows come in the order of
# their content hashes, so the first ones are a random sample.
_HEAD = 10_000
_MAX_COUNTED = 1 << 16  # distinct categories of a column; frequent ones are among the first
_BATCH = 1024


class NumberColumn(Spec):
    """A column of numbers. The network sees (x - center) / scale."""

    name: str
    """The column."""
    fill: float
    """Replacement of a missing number."""
    center: float
    """Number to subtract."""
    scale: float
    """Number to divide by."""


class CategoryColumn(Spec):
    """A column of categories."""

    name: str
    """The column."""
    categories: list[str]
    """The distinct categories, the most frequent first."""
    fill: str | None
    """Replacement of a missing category. None: unknown."""


class TableFeatures(Spec):
    """Columns as fitted on the training split."""

    order: list[str]
    """All columns, in the order of the sources."""
    numbers: list[NumberColumn]
    """Columns of numbers."""
    categories: list[CategoryColumn]
    """Columns of categories."""


class Moments:
    """Count, mean, standard deviation, minimum and maximum of each column, computed in one stable pass.

    Args:
        columns: number of columns.
    """

    def __init__(self, columns: int) -> None:
        self.count = np.zeros(columns, np.int64)
        self.mean, self._squares = np.zeros(columns), np.zeros(columns)
        self.min, self.max = np.full(columns, math.inf), np.full(columns, -math.inf)

    def add(self, values: np.ndarray) -> None:
        """Add rows [n, columns]; NaN is missing. The update is that of Chan, Golub and LeVeque (1979)."""
        known = ~np.isnan(values)
        count = known.sum(0)
        mean = np.where(known, values, 0.0).sum(0) / np.maximum(count, 1)
        squares = (np.where(known, values - mean, 0.0) ** 2).sum(0)
        total, apart = self.count + count, mean - self.mean
        weight = count / np.maximum(total, 1)
        self._squares += squares + apart**2 * self.count * weight
        self.mean += apart * weight
        self.count = total
        self.min = np.minimum(self.min, np.where(known, values, math.inf).min(0, initial=math.inf))
        self.max = np.maximum(self.max, np.where(known, values, -math.inf).max(0, initial=-math.inf))

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each column; 1 if all its values are equal."""
        std: np.ndarray = np.sqrt(self._squares / np.maximum(self.count, 1))
        return np.where(self.max > self.min, std, 1.0)


def fit_features(spec: TableSpec, rows: Iterable[Row]) -> TableFeatures:
    """Fit on parsed rows of the training split.

    Raises:
        DataError: there is no column to predict from, or a column is empty.
    """
    features = (row["features"] for row in islice(rows, spec.fit_rows))
    head = list(islice(features, _HEAD))
    order = list(spec.features or dict.fromkeys(name for row in head for name in row))
    samples = {name: [value for row in head if (value := row.get(name)) is not None] for name in order}
    _check(spec, samples)
    numeric = [
        name
        for name in order
        if name in spec.numeric or (name not in spec.categorical and all(map(is_number, samples[name])))
    ]
    moments = Moments(len(numeric))
    counts = {name: Counter[str]() for name in order if name not in numeric}
    for batch in _batches(chain(head, features)):
        # A text in a column of numbers, after the sample, counts as missing. Encoding drops its row and reports it.
        values = np.empty((len(batch), len(numeric)))
        for index, name in enumerate(numeric):
            values[:, index] = _numbers_or_nan([row.get(name) for row in batch])
        moments.add(values)
        for name, counted in counts.items():
            for value in (category(row.get(name)) for row in batch):
                if value and (value in counted or len(counted) < _MAX_COUNTED):
                    counted[value] += 1
    return TableFeatures(
        order=order,
        numbers=[_number_column(spec, name, index, moments, samples[name]) for index, name in enumerate(numeric)],
        categories=[_category_column(spec, name, counted) for name, counted in counts.items()],
    )


def _check(spec: TableSpec, samples: Mapping[str, list[Cell]]) -> None:
    if not samples:
        raise DataError(f"there are no columns to predict {spec.target!r} from.", code="column_missing")
    if strange := [name for name in (*spec.numeric, *spec.categorical) if name not in samples]:
        raise DataError(f"unknown column {strange[0]!r}; columns: {', '.join(samples)}.", code="column_missing")
    if empty := [name for name, values in samples.items() if not values]:
        raise DataError(
            f"column {empty[0]!r} is empty in the training split; drop it with `exclude`.", code="column_empty"
        )


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch


def _number_column(spec: TableSpec, name: str, index: int, moments: Moments, sample: list[Cell]) -> NumberColumn:
    mean, std, low, high = (float(values[index]) for values in (moments.mean, moments.std, moments.min, moments.max))
    center, scale = {"standard": (mean, std), "minmax": (low, high - low or 1.0), "none": (0.0, 1.0)}[spec.scale]
    fill = mean
    if spec.fill_numbers == "median":
        fill = median(map(number, sample))
    elif spec.fill_numbers == "mode":
        fill = min(multimode(map(number, sample)))
    return NumberColumn(name=name, fill=fill, center=center, scale=scale)


def _category_column(spec: TableSpec, name: str, counted: Counter[str]) -> CategoryColumn:
    common = sorted(counted, key=lambda value: (-counted[value], value))[: spec.max_categories]
    return CategoryColumn(name=name, categories=common, fill=common[0] if spec.fill_categories == "mode" else None)


def is_number(value: Cell) -> bool:
    """True if a cell holds or spells a number."""
    return not math.isnan(_number_or_nan(value))


def _numbers_or_nan(values: list[Cell]) -> np.ndarray:
    try:
        return numbers(values)
    except ValueError:
        return np.array([_number_or_nan(value) for value in values])


def _number_or_nan(value: Cell) -> float:
    try:
        return number(value)
    except ValueError:
        return math.nan
