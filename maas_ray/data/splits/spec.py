"""Which split a row falls into: what a user writes under `splits:`, and what that says of one row.

By default a hash of the row's content decides; of a group's name, where rows of a group belong together. The row or its
source may say it outright. Only `stratify` must see all rows first: of each label the same share is held out.
"""

from hashlib import sha256

import numpy as np
from pydantic import Field, model_validator

from maas_ray.data.cleaning import value
from maas_ray.data.dataset import SPLITS
from maas_ray.data.splits.hashing import SPLIT_BITS, split_number
from maas_ray.spec import Spec
from maas_ray.tasks import Row

NAMES = {name: number for number, name in enumerate(SPLITS)} | dict.fromkeys(("val", "valid", "dev"), 1)
"""What a column may call a split, in any case."""


class Splits(Spec):
    """Shares of the rows; the rest is for training."""

    validation: float = Field(0.05, ge=0, lt=1)
    """Share of the rows, in [0, 1). 0: no such split."""
    test: float = Field(0.05, ge=0, lt=1)
    """Share of the rows, in [0, 1). 0: no such split."""
    group: str | None = None
    """Column of the sources: rows with the same value fall into the same split. None: each row for itself."""
    stratify: str | None = None
    """Column of the sources, of labels: of each value the same share is held out. None: shares hold on the whole."""
    column: str | None = None
    """Column of the sources that names each row's split: `train`, `validation` or `test`. None: shares decide."""

    @model_validator(mode="after")
    def _leave_some(self) -> "Splits":
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation ({self.validation}) and test ({self.test}) leave nothing to train on; "
                "make their sum smaller than 1."
            )
        if len(self.reads) > 1:
            said = [name for name in ("group", "stratify", "column") if getattr(self, name) is not None]
            raise ValueError(f"{' and '.join(said)} exclude each other; give one of them.")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """By place in `SPLITS`, after train."""
        return self.validation, self.test

    @property
    def reads(self) -> tuple[str, ...]:
        """Columns of the sources that it needs."""
        return tuple(name for name in (self.group, self.stratify, self.column) if name is not None)

    def of(self, row: Row, inputs: bytes) -> int:
        """The number of a row's split by this and the digest of its inputs; 0 where it is not decided yet.

        Raises:
            ValueError: the row's value says nothing.
        """
        if self.column is not None:
            said = _text(value(row, self.column))
            if said.strip().lower() not in NAMES:
                raise ValueError(f"{self.column} names no split: {said[:50]!r}; it may be {', '.join(SPLITS)}")
            return NAMES[said.strip().lower()]
        if self.group is not None:
            said = _text(value(row, self.group))
            if not said:
                raise ValueError(f"{self.group}, by which rows are grouped, is missing")
            return split_number(sha256(said.encode(errors="surrogatepass")).digest(), self.shares)
        return 0 if self.stratify is not None else split_number(inputs, self.shares)

    def stratum(self, row: Row) -> str | None:
        """The label by which a row's share is held out; None: shares hold on the whole."""
        return None if self.stratify is None else _text(value(row, self.stratify))


def _text(said: object) -> str:
    if isinstance(said, bytes):
        return said.decode(errors="backslashreplace")
    return "" if said is None else str(said)


def stratified(strata: np.ndarray, inputs: np.ndarray, shares: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Which split inputs fall into, so that of each stratum the same share is held out.

    Of a stratum's distinct inputs those with the lowest hashes are for validation, the next for testing. Inputs with
    several labels go with the lowest of these, so that they lie in one split.

    Args:
        strata: numbers of their labels, int [n].
        inputs: hashes of the rows' inputs, int64 [n].
        shares: of validation and test.

    Returns:
        Distinct inputs, ascending, and the number of each one's split.
    """
    order = np.lexsort((strata, inputs))
    inputs, strata = inputs[order], strata[order]
    first = np.ones(len(inputs), bool)
    first[1:] = inputs[1:] != inputs[:-1]
    inputs, strata = inputs[first], strata[first]
    splits = np.zeros(len(inputs), np.int8)
    by_stratum = np.argsort(strata, kind="stable")  # of each, ascending by hash
    last = np.append(np.diff(strata[by_stratum]) != 0, [True] * (len(strata) > 0))
    begin = 0
    for end in (np.flatnonzero(last) + 1).tolist():
        start = begin
        for number, share in enumerate(shares, start=1):
            count = round(share * (end - begin))
            splits[by_stratum[start : start + count]] = number
            start += count
        begin = end
    return inputs, splits


def rekeyed(keys: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Sort keys of the same content in other splits."""
    return (keys & ((1 << SPLIT_BITS) - 1)) | (splits.astype(np.int64) << SPLIT_BITS)
