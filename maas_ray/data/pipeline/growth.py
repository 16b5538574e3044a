"""Growing a dataset: the new part of the input, whether the old part is unchanged, and the files to take over.

    current dataset of the name ─▶ same spec? old files unchanged? ─▶ read the new files only
                                                └ no ─▶ prepare all files again, and say why

Nothing of the parent moves: its rows keep their splits, their indices and their stored values, and fitted statistics
are used again. New rows come after them. This module does not use Ray; `build` does the work.
"""

import io
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from maas_ray import storage
from maas_ray.data.cleaning import CleaningStep, loaded
from maas_ray.data.dataset import INDEX_DIRECTORY, INPUTS_DIRECTORY, TASK_DIRECTORY, PreparedDataset
from maas_ray.data.manifest import Split
from maas_ray.data.names import FILE_COLUMNS, SPLITS
from maas_ray.data.pipeline.index import RowIndex
from maas_ray.data.pipeline.rows import PART_BITS, printable
from maas_ray.data.profile import PROFILE_FILE, Profile, from_json
from maas_ray.data.reading import Inspected
from maas_ray.data.sources import TABLES, AnySource, InputFile
from maas_ray.data.spec import PrepareSpec
from maas_ray.errors import MaasError
from maas_ray.spec import digest_of
from maas_ray.storage import FileEntry

INPUTS = pa.schema(
    {
        "source": pa.int64(),
        "relative": pa.string(),
        "uri": pa.string(),
        "sha256": pa.string(),
        "stamp": pa.string(),
        "size": pa.int64(),
        "rows": pa.int64(),
        "parts": pa.int64(),  # parts that it was read in, numbered through all files in this order
    }
)
_COPY_THREADS = 16
_MAX_NAMED = 3


@dataclass(frozen=True)
class Difference:
    """Changes of the input since a dataset was prepared.

    Args:
        new: files that were added, by source.
        changed: files with other content.
        gone: files that do not exist any more.
    """

    new: list[list[Inspected]]
    changed: list[str]
    gone: list[str]

    @property
    def reason(self) -> str:
        """The reason why the dataset cannot grow to this input. Empty: it can."""
        problems = [
            f"{_listed(names)} {what}" for names, what in ((self.changed, "changed"), (self.gone, "not there")) if names
        ]
        return " and ".join(problems)


class Parent:
    """A dataset that others can grow from."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self.dataset = dataset
        self.files = dataset.artifact.files
        (path,) = self._under(INPUTS_DIRECTORY)
        self.inputs = pq.read_table(io.BytesIO(dataset.artifact.read(path))).cast(INPUTS)

    def _under(self, directory: str) -> list[str]:
        return [entry.path for entry in self.files if entry.path.startswith(f"{directory}/")]

    @property
    def row_index(self) -> RowIndex:
        """The index that new rows are deduplicated against."""
        meta = self.dataset.meta
        rows = sum(meta.counts.kept.values()) + meta.counts.near_duplicates
        return RowIndex(self.dataset.uri, tuple(self._under(INDEX_DIRECTORY)), rows, meta.parts << PART_BITS)

    @property
    def stored(self) -> tuple[int, ...]:
        """Number of rows in each split."""
        return tuple(self.dataset.meta.splits[split].rows for split in SPLITS)

    def task_files(self) -> dict[str, bytes]:
        """The files of the fitted task."""
        return {
            path.removeprefix(f"{TASK_DIRECTORY}/"): self.dataset.artifact.read(path)
            for path in self._under(TASK_DIRECTORY)
        }

    def profile(self) -> Profile:
        """Statistics of its rows."""
        return from_json(self.dataset.artifact.read(PROFILE_FILE).decode())

    def fitted_steps(self) -> tuple[CleaningStep, ...]:
        """The cleaning steps with their fitted statistics."""
        return loaded(self.dataset.meta.cleaning)

    def before(self, spec: PrepareSpec) -> dict[tuple[int, str], Inspected]:
        """Inspections that hold as long as a file's stamp is unchanged, by source and path below it."""
        names = ("source", "relative", "uri", "sha256", "stamp", "size", "rows")
        inspections = {}
        for number, relative, uri, sha256, stamp, size, rows in zip(
            *(self.inputs[name].to_pylist() for name in names), strict=True
        ):
            if number < len(spec.sources) and stamp and _stamps_tell(spec.sources[number], spec.task.columns, uri):
                inspections[number, relative] = Inspected(InputFile(uri, relative, size), sha256, stamp, rows)
        return inspections

    def compare(self, inspected: list[list[Inspected]]) -> Difference:
        """The changes of the input."""
        names = zip(self.inputs["source"].to_pylist(), self.inputs["relative"].to_pylist(), strict=True)
        left = dict(zip(names, self.inputs["sha256"].to_pylist(), strict=True))
        new: list[list[Inspected]] = [[] for _ in inspected]
        changed = []
        for number, files in enumerate(inspected):
            for file in files:
                before = left.pop((number, file.file.relative), None)
                if before is None:
                    new[number].append(file)
                elif before != file.sha256:
                    changed.append(file.file.relative)
        return Difference(new, changed, [relative for _, relative in left])

    def paths_of(self, rows: Iterable[int]) -> list[str]:
        """The files that rows of these numbers were read from."""
        ends = pa.compute.cumulative_sum(self.inputs["parts"]).to_numpy()
        uris = self.inputs["uri"]
        return [uris[int(ends.searchsorted(row >> PART_BITS, side="right"))].as_py() for row in rows]

    def take_over(self, uri: str, attempt: str) -> tuple[list[FileEntry], dict[str, Split]]:
        """Take over all files except the task, the inputs and the profile, under the names of an attempt.

        A file is linked, or copied within its storage, so that each dataset stays whole if the other is removed.

        Returns:
            The entries of the files, and the splits that they form.
        """
        names = {entry.path: entry.path for entry in self.files}
        for number, path in enumerate(names):
            directory = path.partition("/")[0]
            names[path] = f"{directory}/part-{attempt}-before-{number:05d}.parquet"
        for split, listed in self.dataset.meta.splits.items():
            for number, shard in enumerate(listed.shards):
                names[shard.path] = f"{split}/part-{number:05d}-{attempt}.parquet"
        apart = (TASK_DIRECTORY, INPUTS_DIRECTORY, PROFILE_FILE)
        taken = [
            (entry, FileEntry(names[entry.path], entry.size, entry.sha256))
            for entry in self.files
            if entry.path.partition("/")[0] not in apart
        ]
        with ThreadPoolExecutor(_COPY_THREADS) as threads:
            for _ in threads.map(
                lambda pair: storage.copy(
                    storage.join(self.dataset.uri, pair[0].path), storage.join(uri, pair[1].path)
                ),
                taken,
            ):
                pass
        entries = [entry for _, entry in taken]
        storage.check_sizes(uri, entries)
        splits = {
            split: Split(shards=tuple(shard.model_copy(update={"path": names[shard.path]}) for shard in listed.shards))
            for split, listed in self.dataset.meta.splits.items()
        }
        return entries, splits


