"""What an attempt has done so far, kept until the dataset is committed, so that one that was interrupted goes on.

    <storage>/datasets/<name>/<fingerprint>/work/<cut>/read/<part>-<hash>.arrow       rows as they were read and cleaned
                                                      fitted/task-<hash>.arrow        the fitted task
                                                      encoded/<key>-<hash>.arrow      rows as they were encoded

A step over blocks is wrapped (`once`): where what it makes of a block lies there whole it is loaded, else it is made
and put there, atomically, under a name that says what it holds. So going on needs no log, and attempts at the same
time do each other no harm: they put the same files. How the work is cut is part of the directory's name, and an attempt
that finds a cut takes it, whatever its cluster is like. Blocks go by what they begin and end with.

Rows lie there pickled, and whoever may write to the storage could put other bytes there: files are read only if they
hold plain values, see `_plain`.
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
from maas_ray.data.pipeline.row_steps import KEPT
from maas_ray.data.pipeline.rows import raw_of
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
"""What values of rows may be made of beside Python's own types of data."""


@dataclass(frozen=True)
class Work:
    """What is kept of one cut of the work.

    Args:
        uri: its directory.
        found: names of the files that were there at the start, by stage and key.
    """

    uri: str
    found: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def open(cls, dataset: str, blocks: int, *, chosen: bool, schema: Any) -> tuple["Work", int]:
        """The work on a dataset, and the number of blocks that it is cut into.

        Args:
            dataset: its URI.
            blocks: how many this attempt would cut it into.
            chosen: whether it must be so many; else those of an attempt before are taken.
            schema: of what is kept; of another one nothing is used.
        """
        home = storage.join(dataset, WORK_DIRECTORY)
        tag = digest_of([__version__, str(schema)])[:8]
        cuts = [name for name in storage.list_directory(home) if name.endswith(f"-{tag}")]
        works = [cls(storage.join(home, name))._listed() for name in cuts if not chosen or int(name[:-9]) == blocks]
        if works:
            most = max(works, key=lambda work: (len(work.found), work.uri))
            return most, int(most.uri.rpartition("/")[2][:-9])
        return cls(storage.join(home, f"{blocks}-{tag}")), blocks

    def _listed(self) -> "Work":
        found: dict[tuple[str, str], str] = {}
        for stage in _STAGES:
            for name in storage.list_directory(storage.join(self.uri, stage)):
                if name.endswith(_SUFFIX) and not name.startswith("."):
                    found.setdefault((stage, name.rpartition("-")[0]), name)
        return Work(self.uri, found)

    def count(self, stage: str) -> int:
        """How many blocks were there at the start."""
        return sum(kept == stage for kept, _ in self.found)

    def load(self, stage: str, key: str) -> list[pa.Table] | None:
        """What was kept, or None: it was not, it is not whole, or holds what no row does."""
        name = self.found.get((stage, key))
        if name is None:
            return None
        try:
            content = storage.read_bytes(storage.join(self.uri, stage, name))
        except NotFoundError:  # an attempt that was faster has committed, and removed it
            return None
        if xxhash.xxh3_128_hexdigest(content) != name.removesuffix(_SUFFIX).rpartition("-")[2]:
            return None
        with pa.ipc.open_stream(content) as reader:
            tables = [pa.Table.from_batches([batch]) for batch in reader]
        return tables if all(_plain(table) for table in tables if stage == READ) else None

    def keep(self, stage: str, key: str, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The tables as they come; when all have come, they are put there."""
        with tempfile.TemporaryDirectory() as directory:
            local = Path(directory) / "tables"
            writer: Any = None
            try:
                for table in tables:
                    if writer is None:
                        options = pa.ipc.IpcWriteOptions(compression=_COMPRESSION)
                        writer = pa.ipc.new_stream(str(local), table.schema, options=options)
                    # One batch a table, so that they come back as they were.
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


def once(
    block: pa.Table,
    step: Callable[[pa.Table], Iterator[pa.Table]],
    key: Callable[[pa.Table], str],
    stage: str,
    work: Work,
) -> Iterator[pa.Table]:
    """What a step makes of a block, or made of it before."""
    name = key(block)
    before = work.load(stage, name)
    yield from before if before is not None else work.keep(stage, name, step(block))


def remove(dataset: str) -> None:
    """Remove all that is kept; where nothing else lies in the dataset's directory, this too."""
    with suppress(MaasError):
        storage.delete(storage.join(dataset, WORK_DIRECTORY))
        if not storage.list_directory(dataset):
            storage.delete(dataset)


def files_table(files: dict[str, bytes]) -> pa.Table:
    """Files as a table, to be kept."""
    return pa.table(
        {"path": pa.array(list(files), pa.string()), "content": pa.array(files.values(), pa.large_binary())}
    )


def files_of(table: pa.Table) -> dict[str, bytes]:
    """The opposite of `files_table`."""
    return dict(zip(table["path"].to_pylist(), table["content"].to_pylist(), strict=True))


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _PLAIN:
            raise pickle.UnpicklingError(f"{module}.{name} is no value of a row")
        return super().find_class(module, name)


def _plain(rows: pa.Table) -> bool:
    """Whether nothing but values comes of unpickling what is kept; what else has a payload, has an excerpt there."""
    try:
        kept = rows.filter(pc.equal(rows["fate"], KEPT))
        for shape, payload in zip(kept["shape"].to_pylist(), kept["payload"].to_pylist(), strict=True):
            raw_of(shape, payload, lambda content: _Plain(io.BytesIO(content)).load())
    except Exception:  # bytes that are no pickle may raise anything
        return False
    return True
