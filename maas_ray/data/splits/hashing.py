"""Which split a row falls into and which place it gets: pure functions of its content and the seed.

Nothing here depends on where a row was read, by whom or when. That is why the same input gives the same
dataset on one core and on a thousand, and why equal inputs never straddle splits.
"""

import json
from collections.abc import Iterable
from hashlib import sha256, sha512

import numpy as np

from maas_ray.tasks import Row

SPLIT_BITS = 61
"""A sort key is the split's number above this many bits of the row's digest."""
_JSON = json.JSONEncoder(sort_keys=True)  # `json.dumps` makes one for each call


def content_digest(row: Row, columns: Iterable[str]) -> bytes:
    """Sha256 of a parsed row's values in these columns.

    Raises:
        ValueError: a string holds half a surrogate pair: there are no bytes for it.
    """
    return sha256(b"".join([content_bytes(row[column]) for column in columns])).digest()


def content_bytes(value: object) -> bytes:
    """What digests are of: the parts of a value, each behind its length.

    Raises:
        ValueError: a string holds half a surrogate pair.
    """
    return b"".join([len(part).to_bytes(8, "little") + part for part in _bytes(value)])


def _bytes(value: object) -> tuple[bytes, ...]:
    """A value's type and content; values of different types never look alike."""
    if isinstance(value, str):
        return b"str", value.encode()
    if isinstance(value, bytes):
        return b"bytes", value
    if isinstance(value, np.ndarray):
        return b"array", f"{value.dtype.str}{value.shape}".encode(), value.tobytes()
    return b"json", _JSON.encode(value).encode()


def split_number(digest: bytes, shares: Iterable[float]) -> int:
    """The split of a row whose inputs have this digest: 0 for the rest, else 1 + the place among `shares`."""
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    for number, share in enumerate(shares, start=1):
        if fraction < share:
            return number
        fraction -= share
    return 0


def leading(digest: bytes) -> int:
    """The first 64 bits of a digest, as a signed number."""
    return int.from_bytes(digest[:8], "big", signed=True)


def fraction(values: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) by which rows are drawn, from int64 hashes; they say nothing of the rows' splits."""
    return (mixed(values.view(np.uint64).copy()) >> np.uint64(11)).astype(np.float64) / 2**53


def sort_key(split: int, digest: bytes) -> int:
    """Orders rows by split, then by content."""
    return split << SPLIT_BITS | int.from_bytes(digest[:8], "big") >> (64 - SPLIT_BITS)


def shuffled(places: np.ndarray, count: int, seed: str) -> np.ndarray:
    """A permutation of [0, count), drawn by the seed, at the given places.

    Computed for each place on its own (a Feistel network, walked until it lands inside: Black and Rogaway
    2002, "Ciphers with Arbitrary Finite Domains"), so that no process ever holds the whole permutation.
    """
    half = (max(count - 1, 1).bit_length() + 1) // 2
    keys = np.frombuffer(sha512(seed.encode()).digest(), dtype="<u8")
    result = _feistel(places.astype(np.uint64), half, keys)
    while len(outside := np.flatnonzero(result >= count)):
        result[outside] = _feistel(result[outside], half, keys)
    return result.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of [0, 4**half)."""
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (mixed(right ^ key) & mask)
    return (left << bits) | right


def mixed(values: np.ndarray) -> np.ndarray:
    """Numbers in which every bit depends on every bit of those given (SplitMix64: Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