def _stamps_tell(source: AnySource, columns: tuple[str, ...], uri: str) -> bool:
    """True if an unchanged stamp means an unchanged file.

    It does not for files fetched by HTTP, which have no stamp, and for tables that name files of images or audio,
    because these files may change by themselves.
    """
    if uri.partition("://")[0] in ("http", "https"):
        return False
    return not (isinstance(source, TABLES) and source.encoding == "path" and {*FILE_COLUMNS} & {*columns})


def _listed(names: list[str]) -> str:
    named = ", ".join(sorted(names)[:_MAX_NAMED])
    more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
    return f"{named}{more} {'is' if len(names) == 1 else 'are'}"


def inputs_of(numbered: list[list[Inspected]], parts: Counter[tuple[int, str]]) -> pa.Table:
    """The record of the input files, with the number of parts that each was cut into."""
    records = [
        {
            "source": number,
            "relative": file.file.relative,
            "uri": printable(file.file.uri),
            "sha256": file.sha256,
            "stamp": file.stamp,
            "size": file.file.size,
            "rows": file.rows,
            "parts": parts[number, file.file.relative],
        }
        for number, files in enumerate(numbered)
        for file in files
    ]
    return pa.Table.from_pylist(records, INPUTS)


def recipe_of(spec: PrepareSpec, identity: dict[str, Any], pipeline: int) -> dict[str, Any]:
    """Everything that decides the content of a dataset except its sources."""
    document = spec.document() | {"pipeline": pipeline, "task": identity}
    document["clean"] = [step.identity() for step in spec.clean]
    del document["dataset"], document["sources"]
    if not spec.keep:
        del document["keep"]
    return document


def refusal(spec: PrepareSpec, recipe: dict[str, Any], dataset: PreparedDataset) -> str:
    """The reason why a dataset cannot grow by this spec, whatever its files are. Empty: it can."""
    meta = dataset.meta
    if not meta.recipe or meta.pipeline != recipe["pipeline"]:
        return "it was prepared by an earlier version of maas_ray"
    now = spec.document()
    differing = [name for name in sorted({*now, *meta.spec} - {"sources"}) if now.get(name) != meta.spec.get(name)]
    if meta.recipe != digest_of(recipe):
        what = ", ".join(f"`{name}`" for name in differing)
        return f"the spec differs in {what}" if what else "the code of its task or of a cleaning step differs"
    try:
        before = [source.identity() for source in type(spec).parse(meta.spec).sources]
    except MaasError:
        return "its sources were described by another version of maas_ray"
    if before != [source.identity() for source in spec.sources][: len(before)]:
        return "the spec differs in `sources`"
    if spec.decontaminate is not None:  # new rows could require old rows to be dropped
        return "`decontaminate` has to compare all training rows with all rows to evaluate with"
    return ""


def growth_fingerprint(recipe: dict[str, Any], sources: list[Any], parent: str) -> str:
    """Sha256 of everything that decides the content of a grown dataset.

    Args:
        recipe: see `recipe_of`.
        sources: identities of the sources, with the digests of their new files.
        parent: fingerprint of the dataset that it has grown from.
    """
    return digest_of({**recipe, "sources": sources, "parent": parent})
