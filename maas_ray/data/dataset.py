"""The prepared dataset, as `prepare` commits it and `train` and `evaluate` read it.

    <storage>/datasets/<name>/current.json          {"fingerprint": …}: which one the name means
    <storage>/datasets/<name>/<fingerprint>/        an artefact of kind `dataset`
        task/                                       the fitted task, see `maas_ray.tasks`
        train/part-00000-<attempt>.parquet          stored columns, `index`, `position`, columns that are kept
        validation/…  test/…
        quarantine/part-<attempt>-….parquet         what could not be parsed: path, position, error, excerpt
        removed/part-<attempt>-….parquet            what was left out and why, and the rows that duplicates are like
        index/part-<attempt>-….parquet              what rows that come later are compared with, see `known`
        inputs/part-<attempt>.parquet               the input files, see `growth`
        profile.json                                what rows are like, see `maas_ray.data.profile`
        manifest.json
        work/                                       until it is committed: what is done so far, see `work`

`index` is a row's place in its split, from 0: it runs through the shards in their listed order, so a
range of indices is a range of the files. `position` is its place before the global shuffle: the rows of a
packed task, ordered by it, are its documents end to end; no reader needs it. Row groups are the unit of
reading; page checksums are verified on every read.
"""

import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from maas_ray import storage
from maas_ray.data.kept_columns import stored_columns
from maas_ray.errors import CorruptError, DataError, NotFoundError
from maas_ray.settings import Settings
from maas_ray.spec import Spec
from maas_ray.storage import Artifact, FileEntry
from maas_ray.tasks import Column, Task, load_task
from maas_ray.tasks.custom_task import check_unchanged
from maas_ray.user_code.trust import vouch, vouched

KIND = "dataset"
TASK_DIRECTORY = "task"
QUARANTINE_DIRECTORY = "quarantine"
REMOVED_DIRECTORY = "removed"
INDEX_DIRECTORY = "index"
INPUTS_DIRECTORY = "inputs"
SPLITS = ("train", "validation", "test")
POINTER = "current.json"


class Shard(Spec):
    """One Parquet file of a split."""

    path: str
    """Path inside the dataset."""
    start: int
    """Index of the first row."""
    row_groups: tuple[int, ...]
    """Rows in each row group."""

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


class Split(Spec):
    """The shards of one split, in index order."""

    shards: tuple[Shard, ...] = ()
    """In the order of their indices."""

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


class StoredColumn(Spec):
    """A stored column: a scalar, or an array's bytes in C order, little-endian."""

    dtype: str
    """Numpy dtype name."""
    shape: tuple[int, ...] = ()
    """Shape of one row's value."""


class Counts(Spec):
    """What became of every row that was read: dropped, duplicate, quarantined or kept."""

    read: int
    """Rows, documents or images read from the sources."""
    dropped: dict[str, int]
    """Rows left out, by reason, such as `empty`."""
    duplicates: int
    """Exact duplicates of another row that was kept."""
    near_duplicates: int = 0
    """Rows that are nearly the same as another that was kept."""
    quarantined: int
    """Rows that could not be parsed; they lie under `quarantine/` with their error."""
    kept: dict[str, int]
    """Rows kept, by split."""
    cleaned: dict[str, int] = {}
    """What cleaning changed in rows, by a few words each."""
    copies: int = 0
    """How often rows are stored again, by the weight of their source."""
    packed_units: dict[str, int] = {}
    """For packed tasks: elements (tokens) in each split's rows."""
    packed_dropped: dict[str, int] = {}
    """For packed tasks: elements of each split's last partial sequence, left out."""

    def adds_up(self) -> bool:
        """Whether every row that was read is accounted for."""
        out = sum(self.dropped.values()) + self.duplicates + self.near_duplicates + self.quarantined
        return self.read == out + sum(self.kept.values())

    def plus(self, other: "Counts") -> "Counts":
        """The counts of both together."""
        sums: dict[str, Any] = {}
        for name in Counts.model_fields:
            one, more = getattr(self, name), getattr(other, name)
            sums[name] = (
                {key: one.get(key, 0) + more.get(key, 0) for key in sorted({*one, *more})}
                if (isinstance(one, dict))
                else one + more
            )
        return Counts(**sums)


class DatasetMeta(Spec):
    """`meta` in a dataset's manifest."""

    name: str
    """Name it was prepared under."""
    fingerprint: str
    """Sha256 of the resolved spec and the content of every input file; of one that has grown, of the parent's
    fingerprint and the content of the new files."""
    spec: dict[str, Any]
    """The resolved prepare spec: somebody else's document to whoever reads a dataset."""
    columns: dict[str, StoredColumn]
    """Stored columns beside `index`."""
    splits: dict[str, Split]
    """Shards by split."""
    counts: Counts
    """What became of every row that was read."""
    kept: tuple[str, ...] = ()
    """Columns of the sources that were kept, see `maas_ray.data.kept_columns`."""
    cleaning: tuple[dict[str, Any], ...] = ()
    """The cleaning steps with their statistics, see `maas_ray.data.cleaning.saved`."""
    parent: str | None = None
    """Fingerprint of the dataset that this one has grown from. None: it was prepared from all its files."""
    grown: Counts | None = None
    """What became of the rows that came to the parent's."""
    recipe: str = ""
    """Sha256 of all that decides what a dataset holds but its files. Empty: of a dataset that cannot grow."""
    input: str = ""
    """Sha256 of the spec and the content of every input file, however it came to hold them."""
    parts: int = 0
    """Pieces that the input files were cut into: rows that come later are numbered after them."""


