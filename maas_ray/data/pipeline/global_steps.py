"""The steps of `fates` and `verdicts` that see all rows, on a cluster: duplicates, open splits, fitted cleaning.

Only what a decision needs goes to the driver: two numbers for each row that is like another, a hash for each whose
split is open, those of the words to evaluate with, and, one block at a time, the rows that steps are fitted on.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from maas_ray.data.cleaning import CleaningStep
from maas_ray.data.dedup import verdicts
from maas_ray.data.dedup.decontaminate import Decontaminate, NgramIndex
from maas_ray.data.dedup.verdicts import Verdicts
from maas_ray.data.pipeline import row_steps as fates
from maas_ray.data.pipeline.blocks import Blocks, run, run_over, run_sorted, tables
from maas_ray.data.pipeline.index import INDEX, Known, keys_of_known, splits_of
from maas_ray.data.pipeline.rows import ROWS
from maas_ray.data.splits.hashing import SPLIT_BITS
from maas_ray.data.splits.spec import stratified
from maas_ray.errors import DataError
from maas_ray.tasks import Row, TaskSpec

if TYPE_CHECKING:
    from maas_ray.data.prepare import PrepareSpec

_RANGE_BYTES = 32 << 20


def judge(spec: "PrepareSpec", raw: Blocks, rows: int, known: Known | None = None) -> Blocks:
    """Rows with what only a look at all of them says: who is like whom, and splits that were open.

    Rows that are `known` stay as they are: what is like one of them is left out, and an input that is among them falls
    into its split. The list of blocks is emptied where others take their place.
    """
    found = Verdicts()
    if spec.deduplicate.near is not None or spec.straddles or (spec.deduplicate.exact and known is not None):
        found = _alike(spec, raw, rows, known)
    if spec.splits.stratify is not None:
        inputs, splits = _strata(spec, raw, found, known)
        found = found._replace(inputs=inputs, splits=splits)
    if not len(found.rows) and not len(found.inputs):
        return raw
    return run_over(raw, partial(_judged, verdicts=ray.put(found)))


def _judged(block: pa.Table, verdicts: Any) -> pa.Table:
    return fates.judged(block, ray.get(verdicts))


def _alike(spec: "PrepareSpec", raw: Blocks, rows: int, known: Known | None) -> Verdicts:
    rows += known.rows if known is not None else 0
    bands = spec.deduplicate.near.resolved_bands if spec.deduplicate.near is not None else 0
    ranges = max(1, math.ceil(rows * (bands + 1) * 33 / _RANGE_BYTES))
    boundaries = [(number << 64) // ranges - (1 << 63) for number in range(1, ranges)]
    keys = run(raw, partial(verdicts.keys_of, given=spec.gives_splits))
    if keys and known is not None:
        keys += run(index_of(known), partial(keys_of_known, uri=known.uri))
    return verdicts.verdicts_of(tables(run_sorted(keys, "key", boundaries, verdicts.linked)) if keys else [])


def index_of(known: Known) -> Blocks:
    """The files of an index, a block each."""
    return [ray.put(fates.packed([path])) for path in known.index]


def _strata(spec: "PrepareSpec", raw: Blocks, found: Verdicts, known: Known | None) -> tuple[np.ndarray, np.ndarray]:
    listed = list(tables(run(raw, _open)))
    every = pa.concat_tables(listed) if listed else ROWS.empty_table()
    every = every.filter(pa.array(~np.isin(every["row"].to_numpy(), found.rows)))
    old = INDEX.empty_table().select(["inputs", "split"])
    if known is not None and len(every):
        wanted = ray.put(np.unique(every["inputs"].to_numpy()))
        old = pa.concat_tables([old, *tables(run(index_of(known), partial(splits_of, uri=known.uri, wanted=wanted)))])
        every = every.filter(pa.array(~np.isin(every["inputs"].to_numpy(), old["inputs"].to_numpy())))
    strata = pa.compute.rank(every["stratum"], tiebreaker="dense").to_numpy()
    inputs, splits = stratified(strata, every["inputs"].to_numpy(), spec.splits.shares)
    inputs, first = np.unique(np.concatenate([old["inputs"].to_numpy(), inputs]), return_index=True)
    return inputs, np.concatenate([old["split"].to_numpy(), splits])[first]


def _open(block: pa.Table) -> pa.Table:
    """Rows whose split is open."""
    kept = pa.compute.and_(pa.compute.equal(block["fate"], fates.KEPT), pa.compute.is_valid(block["stratum"]))
    return block.filter(kept).select(["row", "stratum", "inputs"])


def decontaminated(ordered: Blocks, task: TaskSpec, how: Decontaminate) -> Blocks:
    """Rows in their splits, those to train on marked that share too much with one to evaluate with."""
    index = NgramIndex(
        hashes["hash"].to_numpy() for hashes in tables(run(ordered, partial(_hashes, task=task, how=how)))
    )
    return run_over(ordered, partial(_marked, task=task, how=how, index=ray.put(index)))


def _hashes(block: pa.Table, task: TaskSpec, how: Decontaminate) -> pa.Table:
    found = fates.ngrams(block, task, how, training=False)
    every = np.unique(np.concatenate([np.zeros(0, np.uint64), *(hashes for _, hashes in found)]))
    return pa.table({"hash": every})


def _marked(block: pa.Table, task: TaskSpec, how: Decontaminate, index: Any) -> pa.Table:
    known: NgramIndex = ray.get(index)
    which, likes = block["fate"].to_pylist(), block["like"].to_pylist()
    for place, hashes in fates.ngrams(block, task, how, training=True):
        if how.contaminates(known.contains(hashes)):
            which[place] = fates.CONTAMINATED
    return fates.marked(block, which, likes)


def finish(steps: tuple[CleaningStep, ...], ordered: Blocks, task: TaskSpec) -> tuple[Blocks, tuple[CleaningStep, ...]]:
    """Fit each step on the training rows as those before it left them, and run it; gives the fitted steps too.

    Raises:
        DataError: there is nothing to fit on.
    """
    fitted: tuple[CleaningStep, ...] = ()
    waiting: list[CleaningStep] = []
    for step in steps:
        if step.fits and waiting:
            ordered, waiting = run_over(ordered, partial(fates.cleaned, steps=tuple(waiting), task=task)), []
        fitted = (*fitted, step.fit(_training(ordered)) if step.fits else step)
        waiting.append(fitted[-1])
    if waiting:
        ordered = run_over(ordered, partial(fates.cleaned, steps=tuple(waiting), task=task))
    return ordered, fitted


def _training(ordered: Blocks) -> Iterator[Row]:
    count = 0
    for table in tables(ordered):
        if len(table) and table["key"][0].as_py() >> SPLIT_BITS:
            break  # training rows come first
        for row in fates.raw_rows(table):
            count += 1
            yield row
    if not count:
        raise DataError("no row is left to train on; cleaning has nothing to be fitted on.")
