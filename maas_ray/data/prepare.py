"""From raw data to a prepared dataset: the same spec and the same input always give the same dataset.

    list and inspect the input ─▶ fingerprint ─▶ committed before? reuse it
                                              └▶ clean, fit, encode, pack, write (see `stages`) ─▶ commit

The steps run on Ray Data, a block at a time; the driver sees counts, and the rows that fitting reads. Every
file carries the attempt's own name, so attempts never touch each other's; the manifest, written last, says
which count.
"""

import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute
from pydantic import Field, model_validator

from maas_ray import storage
from maas_ray.cluster import connect
from maas_ray.data.cleaning import AnyStep, CleaningStep, saved
from maas_ray.data.dataset import (
    INDEX_DIRECTORY,
    INPUTS_DIRECTORY,
    KIND,
    POINTER,
    QUARANTINE_DIRECTORY,
    REMOVED_DIRECTORY,
    SPLITS,
    TASK_DIRECTORY,
    DatasetMeta,
    PreparedDataset,
    Split,
    StoredColumn,
    dataset_home,
    read_pointer,
    write_table,
)
from maas_ray.data.dedup.decontaminate import Decontaminate
from maas_ray.data.dedup.spec import Deduplicate
from maas_ray.data.pipeline.growth import Parent, growth_fingerprint, recipe_of, refusal
from maas_ray.data.profile import PROFILE_FILE, merge, to_json
from maas_ray.data.reading import Inspected
from maas_ray.data.sources import FILE_COLUMNS, AnySource, InputFile, formats_for, list_files
from maas_ray.data.splits.spec import Splits
from maas_ray.errors import ConflictError, CorruptError, DataError, MaasError, NotFoundError, SpecError
from maas_ray.settings import Settings
from maas_ray.spec import Name, Spec, digest_of
from maas_ray.storage import FileEntry
from maas_ray.tasks import AnyTaskSpec, Task, find_task
from maas_ray.tasks.rows import REST
from maas_ray.terminal.lines import say

if TYPE_CHECKING:
    from maas_ray.data.pipeline.build import Built
    from maas_ray.data.pipeline.row_steps import Reading

PIPELINE = 3
"""Part of every fingerprint: goes up when the same input would give another dataset."""


