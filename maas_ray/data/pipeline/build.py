"""One attempt at a dataset: the steps of `fates` and `packing` on a cluster, and the sums between them.

Rows stay in the cluster; to the driver come counts, sizes, the entries of files, and, one block at a time,
the rows that fitting reads.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from maas_ray.data.cleaning import CleaningStep
from maas_ray.data.cleaning.pii import Pii
from maas_ray.data.dataset import SPLITS, Counts, Shard, Split
from maas_ray.data.pipeline import global_steps as judging
from maas_ray.data.pipeline import index as known
from maas_ray.data.pipeline import packing
from maas_ray.data.pipeline import row_steps as fates
from maas_ray.data.pipeline.blocks import BLOCK_BYTES, Blocks, records, run, run_over, run_sorted, tables, total_bytes
from maas_ray.data.pipeline.growth import Parent, inputs_of
from maas_ray.data.pipeline.rows import ROWS
from maas_ray.data.pipeline.work import ENCODED, FITTED, READ, Work, files_of, files_table, once
from maas_ray.data.profile import Profile
from maas_ray.data.reading import Inspected, Part
from maas_ray.data.sources import InputFile
from maas_ray.errors import DataError
from maas_ray.storage import FileEntry
from maas_ray.tasks import Row, Task
from maas_ray.terminal.lines import Progress, progress, say

if TYPE_CHECKING:
    from maas_ray.data.prepare import PrepareSpec

# What is worth a block of its own. Opening a file costs as much as reading some bytes more.
_LEAST_BYTES, _OPEN_BYTES = 4 << 20, 4 << 10


@dataclass(frozen=True)
class Built:
    """What one attempt wrote, and what it counted."""

    task: Task
    task_files: dict[str, bytes]
    files: tuple[FileEntry, ...]
    splits: dict[str, Split]
    counts: Counts
    errors: list[str]
    """The commonest reasons for quarantine, a line each."""
    steps: tuple[CleaningStep, ...]
    """The cleaning steps as they were fitted."""
    inputs: pa.Table
    """The files that were read, see `growth`."""
    profile: Profile
    """What the rows that were kept are like."""


def look(
    spec: "PrepareSpec",
    files: list[list[InputFile]],
    parallelism: int | None,
    before: Mapping[tuple[int, str], Inspected] | None = None,
) -> list[list[Inspected]]:
    """Inspect every file of every source; of one that is as it was `before`, by its stamp, no byte is read.

    Raises:
        DataError: some cannot be used; names the first few.
    """
    before = before or {}
    items = [(number, file, _same(before, number, file)) for number, source in enumerate(files) for file in source]
    sizes = [0 if known is not None else file.size for _, file, known in items]
    groups = _grouped(items, sizes, _blocks_of(sizes, parallelism))
    found: list[list[Inspected]] = [[] for _ in files]
    step = partial(fates.inspect_files, sources=spec.sources, columns=spec.reading.names)
    with stage("looking at the input", len(items)) as bar:
        for number, file in _objects(run(_blocks(groups), step, lambda _, done: bar.update(done))):
            found[number].append(file)
    problems = [
        f"{spec.where(f'sources[{number}]')}: {file.problem}"
        for number, source in enumerate(found)
        for file in source
        if file.problem
    ]
    if problems:
        more = f"\n… and {len(problems) - 5:,} more." if len(problems) > 5 else ""
        raise DataError("\n".join(problems[:5]) + more)
    return found


def _same(before: Mapping[tuple[int, str], Inspected], number: int, file: InputFile) -> Inspected | None:
    known = before.get((number, file.relative))
    return known if known is not None and known.file == file else None


def build(  # noqa: PLR0915  one step after the other
    spec: "PrepareSpec",
    inspected: list[list[Inspected]],
    uri: str,
    attempt: str,
    parallelism: int | None,
    parent: Parent | None = None,
) -> Built:
    """Every step from the files to the shards.

    Args:
        spec: what to prepare, and how.
        inspected: the files to read, by source.
        uri: of the dataset.
        attempt: part of every file's name.
        parallelism: blocks that the work is cut into. None: by size and cluster, or as an attempt before cut it.
        parent: the dataset whose rows these come to.

    Raises:
        DataError: too much is broken, or too little is left.
    """
    read = sum(file.rows for source in inspected for file in source)
    if not read and parent is None:
        raise DataError("the sources hold no rows at all; there is nothing to prepare.")
    parts = [
        (number, part, size)
        for number, (source, files) in enumerate(zip(spec.sources, inspected, strict=True))
        for file in files
        for part, size in _parts(source, file, whole=spec.task.steps is not None)
    ]
    weights = [size for *_, size in parts]
    blocks = _blocks_of(weights, parallelism)
    work, blocks = Work.open(uri, blocks, chosen=parallelism is not None, schema=(str(ROWS), _digest(inspected)))
    numbered = enumerate((part for _, part, _ in parts), start=parent.dataset.meta.parts if parent else 0)
    groups = _grouped(list(numbered), weights, blocks)
    if before := work.count(READ):
        say(f"  going on: {before:,} of {len(groups):,} blocks were read before")
    ordered = _read(spec, groups, read, work, parent)
    if spec.decontaminate is not None:
        with stage("decontaminating", None):
            ordered = judging.decontaminated(ordered, spec.task, spec.decontaminate)
    steps: tuple[CleaningStep, ...] = spec.clean
    if spec.fitted_steps and parent is not None:
        steps = parent.fitted()
        tail = steps[len(spec.reading.steps) :]
        ordered = run_over(ordered, partial(fates.cleaned, steps=tail, task=spec.task))
    elif spec.fitted_steps:
        with stage("fitting what cleans", None):
            ordered, fitted = judging.finish(spec.fitted_steps, ordered, spec.task)
        steps = (*spec.reading.steps, *fitted)
    found, errors, notes = _tally(ordered)
    _check(spec, found, errors, read)
    task_files = parent.task_files() if parent is not None else _fitted(spec, ordered, work)
    task = packing.loaded(task_files)
    chunks = _encode(spec, ordered, task_files, work)
    listed = records(run(chunks, packing.listing))
    plan, sizes = packing.plan_of(listed, task, spec.seed, spec.keep, parent.stored if parent else (0,) * len(SPLITS))
    if parent is not None:
        _check_learnt(sizes.unlearnt)
    files: list[FileEntry] = []
    if spec.deduplicate.exact or spec.splits.stratify is not None:
        lost = None
        if found[fates.NEAR_DUPLICATE]:
            lost = np.array([row["row"] for row in records(run(ordered, known.lost))], np.int64)
        files += _objects(run(ordered, partial(known.write_index, uri=uri, attempt=attempt, lost=lost)))
    if parent is not None:
        files += _name_liked(ordered, parent, uri, attempt)
    secret = any(isinstance(step, Pii) for step in spec.fitted_steps)
    if found[fates.QUARANTINED]:
        files += _objects(run(ordered, partial(fates.write_quarantine, uri=uri, attempt=attempt, secret=secret)))
    if found.total() != found[fates.KEPT] + found[fates.QUARANTINED]:
        files += _objects(run(ordered, partial(fates.write_removed, uri=uri, attempt=attempt, secret=secret)))
    del ordered  # the cluster may forget the raw rows now
    shards = [
        packing.layout(split, plan, attempt, len(parent.dataset.meta.splits[name].shards) if parent else 0)
        for split, name in enumerate(SPLITS)
    ]
    files += _write(chunks, plan, shards, uri)
    counted = (fates.KEPT, fates.QUARANTINED, fates.DUPLICATE, fates.NEAR_DUPLICATE)
    dropped = sizes.dropped + Counter({fate: count for fate, count in found.items() if fate not in counted})
    stored = {split: count * plan.length for split, count in zip(SPLITS, plan.rows, strict=True)}
    counts = Counts(
        read=read,
        dropped=dict(sorted(dropped.items())),
        duplicates=found[fates.DUPLICATE],
        near_duplicates=found[fates.NEAR_DUPLICATE],
        quarantined=found[fates.QUARANTINED],
        kept=sizes.rows,
        cleaned=dict(sorted(notes.items())),
        copies=sizes.copies,
        packed_units=stored if task.packing else {},
        packed_dropped={split: sizes.elements[split] - stored[split] for split in SPLITS} if task.packing else {},
    )
    if not counts.adds_up():
        raise RuntimeError(f"rows were lost or made up on the way; nothing was committed: {counts!r}")
    splits = {split: Split(shards=tuple(some)) for split, some in zip(SPLITS, shards, strict=True)}
    cut = Counter((number, part.file.file.relative) for number, part, _ in parts)
    return Built(
        task, task_files, tuple(files), splits, counts, errors, steps, inputs_of(inspected, cut), sizes.profile
    )


@contextmanager
def stage(label: str, total: float | None) -> Iterator[Progress]:
    """Say what is being done, and how far it is."""
    say(f"  {label}")
    with progress(f"  {label}", total) as bar:
        yield bar


def _read(spec: "PrepareSpec", groups: list[list[Any]], total: int, work: Work, parent: Parent | None) -> Blocks:
    """Read, parse, order by content, mark duplicates."""
    read = partial(fates.read_rows, reading=spec.reading)
    step = partial(once, step=read, key=_first_part, stage=READ, work=work)
    with stage("reading", total) as bar:
        # A reader cannot know how much it will read: its output alone is cut by size.
        raw = run(_blocks(groups), step, lambda _, done: bar.update(done), limit=BLOCK_BYTES)
    with stage("removing duplicates", total) as bar:
        raw = judging.judge(spec, raw, total, parent.known if parent is not None else None)
        # Rows take more than their files do, a table's several times as much.
        ranges = max(len(groups), math.ceil(total_bytes(raw) / BLOCK_BYTES))
        boundaries = fates.key_ranges(_shares(spec, raw, ranges), ranges)
        settle = partial(fates.settle, exact=spec.deduplicate.exact)
        return run_sorted(raw, "key", boundaries, settle, lambda _, done: bar.update(done))


def _shares(spec: "PrepareSpec", raw: Blocks, ranges: int) -> list[float]:
    """The share of the rows that lie in each split, and aside: counted, where that decides about ranges."""
    if ranges == 1:
        return [1 - sum(spec.splits.shares), *spec.splits.shares, 0.0]
    counts = np.sum([table["rows"].to_numpy() for table in tables(run(raw, fates.split_counts))], axis=0)
    return [float(count / counts.sum()) for count in counts]


def _parts(source: Any, file: Inspected, *, whole: bool) -> Iterator[tuple[Part, int]]:
    """A file's parts, with their sizes in bytes: it is cut between its groups, unless it must stay whole."""
    if not file.groups:
        yield Part(source, file), file.file.size
        return
    bytes_per_row = file.file.size / max(1, file.rows)
    start = rows_so_far = 0
    for place, count in enumerate(file.groups):
        rows_so_far += count
        if (rows_so_far * bytes_per_row >= BLOCK_BYTES and not whole) or place == len(file.groups) - 1:
            yield Part(source, file, range(start, place + 1)), int(rows_so_far * bytes_per_row)
            start, rows_so_far = place + 1, 0


