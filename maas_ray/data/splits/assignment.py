"""How rows are assigned to splits: by a hash of their content, of their group, or as a column names it.

Only `stratify` must see all rows before it decides: it holds out the same share of each label. See `stratify`.
"""

from collections.abc import Iterable
from hashlib import sha256

import numpy as np

from maas_ray.data.cleaning import value
from maas_ray.data.names import SPLITS
from maas_ray.data.splits.hashing import SPLIT_BITS, leading
from maas_ray.data.splits.spec import Splits
from maas_ray.errors import InvalidError
from maas_ray.tasks import Row
from maas_ray.tasks.cells import name_of

NUMBERS = {name: number for number, name in enumerate(SPLITS)} | dict.fromkeys(("val", "valid", "dev"), 1)
"""Split numbers by the names that a column may use, in any case."""


def named(splits: Splits, row: Row) -> str:
    """The group, the label or the split that a row names in the column that decides; empty if it is missing.

    Args:
        splits: the user's choice.
        row: the row as the source gave it: a step that masks e-mail addresses would make all users one group.
    """
    return "".join(name_of(value(row, column)) for column in splits.reads)  # one column at most


def split_of(splits: Splits, name: str, inputs: bytes) -> int:
    """The number of a row's split. 0 if the split is still open, because `stratify` decides later.

    Args:
        splits: the user's choice.
        name: see `named`.
        inputs: digest of the row's content without the answer.

    Raises:
        InvalidError: the column of the split, or of the group, holds no usable value.
    """
    if splits.column is not None:
        if name.strip().lower() not in NUMBERS:
            allowed = ", ".join(SPLITS)
            raise InvalidError("unknown_split", f"{splits.column}: {name[:50]!r} is not a split; use one of {allowed}")
        return NUMBERS[name.strip().lower()]
    if splits.group is not None:
        if not name:
            raise InvalidError("group_missing", f"{splits.group}: the value by which rows are grouped is missing")
        return hashed_split(_hashed(name), splits.shares)
    return 0 if splits.stratify is not None else hashed_split(inputs, splits.shares)


def stratum_of(splits: Splits, name: str) -> int | None:
    """A hash of the label whose share is held out; `name` as in `named`. None: shares hold overall."""
    return None if splits.stratify is None else leading(_hashed(name))


def _hashed(name: str) -> bytes:
    return sha256(name.encode(errors="surrogatepass")).digest()


def hashed_split(digest: bytes, shares: Iterable[float]) -> int:
    """The split that a digest falls into: 0 for training, else 1 + the index among `shares`."""
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    for number, share in enumerate(shares, start=1):
        if fraction < share:
            return number
        fraction -= share
    return 0


def rekeyed(keys: np.ndarray, splits: np.ndarray) -> np.ndarray:
    """Sort keys of the same content in other splits."""
    return (keys & ((1 << SPLIT_BITS) - 1)) | (splits.astype(np.int64) << SPLIT_BITS)