class PrepareSpec(Spec):
    """What `maas prepare` reads."""

    dataset: Name
    """Name of the dataset."""
    task: AnyTaskSpec
    """What a model of this data is for."""
    sources: tuple[AnySource, ...]
    """Where rows come from."""
    keep: tuple[str, ...] = ()
    """Columns of the sources to keep beside what the task stores, by which `evaluate` can tell rows apart; 64 bytes
    of each value. Not for tasks that join rows to sequences."""
    clean: tuple[AnyStep, ...] = ()
    """What is done to rows before the task sees them, step by step."""
    deduplicate: Deduplicate = Deduplicate()
    """Which rows are left out since they are like another."""
    decontaminate: Decontaminate | None = None
    """Which rows to train on are left out since they share too much with rows to evaluate with. None: none is."""
    splits: Splits = Splits()
    """How much is held out, and how rows are told apart for it."""
    seed: int = Field(0, ge=0)
    """What the global shuffle is drawn with."""
    max_quarantined: float = Field(0.2, ge=0, le=1)
    """Share of rows that may be unreadable; above it, preparing stops."""

    @model_validator(mode="after")
    def _gives_columns(self) -> "PrepareSpec":
        if not self.sources:
            raise ValueError("sources: is empty; name at least one, such as {format: text, path: docs}.")
        task = find_task(self.task.type)
        joined = self.task.steps is not None or (task is not None and task.packing is not Task.packing)
        if self.keep and joined:
            raise ValueError(f"keep: {self.task.type} joins rows to sequences, which have no one value; leave it out.")
        for name in self.keep:
            if name in FILE_COLUMNS:
                raise ValueError(f"keep: {name!r} holds files; name columns of names or numbers.")
        needed = {"keep": self.keep, "splits": self.splits.reads}
        needed |= {f"clean[{place}]": step.reads for place, step in enumerate(self.clean)}
        for place, source in enumerate(self.sources):
            for field, names in needed.items():
                unknown = [name for name in names if source.gives is not None and name not in source.gives]
                if unknown:
                    raise ValueError(
                        f"{field}: sources[{place}] is {source.format}, which has no column {unknown[0]!r}."
                    )
            if source.gives is not None and not set(self.task.columns) <= set(source.gives):
                *fits, last = formats_for(self.task.columns)
                raise ValueError(
                    f"sources[{place}].format: {source.format} cannot give {' and '.join(self.task.columns)}, which "
                    f"{self.task.type} needs; use {', '.join(fits)} or {last}."
                )
        return self

    @model_validator(mode="after")
    def _has_text(self) -> "PrepareSpec":
        wants = {"deduplicate.near": self.deduplicate.near, "decontaminate": self.decontaminate}
        for field, wanted in wants.items():
            if wanted is not None and (self.task.steps is not None or {REST, *FILE_COLUMNS} & {*self.task.inputs}):
                raise ValueError(f"{field}: {self.task.type} has no text to compare; leave it out.")
        if self.deduplicate.near is not None and not self.deduplicate.exact:
            raise ValueError("deduplicate: near-duplicates cannot go where exact ones stay; leave out `exact: false`.")
        if self.task.steps is not None and self.splits.reads:
            raise ValueError(f"splits.{self._split_by}: of {self.task.type} the end of each series is held out.")
        return self

    @property
    def _split_by(self) -> str:
        return next(name for name in ("group", "stratify", "column") if getattr(self.splits, name) is not None)

    @property
    def gives_splits(self) -> bool:
        """Whether rows' splits are given, by a column or by the source."""
        return self.splits.column is not None or any(source.split is not None for source in self.sources)

    @property
    def straddles(self) -> bool:
        """Whether rows of the same content may come to lie in different splits."""
        return self.deduplicate.exact and (self.gives_splits or self.splits.group is not None)

    @property
    def fitted_steps(self) -> tuple[CleaningStep, ...]:
        """Cleaning from the first step on that must be fitted: it runs when splits are known."""
        first = next((place for place, step in enumerate(self.clean) if step.fits), len(self.clean))
        return self.clean[first:]

    @property
    def reading(self) -> "Reading":
        """How rows are read."""
        from maas_ray.data.pipeline.row_steps import Reading

        return Reading(
            task=self.task,
            splits=self.splits,
            keep=self.keep,
            steps=self.clean[: len(self.clean) - len(self.fitted_steps)],
            columns=(*self.splits.reads, *(name for step in self.clean for name in step.reads)),
            normalise=self.deduplicate.normalise,
            near=self.deduplicate.near,
        )


def prepare(
    spec: PrepareSpec, *, fresh: bool = False, settings: Settings | None = None, parallelism: int | None = None
) -> PreparedDataset:
    """Turn raw data into a prepared dataset, or find the one that this spec and input gave before.

    Where files were added since, the dataset grows: the new files only are read. An attempt that was interrupted goes
    on where it was.

    Args:
        spec: what to prepare, and how.
        fresh: whether to prepare all files anew where the dataset could grow.
        settings: where to put it. None: from the environment.
        parallelism: blocks that the work is cut into. None: by size and cluster. The result is the same.

    Raises:
        DataError: the input cannot become a dataset; says why and what to change.
    """
    started = time.monotonic()
    settings = settings or Settings.from_environment()
    files = list_sources(spec)
    identity = spec.task.identity()
    if spec.task.own_source is not None:
        identity = identity | {"source": spec.task.own_source.digest}
    connect(settings)
    from maas_ray.data.pipeline import build as stages
    from maas_ray.data.pipeline import work
    from maas_ray.data.pipeline.blocks import quiet

    total = sum(file.size for source in files for file in source)
    say(f"dataset {spec.dataset}: {sum(map(len, files)):,} files, {total / 1e6:,.1f} MB")
    home = dataset_home(settings, spec.dataset)
    recipe = recipe_of(spec, identity, PIPELINE)
    with quiet(total):
        parent, why = (None, "") if fresh else _parent(spec, recipe, home)
        inspected = stages.look(spec, files, parallelism, parent.before(spec) if parent is not None else None)
        of_all = fingerprint_of(spec, recipe, inspected)
        if parent is not None and parent.dataset.meta.input == of_all:
            return _reused(parent.dataset, home)
        new = inspected
        if parent is not None:
            difference = parent.compare(inspected)
            if why := difference.reason:
                parent, inspected = None, stages.look(spec, files, parallelism)
                new = inspected
            else:
                new = difference.new
        fingerprint = of_all
        if parent is not None:
            fingerprint = growth_fingerprint(recipe, _sources(spec, new), parent.dataset.fingerprint)
        uri = storage.join(home, fingerprint[:16])
        if dataset := _committed(uri):
            return _reused(dataset, home)
        if parent is not None:
            count, size = sum(map(len, new)), sum(file.file.size for files in new for file in files)
            before = parent.dataset.fingerprint[:16]
            say(f"dataset {spec.dataset}: {count:,} new files, {size / 1e6:,.1f} MB, come to {before}")
        elif why:
            say(f"dataset {spec.dataset}: prepared anew, since {why}")
        attempt = uuid.uuid4().hex[:8]
        try:
            built = stages.build(spec, new, uri, attempt, parallelism, parent)
            dataset = _commit(spec, built, uri, fingerprint, attempt, recipe, of_all, parent)
        except BaseException as error:
            _stop(uri, attempt, error)
            raise
    work.remove(uri)
    storage.write_json(storage.join(home, POINTER), {"fingerprint": fingerprint})
    report(dataset, built.errors, time.monotonic() - started)
    return dataset


