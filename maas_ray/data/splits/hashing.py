"""Hashes that place a row: digests of its content, sort keys, and a seeded shuffle. Pure functions.

Nothing here depends on when, by which process or from which file a row was read. Therefore the same input gives the
same dataset on one core and on a thousand, and equal inputs are never in two splits.
"""

import json
from collections.abc import Iterable
from hashlib import sha256, sha512

import numpy as np
import pyarrow as pa

from maas_ray.tasks import Row

SPLIT_BITS = 61
"""A sort key is the split's number, above this many bits of the row's digest."""
_JSON = json.JSONEncoder(sort_keys=True)  # `json.dumps` would create an encoder for each call


def content_digest(row: Row, columns: Iterable[str]) -> bytes:
    """Sha256 of a parsed row's values in these columns.

    Raises:
        ValueError: a string contains half a surrogate pair, which cannot be encoded.
    """
    return sha256(b"".join([content_bytes(row[column]) for column in columns])).digest()


def content_bytes(value: object) -> bytes:
    """The bytes of a value that digests are computed from: its parts, each after its length.

    Raises:
        ValueError: a string contains half a surrogate pair.
    """
    return b"".join([len(part).to_bytes(8, "little") + part for part in _bytes(value)])


def _bytes(value: object) -> tuple[bytes, ...]:
    """The type and the content of a value. Values of different types have different bytes."""
    if isinstance(value, str):
        return b"str", value.encode()
    if isinstance(value, bytes):
        return b"bytes", value
    if isinstance(value, np.ndarray):
        return b"array", f"{value.dtype.str}{value.shape}".encode(), value.tobytes()
    if isinstance(value, dict):  # JSON lines and some tables leave out what others store as null
        value = {name: item for name, item in value.items() if item is not None}
    written = _JSON.encode(value)
    if "\\ud" in written:  # an escape of a pair is a character, half of one is an error as in a string
        json.dumps(value, ensure_ascii=False).encode()
    return b"json", written.encode()


def words_of(digests: pa.ChunkedArray) -> np.ndarray:
    """The bits of digests of 32 bytes as signed numbers, int64 [n, 4]; the first is `leading`."""
    column = digests.combine_chunks()
    content = np.frombuffer(column.buffers()[1], ">i8") if len(column) else np.zeros(0, ">i8")
    return content.reshape(-1, 4)[column.offset : column.offset + len(column)].astype(np.int64)


def leading(digest: bytes) -> int:
    """The first 64 bits of a digest, as a signed number."""
    return int.from_bytes(digest[:8], "big", signed=True)


def fraction(values: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) for sampling rows, from int64 hashes. They are independent of the rows' splits."""
    return (mixed(values.view(np.uint64).copy()) >> np.uint64(11)).astype(np.float64) / 2**53


def sort_key(split: int, digest: bytes) -> int:
    """A number that sorts rows by split, then by content."""
    return split << SPLIT_BITS | int.from_bytes(digest[:8], "big") >> (64 - SPLIT_BITS)


def shuffled(places: np.ndarray, count: int, seed: str) -> np.ndarray:
    """The values of a permutation of [0, count), drawn by the seed, at the given places.

    Each value is computed by itself (a Feistel network, walked until it lands inside: Black and Rogaway
    2002, "Ciphers with Arbitrary Finite Domains"), so that no process holds the whole permutation.
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
    """Mixed numbers: each bit depends on every bit of the input (SplitMix64: Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
