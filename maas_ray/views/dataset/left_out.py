"""What a dataset left out, from its `removed/` and `quarantine/`: a few of each kind, chosen the same each time.

There may be many millions of such rows: of all only three small columns are read, a row group at a time, and of those
only as many as `_MOST_ROWS`; whole rows come from the row groups that hold one that was chosen.
"""

import heapq
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from maas_ray import storage
from maas_ray.data.dataset import QUARANTINE_DIRECTORY, REMOVED_DIRECTORY, PreparedDataset
from maas_ray.errors import CorruptError
from maas_ray.views.dataset.escape import legible_bytes
from maas_ray.views.dataset.origin import without_secrets

if TYPE_CHECKING:
    import pyarrow as pa

KEPT, DUPLICATE, NEAR_DUPLICATE = "", "duplicate", "near-duplicate"
_MOST_ROWS = 5_000_000
_MOST_KINDS = 10_000


@dataclass(frozen=True)
class Row:
    """A row that was read, and where it stood."""

    path: str
    position: int
    excerpt: str
    """How it begins."""

    @property
    def place(self) -> str:
        """Such as `docs/a.jsonl:12`."""
        return f"{self.path}:{self.position}" if self.position else self.path


@dataclass(frozen=True)
class Pair:
    """A row that was left out, and the one that is kept in its place; None: that one was not found."""

    out: Row
    kept: Row | None


@dataclass(frozen=True)
class Group:
    """A row that is kept in place of others; `others`: how many of them."""

    kept: Row | None
    others: int


@dataclass(frozen=True)
class Broken:
    """Rows in quarantine for one reason; errors that differ in numbers alone are one."""

    error: str
    """One of them."""
    rows: int
    example: Row


@dataclass(frozen=True)
class LeftOut:
    """A few rows of each fate.

    Args:
        pairs: of duplicates and near-duplicates, by fate.
        groups: the rows that most others are like.
        others: of all other fates.
        broken: the commonest errors.
        seen: rows of `removed/` and `quarantine/` that were looked at; `whole`: whether those are all.
    """

    pairs: dict[str, list[Pair]]
    groups: list[Group]
    others: dict[str, list[Row]]
    broken: list[Broken]
    seen: int
    whole: bool


def left_out(dataset: PreparedDataset, examples: int) -> LeftOut:
    """What a dataset left out, up to so many rows of each fate.

    Raises:
        CorruptError: a file is damaged.
    """
    chosen, likes, groups, seen = _chosen(dataset, examples)
    kept = {*likes.values(), *(row for row, _ in groups)}
    found = _rows(dataset, kept.union(*chosen.values()), kept)
    pairs: dict[str, list[Pair]] = {}
    others: dict[str, list[Row]] = {}
    for fate, rows in sorted(chosen.items()):
        if fate in (DUPLICATE, NEAR_DUPLICATE):
            pairs[fate] = [Pair(found[row], found.get(likes.get(row, -1))) for row in rows if row in found]
        else:
            others[fate] = [found[row] for row in rows if row in found]
    broken, more = _broken(dataset, examples)
    grouped = [Group(found.get(row), count) for row, count in groups]
    return LeftOut(pairs, grouped, others, broken, seen + more, max(seen, more) < _MOST_ROWS)


Chosen = dict[str, list[int]]


def _chosen(dataset: PreparedDataset, examples: int) -> tuple[Chosen, dict[int, int], list[tuple[int, int]], int]:
    """Of each fate the numbers of those rows whose hashes are lowest: any rows, but always the same.

    Returns:
        the numbers by fate; of duplicates among them, the number of the row that is kept; the rows that most are like,
        with how many; and how many rows were seen.
    """
    lowest: dict[str, list[tuple[int, int, int]]] = {}  # heaps of (-hash, row, like)
    alike = [np.zeros(0, np.int64)]
    seen = 0
    for table in _tables(dataset, REMOVED_DIRECTORY, ["row", "fate", "like"]):
        seen += len(table)
        coded = table["fate"].combine_chunks().dictionary_encode()
        numbers, likes = table["row"].to_numpy(), table["like"].fill_null(-1).to_numpy()
        hashes, places = _hashed(numbers), coded.indices.to_numpy()
        for code, fate in enumerate(coded.dictionary.to_pylist()):
            if fate == KEPT:
                continue
            of_fate = np.flatnonzero(places == code)
            heap = lowest.setdefault(fate, [])
            for place in of_fate[np.argsort(hashes[of_fate], kind="stable")[:examples]]:
                heapq.heappush(heap, (-int(hashes[place]), int(numbers[place]), int(likes[place])))
                if len(heap) > examples:
                    heapq.heappop(heap)
            if fate in (DUPLICATE, NEAR_DUPLICATE):
                alike.append(likes[of_fate])
        if seen >= _MOST_ROWS:
            break
    chosen = {fate: [row for _, row, _ in sorted(heap, reverse=True)] for fate, heap in lowest.items()}
    pairs = {row: like for heap in lowest.values() for _, row, like in heap if like >= 0}
    kept, counts = np.unique(np.concatenate(alike), return_counts=True)
    most = [place for place in np.argsort(-counts, kind="stable")[:examples] if counts[place] > 1]
    return chosen, pairs, [(int(kept[place]), int(counts[place])) for place in most], seen