def _parent(spec: PrepareSpec, recipe: dict[str, Any], home: str) -> tuple[Parent | None, str]:
    """The dataset that the name means, if it can grow by this spec; if not, why."""
    try:
        fingerprint = read_pointer(home)
        dataset = PreparedDataset(storage.open_artifact(storage.join(home, fingerprint[:16]), KIND))
    except NotFoundError:
        return None, ""
    except (CorruptError, SpecError) as error:
        return None, f"the one before is of no use: {error}"
    why = refusal(spec, recipe, dataset)
    return (None, why) if why else (Parent(dataset), "")


def _reused(dataset: PreparedDataset, home: str) -> PreparedDataset:
    _sweep(dataset)
    storage.write_json(storage.join(home, POINTER), {"fingerprint": dataset.fingerprint})
    say(f"dataset {dataset.name}: nothing changed, reusing {dataset.fingerprint[:16]}")
    return dataset


def _stop(uri: str, attempt: str, error: BaseException) -> None:
    """Remove what an attempt wrote; what it would do again stays, unless the input itself is what stopped it."""
    if storage.exists(storage.join(uri, storage.MANIFEST)):
        return  # it was stopped after it had committed
    with suppress(MaasError):
        _discard(uri, attempt)
    from maas_ray.data.pipeline import work

    if isinstance(error, DataError):
        work.remove(uri)
    else:
        say("  interrupted; what was done so far is kept: run again to go on")


def list_sources(spec: PrepareSpec) -> list[list[InputFile]]:
    """The files of every source.

    Raises:
        DataError: all sources that name no file, each with where it stands.
    """
    files, problems = [], []
    for place, source in enumerate(spec.sources):
        try:
            files.append(list_files(source))
        except MaasError as error:
            problems.append(f"{spec.where(f'sources[{place}]')}: {error}")
    if problems:
        raise DataError("\n".join(problems))
    return files


def _sources(spec: PrepareSpec, inspected: list[list[Inspected]]) -> list[dict[str, Any]]:
    """What decides what the sources hold."""
    return [
        source.identity() | {"files": sorted([file.file.relative, file.sha256] for file in files)}
        for source, files in zip(spec.sources, inspected, strict=True)
    ]


def fingerprint_of(spec: PrepareSpec, recipe: dict[str, Any], inspected: list[list[Inspected]]) -> str:
    """Sha256 of everything that decides what the dataset holds, and of nothing else."""
    return digest_of({**recipe, "sources": _sources(spec, inspected)})


def _committed(uri: str) -> PreparedDataset | None:
    try:
        return PreparedDataset(storage.open_artifact(uri, KIND))
    except NotFoundError:
        return None
    except CorruptError as error:
        raise CorruptError(f"{error} To prepare the dataset anew, remove {uri}.") from error


