"""Dropped rows of a dataset, from its `removed/` and `quarantine/`: a few for each reason, the same ones each time.

There can be many millions of dropped rows. So three small columns are read, one row group at a time, of at most
`_MAX_ROWS` rows. Whole rows are read only from row groups with a chosen row.
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
from maas_ray.views.dataset.escape import escaped_bytes
from maas_ray.views.dataset.origin import without_secrets

if TYPE_CHECKING:
    import pyarrow as pa

KEPT, DUPLICATE, NEAR_DUPLICATE = "", "duplicate", "near-duplicate"
_MAX_ROWS = 5_000_000
_MAX_ERRORS = 10_000


@dataclass(frozen=True)
class Row:
    """A row that was read, and its position in the input."""

    path: str
    position: int
    excerpt: str
    """The beginning of its content."""

    @property
    def place(self) -> str:
        """Its path and position, as in `docs/a.jsonl:12`."""
        return f"{self.path}:{self.position}" if self.position else self.path


@dataclass(frozen=True)
class Pair:
    """A dropped row and the row that is kept in its place. None: the kept row was not found."""

    out: Row
    kept: Row | None


@dataclass(frozen=True)
class Group:
    """A row that is kept in place of duplicates, and the number of duplicates."""

    kept: Row | None
    others: int


@dataclass(frozen=True)
class QuarantineError:
    """Rows in quarantine with one error. Errors that differ only in numbers are the same error."""

    error: str
    """The error of one of the rows."""
    rows: int
    example: Row


@dataclass(frozen=True)
class Dropped:
    """A few dropped rows for each reason.

    Args:
        pairs: duplicates and near-duplicates, by kind, with the rows that are kept.
        groups: the rows with the most duplicates.
        others: rows dropped for other reasons, by reason.
        broken: the most frequent errors of quarantined rows.
        seen: the number of rows of `removed/` and `quarantine/` that were read.
        whole: true if these are all such rows.
    """

    pairs: dict[str, list[Pair]]
    groups: list[Group]
    others: dict[str, list[Row]]
    broken: list[QuarantineError]
    seen: int
    whole: bool


def dropped_rows(dataset: PreparedDataset, examples: int) -> Dropped:
    """Dropped rows of a dataset, at most `examples` for each reason.

    Raises:
        CorruptError: a file is damaged.
    """
    chosen, likes, groups, seen = _chosen(dataset, examples)
    kept = {*likes.values(), *(row for row, _ in groups)}
    by_index = _rows(dataset, kept.union(*chosen.values()), kept)
    pairs: dict[str, list[Pair]] = {}
    others: dict[str, list[Row]] = {}
    for outcome, rows in sorted(chosen.items()):
        if outcome in (DUPLICATE, NEAR_DUPLICATE):
            pairs[outcome] = [Pair(by_index[row], by_index.get(likes.get(row, -1))) for row in rows if row in by_index]
        else:
            others[outcome] = [by_index[row] for row in rows if row in by_index]
    broken, more = _broken(dataset, examples)
    grouped = [Group(by_index.get(row), count) for row, count in groups]
    return Dropped(pairs, grouped, others, broken, seen + more, max(seen, more) < _MAX_ROWS)


Chosen = dict[str, list[int]]


def _chosen(dataset: PreparedDataset, examples: int) -> tuple[Chosen, dict[int, int], list[tuple[int, int]], int]:
    """The rows with the lowest hashes for each reason, which is an arbitrary choice but always the same.

    Returns:
        The indices of rows by reason; for duplicates among them, the index of the row that is kept; the rows with the
        most duplicates, with their number; and the number of rows that were read.
    """
    lowest: dict[str, list[tuple[int, int, int]]] = {}  # heaps of (-hash, row, like)
    alike = [np.zeros(0, np.int64)]
    seen = 0
    for table in _tables(dataset, REMOVED_DIRECTORY, ["row", "fate", "like"]):
        seen += len(table)
        coded = table["fate"].combine_chunks().dictionary_encode()
        numbers, likes = table["row"].to_numpy(), table["like"].fill_null(-1).to_numpy()
        hashes, codes = _hashed(numbers), coded.indices.to_numpy()
        for code, outcome in enumerate(coded.dictionary.to_pylist()):
            if outcome == KEPT:
                continue
            of_fate = np.flatnonzero(codes == code)
            heap = lowest.setdefault(outcome, [])
            for index in of_fate[np.argsort(hashes[of_fate], kind="stable")[:examples]]:
                heapq.heappush(heap, (-int(hashes[index]), int(numbers[index]), int(likes[index])))
                if len(heap) > examples:
                    heapq.heappop(heap)
            if outcome in (DUPLICATE, NEAR_DUPLICATE):
                alike.append(likes[of_fate])
        if seen >= _MAX_ROWS:
            break
    chosen = {outcome: [row for _, row, _ in sorted(heap, reverse=True)] for outcome, heap in lowest.items()}
    pairs = {row: like for heap in lowest.values() for _, row, like in heap if like >= 0}
    kept, counts = np.unique(np.concatenate(alike), return_counts=True)
    most = [index for index in np.argsort(-counts, kind="stable")[:examples] if counts[index] > 1]
    return chosen, pairs, [(int(kept[index]), int(counts[index])) for index in most], seen


def _hashed(numbers: np.ndarray) -> np.ndarray:
    """63 bits of SplitMix64's hash of row indices (Steele, Lea and Flood, OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed >> np.uint64(1)