def _hashed(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64's mixing of the numbers of rows (Steele, Lea and Flood, OOPSLA 2014), 63 bits of it."""
    with np.errstate(over="ignore"):
        mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed >> np.uint64(1)


def _rows(dataset: PreparedDataset, wanted: set[int], kept: set[int]) -> dict[int, Row]:
    """Rows of `removed/` by their number, as far as they are found among the first `_MOST_ROWS`.

    Those that are `kept` may be named twice where a dataset has grown: as they were read, and later by their number
    alone. What shows how a row begins is taken, whichever comes first.
    """
    found: dict[int, Row] = {}
    left = np.array(sorted(wanted), np.int64)
    seen = 0
    for group in _groups(dataset, REMOVED_DIRECTORY):
        if not len(left) or seen >= _MOST_ROWS:
            break
        rows = group.read(["row"])["row"].to_numpy()
        seen += len(rows)
        places = np.flatnonzero(np.isin(rows, left))
        if not len(places):
            continue
        for record in group.read(["row", "path", "position", "excerpt"]).take(places).to_pylist():
            if record["excerpt"] or record["row"] not in found:
                found[record["row"]] = _row(record)
        left = left[[row not in found or (row in kept and not found[row].excerpt) for row in left.tolist()]]
    return found


def _broken(dataset: PreparedDataset, examples: int) -> tuple[list[Broken], int]:
    """The commonest errors, each with the first row in order of path and position; and how many rows were seen."""
    counts = Counter[str]()
    first: dict[str, tuple[str, int, str, bytes]] = {}
    seen = 0
    for table in _tables(dataset, QUARANTINE_DIRECTORY, ["path", "position", "rows", "error", "excerpt"]):
        seen += len(table)
        for record in table.to_pylist():
            kind = re.sub(r"0x[0-9a-f]+|\d+", "#", record["error"])
            if kind not in counts and len(counts) >= _MOST_KINDS:
                kind = "…"
            counts[kind] += record["rows"]
            here = record["path"], record["position"], record["error"], record["excerpt"] or b""
            first[kind] = min(first.get(kind, here), here)
        if seen >= _MOST_ROWS:
            break
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:examples]
    found = []
    for kind, rows in common:
        path, position, error, excerpt = first[kind]
        found.append(
            Broken(without_secrets(error), rows, _row({"path": path, "position": position, "excerpt": excerpt}))
        )
    return found, seen


def _row(record: dict[str, Any]) -> Row:
    return Row(without_secrets(record["path"]), record["position"], legible_bytes(record["excerpt"] or b""))


def _tables(dataset: PreparedDataset, directory: str, columns: list[str]) -> Iterator["pa.Table"]:
    for group in _groups(dataset, directory):
        yield group.read(columns)


class _Group(NamedTuple):
    """A row group of a file of a dataset."""

    uri: str
    file: Any
    number: int

    def read(self, columns: list[str]) -> "pa.Table":
        with _told(self.uri):
            return self.file.read_row_group(self.number, columns=columns)


def _groups(dataset: PreparedDataset, directory: str) -> Iterator[_Group]:
    """Every row group below a directory, file by file."""
    import pyarrow.parquet as pq

    for path in sorted(entry.path for entry in dataset.artifact.files if entry.path.startswith(f"{directory}/")):
        uri = storage.join(dataset.uri, path)
        with storage.open_file(uri) as handle:
            with _told(uri):
                file = pq.ParquetFile(handle, page_checksum_verification=True)
            for number in range(file.num_row_groups):
                yield _Group(uri, file, number)


@contextmanager
def _told(uri: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise CorruptError(f"{uri}: {error}") from error
