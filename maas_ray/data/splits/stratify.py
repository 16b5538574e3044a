"""Stratified splits of any number of rows: the same share of each label is held out, rounded to the nearest input.

Among the distinct inputs of a label, those with the lowest hashes are for validation and the next for testing. So a
label needs two hashes, the last of either split, and no process holds a list of the rows:

    rows, sorted by inputs into ranges ─▶ distinct ─┬─▶ counted ─▶ ranks ─┐
                                                    └─────────────────────┴─▶ found ─▶ ends_of ─▶ Ends

An input with several labels counts for the one with the lowest number, so that it lies in one split.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

_SEVERAL = 0
"""`split` of an input with several labels in the output of `found`."""
_BEFORE_ALL = np.iinfo(np.int64).min
_RANKS = pa.schema({"range": pa.int64(), "stratum": pa.int64(), "split": pa.int64(), "rank": pa.int64()})
_FOUND = pa.schema({"stratum": pa.int64(), "split": pa.int64(), "inputs": pa.int64()})


class Ends(NamedTuple):
    """The last hash of each split, by label.

    Args:
        strata: numbers of the labels, ascending.
        ends: the last hash for validation and for testing, int64 [2, labels].
        several: the inputs with several labels, ascending.
        counts_for: the label that each of them counts for.
    """

    strata: np.ndarray
    ends: np.ndarray
    several: np.ndarray
    counts_for: np.ndarray

    def splits(self, strata: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """The split number of each row, int64 [n]; 0 for a label that has no rows here."""
        if not len(self.strata):
            return np.zeros(len(inputs), np.int64)
        if len(self.several):
            at = np.searchsorted(self.several, inputs).clip(max=len(self.several) - 1)
            strata = np.where(self.several[at] == inputs, self.counts_for[at], strata)
        at = np.searchsorted(self.strata, strata).clip(max=len(self.strata) - 1)
        held_out = np.where(inputs <= self.ends[0, at], 1, np.where(inputs <= self.ends[1, at], 2, 0))
        return np.where(self.strata[at] == strata, held_out, 0)


def distinct(rows: pa.Table) -> pa.Table:
    """The distinct inputs of a range, ascending, each with its lowest label and whether it has several."""
    inputs, strata = rows["inputs"].to_numpy(), rows["stratum"].to_numpy()
    order = np.lexsort((strata, inputs))
    inputs, strata = inputs[order], strata[order]
    first = np.ones(len(inputs), bool)
    first[1:] = inputs[1:] != inputs[:-1]
    last = np.append(first[1:], [True] * (len(first) > 0))
    return pa.table({"inputs": inputs[first], "stratum": strata[first], "several": strata[first] != strata[last]})


def counted(rows: pa.Table) -> pa.Table:
    """The number of inputs of each label in a range of `distinct`. A range is named by its first input."""
    strata, counts = np.unique(rows["stratum"].to_numpy(), return_counts=True)
    return pa.table({"range": np.full(len(strata), rows["inputs"][0].as_py()), "stratum": strata, "count": counts})


def ranks(counts: Iterable[pa.Table], shares: tuple[float, ...]) -> pa.Table:
    """The last input of each label in each split, as a range and a rank among the label's inputs there.

    Args:
        counts: the output of `counted`, for all ranges in ascending order.
        shares: of validation and test.
    """
    tables = list(counts)
    if not tables:
        return _RANKS.empty_table()
    every = pa.concat_tables(tables)
    strata, order = every["stratum"].to_numpy(), np.argsort(every["stratum"].to_numpy(), kind="stable")
    strata, count, names = strata[order], every["count"].to_numpy()[order], every["range"].to_numpy()[order]
    after = np.cumsum(count)
    labels, first = np.unique(strata, return_index=True)
    base = (after - count)[first]
    totals = np.append(base[1:], after[-1]) - base
    result, end = [], np.zeros(len(labels), np.int64)
    for split, share in enumerate(shares, start=1):
        end = end + np.rint(share * totals).astype(np.int64)
        held_out = end > 0
        last = (base + end - 1)[held_out]
        at = np.searchsorted(after, last, side="right")
        columns = [names[at], labels[held_out], np.full(len(at), split), last - (after - count)[at]]
        result.append(pa.table(columns, schema=_RANKS))
    return pa.concat_tables(result)


def found(rows: pa.Table, wanted: pa.Table) -> pa.Table:
    """The inputs of a range that `ranks` names, and its inputs with several labels."""
    inputs, strata = rows["inputs"].to_numpy(), rows["stratum"].to_numpy()
    several = rows["several"].to_numpy(zero_copy_only=False)
    mine = wanted.filter(pa.compute.equal(wanted["range"], inputs[0]))
    by_label = {label: inputs[strata == label] for label in mine["stratum"].unique().to_pylist()}
    ends = [by_label[end["stratum"]][end["rank"]] for end in mine.to_pylist()]
    columns = [
        np.concatenate([mine["stratum"].to_numpy(), strata[several]]),
        np.concatenate([mine["split"].to_numpy(), np.full(several.sum(), _SEVERAL)]),
        np.concatenate([np.array(ends, np.int64), inputs[several]]),
    ]
    return pa.table(columns, schema=_FOUND)


def ends_of(parts: Iterable[pa.Table]) -> Ends:
    """The ends of all labels, from the output of `found` for all ranges."""
    every = pa.concat_tables([_FOUND.empty_table(), *parts])
    strata, split, inputs = (every[name].to_numpy() for name in _FOUND.names)
    labels = np.unique(strata[split != _SEVERAL])
    ends = np.full((2, len(labels)), _BEFORE_ALL)
    for number in (1, 2):
        ends[number - 1, np.searchsorted(labels, strata[split == number])] = inputs[split == number]
    ends[1] = np.maximum(ends[0], ends[1])
    order = np.argsort(inputs[split == _SEVERAL])
    return Ends(labels, ends, inputs[split == _SEVERAL][order], strata[split == _SEVERAL][order])