def _rows(dataset: PreparedDataset, wanted: set[int], kept: set[int]) -> dict[int, Row]:
    """Rows of `removed/` by index, as far as they are among the first `_MAX_ROWS`.

    A `kept` row can be recorded twice if a dataset has grown: once in full, and later by its index alone. The record
    with an excerpt is taken, whichever comes first.
    """
    by_index: dict[int, Row] = {}
    left = np.array(sorted(wanted), np.int64)
    seen = 0
    for group in _groups(dataset, REMOVED_DIRECTORY):
        if not len(left) or seen >= _MAX_ROWS:
            break
        rows = group.read(["row"])["row"].to_numpy()
        seen += len(rows)
        places = np.flatnonzero(np.isin(rows, left))
        if not len(places):
            continue
        for record in group.read(["row", "path", "position", "excerpt"]).take(places).to_pylist():
            if record["excerpt"] or record["row"] not in by_index:
                by_index[record["row"]] = _row(record)
        left = left[[row not in by_index or (row in kept and not by_index[row].excerpt) for row in left.tolist()]]
    return by_index


def _broken(dataset: PreparedDataset, examples: int) -> tuple[list[QuarantineError], int]:
    """The most frequent errors, each with its first row by path and position; and the number of rows that were read."""
    counts = Counter[str]()
    first: dict[str, tuple[str, int, str, bytes]] = {}
    seen = 0
    for table in _tables(dataset, QUARANTINE_DIRECTORY, ["path", "position", "rows", "error", "excerpt"]):
        seen += len(table)
        for record in table.to_pylist():
            kind = re.sub(r"0x[0-9a-f]+|\d+", "#", record["error"])
            if kind not in counts and len(counts) >= _MAX_ERRORS:
                kind = "…"
            counts[kind] += record["rows"]
            here = record["path"], record["position"], record["error"], record["excerpt"] or b""
            first[kind] = min(first.get(kind, here), here)
        if seen >= _MAX_ROWS:
            break
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:examples]
    errors = []
    for kind, rows in common:
        path, position, error, excerpt = first[kind]
        errors.append(
            QuarantineError(
                without_secrets(error), rows, _row({"path": path, "position": position, "excerpt": excerpt})
            )
        )
    return errors, seen


def _row(record: dict[str, Any]) -> Row:
    return Row(without_secrets(record["path"]), record["position"], escaped_bytes(record["excerpt"] or b""))


def _tables(dataset: PreparedDataset, directory: str, columns: list[str]) -> Iterator["pa.Table"]:
    for group in _groups(dataset, directory):
        yield group.read(columns)


class _Group(NamedTuple):
    """A row group of one file."""

    uri: str
    file: Any
    number: int

    def read(self, columns: list[str]) -> "pa.Table":
        with _translated(self.uri):
            return self.file.read_row_group(self.number, columns=columns)


def _groups(dataset: PreparedDataset, directory: str) -> Iterator[_Group]:
    """Every row group below a directory, file by file."""
    import pyarrow.parquet as pq

    for path in sorted(entry.path for entry in dataset.artifact.files if entry.path.startswith(f"{directory}/")):
        uri = storage.join(dataset.uri, path)
        with storage.open_file(uri) as handle:
            with _translated(uri):
                file = pq.ParquetFile(handle, page_checksum_verification=True)
            for number in range(file.num_row_groups):
                yield _Group(uri, file, number)


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise CorruptError(f"{uri}: {error}", code="damaged_parquet") from error
