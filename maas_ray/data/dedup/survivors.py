"""Which duplicate survives: the rule, and the decision over all rows.

One row of several duplicates is kept (`survival_rank`, `SURVIVAL_ORDER`):

1. the row of the split that is evaluated: test before validation before train, if splits are given;
2. then the row whose content has the lowest hash, which depends neither on files nor on the order of rows;
3. for rows whose content is the same to the last byte, the heaviest source, then the source and file named first.

Exact duplicates alone are decided range by range (`exact_keys`, `exact_duplicates`), and nothing comes to the driver.
A dataset that grows keeps its old rows: a new row never replaces one (`index.OLD`).

    rows ──duplicate_keys▶ (key, row) ──sort by key, on the cluster──▶ linked ──▶ edges ──▶ survivors_of ──▶ Decisions

Rows that share a key are duplicates: a key is a hash of the whole content (`exact`), or of one band of a MinHash
signature. A range of keys gives only as many edges as join its rows, so the driver holds two numbers for each duplicate
and nothing for other rows. Duplicates over any number of steps are one component, of which one row survives.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from maas_ray.data.dedup.components import components, edges, representatives
from maas_ray.data.splits.hashing import SPLIT_BITS, words_of
from maas_ray.data.splits.stratify import Ends

KEYS = pa.schema(
    {
        "key": pa.int64(),
        "more": pa.int64(),  # the next 64 bits of an exact key; 0 for bands
        "row": pa.int64(),
        "rank": pa.int64(),  # the row with the lowest rank in a component survives
        "exact": pa.bool_(),
    }
)
EXACT_KEYS = pa.schema(
    {
        "key": pa.int64(),  # the first 128 bits of the digest of the content
        "more": pa.int64(),
        "exact": pa.int64(),
        "weight": pa.float64(),
        "row": pa.int64(),
    }
)
# Must agree with `survival_rank`, which decides among rows that differ.
SURVIVAL_ORDER = (
    ("key", "ascending"),
    ("digest", "ascending"),
    ("exact", "ascending"),
    ("weight", "descending"),
    ("row", "ascending"),
)
"""Sort order of rows in which the survivor is the first of its exact duplicates, which then lie side by side."""
_KEY_ORDER = tuple(("more", order) if name == "digest" else (name, order) for name, order in SURVIVAL_ORDER)
_EDGES = pa.schema(
    {"row": pa.int64(), "other": pa.int64(), "rank": pa.int64(), "other_rank": pa.int64(), "exact": pa.bool_()}
)
_NONE = np.zeros(0, np.int64)
_RANK_BITS, _TIE_BITS = 40, 20


class Decisions(NamedTuple):
    """Decisions that need all rows, in ascending arrays, so that a block can look up its own rows.

    Args:
        rows: numbers of the rows that are dropped as duplicates.
        likes: the row that survives in place of each.
        exact: whether the content of both is the same.
        survivors: numbers of the rows that survive.
        inputs: hashes of inputs that keep the split that they have in a dataset that grows.
        splits: the split number of each.
        ends: the ends of stratified splits, for all other inputs. None: no split was open.
    """

    rows: np.ndarray = _NONE
    likes: np.ndarray = _NONE
    exact: np.ndarray = _NONE.astype(bool)
    survivors: np.ndarray = _NONE
    inputs: np.ndarray = _NONE
    splits: np.ndarray = _NONE
    ends: Ends | None = None


def survival_rank(keys: np.ndarray, exact: np.ndarray, given: bool) -> np.ndarray:
    """Ranks that decide which of several duplicates survives: the row with the lowest rank.

    The rank is a hash of the content alone, so that it depends neither on files nor on the order of rows.

    Args:
        keys: sort keys of the rows: split and content.
        exact: hashes of the rows' content as written.
        given: whether splits are given by a column or a source. Then rows of test come first, next those of
            validation, so that no row to evaluate with is dropped for a row to train on.
    """
    content = (keys & ((1 << SPLIT_BITS) - 1)) >> (SPLIT_BITS - _RANK_BITS)
    tie = exact.view(np.uint64) >> np.uint64(64 - _TIE_BITS)
    order = 2 - (keys >> SPLIT_BITS) if given else np.zeros_like(keys)
    return (order << (_RANK_BITS + _TIE_BITS)) | (content << _TIE_BITS) | tie.astype(np.int64)


def exact_keys(rows: pa.Table) -> pa.Table:
    """The keys of kept rows by which exact duplicates are equal, and their survival order."""
    rows = rows.filter(pa.compute.equal(rows["fate"], ""))
    words = words_of(rows["digest"])
    columns = {"key": words[:, 0], "more": words[:, 1], **{name: rows[name] for name in EXACT_KEYS.names[2:]}}
    return pa.table(columns, schema=EXACT_KEYS)


def exact_duplicates(keys: pa.Table) -> pa.Table:
    """The rows of a range of keys that have duplicates, each with the row that survives, which may be itself."""
    keys = keys.take(pa.compute.sort_indices(keys, sort_keys=list(_KEY_ORDER)))
    key, more, row = (keys[name].to_numpy() for name in ("key", "more", "row"))
    first = np.ones(len(keys), bool)
    first[1:] = (key[1:] != key[:-1]) | (more[1:] != more[:-1])
    groups = np.cumsum(first) - 1
    several = np.bincount(groups, minlength=1)[groups] > 1
    return pa.table({"row": row[several], "like": row[first][groups][several]})


def duplicate_keys(rows: pa.Table, given: bool) -> pa.Table:
    """The keys that kept rows share with their duplicates; `given` as in `survival_rank`."""
    rows = rows.filter(pa.compute.equal(rows["fate"], ""))
    digests = words_of(rows["digest"])
    bands = [np.frombuffer(keys, np.int64) for keys in rows["bands"].to_pylist()]
    counts = [len(keys) for keys in bands]
    numbers = rows["row"].to_numpy()
    ranks = survival_rank(rows["key"].to_numpy(), rows["exact"].to_numpy(), given)
    columns = {
        "key": np.concatenate([digests[:, 0], *bands]),
        "more": np.concatenate([digests[:, 1], np.zeros(sum(counts), np.int64)]),
        "row": np.concatenate([numbers, np.repeat(numbers, counts)]),
        "rank": np.concatenate([ranks, np.repeat(ranks, counts)]),
        "exact": np.arange(len(rows) + sum(counts)) < len(rows),
    }
    return pa.table(columns, schema=KEYS)


def linked(keys: pa.Table) -> pa.Table:
    """The edges between duplicates in a whole range of keys, except edges between two old rows."""
    tables = []
    for exact in (True, False):
        chosen = keys.filter(pa.compute.equal(keys["exact"], exact))
        if not len(chosen):
            continue
        shared = chosen["key"].to_numpy()  # the whole key of a band, because its `more` is 0
        if exact:
            shared = _numbered(shared, chosen["more"].to_numpy())
        numbers, ranks = chosen["row"].to_numpy(), chosen["rank"].to_numpy()
        one, other = edges(shared, numbers, ranks)
        order = np.argsort(numbers, kind="stable")
        by_number, by_rank = numbers[order], ranks[order]
        rank = [by_rank[np.searchsorted(by_number, ends)] for ends in (one, other)]
        new = (rank[0] >= 0) | (rank[1] >= 0)  # ranks of old rows are negative, see `index.OLD`
        columns = [values[new] for values in (one, other, *rank)]
        tables.append(pa.table([*columns, np.full(int(new.sum()), exact)], schema=_EDGES))
    return pa.concat_tables([_EDGES.empty_table(), *tables])


def _numbered(keys: np.ndarray, more: np.ndarray) -> np.ndarray:
    """A number for each pair of key parts: equal if both parts are equal."""
    order = np.lexsort((more, keys))
    keys, more = keys[order], more[order]
    new = (keys[1:] != keys[:-1]) | (more[1:] != more[:-1])
    numbers = np.zeros(len(order), np.int64)
    numbers[order[1:]] = np.cumsum(new)
    return numbers


def survivors_of(tables: Iterable[pa.Table]) -> Decisions:
    """The survivor of each component of duplicates, from all edges: the row of lowest rank, then of lowest number."""
    every = pa.concat_tables([_EDGES.empty_table(), *tables])
    if not len(every):
        return Decisions()
    one, other, rank, other_rank = (every[name].to_numpy() for name in _EDGES.names[:4])
    ids, first = np.unique(np.concatenate([one, other]), return_index=True)
    ranks = np.concatenate([rank, other_rank])[first]
    likes = _survivor_of_each(one, other, ids, ranks)
    same = every["exact"].to_numpy(zero_copy_only=False)
    # A row is an exact duplicate if its group of equal content has another survivor, else a near-duplicate.
    exact_likes = ids.copy()
    if same.any():
        some = np.unique(np.concatenate([one[same], other[same]]))
        indices = np.searchsorted(ids, some)
        exact_likes[indices] = _survivor_of_each(one[same], other[same], some, ranks[indices])
    out = likes != ids
    return Decisions(ids[out], likes[out], (exact_likes != ids)[out], np.unique(likes[out]))


def _survivor_of_each(one: np.ndarray, other: np.ndarray, ids: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The survivor of each row's component; `ids` ascend."""
    return representatives(ids, components(np.stack([one, other], 1))[1], ranks)
