"""How a dataset grows: what of the input is new, whether the rest still holds, and what the new dataset takes over.

    the dataset that the name means ─▶ is it of this spec? are its files as they were? ─▶ read the new files only
                                                        └ no ─▶ prepare anew, and say why

Nothing of the parent moves: its rows keep their splits, their indices and their stored values, and what was fitted on
them is used again. New rows come after them. Knows no Ray; `stages` does the work.
"""

import io
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from maas_ray import storage
from maas_ray.data.cleaning import CleaningStep, loaded
from maas_ray.data.dataset import INDEX_DIRECTORY, INPUTS_DIRECTORY, SPLITS, TASK_DIRECTORY, PreparedDataset, Split
from maas_ray.data.pipeline.index import Known
from maas_ray.data.pipeline.row_steps import PART_BITS
from maas_ray.data.profile import PROFILE_FILE, Profile, from_json
from maas_ray.data.reading import Inspected
from maas_ray.data.sources import FILE_COLUMNS, TABLES, AnySource, InputFile
from maas_ray.errors import MaasError
from maas_ray.spec import digest_of
from maas_ray.storage import FileEntry

if TYPE_CHECKING:
    from maas_ray.data.prepare import PrepareSpec

INPUTS = pa.schema(
    {
        "source": pa.int64(),
        "relative": pa.string(),
        "uri": pa.string(),
        "sha256": pa.string(),
        "stamp": pa.string(),
        "size": pa.int64(),
        "rows": pa.int64(),
        "parts": pa.int64(),  # pieces that it was read in, numbered through all files in this order
    }
)
_COPY_THREADS = 16
_NAMED = 3


@dataclass(frozen=True)
class Difference:
    """What is other about the input than when a dataset was prepared.

    Args:
        new: files that came to it, by source.
        changed: files whose content is another.
        gone: files that are not there any more.
    """

    new: list[list[Inspected]]
    changed: list[str]
    gone: list[str]

    @property
    def reason(self) -> str:
        """Why the dataset cannot grow to this input. Empty: it can."""
        problems = [
            f"{_listed(names)} {what}" for names, what in ((self.changed, "changed"), (self.gone, "not there")) if names
        ]
        return " and ".join(problems)


class Parent:
    """A dataset that others may grow from."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self.dataset = dataset
        self.files = dataset.artifact.files
        (path,) = self._under(INPUTS_DIRECTORY)
        self.inputs = pq.read_table(io.BytesIO(dataset.artifact.read(path))).cast(INPUTS)

    def _under(self, directory: str) -> list[str]:
        return [entry.path for entry in self.files if entry.path.startswith(f"{directory}/")]

    @property
    def known(self) -> Known:
        """Its rows, as new ones are compared with them."""
        meta = self.dataset.meta
        rows = sum(meta.counts.kept.values()) + meta.counts.near_duplicates
        return Known(self.dataset.uri, tuple(self._under(INDEX_DIRECTORY)), rows, meta.parts << PART_BITS)

    @property
    def stored(self) -> tuple[int, ...]:
        """Rows of each split."""
        return tuple(self.dataset.meta.splits[split].rows for split in SPLITS)

    def task_files(self) -> dict[str, bytes]:
        """The fitted task."""
        return {
            path.removeprefix(f"{TASK_DIRECTORY}/"): self.dataset.artifact.read(path)
            for path in self._under(TASK_DIRECTORY)
        }

    def profile(self) -> Profile:
        """What its rows are like."""
        return from_json(self.dataset.artifact.read(PROFILE_FILE).decode())

    def fitted(self) -> tuple[CleaningStep, ...]:
        """The cleaning steps with the statistics that they were fitted with."""
        return loaded(self.dataset.meta.cleaning)

    def before(self, spec: "PrepareSpec") -> dict[tuple[int, str], Inspected]:
        """What is known of files without a look, by source and path below it, as long as their stamps are the same."""
        names = ("source", "relative", "uri", "sha256", "stamp", "size", "rows")
        found = {}
        for number, relative, uri, sha256, stamp, size, rows in zip(
            *(self.inputs[name].to_pylist() for name in names), strict=True
        ):
            if number < len(spec.sources) and stamp and _stamps_tell(spec.sources[number], spec.task.columns, uri):
                found[number, relative] = Inspected(InputFile(uri, relative, size), sha256, stamp, rows)
        return found

    def compare(self, inspected: list[list[Inspected]]) -> Difference:
        """What is other about the input now."""
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
        """The files that rows of these numbers stood in."""
        ends = pa.compute.cumulative_sum(self.inputs["parts"]).to_numpy()
        uris = self.inputs["uri"]
        return [uris[int(ends.searchsorted(row >> PART_BITS, side="right"))].as_py() for row in rows]

    def take_over(self, uri: str, attempt: str) -> tuple[list[FileEntry], dict[str, Split]]:
        """Its files but for the task, the inputs and the profile, under an attempt's names, and its splits of these.

        A file is linked or copied where it lies, so that each dataset stays whole when the other is removed.
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
    """Whether a file is as it was when its stamp is: not of one that is fetched by HTTP, for which there is none, nor
    of a table that names files of images or audio, which may change by themselves.
    """
    if uri.partition("://")[0] in ("http", "https"):
        return False
    return not (isinstance(source, TABLES) and source.encoding == "path" and {*FILE_COLUMNS} & {*columns})


def _listed(names: list[str]) -> str:
    named = ", ".join(sorted(names)[:_NAMED])
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{named}{more} {'is' if len(names) == 1 else 'are'}"


def inputs_of(numbered: list[list[Inspected]], parts: Counter[tuple[int, str]]) -> pa.Table:
    """The record of input files, which were cut into so many parts each."""
    records = [
        {
            "source": number,
            "relative": file.file.relative,
            "uri": file.file.uri.encode(errors="backslashreplace").decode(),
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


def recipe_of(spec: "PrepareSpec", identity: dict[str, Any], pipeline: int) -> dict[str, Any]:
    """All that decides what a dataset holds but its sources."""
    document = spec.document() | {"pipeline": pipeline, "task": identity}
    document["clean"] = [step.identity() for step in spec.clean]
    del document["dataset"], document["sources"]
    if not spec.keep:
        del document["keep"]
    return document


def refusal(spec: "PrepareSpec", recipe: dict[str, Any], dataset: PreparedDataset) -> str:
    """Why a dataset cannot grow by this spec, whatever its files are. Empty: it can."""
    meta = dataset.meta
    if not meta.recipe:
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
    if spec.decontaminate is not None:  # old rows would have to go for new ones
        return "`decontaminate` has to compare the rows to train on with all rows to evaluate with"
    return ""


def growth_fingerprint(recipe: dict[str, Any], sources: list[Any], parent: str) -> str:
    """Sha256 of what decides what a dataset holds that grew.

    Args:
        recipe: see `recipe_of`.
        sources: identities of the sources, with the digests of their new files.
        parent: fingerprint of the dataset that it grew from.
    """
    return digest_of({**recipe, "sources": sources, "parent": parent})
