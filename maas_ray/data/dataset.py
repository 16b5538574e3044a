"""A prepared dataset: `prepare` commits it, `train` and `evaluate` read it.

    <storage>/datasets/<name>/current.json          {"fingerprint": …}: the current dataset of this name
    <storage>/datasets/<name>/<fingerprint>/        an artefact of kind `dataset`
        task/                                       the fitted task, see `maas_ray.tasks`
        train/part-00000-<attempt>.parquet          stored columns, `index`, `position`, kept columns
        validation/…  test/…
        quarantine/part-<attempt>-….parquet         rows that could not be parsed: path, position, error, excerpt
        removed/part-<attempt>-….parquet            dropped rows with the reason, and the rows kept for duplicates
        index/part-<attempt>-….parquet              the rows that later rows are compared with, see `pipeline.index`
        inputs/part-<attempt>.parquet               the input files, see `pipeline.growth`
        profile.json                                statistics of the rows, see `profile`
        manifest.json
        work/                                       until the commit: finished work, see `pipeline.resume_cache`

`index` is a row's index in its split, from 0. It runs through the shards in their listed order, so a range of indices
is a range of the files. `position` is the row's index before the global shuffle: the rows of a packed task, ordered by
position, are its documents end to end. No reader needs it. Row groups are the unit of reading, and page checksums are
verified on every read.
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
from maas_ray.data.known import names
from maas_ray.data.manifest import DatasetMeta, Split
from maas_ray.data.names import POINTER
from maas_ray.data.shards import to_numpy
from maas_ray.errors import CorruptError, DataError, NotFoundError
from maas_ray.settings import Settings
from maas_ray.storage import Artifact
from maas_ray.tasks import Column, Task, load_task
from maas_ray.tasks.custom_task import check_unchanged
from maas_ray.user_code.trust import vouch, vouched

KIND = "dataset"
TASK_DIRECTORY = "task"
QUARANTINE_DIRECTORY = "quarantine"
REMOVED_DIRECTORY = "removed"
INDEX_DIRECTORY = "index"
INPUTS_DIRECTORY = "inputs"


@dataclass(frozen=True)
class RowGroup:
    """The unit of reading: row group `group` of the shard at `path`. Its rows have indices [start, start + rows)."""

    path: str
    group: int
    start: int
    rows: int


class PreparedDataset:
    """A committed dataset. It is picklable and cheap to send to a worker."""

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
        """Check that a user-defined task is the one that the dataset was prepared with.

        Raises:
            DataError: the code was changed since.
        """
        with tempfile.TemporaryDirectory() as directory:
            check_unchanged(self.fetch_task(Path(directory)))

    def split(self, name: str) -> Split:
        """A split that has rows.

        Raises:
            DataError: the split is empty; names the splits that are not.
        """
        split = self.meta.splits.get(name, Split())
        if not split.rows:
            filled = [key for key, value in self.meta.splits.items() if value.rows]
            raise DataError(
                f"dataset {self.name} has no rows in split {name!r}; splits with rows: {', '.join(filled)}.",
                code="split_empty",
            )
        return split

    def row_groups(self, split: str) -> list[RowGroup]:
        """Every row group of a split, in index order."""
        groups = []
        for shard in self.split(split).shards:
            start = shard.start
            for number, rows in enumerate(shard.row_groups):
                groups.append(RowGroup(shard.path, number, start, rows))
                start += rows
        return groups

    def row_group(self, split: str, number: int) -> RowGroup:
        """One row group of a split, by its number in index order."""
        shards = self.split(split).shards
        firsts = self._first_groups[split]
        holder = bisect_right(firsts, number) - 1
        shard, group = shards[holder], number - firsts[holder]
        return RowGroup(shard.path, group, shard.start + sum(shard.row_groups[:group]), shard.row_groups[group])

    @cached_property
    def _first_groups(self) -> dict[str, list[int]]:
        """The number of every shard's first row group, by split."""
        return {
            name: [0, *accumulate(len(shard.row_groups) for shard in split.shards)][:-1]
            for name, split in self.meta.splits.items()
        }

    def group_sizes(self, split: str) -> np.ndarray:
        """Rows of every row group of a split, int64, in index order."""
        return np.array([rows for shard in self.split(split).shards for rows in shard.row_groups], np.int64)

    def check_kept(self, names: Iterable[str]) -> None:
        """Check that the dataset kept these columns of its sources.

        Raises:
            DataError: a column was not kept; names the columns that were.
        """
        missing = [name for name in names if name not in self.meta.kept]
        if missing:
            kept = ", ".join(self.meta.kept) or "none"
            raise DataError(
                f"dataset {self.name} did not keep the column {missing[0]!r}; kept columns: {kept}. Prepare it with "
                f"`keep: [{', '.join([*self.meta.kept, *missing])}]`.",
                code="column_not_kept",
            )

    def read(self, groups: list[RowGroup], kept: Iterable[str] = ()) -> Iterator[dict[str, np.ndarray]]:
        """The rows of each row group: every stored column [n, *shape], and `index` int64 [n].

        Args:
            groups: the row groups to read.
            kept: kept columns to read as well; they come by the names of `kept_columns.stored_columns`.

        Raises:
            CorruptError: a page's checksum, or the number of rows, differs from what was written.
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
                    place = f"{self.uri}/{group.path}, row group {group.group}"
                    raise CorruptError(f"{place}: {error}") from error
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
        """The rows of the groups with an index in [low, high), `size` rows at a time; the last batch may be smaller."""
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


def dataset_home(settings: Settings, name: str) -> str:
    """The directory of all datasets of a name."""
    return storage.join(settings.storage, "datasets", name)


def read_pointer(home: str) -> str:
    """The fingerprint of the current dataset of a name.

    Raises:
        NotFoundError: there is no dataset of this name.
        CorruptError: the pointer is damaged.
    """
    uri = storage.join(home, POINTER)
    pointer = storage.read_json(uri)
    if not (isinstance(pointer, dict) and isinstance(pointer.get("fingerprint"), str)):
        raise CorruptError(f"{uri} does not name a dataset: {str(pointer)[:50]!r}. Run `maas prepare` to rewrite it.")
    return str(pointer["fingerprint"])


def open_dataset(settings: Settings, name_or_uri: str) -> PreparedDataset:
    """A dataset by name (the one prepared last), by `name/fingerprint`, or by URI.

    Raises:
        NotFoundError: there is no such dataset; lists the datasets that exist.
    """
    if "://" in name_or_uri or name_or_uri.startswith((".", "/", "~")):
        return PreparedDataset(storage.open_artifact(name_or_uri, KIND))
    name, _, fingerprint = name_or_uri.partition("/")
    home = dataset_home(settings, name)
    if not fingerprint:
        try:
            fingerprint = read_pointer(home)
        except NotFoundError as error:
            known = names(storage.join(settings.storage, "datasets"))
            raise NotFoundError(
                f"dataset {name!r} not found; datasets: {', '.join(known) or 'none'}. "
                "Create it with `maas prepare SPEC.yaml`.",
                code="dataset_not_found",
            ) from error
    return PreparedDataset(storage.open_artifact(storage.join(home, fingerprint[:16]), KIND))
