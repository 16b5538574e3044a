"""Groups of rows that are connected by shared keys, and the representative of each group. Pure functions."""

import numpy as np


def edges(keys: np.ndarray, ids: np.ndarray, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edges that join the rows that share a key: from each row of a group to the first row of the group.

    All entries of a key must be given together; their order does not matter. The result is a spanning forest, so there
    are fewer edges than rows.

    Args:
        keys: any comparable numbers [n].
        ids: ids of rows, int64 [n]; a row may have many keys.
        ranks: ranks of the same rows, int64 [n]. The first row of a group has the lowest rank, then the lowest id.

    Returns:
        The rows and the first row of each one's group, int64 [m] each, ordered by the rows' ids.
    """
    order = np.lexsort((ids, ranks, keys))
    keys, rows = keys[order], ids[order]
    new = np.ones(len(keys), bool)
    new[1:] = keys[1:] != keys[:-1]
    heads = rows[np.flatnonzero(new)[np.cumsum(new) - 1]] if len(rows) else rows
    differ = heads != rows
    if not differ.any():
        return np.empty(0, np.int64), np.empty(0, np.int64)
    members, labels = components(np.column_stack([rows[differ], heads[differ]]))
    distinct, first = np.unique(ids, return_index=True)
    kept = representatives(members, labels, ranks[first[np.searchsorted(distinct, members)]])
    apart = kept != members
    return members[apart], kept[apart]


def components(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected components of the graph with these edges.

    The peak of memory is about 90 bytes an edge.

    Args:
        pairs: ids of rows, int64 [n, 2].

    Returns:
        The ids in any pair, int64 [m], ascending; and the number of each one's component, int64 [m].
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ids, indices = np.unique(pairs, return_inverse=True)
    if not len(ids):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    ends = indices.reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(len(ids), len(ids)))
    return ids, connected_components(graph, directed=False)[1].astype(np.int64)


def representatives(ids: np.ndarray, labels: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """The representative of each row's component, int64 [n]: the row with the lowest rank, then with the lowest id."""
    order = np.lexsort((ids, ranks, labels))
    new = np.ones(len(order), bool)
    new[1:] = labels[order][1:] != labels[order][:-1]
    firsts = ids[order][np.flatnonzero(new)[np.cumsum(new) - 1]] if len(ids) else ids
    result = np.empty_like(ids)
    result[order] = firsts
    return result
