"""Cache of finished work, kept until the dataset is committed, so that an interrupted attempt can resume.

    <storage>/datasets/<name>/<fingerprint>/work/<cut>/read/<part>-<hash>.arrow       rows that were read and cleaned
                                                      fitted/task-<hash>.arrow        the fitted task
                                                      encoded/<key>-<hash>.arrow      rows that were encoded

`cached` wraps a step over blocks. If the step's whole result for a block is in the cache, it is loaded; else it is
computed and stored atomically, under a name that contains its hash. Therefore resuming needs no log, and concurrent
attempts do not disturb each other: storing is idempotent. The way the work is cut into blocks is part of the
directory's name, and an attempt takes over the cut of an earlier attempt, whatever its own cluster is like. Blocks are
named by their first and last rows.

Rows in the cache are pickled, and anybody who may write to the storage could replace them. Therefore files are read
only if they contain plain values, see `_plain`.
"""

import io
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from maas_ray import storage
from maas_ray.data.pipeline.rows import KEPT, raw_of
from maas_ray.errors import MaasError, NotFoundError
from maas_ray.spec import digest_of
from maas_ray.version import __version__

WORK_DIRECTORY = "work"
READ, FITTED, ENCODED = "read", "fitted", "encoded"
_STAGES = (READ, FITTED, ENCODED)
_SUFFIX = ".arrow"
_COMPRESSION = "zstd"
_PLAIN = {("datetime", name) for name in ("date", "datetime", "time", "timedelta", "timezone")} | {
    ("decimal", "Decimal"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("uuid", "UUID"),
    ("uuid", "SafeUUID"),
    ("zoneinfo", "ZoneInfo._unpickle"),
}
"""Types that values of rows may have beside Python's built-in ones."""


@dataclass(frozen=True)
class ResumeCache:
    """The cache for one cut of the work.

    Args:
        uri: its directory.
        names: names of the files that existed at the start, by stage and key.
    """

    uri: str
    names: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def open(cls, dataset: str, blocks: int, *, chosen: bool, schema: Any) -> tuple["ResumeCache", int]:
        """The cache of a dataset, and the number of blocks that the work is cut into.

        Args:
            dataset: URI of the dataset.
            blocks: number of blocks that this attempt would cut the work into.
            chosen: whether that number is required. Otherwise the cut of an earlier attempt is taken over.
            schema: schema of the entries. Entries of another schema are not used.
        """
        home = storage.join(dataset, WORK_DIRECTORY)
        tag = digest_of([__version__, str(schema)])[:8]
        cuts = [name for name in storage.list_directory(home) if name.endswith(f"-{tag}")]
        caches = [cls(storage.join(home, name))._listed() for name in cuts if not chosen or int(name[:-9]) == blocks]
        if caches:
            fullest = max(caches, key=lambda cache: (len(cache.names), cache.uri))
            return fullest, int(fullest.uri.rpartition("/")[2][:-9])
        return cls(storage.join(home, f"{blocks}-{tag}")), blocks

    def _listed(self) -> "ResumeCache":
        names: dict[tuple[str, str], str] = {}
        for stage in _STAGES:
            for name in storage.list_directory(storage.join(self.uri, stage)):
                if name.endswith(_SUFFIX) and not name.startswith("."):
                    names.setdefault((stage, name.rpartition("-")[0]), name)
        return ResumeCache(self.uri, names)

    def count(self, stage: str) -> int:
        """Number of blocks in the cache at the start."""
        return sum(cached == stage for cached, _ in self.names)

    def load(self, stage: str, key: str) -> list[pa.Table] | None:
        """The cached tables. None if there are none, the file is damaged, or it contains values that no row has."""
        name = self.names.get((stage, key))
        if name is None:
            return None
        try:
            content = storage.read_bytes(storage.join(self.uri, stage, name))
        except NotFoundError:  # a faster attempt has committed and removed the cache
            return None
        if xxhash.xxh3_128_hexdigest(content) != name.removesuffix(_SUFFIX).rpartition("-")[2]:
            return None
        with pa.ipc.open_stream(content) as reader:
            tables = [pa.Table.from_batches([batch]) for batch in reader]
        return tables if all(_plain(table) for table in tables if stage == READ) else None

    def store(self, stage: str, key: str, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Yield the tables as they come, and store them after the last one."""
        with tempfile.TemporaryDirectory() as directory:
            local = Path(directory) / "tables"
            writer: Any = None
            try:
                for table in tables:
                    if writer is None:
                        options = pa.ipc.IpcWriteOptions(compression=_COMPRESSION)
                        writer = pa.ipc.new_stream(str(local), table.schema, options=options)
                    # One batch for each table, so that `load` gives the same tables.
                    writer.write_table(table.combine_chunks())
                    yield table
            finally:
                if writer is not None:
                    writer.close()
            if writer is not None:
                with local.open("rb") as opened:
                    digest = xxhash.xxh3_128()
                    while chunk := opened.read(1 << 20):
                        digest.update(chunk)
                storage.upload(local, storage.join(self.uri, stage, f"{key}-{digest.hexdigest()}{_SUFFIX}"))


def cached(
    block: pa.Table,
    step: Callable[[pa.Table], Iterator[pa.Table]],
    key: Callable[[pa.Table], str],
    stage: str,
    cache: ResumeCache,
) -> Iterator[pa.Table]:
    """The result of a step for a block, from the cache if it is there."""
    name = key(block)
    before = cache.load(stage, name)
    yield from before if before is not None else cache.store(stage, name, step(block))


def remove(dataset: str) -> None:
    """Remove the cache, and the dataset's directory if nothing else is in it."""
    with suppress(MaasError):
        storage.delete(storage.join(dataset, WORK_DIRECTORY))
        if not storage.list_directory(dataset):
            storage.delete(dataset)


def files_table(files: dict[str, bytes]) -> pa.Table:
    """Files as a table, for the cache."""
    return pa.table(
        {"path": pa.array(list(files), pa.string()), "content": pa.array(files.values(), pa.large_binary())}
    )


def files_of(table: pa.Table) -> dict[str, bytes]:
    """The inverse of `files_table`."""
    return dict(zip(table["path"].to_pylist(), table["content"].to_pylist(), strict=True))


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"{module}.{name} is not a type of a row's value")
        return super().find_class(module, name)


def _plain(rows: pa.Table) -> bool:
    """True if unpickling the kept rows gives plain values only. The payload of any other row is an excerpt."""
    try:
        pickled = rows.filter(pc.equal(rows["fate"], KEPT))
        for shape, payload in zip(pickled["shape"].to_pylist(), pickled["payload"].to_pylist(), strict=True):
            raw_of(shape, payload, lambda content: _Plain(io.BytesIO(content)).load())
    except Exception:  # unpickling arbitrary bytes may raise anything
        return False
    return True