def _digest(inspected: list[list[Inspected]]) -> str:
    """Of all that decides how files are cut into parts."""
    digest = sha256()
    for number, files in enumerate(inspected):
        for file in files:
            cut = number, file.file.relative, file.sha256, file.groups, file.places
            digest.update(repr(cut).encode(errors="replace"))
    return digest.hexdigest()


def _first_part(block: pa.Table) -> str:
    """What a block of parts goes by: the number of its first."""
    number, _ = next(fates.unpacked(block))
    return f"{number:08d}"


def _blocks_of(sizes: list[int], parallelism: int | None) -> int:
    """How many blocks pieces of work of these sizes are cut into."""
    if parallelism is not None:
        return parallelism
    total = sum(sizes) + _OPEN_BYTES * len(sizes)
    processors = max(1, int(ray.cluster_resources().get("CPU", 1)))
    return max(1, math.ceil(total / BLOCK_BYTES), min(processors, math.ceil(total / _LEAST_BYTES)))


def _grouped(items: list[Any], sizes: list[int], blocks: int) -> list[list[Any]]:
    """Items in groups of about the same size, in order: one group a block."""
    weights = [size + _OPEN_BYTES for size in sizes]
    total = sum(weights)
    groups: list[list[Any]] = [[] for _ in range(blocks)]
    before = 0
    for item, weight in zip(items, weights, strict=True):
        groups[before * blocks // total].append(item)
        before += weight
    return [group for group in groups if group]


def _blocks(groups: list[list[Any]]) -> Blocks:
    return [ray.put(fates.packed(group)) for group in groups]


def _objects(blocks: Blocks) -> Iterator[Any]:
    for table in tables(blocks):
        yield from fates.unpacked(table)


def _tally(ordered: Blocks) -> tuple[Counter[str], list[str], Counter[str]]:
    """Rows by fate; the commonest errors, a line each; and what cleaning changed."""
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    for found in records(run(ordered, fates.tally)):
        if found["fate"] == fates.NOTED:
            notes[found["kind"]] += found["rows"]
            continue
        counts[found["fate"]] += found["rows"]
        if found["fate"] == fates.QUARANTINED:
            errors[found["kind"]] += found["rows"]
            examples[found["kind"]].append(found["example"])
    return counts, [f"{count:,} × {min(examples[kind])}" for kind, count in errors.most_common(3)], notes


def _check(spec: "PrepareSpec", found: Counter[str], errors: list[str], read: int) -> None:
    quarantined = found[fates.QUARANTINED]
    if quarantined > spec.max_quarantined * read:
        lines = "".join(f"\n  {error}" for error in errors)
        raise DataError(
            f"{quarantined:,} of {read:,} rows cannot be read, more than max_quarantined ({spec.max_quarantined:g}) "
            f"allows; nothing was written. The commonest errors:{lines}\n"
            "Choose the files with `include` and `exclude`, mend them, or raise max_quarantined."
        )


def _check_learnt(unlearnt: Counter[str]) -> None:
    """Refuse rows that the dataset's task, which stays as it was fitted, cannot encode.

    Raises:
        DataError: there are some.
    """
    if unlearnt:
        reasons = "".join(f"\n  {count:,} × {reason}" for reason, count in unlearnt.most_common(5))
        more = f"\n  and {len(unlearnt) - 5:,} other reasons" if len(unlearnt) > 5 else ""
        raise DataError(
            f"{unlearnt.total():,} of the new rows hold what the dataset's features were not fitted on; nothing was "
            f"written:{reasons}{more}\nPrepare it anew from all files with `maas prepare SPEC --fresh`: they are "
            "fitted again then, and models are trained anew. Or leave these rows out."
        )


def _name_liked(ordered: Blocks, parent: Parent, uri: str, attempt: str) -> list[FileEntry]:
    """Name the parent's rows that new ones were left out for, where `removed/` does not name them yet."""
    first = parent.known.first
    likes = [table["like"].to_numpy() for table in tables(run(ordered, partial(known.likes_below, first=first)))]
    if not likes:
        return []
    step = partial(known.rows_of, uri=parent.dataset.uri, wanted=ray.put(np.unique(np.concatenate(likes))))
    found = list(tables(run(judging.index_of(parent.known), step)))
    if not found:
        return []
    rows = pa.concat_tables(found).sort_by("row")
    paths = parent.paths_of(rows["row"].to_pylist())
    return list(fates.unpacked(fates.write_named(rows, paths, uri, attempt)))


def _fitted(spec: "PrepareSpec", ordered: Blocks, work: Work) -> dict[str, bytes]:
    """The fitted task's files; they are kept."""
    if (found := work.load(FITTED, "task")) is not None:
        return files_of(pa.concat_tables(found))
    files = packing.saved(_fit(spec, ordered))
    for _ in work.keep(FITTED, "task", iter([files_table(files)])):
        pass
    return files


def _fit(spec: "PrepareSpec", ordered: Blocks) -> Task:
    """Fit on the training split in the order of its content."""
    with stage(f"fitting {spec.task.type}", None) as bar:
        training = _training(spec, ordered, bar)
        first = next(training, None)
        if first is None:
            raise DataError(
                "no row is left to train on: every row is empty, unreadable, or fell into another split. "
                "Give more data, or smaller splits."
            )
        return spec.task.fit(chain([first], training))


def _training(spec: "PrepareSpec", ordered: Blocks, bar: Progress) -> Iterator[Row]:
    count, last = 0, b""
    for table in tables(ordered):
        for kept in fates.kept_rows(table, spec.task):
            if kept.split:
                return  # training rows come first
            if kept.digest < last:
                raise RuntimeError("blocks came out of order: fitting would depend on the cluster")
            count, last = count + 1, kept.digest
            yield kept.row
        bar.update(count)


def _encode(spec: "PrepareSpec", ordered: Blocks, task_files: dict[str, bytes], work: Work) -> Blocks:
    with stage("encoding", len(ordered)) as bar:
        encode = partial(packing.encode, files=task_files, task_spec=spec.task, keep=spec.keep)
        step = partial(once, step=encode, key=fates.span_of, stage=ENCODED, work=work)
        return run(ordered, step, lambda done, _: bar.update(done))


def _write(chunks: Blocks, plan: packing.Plan, shards: list[list[Shard]], uri: str) -> list[FileEntry]:
    """Shuffle globally and write a shard for each range of places."""
    starts = [
        plan.base(split) + shard.start - plan.before[split] for split, some in enumerate(shards) for shard in some
    ]
    with stage("shuffling and writing", len(starts)) as bar:
        pieces = run_over(chunks, partial(packing.pack, plan=plan))
        write = partial(packing.write_shard, plan=plan, shards=shards, uri=uri)
        written = run_sorted(pieces, "place", [*starts[1:], sum(plan.rows)], write, lambda _, done: bar.update(done))
        files = list(_objects(written))
    if len(files) != len(starts):
        raise RuntimeError(f"{len(files)} shards were written, not {len(starts)}; nothing was committed")
    return files
