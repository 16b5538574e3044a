"""Steps that need all rows, on a cluster: duplicates, stratified splits, decontamination, and fitting.

The driver receives only what a decision needs: two numbers for each duplicate, two hashes for each label whose share is
held out, hashes of the n-grams to evaluate with, the totals that steps and tasks are fitted on, and, one block at a
time, the rows that a tokenizer or the user's own `fit` reads.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from maas_ray.data.cleaning import CleaningStep
from maas_ray.data.cleaning.base.statistics import SummedStep
from maas_ray.data.dedup.decontaminate import MIN_WORDS, Decontaminate, HeldOutRuns, held_out_runs
from maas_ray.data.dedup.survivors import (
    EXACT_KEYS,
    Decisions,
    duplicate_keys,
    exact_duplicates,
    exact_keys,
    linked,
    survivors_of,
)
from maas_ray.data.pipeline import row_steps
from maas_ray.data.pipeline.blocks import Blocks, Watch, objects, run, run_over, tables, total_bytes
from maas_ray.data.pipeline.index import INDEX, RowIndex, keys_of_old_rows, splits_of
from maas_ray.data.pipeline.objects import packed
from maas_ray.data.pipeline.ordering import RANGE_BYTES, Lookup, in_ranges, training_rows
from maas_ray.data.pipeline.rows import CONTAMINATED, KEPT, each, resealed, sealed, unsealed
from maas_ray.data.spec import PrepareSpec
from maas_ray.data.splits import stratify
from maas_ray.errors import DataError
from maas_ray.tasks import Row, Task, TaskSpec
from maas_ray.tasks.fitting import SummedTaskSpec, Totals
from maas_ray.terminal.lines import Progress, say

Kind = TypeVar("Kind", bound=Totals)
_KEY_BYTES = 33
_OPEN_BYTES = 16


def settled(spec: PrepareSpec, raw: Blocks, rows: int, highest: int, old: RowIndex | None = None) -> Blocks:
    """Rows with the decisions that need all of them: which duplicates survive, and splits that were open.

    Args:
        spec: how duplicates are found and splits assigned.
        raw: the rows. The list is emptied if other blocks replace them.
        rows: their number.
        highest: a number that no row exceeds.
        old: the rows of the dataset that grows. They stay unchanged: a new row like one of them is dropped, and an
            input that occurs among them falls into its split.
    """
    decisions, duplicates = Decisions(), None
    if spec.deduplicate.near is not None or spec.may_straddle or (spec.drops_duplicates and old is not None):
        decisions = _survivors(spec, raw, rows, old)
    elif spec.drops_duplicates:
        keys = run(raw, partial(each, step=exact_keys, columns=("fate", "digest", *EXACT_KEYS.names[2:])))
        boundaries = _even(math.ceil(total_bytes(keys) / RANGE_BYTES))
        duplicates = Lookup.of(in_ranges(keys, "key", boundaries, exact_duplicates), highest)
    if spec.splits.stratify is not None:
        decisions = _stratified(spec, raw, decisions, rows, old)
    if not len(decisions.rows) and decisions.ends is None and (duplicates is None or not duplicates.ranges):
        return raw
    return run_over(raw, partial(_settle, decisions=ray.put(decisions), duplicates=duplicates))


def _settle(block: pa.Table, decisions: Any, duplicates: Lookup | None) -> Iterator[pa.Table]:
    decided: Decisions = ray.get(decisions)
    for rows in unsealed(block):
        some = duplicates.part(rows["row"].to_numpy()) if duplicates is not None else None
        yield sealed(row_steps.settled(rows, decided, some))


def _survivors(spec: PrepareSpec, raw: Blocks, rows: int, old: RowIndex | None) -> Decisions:
    rows += old.rows if old is not None else 0
    bands = spec.deduplicate.near.resolved_bands if spec.deduplicate.near is not None else 0
    ranges = max(1, math.ceil(rows * (bands + 1) * _KEY_BYTES / RANGE_BYTES))
    boundaries = _even(ranges)
    columns = ("fate", "digest", "bands", "row", "key", "exact")
    keys = run(raw, partial(each, step=partial(duplicate_keys, given=spec.has_given_splits), columns=columns))
    if keys and old is not None:
        keys += run(index_files(old), partial(keys_of_old_rows, uri=old.uri))
    return survivors_of(tables(in_ranges(keys, "key", boundaries, linked)))


def index_files(index: RowIndex) -> Blocks:
    """The files of an index, one in each block."""
    return [ray.put(packed([path])) for path in index.files]


def _stratified(spec: PrepareSpec, raw: Blocks, decisions: Decisions, rows: int, old: RowIndex | None) -> Decisions:
    """Decisions with the splits that were open; inputs of old rows keep theirs."""
    kept = decisions
    if old is not None:
        seen = [np.unique(table["inputs"].to_numpy()) for table in tables(_open_rows(raw, decisions))]
        wanted = ray.put(np.unique(np.concatenate([np.zeros(0, np.int64), *seen])))
        listed = tables(run(index_files(old), partial(splits_of, uri=old.uri, wanted=wanted)))
        decided = pa.concat_tables([INDEX.empty_table().select(["inputs", "split"]), *listed])
        inputs, first = np.unique(decided["inputs"].to_numpy(), return_index=True)
        kept = decisions._replace(inputs=inputs, splits=decided["split"].to_numpy()[first])
    boundaries = _even(max(1, math.ceil(rows * _OPEN_BYTES / RANGE_BYTES)))
    keys = _open_rows(raw, kept)
    ranges = in_ranges(keys, "inputs", boundaries, stratify.distinct)
    wanted_ranks = stratify.ranks(tables(run(ranges, stratify.counted)), spec.splits.shares)
    found = run(ranges, partial(stratify.found, wanted=wanted_ranks))
    return kept._replace(ends=stratify.ends_of(tables(found)))


def _open_rows(raw: Blocks, decisions: Decisions) -> Blocks:
    """The inputs and labels of kept rows whose split is open."""
    step = partial(_open, decisions=ray.put(decisions))
    return run(raw, partial(each, step=step, columns=("fate", "stratum", "row", "inputs")))


def _open(block: pa.Table, decisions: Any) -> pa.Table:
    decided: Decisions = ray.get(decisions)
    chosen = block.filter(pc.and_(pc.equal(block["fate"], KEPT), pc.is_valid(block["stratum"])))
    dropped = np.isin(chosen["row"].to_numpy(), decided.rows) | np.isin(chosen["inputs"].to_numpy(), decided.inputs)
    return chosen.filter(pa.array(~dropped)).select(["inputs", "stratum"])


def _even(ranges: int) -> list[int]:
    """Boundaries that cut the numbers of 64 bits into ranges of equal size."""
    return [(number << 64) // ranges - (1 << 63) for number in range(1, ranges)]


def decontaminated(blocks: Blocks, task: TaskSpec, how: Decontaminate) -> Blocks:
    """Rows in their splits; training rows that share too much text with a row to evaluate with are marked."""
    short = 0

    def held_out() -> Iterator[tuple[int, np.ndarray]]:
        nonlocal short
        for table in tables(run(blocks, partial(each, step=partial(_runs, task=task, how=how)))):
            short += table["short"][0].as_py()
            lengths, hashes = table["length"].to_numpy(), table["hash"].to_numpy()
            yield from ((int(length), hashes[lengths == length]) for length in np.unique(lengths))

    index = HeldOutRuns(held_out(), how.ngram)
    if short:
        say(
            f"  {short:,} held-out rows have fewer than {MIN_WORDS} words: they are compared with whole training rows "
            "only, not searched for within them"
        )
    step = partial(_mark_contaminated, task=task, how=how, index=ray.put(index))
    return run_over(blocks, partial(resealed, step=step))


def _runs(block: pa.Table, task: TaskSpec, how: Decontaminate) -> Iterator[pa.Table]:
    """The distinct runs of the held-out rows of a block, and the number of rows that are too short to search for."""
    found: dict[int, list[np.ndarray]] = {}
    short = 0
    for _, text in row_steps.texts(block, task, training=False):
        length, runs = held_out_runs(text, how.ngram)
        found.setdefault(length, []).append(runs)
        short += length < min(MIN_WORDS, how.ngram)
    distinct = {length: np.unique(np.concatenate(runs)) for length, runs in found.items() if length}
    lengths = np.repeat(np.array([*distinct], np.int64), [len(runs) for runs in distinct.values()])
    hashes = np.concatenate([np.zeros(0, np.uint64), *distinct.values()])
    if found:
        yield pa.table({"length": lengths, "hash": hashes, "short": np.full(len(lengths), short)})


def _mark_contaminated(block: pa.Table, task: TaskSpec, how: Decontaminate, index: Any) -> pa.Table:
    held_out: HeldOutRuns = ray.get(index)
    outcomes, likes = block["fate"].to_pylist(), block["like"].to_pylist()
    for row, text in row_steps.texts(block, task, training=True):
        if how.contaminates(held_out.overlap(text)):
            outcomes[row] = CONTAMINATED
    return row_steps.marked(block, outcomes, likes)


def fit_and_clean(
    steps: tuple[CleaningStep, ...], blocks: Blocks, task: TaskSpec
) -> tuple[Blocks, tuple[CleaningStep, ...]]:
    """Fit each step on the training rows as the steps before it left them, and run it; gives the fitted steps too.

    Raises:
        DataError: there are no rows to fit on.
    """
    fitted: tuple[CleaningStep, ...] = ()
    waiting: list[CleaningStep] = []
    for step in steps:
        if step.fits and waiting:
            blocks, waiting = cleaned(blocks, tuple(waiting), task), []
        fitted = (*fitted, _fit_step(step, blocks) if step.fits else step)
        waiting.append(fitted[-1])
    return cleaned(blocks, tuple(waiting), task) if waiting else blocks, fitted


def cleaned(blocks: Blocks, steps: tuple[CleaningStep, ...], task: TaskSpec) -> Blocks:
    """Rows after further cleaning steps, see `row_steps.cleaned`. The list is emptied."""
    return run_over(blocks, partial(resealed, step=partial(row_steps.cleaned, steps=steps, task=task)))


def _fit_step(step: CleaningStep, blocks: Blocks) -> CleaningStep:
    if not isinstance(step, SummedStep) or type(step).fit is not SummedStep.fit or len(blocks) == 1:
        return step.fit(_training(blocks))
    next(_training(blocks))  # raises if there is no row
    return step.with_totals(_merged(step.totals(), blocks, row_steps.raw_totals))


def fit_task(task: TaskSpec, blocks: Blocks, bar: Progress) -> Task:
    """The task, fitted on the training split in the order of its content.

    Totals are summed in the cluster. The driver reads the rows that `fit_sample` needs, or those of a single block,
    which gives the same result without a start of workers. A `fit` of the user's own reads all rows there.

    Raises:
        DataError: there are no rows to fit on.
    """
    rows = _parsed_training(task, blocks)
    if (first := next(rows, None)) is None:
        raise DataError(
            "no row is left to train on: every row is empty, unreadable, or in another split. "
            "Give more data, or smaller splits.",
            code="nothing_to_train_on",
        )
    rows = chain([first], rows)
    if not isinstance(task, SummedTaskSpec) or type(task).fit is not SummedTaskSpec.fit or len(blocks) == 1:
        return task.fit(rows)
    totals = task.totals()
    sample = task.fit_sample(rows)
    step = partial(row_steps.task_totals, task=task)
    return task.fitted(sample, _merged(totals, blocks, step, lambda done, _: bar.update(done)))


def _merged(totals: Kind, blocks: Blocks, step: Callable[..., Any], watch: Watch | None = None) -> Kind:
    """Totals of the training rows of all blocks; `step` sums those of one block."""
    for part in objects(run(blocks, partial(each, step=partial(step, totals=totals)), watch)):
        totals.merge(part)
    return totals


def _parsed_training(task: TaskSpec, blocks: Blocks) -> Iterator[Row]:
    last = b""
    for table in training_rows(blocks):
        for kept in row_steps.kept_rows(table, task):
            if kept.digest < last:
                raise RuntimeError("rows came out of order: fitting would depend on the cluster")
            last = kept.digest
            yield kept.row


def _training(blocks: Blocks) -> Iterator[Row]:
    count = 0
    for table in training_rows(blocks):
        for row in row_steps.raw_rows(table):
            count += 1
            yield row
    if not count:
        raise DataError(
            "no row of the training split is left to fit the cleaning steps on; loosen them, or give more data.",
            code="nothing_to_train_on",
        )