@dataclass(frozen=True)
class RowGroup:
    """The unit of reading: `group` of the shard at `path`; its rows have indices [start, start + rows)."""

    path: str
    group: int
    start: int
    rows: int


class PreparedDataset:
    """A committed dataset; picklable, cheap to send to a worker."""

    def __init__(self, artifact: Artifact, vouched: frozenset[str] = frozenset()) -> None:
        vouch(vouched)
        self.artifact = artifact
        self.meta = DatasetMeta.parse(artifact.meta, source=artifact.uri)

    def __reduce__(self) -> tuple[Any, ...]:
        return PreparedDataset, (self.artifact, vouched())

    @property
    def uri(self) -> str:
        return self.artifact.uri

    @property
    def name(self) -> str:
        return self.meta.name

    @property
    def fingerprint(self) -> str:
        return self.meta.fingerprint

    @property
    def columns(self) -> dict[str, Column]:
        return {name: Column(c.dtype, c.shape) for name, c in self.meta.columns.items()}

    @cached_property
    def task(self) -> Task:
        """The fitted task."""
        with tempfile.TemporaryDirectory() as directory:
            return load_task(self.fetch_task(Path(directory)))

    def fetch_task(self, directory: Path) -> Path:
        """The fitted task's files in a local directory."""
        paths = [e.path for e in self.artifact.files if e.path.startswith(TASK_DIRECTORY + "/")]
        return self.artifact.fetch(directory, paths) / TASK_DIRECTORY

    def check_unchanged(self) -> None:
        """See that the user's own code, where the task is of such, is what the dataset was prepared with.

        Raises:
            DataError: it was changed since.
        """
        with tempfile.TemporaryDirectory() as directory:
            check_unchanged(self.fetch_task(Path(directory)))

    def split(self, name: str) -> Split:
        """A split that has rows.

        Raises:
            DataError: it has none; names those that do.
        """
        split = self.meta.splits.get(name, Split())
        if not split.rows:
            filled = [key for key, value in self.meta.splits.items() if value.rows]
            raise DataError(f"dataset {self.name} has no rows in split {name!r}; it has {filled}.")
        return split

    def row_groups(self, split: str) -> list[RowGroup]:
        """Every row group of a split, in index order."""
        groups = []
        for shard in self.split(split).shards:
            start = shard.start
            for place, rows in enumerate(shard.row_groups):
                groups.append(RowGroup(shard.path, place, start, rows))
                start += rows
        return groups

    def row_group(self, split: str, number: int) -> RowGroup:
        """One row group of a split, by its place in index order."""
        shards = self.split(split).shards
        firsts = self._first_groups[split]
        place = bisect_right(firsts, number) - 1
        shard, group = shards[place], number - firsts[place]
        return RowGroup(shard.path, group, shard.start + sum(shard.row_groups[:group]), shard.row_groups[group])

    @cached_property
    def _first_groups(self) -> dict[str, list[int]]:
        """For each split the number of every shard's first row group."""
        return {
            name: [0, *accumulate(len(shard.row_groups) for shard in split.shards)][:-1]
            for name, split in self.meta.splits.items()
        }

    def group_sizes(self, split: str) -> np.ndarray:
        """Rows of every row group of a split, int64, in index order."""
        return np.array([rows for shard in self.split(split).shards for rows in shard.row_groups], np.int64)

    def check_kept(self, names: Iterable[str]) -> None:
        """Return if the dataset kept these columns of its sources.

        Raises:
            DataError: it did not; says which it has.
        """
        lacking = [name for name in names if name not in self.meta.kept]
        if lacking:
            known = ", ".join(self.meta.kept) or "none"
            raise DataError(
                f"dataset {self.name} kept no column {lacking[0]!r}; it kept: {known}. Prepare it with "
                f"`keep: [{', '.join([*self.meta.kept, *lacking])}]`."
            )

    def read(self, groups: list[RowGroup], kept: Iterable[str] = ()) -> Iterator[dict[str, np.ndarray]]:
        """The rows of each row group: every stored column [n, *shape], and `index` int64 [n].

        Columns that were `kept` come too where they are named, as `keeping.stored_columns` calls them.

        Raises:
            CorruptError: a page's checksum, or the number of rows, is not what was written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {**self.columns, **stored_columns(kept)}
        path: str | None = None
        file: Any = None
        handle: Any = None
        try:
            for group in groups:
                try:
                    if group.path != path:
                        if handle:
                            handle.close()
                        handle = storage.open_file(storage.join(self.uri, group.path))
                        path, file = group.path, pq.ParquetFile(handle, page_checksum_verification=True)
                    table = file.read_row_group(group.group, columns=["index", *columns])
                except (OSError, pa.ArrowInvalid) as error:
                    raise CorruptError(f"{self.uri}/{group.path}, row group {group.group}: {error}") from error
                if table.num_rows != group.rows:
                    raise CorruptError(
                        f"{self.uri}/{group.path}, row group {group.group}: {table.num_rows} rows, not {group.rows}."
                    )
                yield to_numpy(table, columns)
        finally:
            if handle:
                handle.close()

    def batches(
        self, groups: list[RowGroup], size: int, low: int = 0, high: int | None = None, kept: Iterable[str] = ()
    ) -> Iterator[dict[str, np.ndarray]]:
        """Those of the groups' rows whose index is in [low, high), `size` at a time; the last may be fewer."""
        end = sys.maxsize if high is None else high
        held: dict[str, np.ndarray] = {}
        for stored in self.read([one for one in groups if one.start < end and one.start + one.rows > low], kept):
            chosen = (stored["index"] >= low) & (stored["index"] < end)
            rows = {name: values[chosen] for name, values in stored.items()}
            held = {name: np.concatenate([held[name], rows[name]]) for name in rows} if held else rows
            whole = len(held["index"]) // size * size
            for start in range(0, whole, size):
                yield {name: values[start : start + size] for name, values in held.items()}
            held = {name: values[whole:] for name, values in held.items()}
        if held and len(held["index"]):
            yield held


