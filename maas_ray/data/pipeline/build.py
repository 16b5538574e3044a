"""One attempt at a dataset, on a cluster: read → decide → clean → fit → encode → write.

Rows stay in the cluster. The driver receives counts, sizes, the entries of files, the totals that fitting sums up, and,
one block at a time, the rows that fitting reads in order.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from maas_ray.data.cleaning import CleaningStep
from maas_ray.data.cleaning.pii import Pii
from maas_ray.data.manifest import Counts, Shard, Split
from maas_ray.data.names import SPLITS
from maas_ray.data.pipeline import global_steps, packing, row_steps
from maas_ray.data.pipeline.blocks import (
    BLOCK_BYTES,
    Blocks,
    in_sorted_blocks,
    objects,
    records,
    run,
    run_over,
    stage,
    tables,
)
from maas_ray.data.pipeline.growth import Parent, inputs_of
from maas_ray.data.pipeline.index import dropped_survivors, old_survivors, unnamed_rows, write_index
from maas_ray.data.pipeline.input import SizedPart, block_count, digest_of_cut, first_part, grouped, parts_of, put
from maas_ray.data.pipeline.objects import unpacked
from maas_ray.data.pipeline.ordering import ENTRIES, Lookup, ends_of_rows, entries_of
from maas_ray.data.pipeline.read_rows import read_rows, reading_of
from maas_ray.data.pipeline.removed import write_old_survivors, write_quarantine, write_removed
from maas_ray.data.pipeline.resume_cache import ENCODED, FITTED, READ, ResumeCache, cached, files_of, files_table
from maas_ray.data.pipeline.rows import (
    DUPLICATE,
    KEPT,
    NEAR_DUPLICATE,
    PART_BITS,
    QUARANTINED,
    ROWS,
    each,
    sealed,
    span_of,
)
from maas_ray.data.profile import Profile
from maas_ray.data.reading import Inspected
from maas_ray.data.spec import PrepareSpec
from maas_ray.errors import DataError
from maas_ray.storage import FileEntry
from maas_ray.tasks import Task
from maas_ray.terminal.lines import say

_MAX_KINDS = 10_000
"""Kinds of errors that the driver counts."""


@dataclass(frozen=True)
class Built:
    """The files that one attempt wrote, and its counts."""

    task: Task
    task_files: dict[str, bytes]
    files: tuple[FileEntry, ...]
    splits: dict[str, Split]
    counts: Counts
    errors: list[str]
    """The most common reasons for quarantine, a line each."""
    steps: tuple[CleaningStep, ...]
    """The fitted cleaning steps."""
    inputs: pa.Table
    """The files that were read, see `growth`."""
    profile: Profile
    """Statistics of the kept rows."""


def build(
    spec: PrepareSpec,
    inspected: list[list[Inspected]],
    uri: str,
    attempt: str,
    parallelism: int | None,
    parent: Parent | None = None,
) -> Built:
    """Run every step from the files to the shards.

    Args:
        spec: the prepare spec.
        inspected: the files to read, by source.
        uri: the dataset.
        attempt: part of every file's name.
        parallelism: number of blocks. None: by size and cluster, or the number of an earlier attempt.
        parent: the dataset that grows by these rows.

    Raises:
        DataError: too many rows are unreadable, or too few are left.
    """
    read = sum(file.rows for source in inspected for file in source)
    parts = parts_of(spec, inspected)
    cache, groups = _cut(parts, inspected, uri, parallelism, parent)
    highest = (len(parts) + (parent.dataset.meta.parts if parent else 0)) << PART_BITS
    rows = _read(spec, groups, read, highest, cache, parent)
    rows, steps = _clean(spec, rows, parent)
    tally = _tally(rows)
    _check_quarantined(spec, tally, read)
    task_files = parent.task_files() if parent is not None else _fit_task(spec, rows, cache)
    task = packing.loaded(task_files)
    chunks = _encode(spec, rows, task_files, cache)
    plan, sizes = packing.plan_of(
        records(run(chunks, packing.listing)), task, spec.seed, spec.keep, parent.stored if parent else packing.NO_ROWS
    )
    if parent is not None:
        _check_learnt(sizes.unlearnt)
    files = _write_row_files(spec, rows, tally, uri, attempt, parent)
    del rows  # the cluster can free the raw rows now
    shards = [
        packing.layout(split, plan, attempt, len(parent.dataset.meta.splits[name].shards) if parent else 0)
        for split, name in enumerate(SPLITS)
    ]
    entries = run(chunks, entries_of)
    ends = ends_of_rows(entries, tuple(sizes.rows.values()), highest)
    files += _write_shards(chunks, plan, ends, shards, uri)
    return Built(
        task,
        task_files,
        tuple(files),
        {split: Split(shards=tuple(some)) for split, some in zip(SPLITS, shards, strict=True)},
        _counts(read, tally, task, plan, sizes),
        tally.errors,
        steps,
        inputs_of(inspected, Counter((source, part.file.file.relative) for source, part, _ in parts)),
        sizes.profile,
    )


# --- read ------------------------------------------------------------------------------------------


def _cut(
    parts: list[SizedPart],
    inspected: list[list[Inspected]],
    uri: str,
    parallelism: int | None,
    parent: Parent | None,
) -> tuple[ResumeCache, list[list[Any]]]:
    """The cache of this work, and the numbered parts in groups, one for each block."""
    sizes = [size for *_, size in parts]
    schema = (str(ROWS), str(ENTRIES), digest_of_cut(inspected))
    wanted = block_count(sizes, parallelism)
    cache, blocks = ResumeCache.open(uri, wanted, chosen=parallelism is not None, schema=schema)
    numbered = enumerate((part for _, part, _ in parts), start=parent.dataset.meta.parts if parent else 0)
    groups = grouped(list(numbered), sizes, blocks)
    if before := cache.count(READ):
        say(f"  resuming: {before:,} of {len(groups):,} blocks are already read")
    return cache, groups


def _read(
    spec: PrepareSpec, groups: list[list[Any]], total: int, highest: int, cache: ResumeCache, parent: Parent | None
) -> Blocks:
    """Read and parse rows, and decide about duplicates and splits; gives sealed rows in the order of reading."""
    step = partial(cached, step=partial(read_rows, reading=reading_of(spec)), key=first_part, stage=READ, cache=cache)
    with stage("reading", len(groups)) as bar:
        # A reader cannot know how much it will read, so its output is cut by size, and may be more than one block.
        def watch(blocks: int, _: int) -> None:
            bar.update(min(blocks, len(groups)))

        raw = run(put(groups), partial(_sealed, step=step), watch, limit=BLOCK_BYTES)
    with stage("removing duplicates", None):
        old = parent.row_index if parent is not None else None
        return global_steps.settled(spec, raw, total, highest, old)


def _sealed(parts: pa.Table, step: Callable[[pa.Table], Iterator[pa.Table]]) -> Iterator[pa.Table]:
    for rows in step(parts):
        if len(rows):
            yield sealed(rows)


# --- clean -----------------------------------------------------------------------------------------


def _clean(spec: PrepareSpec, rows: Blocks, parent: Parent | None) -> tuple[Blocks, tuple[CleaningStep, ...]]:
    """Decontaminate rows and run the late cleaning steps; gives all cleaning steps as fitted."""
    if spec.decontaminate is not None:
        with stage("decontaminating", None):
            rows = global_steps.decontaminated(rows, spec.task, spec.decontaminate)
    if not spec.late_steps:
        return rows, spec.clean
    if parent is not None:
        steps = parent.fitted_steps()
        late = steps[len(spec.early_steps) :]
        return global_steps.cleaned(rows, late, spec.task), steps
    with stage("fitting cleaning steps", None):
        rows, fitted = global_steps.fit_and_clean(spec.late_steps, rows, spec.task)
    return rows, (*spec.early_steps, *fitted)


@dataclass(frozen=True)
class _Tally:
    """Rows by outcome, the most common errors (a line each), and the changes that cleaning made."""

    outcomes: Counter[str]
    errors: list[str]
    notes: Counter[str]


def _tally(rows: Blocks) -> _Tally:
    outcomes: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    examples: dict[str, str] = {}
    step = partial(each, step=row_steps.tally, columns=row_steps.TALLIED)
    for record in records(run(rows, step)):
        if record["fate"] == row_steps.NOTED:
            notes[record["kind"]] += record["rows"]
            continue
        outcomes[record["fate"]] += record["rows"]
        if record["fate"] == QUARANTINED:
            kind, example = record["kind"], record["example"]
            errors[kind] += record["rows"]
            examples[kind] = min(examples.get(kind, example), example)
            if len(errors) > 2 * _MAX_KINDS:  # each row may have an error of its own
                errors = Counter(dict(errors.most_common(_MAX_KINDS)))
                examples = {kind: examples[kind] for kind in errors}
    most = [kind for kind, _ in errors.most_common() if kind != row_steps.OTHER_ERRORS][:3]
    lines = [f"{errors[kind]:,} × {examples[kind]}" for kind in most]
    return _Tally(outcomes, lines, notes)


def _check_quarantined(spec: PrepareSpec, tally: _Tally, read: int) -> None:
    quarantined = tally.outcomes[QUARANTINED]
    if quarantined > spec.max_quarantined * read:
        lines = "".join(f"\n  {error}" for error in tally.errors)
        raise DataError(
            f"{quarantined:,} of {read:,} rows cannot be read, more than max_quarantined ({spec.max_quarantined:g}) "
            f"allows; nothing was written. The most common errors:{lines}\n"
            "Choose files with `include` and `exclude`, repair them, or raise max_quarantined.",
            code="too_many_quarantined",
        )


# --- fit -------------------------------------------------------------------------------------------


def _fit_task(spec: PrepareSpec, rows: Blocks, cache: ResumeCache) -> dict[str, bytes]:
    """The files of the fitted task, through the cache."""
    if (before := cache.load(FITTED, "task")) is not None:
        return files_of(pa.concat_tables(before))
    with stage(f"fitting {spec.task.type}", len(rows)) as bar:
        files = packing.saved(global_steps.fit_task(spec.task, rows, bar))
    for _ in cache.store(FITTED, "task", iter([files_table(files)])):
        pass
    return files


# --- encode ----------------------------------------------------------------------------------------


def _encode(spec: PrepareSpec, rows: Blocks, task_files: dict[str, bytes], cache: ResumeCache) -> Blocks:
    with stage("encoding", len(rows)) as bar:
        encode = partial(packing.encode, files=task_files, task_spec=spec.task, keep=spec.keep)
        step = partial(each, step=encode)
        step = partial(cached, step=step, key=span_of, stage=ENCODED, cache=cache)
        return run(rows, step, lambda done, _: bar.update(done))


def _check_learnt(unlearnt: Counter[str]) -> None:
    """Refuse new rows that the dataset's task, as it was fitted, cannot encode.

    Raises:
        DataError: there are such rows.
    """
    if unlearnt:
        reasons = "".join(f"\n  {count:,} × {reason}" for reason, count in unlearnt.most_common(5))
        more = f"\n  and {len(unlearnt) - 5:,} other reasons" if len(unlearnt) > 5 else ""
        raise DataError(
            f"{unlearnt.total():,} of the new rows hold values that the dataset's features were not fitted on; nothing "
            f"was written:{reasons}{more}\nPrepare all files again with `maas prepare SPEC --fresh`, which fits again; "
            "models have to be trained again then. Or remove these rows.",
            code="unlearnt_values",
        )


# --- write -----------------------------------------------------------------------------------------


def _write_row_files(
    spec: PrepareSpec, rows: Blocks, tally: _Tally, uri: str, attempt: str, parent: Parent | None
) -> list[FileEntry]:
    """Write the index of the kept rows, and the files about quarantined and dropped rows."""
    files: list[FileEntry] = []
    outcomes = tally.outcomes
    if spec.drops_duplicates or spec.splits.stratify is not None:
        dropped = None
        if outcomes[NEAR_DUPLICATE]:
            dropped = np.array(
                [row["row"] for row in records(run(rows, partial(each, step=dropped_survivors)))], np.int64
            )
        files += objects(run(rows, partial(write_index, uri=uri, attempt=attempt, dropped=dropped)))
    if parent is not None:
        files += _name_old_survivors(rows, parent, uri, attempt)
    secret = any(isinstance(step, Pii) for step in spec.late_steps)
    if outcomes[QUARANTINED]:
        files += objects(run(rows, partial(write_quarantine, uri=uri, attempt=attempt, secret=secret)))
    if outcomes.total() != outcomes[KEPT] + outcomes[QUARANTINED]:
        files += objects(run(rows, partial(write_removed, uri=uri, attempt=attempt, secret=secret)))
    return files


def _name_old_survivors(rows: Blocks, parent: Parent, uri: str, attempt: str) -> list[FileEntry]:
    """Name the parent's rows that survived new duplicates, unless `removed/` names them already."""
    index = parent.row_index
    step = partial(each, step=partial(old_survivors, first_new=index.first_new))
    likes = [table["like"].to_numpy() for table in tables(run(rows, step))]
    if not likes:
        return []
    step = partial(unnamed_rows, uri=index.uri, wanted=ray.put(np.unique(np.concatenate(likes))))
    unnamed = list(tables(run(global_steps.index_files(index), step)))
    if not unnamed:
        return []
    survivors = pa.concat_tables(unnamed).sort_by("row")
    paths = parent.paths_of(survivors["row"].to_pylist())
    return list(unpacked(write_old_survivors(survivors, paths, uri, attempt)))


