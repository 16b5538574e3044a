"""What can only be said of rows on the whole: which are like which, and how labels come out even.

    rows ──keys_of▶ (key, row) ──sorted by key over the cluster──▶ linked ──▶ edges ──▶ verdicts_of ──▶ Verdicts

Rows that share a key are alike: of their whole content (`exact`), or of a band of their MinHash signature. A range of
keys gives only as many edges as join its rows, so the driver holds two numbers for each row that is like another, and
nothing for the others. What is alike over any number of steps is one component, of which one row is kept.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from maas_ray.data.dedup.minhash import components, edges, representatives
from maas_ray.data.splits.hashing import SPLIT_BITS

KEYS = pa.schema(
    {
        "key": pa.int64(),
        "more": pa.int64(),  # of exact keys the next 64 bits; 0 for bands
        "row": pa.int64(),
        "rank": pa.int64(),  # the lowest of a component is kept
        "exact": pa.bool_(),
    }
)
_EDGES = pa.schema(
    {"row": pa.int64(), "other": pa.int64(), "rank": pa.int64(), "other_rank": pa.int64(), "exact": pa.bool_()}
)
_NONE = np.zeros(0, np.int64)
_RANK_BITS, _TIE_BITS = 40, 20


class Verdicts(NamedTuple):
    """What was decided of rows, in arrays that ascend, so that a block finds its own.

    Args:
        rows: numbers of rows that are not kept.
        likes: the row that is kept in place of each.
        exact: whether its content is the same.
        representatives: rows that others are like.
        inputs: hashes of inputs whose split was open.
        splits: the number of each one's split.
    """

    rows: np.ndarray = _NONE
    likes: np.ndarray = _NONE
    exact: np.ndarray = _NONE.astype(bool)
    representatives: np.ndarray = _NONE
    inputs: np.ndarray = _NONE
    splits: np.ndarray = _NONE


def ranks(keys: np.ndarray, exact: np.ndarray, given: bool) -> np.ndarray:
    """Which of several rows is kept: that of the lowest digest, which depends on content alone.

    Where splits are `given`, rows to evaluate with come before rows to train on, which would know them.
    """
    content = (keys & ((1 << SPLIT_BITS) - 1)) >> (SPLIT_BITS - _RANK_BITS)
    tie = exact.view(np.uint64) >> np.uint64(64 - _TIE_BITS)
    order = 2 - (keys >> SPLIT_BITS) if given else np.zeros_like(keys)
    return (order << (_RANK_BITS + _TIE_BITS)) | (content << _TIE_BITS) | tie.astype(np.int64)


def keys_of(rows: pa.Table, given: bool) -> pa.Table:
    """What rows that are kept so far share with those they are like."""
    rows = rows.filter(pa.compute.equal(rows["fate"], ""))
    digests = np.frombuffer(b"".join(rows["digest"].to_pylist()), ">i8").reshape(-1, 4).astype(np.int64)
    bands = [np.frombuffer(keys, np.int64) for keys in rows["bands"].to_pylist()]
    counts = [len(keys) for keys in bands]
    numbers = rows["row"].to_numpy()
    ranked = ranks(rows["key"].to_numpy(), rows["exact"].to_numpy(), given)
    columns = {
        "key": np.concatenate([digests[:, 0], *bands]),
        "more": np.concatenate([digests[:, 1], np.zeros(sum(counts), np.int64)]),
        "row": np.concatenate([numbers, np.repeat(numbers, counts)]),
        "rank": np.concatenate([ranked, np.repeat(ranked, counts)]),
        "exact": np.arange(len(rows) + sum(counts)) < len(rows),
    }
    return pa.table(columns, schema=KEYS)


def linked(keys: pa.Table) -> pa.Table:
    """The edges between rows of a whole range of keys that are alike, but for those between rows of before."""
    found = []
    for exact in (True, False):
        chosen = keys.filter(pa.compute.equal(keys["exact"], exact))
        if not len(chosen):
            continue
        shared = chosen["key"].to_numpy()  # of a band it says all, for `more` is 0
        if exact:
            shared = _numbered(shared, chosen["more"].to_numpy())
        numbers, ranked = chosen["row"].to_numpy(), chosen["rank"].to_numpy()
        one, other = edges(shared, numbers, ranked)
        order = np.argsort(numbers, kind="stable")
        by_number, by_rank = numbers[order], ranked[order]
        rank = [by_rank[np.searchsorted(by_number, ends)] for ends in (one, other)]
        new = (rank[0] >= 0) | (rank[1] >= 0)  # see `known.OLD`
        columns = [values[new] for values in (one, other, *rank)]
        found.append(pa.table([*columns, np.full(int(new.sum()), exact)], schema=_EDGES))
    return pa.concat_tables([_EDGES.empty_table(), *found])


def _numbered(keys: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Keys of two parts as one number each: equal where both parts are."""
    order = np.lexsort((more, keys))
    keys, more = keys[order], more[order]
    new = (keys[1:] != keys[:-1]) | (more[1:] != more[:-1])
    numbers = np.zeros(len(order), np.int64)
    numbers[order[1:]] = np.cumsum(new)
    return numbers


def verdicts_of(found: Iterable[pa.Table]) -> Verdicts:
    """Which rows are left out for which others, from all edges."""
    every = pa.concat_tables([_EDGES.empty_table(), *found])
    if not len(every):
        return Verdicts()
    one, other, rank, other_rank = (every[name].to_numpy() for name in _EDGES.names[:4])
    ids, places = np.unique(np.concatenate([one, other]), return_index=True)
    ranked = np.concatenate([rank, other_rank])[places]
    likes = _kept_of(one, other, ids, ranked)
    same = every["exact"].to_numpy(zero_copy_only=False)
    # A row is an exact duplicate where its like is in the same group of equal content, else a near one.
    exact_likes = ids.copy()
    if same.any():
        some = np.unique(np.concatenate([one[same], other[same]]))
        exact_likes[np.searchsorted(ids, some)] = _kept_of(
            one[same], other[same], some, ranked[np.searchsorted(ids, some)]
        )
    out = likes != ids
    return Verdicts(ids[out], likes[out], (exact_likes != ids)[out], np.unique(likes[out]))


def _kept_of(one: np.ndarray, other: np.ndarray, ids: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """For each row of `ids`, ascending, the one of its component that is kept."""
    return representatives(ids, components(np.stack([one, other], 1))[1], ranked)
