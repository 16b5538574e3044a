"""`maas prepare`: from raw data to a prepared dataset. The same spec and the same input always give the same dataset.

    plan: reuse, grow or build ─▶ read, decide, clean, fit, encode, write (`pipeline.build`) ─▶ commit

The steps run on Ray Data, a block at a time. The name of every file contains the attempt, so attempts never touch each
other's files; the manifest, written last, lists the files that count.
"""

import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress

from maas_ray import storage
from maas_ray.cluster import connect
from maas_ray.data import damage
from maas_ray.data.dataset import PreparedDataset, dataset_home
from maas_ray.data.names import POINTER, SPLITS
from maas_ray.data.pipeline import resume_cache
from maas_ray.data.plan import Plan, list_sources, plan_for
from maas_ray.data.reading import Inspected
from maas_ray.data.sources import InputFile
from maas_ray.data.spec import PrepareSpec
from maas_ray.errors import DataError, MaasError
from maas_ray.settings import Settings
from maas_ray.terminal.lines import say

_MANY = 0.2
"""Share of rows above which the report says how to keep duplicates."""
_MAX_CHANGES = 20


def prepare(
    spec: PrepareSpec, *, fresh: bool = False, settings: Settings | None = None, parallelism: int | None = None
) -> PreparedDataset:
    """Turn raw data into a prepared dataset, or return the dataset that this spec and input gave before.

    If files were added since, the dataset grows: only the new files are read. An interrupted attempt is resumed.

    Args:
        spec: the prepare spec.
        fresh: whether to prepare all files again even if the dataset could grow.
        settings: the storage. None: from the environment.
        parallelism: number of blocks. None: by size and cluster. The result does not depend on it.

    Raises:
        DataError: the input cannot become a dataset.
    """
    started = time.monotonic()
    settings = settings or Settings.from_environment()
    files = list_sources(spec)
    connect(settings)
    from maas_ray.data.commit import commit
    from maas_ray.data.pipeline.blocks import quiet
    from maas_ray.data.pipeline.build import build
    from maas_ray.data.pipeline.input import inspect_input

    def inspect(
        files: list[list[InputFile]], before: Mapping[tuple[int, str], Inspected] | None
    ) -> list[list[Inspected]]:
        return inspect_input(spec, files, parallelism, before)

    total = sum(file.size for source in files for file in source)
    say(f"dataset {spec.dataset}: {sum(map(len, files)):,} files, {total / 1e6:,.1f} MB")
    home = dataset_home(settings, spec.dataset)
    with quiet(total):
        plan = plan_for(spec, files, home, inspect, fresh=fresh)
        if plan.reused is not None:
            return _reuse(plan.reused, home)
        _announce(spec, plan)
        attempt = uuid.uuid4().hex[:8]
        try:
            built = build(spec, plan.files, plan.uri, attempt, parallelism, plan.parent)
            dataset = commit(spec, plan, built, attempt)
        except BaseException as error:
            _stop(plan.uri, attempt, error)
            raise
    resume_cache.remove(plan.uri)
    storage.write_json(storage.join(home, POINTER), {"fingerprint": plan.fingerprint})
    unreadable = damage.named(file for source in plan.files for file in source)
    report(dataset, built.errors, time.monotonic() - started, unreadable)
    return dataset


def _reuse(dataset: PreparedDataset, home: str) -> PreparedDataset:
    from maas_ray.data.commit import sweep

    sweep(dataset)
    resume_cache.remove(dataset.uri)
    storage.write_json(storage.join(home, POINTER), {"fingerprint": dataset.fingerprint})
    say(f"dataset {dataset.name}: nothing changed, reusing {dataset.fingerprint[:16]}")
    return dataset


def _announce(spec: PrepareSpec, plan: Plan) -> None:
    if plan.parent is not None:
        count, size = sum(map(len, plan.files)), sum(file.file.size for files in plan.files for file in files)
        old = plan.parent.dataset.fingerprint[:16]
        say(f"dataset {spec.dataset}: growing {old} by {count:,} new files, {size / 1e6:,.1f} MB")
    elif plan.reason:
        say(f"dataset {spec.dataset}: preparing all files again, because {plan.reason}")


def _stop(uri: str, attempt: str, error: BaseException) -> None:
    """Remove the files of a failed attempt. Its cache stays, unless the input itself is at fault."""
    from maas_ray.data.commit import discard

    if storage.exists(storage.join(uri, storage.MANIFEST)):
        return  # it was interrupted after the commit
    with suppress(MaasError):
        discard(uri, attempt)
    if isinstance(error, DataError):
        resume_cache.remove(uri)
    else:
        say("  interrupted; finished work is cached: run the same command again to resume")


def report(dataset: PreparedDataset, errors: list[str], seconds: float, unreadable: Iterable[str] = ()) -> None:
    """Print the outcome of the rows.

    Args:
        dataset: the dataset.
        errors: the most common reasons for quarantine.
        seconds: the time that it took.
        unreadable: files that could not be read, or not to their end.
    """
    meta, counts = dataset.meta, dataset.meta.counts
    lines = [("new", meta.grown.read, f"rows, {sum(meta.grown.kept.values()):,} kept")] if meta.grown else []
    lines += [("read", counts.read, "rows in all" if meta.grown else "rows")]
    lines += [("dropped", count, reason) for reason, count in counts.dropped.items()]
    lines += [("duplicates", counts.duplicates, _duplicates_note(dataset))] if counts.duplicates else []
    lines += [("duplicates", counts.near_duplicates, "near-duplicates")] if counts.near_duplicates else []
    changes = Counter(counts.cleaned).most_common()
    lines += [("cleaned", count, change) for change, count in changes[:_MAX_CHANGES]]
    lines += [("cleaned", sum(count for _, count in changes[_MAX_CHANGES:]), "other changes")] * (
        len(changes) > _MAX_CHANGES
    )
    lines += [("quarantined", counts.quarantined, "; ".join(errors))] if counts.quarantined else []
    lines += [(split, counts.kept[split], _split_note(dataset, split)) for split in SPLITS]
    say(f"dataset {dataset.name}  {dataset.fingerprint[:16]}  {seconds:.1f} s")
    for label, count, note in lines:
        say(f"  {label:<12}{count:>12,}  {note}".rstrip())
    for line in unreadable:
        say(f"  cannot be read: {line}")
    for remark in dataset.task.remarks:
        say(f"  note: {remark}")
    say(f"  {dataset.uri}")
    say(f"  maas data {dataset.name}  shows lengths, labels, examples, and dropped rows")


def _duplicates_note(dataset: PreparedDataset) -> str:
    counts = dataset.meta.counts
    share = counts.duplicates / counts.read
    return "" if share <= _MANY else f"{share:.0%} of the rows; to keep them: `deduplicate: {{exact: false}}`"


def _split_note(dataset: PreparedDataset, split: str) -> str:
    meta, task = dataset.meta, dataset.task
    kept, stored = meta.counts.kept[split], meta.splits[split].rows
    if not stored and (share := getattr(PrepareSpec.parse(meta.spec).splits, split, None)):
        return f"EMPTY: {share:g} of this input is too little; give more data, or a larger share"
    if task.packing and stored:
        units, left = meta.counts.packed_units[split], meta.counts.packed_dropped[split]
        return f"→ {stored:,} sequences, {units:,} {task.unit}, {left:,} left over"
    return f"→ {stored:,} {task.unit} stored" if stored != kept else ""
