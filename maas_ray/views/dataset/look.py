"""A look at one dataset: everything that is shown of it, gathered once and small, whatever the size of the dataset.

What was counted comes from its manifest and `profile.json`; examples from a row group of each split, which is a sample
since rows were shuffled, and from further ones where row groups are small; what was left out from `leftout`. The same
dataset is always shown with the same rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from maas_ray import storage
from maas_ray.data.dataset import PreparedDataset
from maas_ray.data.kept_columns import stored_columns, texts
from maas_ray.data.manifest import DatasetMeta
from maas_ray.data.names import SPLITS
from maas_ray.data.profile import PROFILE_FILE, Names, Numbers, Profile, from_json
from maas_ray.errors import DataError, UntrustedCodeError
from maas_ray.views.dataset.left_out import LeftOut, left_out

_REASONS = {
    "empty": "empty",
    "weight": "by the weight of their source",
    "contaminated": "contaminated: share too much with rows to evaluate with",
    "duplicate": "duplicates",
    "near-duplicate": "near-duplicates",
    "quarantined": "quarantined: could not be read",
}
NO_PROFILE = (
    "lengths, labels and columns were not counted when this dataset was prepared; for them, remove it and prepare anew"
)


@dataclass(frozen=True)
class Look:
    """What there is to see.

    Args:
        meta: the manifest's.
        uri: where it lies.
        size: bytes of all files.
        files: how many.
        prepared: when it was committed. None: the storage does not say.
        profile: what was counted of rows. None: the dataset is from before that was done.
        examples: of each split rows in the task's own words, columns that were kept with them.
        left_out: what is not in it.
        notes: what cannot be shown, and why.
    """

    meta: DatasetMeta
    uri: str
    size: int
    files: int
    prepared: datetime | None
    profile: Profile | None
    examples: dict[str, list[dict[str, Any]]]
    left_out: LeftOut
    notes: list[str]

    @property
    def task(self) -> str:
        """Its type."""
        return str(self.meta.spec.get("task", {}).get("type", ""))

    @property
    def parent(self) -> str:
        """The dataset that it has grown from. Empty: none."""
        return parent_of(self.meta)

    @property
    def stored(self) -> int:
        """Rows kept, of all splits."""
        return sum(self.meta.counts.kept.values())

    def fates(self) -> dict[str, int]:
        """Rows that were left out, by why."""
        counts = self.meta.counts
        found = {
            "duplicate": counts.duplicates,
            "near-duplicate": counts.near_duplicates,
            **counts.dropped,
            "quarantined": counts.quarantined,
        }
        return {fate: rows for fate, rows in found.items() if rows}

    def traits(self, role: str) -> dict[str, dict[str, Numbers | Names]]:
        """What was counted, by name and split; splits in their order."""
        found: dict[str, dict[str, Numbers | Names]] = {}
        for split in SPLITS:
            for (of, called, name), some in sorted((self.profile or {}).items(), key=lambda item: item[0]):
                if (of, called) == (split, role):
                    found.setdefault(name, {})[split] = some
        return found


def parent_of(meta: DatasetMeta) -> str:
    """The dataset that one has grown from. Empty: none."""
    return str(meta.document().get("parent") or "")


def reason(fate: str) -> str:
    """A fate in words; what a cleaning step or a task gave is in words already."""
    return _REASONS.get(fate, fate)


def look(dataset: PreparedDataset, examples: int) -> Look:
    """See what is in a dataset.

    Args:
        dataset: which.
        examples: rows of each split, and of each fate of those that were left out.

    Raises:
        CorruptError: a file is damaged.
    """
    notes: list[str] = []
    paths = {entry.path for entry in dataset.artifact.files}
    profile = from_json(dataset.artifact.read(PROFILE_FILE), dataset.uri) if PROFILE_FILE in paths else None
    if profile is None:
        notes.append(NO_PROFILE)
    try:
        shown = {split: _examples(dataset, split, examples) for split in SPLITS if dataset.meta.splits[split].rows}
    except (UntrustedCodeError, DataError) as error:
        shown = {}
        notes.append(f"rows are not shown: {error}")
    return Look(
        meta=dataset.meta,
        uri=dataset.uri,
        size=sum(entry.size for entry in dataset.artifact.files),
        files=len(dataset.artifact.files),
        prepared=storage.modified(storage.join(dataset.uri, storage.MANIFEST)),
        profile=profile,
        examples=shown,
        left_out=left_out(dataset, examples),
        notes=notes,
    )


def _examples(dataset: PreparedDataset, split: str, count: int) -> list[dict[str, Any]]:
    """Some rows of a row group, drawn by the fingerprint; of further ones where it holds too few."""
    draws = np.random.default_rng([int(dataset.fingerprint[:16], 16), SPLITS.index(split)])
    sizes = dataset.group_sizes(split)
    filled = np.flatnonzero(sizes)
    weights = sizes[filled] / sizes[filled].sum()
    numbers = draws.choice(filled, min(len(filled), count), replace=False, p=weights).tolist()
    found: list[dict[str, Any]] = []
    for stored in dataset.read([dataset.row_group(split, number) for number in numbers], dataset.meta.kept):
        rows = np.sort(draws.permutation(len(stored["index"]))[: count - len(found)])
        found += _described(dataset, {name: values[rows] for name, values in stored.items()})
        if len(found) == count:
            break
    return found


def _described(dataset: PreparedDataset, stored: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Stored rows in the task's own words, with the columns that were kept with them."""
    columns = zip(dataset.meta.kept, stored_columns(dataset.meta.kept), strict=True)
    kept = {column: texts(stored[name]).tolist() for column, name in columns}
    task = dataset.task
    for place in range(len(stored["index"])):
        row = task.describe({name: stored[name][place] for name in task.stored})
        yield row | {column: values[place] for column, values in kept.items() if column not in row}
