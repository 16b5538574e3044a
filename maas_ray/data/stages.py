"""One attempt at a dataset: the steps of `fates` and `packing` on a cluster, and the sums between them.

Rows stay in the cluster; to the driver come counts, sizes, the entries of files, and, one block at a time,
the rows that fitting reads.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import ray

from maas_ray.console import Progress, progress, say
from maas_ray.data import fates, judging, packing
from maas_ray.data.blocks import BLOCK_BYTES, Blocks, records, run, run_sorted, tables
from maas_ray.data.cleaning import CleaningStep
from maas_ray.data.dataset import SPLITS, Counts, Shard, Split
from maas_ray.data.profile import Profile
from maas_ray.data.reading import Inspected, Part
from maas_ray.data.sources import InputFile
from maas_ray.errors import DataError
from maas_ray.storage import FileEntry
from maas_ray.tasks import Row, Task

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
    profile: Profile
    """What the rows that were kept are like."""


def look(spec: "PrepareSpec", files: list[list[InputFile]], parallelism: int | None) -> list[list[Inspected]]:
    """Inspect every file of every source.

    Raises:
        DataError: some cannot be used; names the first few.
    """
    items = [(number, file) for number, source in enumerate(files) for file in source]
    groups = _grouped(items, [file.size for _, file in items], parallelism)
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


def build(
    spec: "PrepareSpec", inspected: list[list[Inspected]], uri: str, attempt: str, parallelism: int | None
) -> Built:
    """Every step from the files to the shards.

    Raises:
        DataError: too much is broken, or too little is left.
    """
    read = sum(file.rows for source in inspected for file in source)
    if not read:
        raise DataError("the sources hold no rows at all; there is nothing to prepare.")
    ordered = _read(spec, inspected, read, parallelism)
    if spec.decontaminate is not None:
        with stage("decontaminating", None):
            ordered = judging.decontaminated(ordered, spec.task, spec.decontaminate)
    steps: tuple[CleaningStep, ...] = spec.clean
    if spec.fitted_steps:
        with stage("fitting what cleans", None):
            ordered, fitted = judging.finish(spec.fitted_steps, ordered, spec.task)
        steps = (*spec.reading.steps, *fitted)
    found, errors, notes = _tally(ordered)
    _check(spec, found, errors, read)
    task = _fit(spec, ordered)
    task_files = packing.saved(task)
    chunks = _encode(spec, ordered, task_files)
    plan, sizes = packing.plan_of(records(run(chunks, packing.listing)), task, spec.seed, spec.keep)
    files: list[FileEntry] = []
    if found[fates.QUARANTINED]:
        files += _objects(run(ordered, partial(fates.write_quarantine, uri=uri, attempt=attempt)))
    if found.total() != found[fates.KEPT] + found[fates.QUARANTINED]:
        files += _objects(run(ordered, partial(fates.write_removed, uri=uri, attempt=attempt)))
    del ordered  # the cluster may forget the raw rows now
    shards = [packing.layout(split, plan, attempt) for split in range(len(SPLITS))]
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
    return Built(task, task_files, tuple(files), splits, counts, errors, steps, sizes.profile)


@contextmanager
def stage(label: str, total: float | None) -> Iterator[Progress]:
    """Say what is being done, and how far it is."""
    say(f"  {label}")
    with progress(f"  {label}", total) as bar:
        yield bar


def _read(spec: "PrepareSpec", inspected: list[list[Inspected]], total: int, parallelism: int | None) -> Blocks:
    """Read, parse, order by content, mark duplicates."""
    parts = [
        part
        for source, files in zip(spec.sources, inspected, strict=True)
        for file in files
        for part in _parts(source, file, whole=spec.task.steps is not None)
    ]
    numbered = [(number, part) for number, (part, _) in enumerate(parts)]
    groups = _grouped(numbered, [size for _, size in parts], parallelism)
    step = partial(fates.read_rows, reading=spec.reading)
    with stage("reading", total) as bar:
        # A reader cannot know how much it will read: its output alone is cut by size.
        raw = run(_blocks(groups), step, lambda _, done: bar.update(done), limit=BLOCK_BYTES)
    with stage("removing duplicates", total) as bar:
        raw = judging.judge(spec, raw, total)
        boundaries = fates.key_ranges(spec.splits.shares, len(groups))
        settle = partial(fates.settle, exact=spec.deduplicate.exact)
        return run_sorted(raw, "key", boundaries, settle, lambda _, done: bar.update(done))


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


def _grouped(items: list[Any], sizes: list[int], parallelism: int | None) -> list[list[Any]]:
    """Items in groups of about the same size, in order: one group a block."""
    weights = [size + _OPEN_BYTES for size in sizes]
    total = sum(weights)
    if parallelism is None:
        processors = max(1, int(ray.cluster_resources().get("CPU", 1)))
        parallelism = max(math.ceil(total / BLOCK_BYTES), min(processors, math.ceil(total / _LEAST_BYTES)))
    groups: list[list[Any]] = [[] for _ in range(parallelism)]
    before = 0
    for item, weight in zip(items, weights, strict=True):
        groups[before * parallelism // total].append(item)
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


def _encode(spec: "PrepareSpec", ordered: Blocks, task_files: dict[str, bytes]) -> Blocks:
    with stage("encoding", len(ordered)) as bar:
        step = partial(packing.encode, files=task_files, task_spec=spec.task, keep=spec.keep)
        return run(ordered, step, lambda done, _: bar.update(done))


def _write(chunks: Blocks, plan: packing.Plan, shards: list[list[Shard]], uri: str) -> list[FileEntry]:
    """Shuffle globally and write a shard for each range of places."""
    starts = [plan.base(split) + shard.start for split, some in enumerate(shards) for shard in some]
    with stage("shuffling and writing", len(starts)) as bar:
        pieces = run(chunks, partial(packing.pack, plan=plan))
        write = partial(packing.write_shard, plan=plan, shards=shards, uri=uri)
        written = run_sorted(pieces, "place", [*starts[1:], sum(plan.rows)], write, lambda _, done: bar.update(done))
        files = list(_objects(written))
    if len(files) != len(starts):
        raise RuntimeError(f"{len(files)} shards were written, not {len(starts)}; nothing was committed")
    return files