def _write_shards(
    chunks: Blocks, plan: packing.Plan, ends: Lookup, shards: list[list[Shard]], uri: str
) -> list[FileEntry]:
    """Shuffle globally, and write the shards, each of them a part at a time."""
    planned = [(split, shard) for split, some in enumerate(shards) for shard in some]
    parts = [packing.parts_of(shard, plan.row_bytes) for _, shard in planned]
    shifts = [plan.base(split) - plan.before[split] for split, _ in planned]
    starts = [shift + start for shift, some in zip(shifts, parts, strict=True) for start in some]
    with stage("shuffling and writing", len(planned)) as bar:
        pieces = run_over(chunks, partial(packing.pack, plan=plan, ends=ends))
        ordered = in_sorted_blocks(pieces, "place", starts[1:])
        if len(ordered) != len(starts):
            raise RuntimeError(f"there are {len(ordered)} parts of shards, not {len(starts)}; nothing was committed")
        blocks = iter(ordered)
        written = [
            _write_shard.remote([next(blocks) for _ in some], plan, split, shard, uri)
            for (split, shard), some in zip(planned, parts, strict=True)
        ]
        del ordered, blocks
        files = []
        for reference in written:
            files.append(ray.get(reference))
            bar.update(len(files))
    return files


@ray.remote  # type: ignore[untyped-decorator]
def _write_shard(parts: Blocks, plan: packing.Plan, split: int, shard: Shard, uri: str) -> FileEntry:
    return packing.write_shard(tables(parts), plan, split, shard, uri)


def _counts(read: int, tally: _Tally, task: Task, plan: packing.Plan, sizes: packing.Sizes) -> Counts:
    """The outcome of every row.

    Raises:
        RuntimeError: rows are missing, or were counted twice.
    """
    outcomes = tally.outcomes
    apart = (KEPT, QUARANTINED, DUPLICATE, NEAR_DUPLICATE)
    dropped = sizes.dropped + Counter({outcome: count for outcome, count in outcomes.items() if outcome not in apart})
    stored = {split: count * plan.length for split, count in zip(SPLITS, plan.rows, strict=True)}
    counts = Counts(
        read=read,
        dropped=dict(sorted(dropped.items())),
        duplicates=outcomes[DUPLICATE],
        near_duplicates=outcomes[NEAR_DUPLICATE],
        quarantined=outcomes[QUARANTINED],
        kept=sizes.rows,
        cleaned=dict(sorted(tally.notes.items())),
        copies=sizes.copies,
        packed_units=stored if task.packing else {},
        packed_dropped={split: sizes.elements[split] - stored[split] for split in SPLITS} if task.packing else {},
    )
    if not counts.adds_up():
        raise RuntimeError(f"the counts of rows do not add up; nothing was committed: {counts!r}")
    return counts