def _commit(
    spec: PrepareSpec,
    built: "Built",
    uri: str,
    fingerprint: str,
    attempt: str,
    recipe: dict[str, Any],
    of_all: str,
    parent: Parent | None = None,
) -> PreparedDataset:
    """Commit what was built; with a `parent`, both together."""
    entries, splits, counts, inputs = [*built.files], built.splits, built.counts, built.inputs
    if parent is not None:
        before, taken = parent.take_over(uri, attempt)
        entries += before
        splits = {split: Split(shards=taken[split].shards + splits[split].shards) for split in SPLITS}
        counts = parent.dataset.meta.counts.plus(counts)
        inputs = pa.concat_tables([parent.inputs, inputs])
    entries.append(write_table(inputs, uri, f"{INPUTS_DIRECTORY}/part-{attempt}.parquet", 1 << 16))
    profile = built.profile if parent is None else merge([parent.profile(), built.profile])
    contents = {f"{TASK_DIRECTORY}/{name}": content for name, content in built.task_files.items()}
    contents[PROFILE_FILE] = to_json(profile).encode()
    with tempfile.TemporaryDirectory() as directory:
        for path, content in contents.items():
            local = Path(directory) / path
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(content)
            # Fitting and counting give the same bytes each time: another attempt's copy is as good as this one.
            entries.append(FileEntry(path, *storage.upload(local, storage.join(uri, path))))
    meta = DatasetMeta(
        name=spec.dataset,
        fingerprint=fingerprint,
        spec=spec.document(),
        columns={name: StoredColumn(dtype=c.dtype, shape=c.shape) for name, c in built.task.stored.items()},
        splits=splits,
        counts=counts,
        kept=spec.keep,
        cleaning=tuple(saved(built.steps)),
        parent=None if parent is None else parent.dataset.fingerprint,
        grown=None if parent is None else built.counts,
        recipe=digest_of(recipe),
        input=of_all,
        parts=pa.compute.sum(inputs["parts"]).as_py(),
    )
    try:
        artifact = storage.commit(uri, KIND, tuple(entries), meta.document())
    except ConflictError:
        # Another attempt was faster. It had the same input, so it has the same rows.
        artifact = storage.open_artifact(uri, KIND)
        _discard(uri, attempt)
    return PreparedDataset(artifact)


def _discard(uri: str, attempt: str) -> None:
    """Remove what an attempt wrote."""
    for path in _written(uri):
        if attempt in path:
            storage.delete(storage.join(uri, path))


def _sweep(dataset: PreparedDataset) -> None:
    """Remove what attempts that were killed left beside a committed dataset."""
    from maas_ray.data.pipeline import work

    committed = {entry.path for entry in dataset.artifact.files}
    for path in _written(dataset.uri):
        if path not in committed:
            storage.delete(storage.join(dataset.uri, path))
    work.remove(dataset.uri)


def _written(uri: str) -> list[str]:
    directories = (*SPLITS, QUARANTINE_DIRECTORY, REMOVED_DIRECTORY, INDEX_DIRECTORY, INPUTS_DIRECTORY)
    return [f"{name}/{file}" for name in directories for file in storage.list_directory(storage.join(uri, name))]


def report(dataset: PreparedDataset, errors: list[str], seconds: float) -> None:
    """Say what became of the rows."""
    meta, counts, task = dataset.meta, dataset.meta.counts, dataset.task
    lines = [("new", meta.grown.read, f"rows, {sum(meta.grown.kept.values()):,} kept")] if meta.grown else []
    lines += [("read", counts.read, "rows in all" if meta.grown else "rows")]
    lines += [("dropped", count, reason) for reason, count in counts.dropped.items()]
    lines += [("duplicates", counts.duplicates, "")] if counts.duplicates else []
    lines += [("duplicates", counts.near_duplicates, "nearly the same")] if counts.near_duplicates else []
    lines += [("cleaned", count, what) for what, count in counts.cleaned.items()]
    lines += [("quarantined", counts.quarantined, "; ".join(errors))] if counts.quarantined else []
    for split in SPLITS:
        kept = counts.kept[split]
        stored = meta.splits[split].rows
        note = ""
        if task.packing and stored:
            left = counts.packed_dropped[split]
            note = f"→ {stored:,} sequences, {counts.packed_units[split]:,} {task.unit}, {left:,} left over"
        elif stored != kept:
            note = f"→ {stored:,} {task.unit} stored"
        if not stored and (share := getattr(PrepareSpec.parse(meta.spec).splits, split, None)):
            note = f"EMPTY: {share:g} of this input is too little; give more data, or a larger share"
        lines.append((split, kept, note))
    say(f"dataset {dataset.name}  {dataset.fingerprint[:16]}  {seconds:.1f} s")
    for label, count, note in lines:
        say(f"  {label:<12}{count:>12,}  {note}".rstrip())
    say(f"  {dataset.uri}")
    say(f"  maas data {dataset.name}  shows lengths, labels, examples, and what was left out")