def to_numpy(table: Any, columns: dict[str, Column]) -> dict[str, np.ndarray]:
    """An Arrow table of stored columns as arrays [n, *shape], which are the caller's own; `index` comes along."""
    batch = {}
    for name, column in {"index": Column("int64"), **columns}.items():
        values = table.column(name)
        array = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
        dtype, size = np.dtype(column.dtype), int(np.prod(column.shape))
        flat = np.frombuffer(array.buffers()[1], dtype, len(array) * size, array.offset * size * dtype.itemsize)
        batch[name] = flat.reshape(len(array), *column.shape).copy()
    return batch


def from_numpy(batch: dict[str, np.ndarray], columns: dict[str, Column]) -> Any:
    """The opposite of `to_numpy`: `index`, what else is in the batch, and the stored columns."""
    import pyarrow as pa

    arrays = {}
    for name, values in batch.items():
        kind = arrow_type(columns.get(name, Column("int64")))
        buffer = pa.py_buffer(np.ascontiguousarray(values, columns[name].dtype if name in columns else "int64"))
        arrays[name] = pa.Array.from_buffers(kind, len(values), [None, buffer])
    return pa.table(arrays)


def arrow_type(column: Column) -> Any:
    """The Arrow type of a stored column: a scalar, or fixed-size binary.

    Parquet has no arrays of a fixed shape: a list of numbers costs two levels and four bytes for each pixel
    or token, and is read three to twenty times slower than their bytes.
    """
    import pyarrow as pa

    dtype = np.dtype(column.dtype)
    return pa.binary(int(np.prod(column.shape)) * dtype.itemsize) if column.shape else pa.from_numpy_dtype(dtype)


def write_table(table: Any, uri: str, path: str, group_rows: int) -> FileEntry:
    """Write a Parquet file of a dataset; gives its entry in the manifest."""
    import pyarrow.parquet as pq

    with tempfile.NamedTemporaryFile(suffix=".parquet") as local:
        pq.write_table(
            table,
            local.name,
            row_group_size=group_rows,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
        return FileEntry(path, *storage.upload(Path(local.name), storage.join(uri, path)))


def dataset_home(settings: Settings, name: str) -> str:
    """The directory of all datasets of a name."""
    return storage.join(settings.storage, "datasets", name)


def read_pointer(home: str) -> str:
    """The fingerprint of the dataset that a name means.

    Raises:
        NotFoundError: there is none of this name.
        CorruptError: what says so is damaged.
    """
    uri = storage.join(home, POINTER)
    found = storage.read_json(uri)
    if not (isinstance(found, dict) and isinstance(found.get("fingerprint"), str)):
        raise CorruptError(f"{uri} names no dataset: {str(found)[:50]!r}. `maas prepare` writes it anew.")
    return str(found["fingerprint"])


def open_dataset(settings: Settings, name_or_uri: str) -> PreparedDataset:
    """A dataset by name (the one prepared last), by `name/fingerprint`, or by URI.

    Raises:
        NotFoundError: there is none; lists those there are.
    """
    if "://" in name_or_uri or name_or_uri.startswith((".", "/", "~")):
        return PreparedDataset(storage.open_artifact(name_or_uri, KIND))
    name, _, fingerprint = name_or_uri.partition("/")
    home = dataset_home(settings, name)
    if not fingerprint:
        try:
            fingerprint = read_pointer(home)
        except NotFoundError as error:
            known = storage.list_directory(storage.join(settings.storage, "datasets"))
            raise NotFoundError(
                f"there is no dataset {name!r}; there are: {', '.join(known) or 'none'}. "
                "Make one with `maas prepare SPEC.yaml`."
            ) from error
    return PreparedDataset(storage.open_artifact(storage.join(home, fingerprint[:16]), KIND))
