"""A summary of one dataset: all that is shown of it, small whatever the size of the dataset.

Counts come from the manifest and `profile.json`. Examples come from a row group of each split, which is a random
sample because rows were shuffled, and from further row groups if they are small. Dropped rows come from `dropped`.
A dataset is always shown with the same rows.
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
from maas_ray.views.dataset.dropped import Dropped, dropped_rows

_REASONS = {
    "empty": "empty",
    "weight": "dropped by the weight of their source",
    "contaminated": "contaminated: overlap with held-out rows",
    "duplicate": "duplicates",
    "near-duplicate": "near-duplicates",
    "quarantined": "quarantined: unreadable",
}
NO_PROFILE = (
    "this dataset has no profile of lengths, labels and columns; to get one, delete the dataset and prepare it again"
)


@dataclass(frozen=True)
class DatasetSummary:
    """The parts of a dataset that are shown.

    Args:
        meta: the manifest's metadata.
        uri: the dataset's URI.
        size: bytes of all files.
        files: the number of files.
        prepared: the time of the commit. None: the storage does not record it.
        profile: statistics of rows. None: the dataset was prepared before profiles existed.
        examples: rows of each split as the task describes them, with their kept columns.
        dropped: dropped and quarantined rows.
        notes: the parts that cannot be shown, with the reason.
    """

    meta: DatasetMeta
    uri: str
    size: int
    files: int
    prepared: datetime | None
    profile: Profile | None
    examples: dict[str, list[dict[str, Any]]]
    dropped: Dropped
    notes: list[str]

    @property
    def task(self) -> str:
        """The type of the task."""
        return str(self.meta.spec.get("task", {}).get("type", ""))

    @property
    def parent(self) -> str:
        """The dataset that this one has grown from. Empty: none."""
        return parent_of(self.meta)

    @property
    def stored(self) -> int:
        """The number of rows kept in all splits."""
        return sum(self.meta.counts.kept.values())

    def outcomes(self) -> dict[str, int]:
        """The number of dropped rows by reason."""
        counts = self.meta.counts
        dropped = {
            "duplicate": counts.duplicates,
            "near-duplicate": counts.near_duplicates,
            **counts.dropped,
            "quarantined": counts.quarantined,
        }
        return {outcome: rows for outcome, rows in dropped.items() if rows}

    def traits(self, role: str) -> dict[str, dict[str, Numbers | Names]]:
        """The statistics of a role, such as `label`, by name and split. Splits are in their usual order."""
        traits: dict[str, dict[str, Numbers | Names]] = {}
        for split in SPLITS:
            for (its_split, its_role, name), statistics in sorted(
                (self.profile or {}).items(), key=lambda item: item[0]
            ):
                if (its_split, its_role) == (split, role):
                    traits.setdefault(name, {})[split] = statistics
        return traits


def parent_of(meta: DatasetMeta) -> str:
    """The dataset that another has grown from. Empty: none."""
    return str(meta.document().get("parent") or "")


def reason(outcome: str) -> str:
    """A reason in words. Cleaning steps and tasks give theirs in words already."""
    return _REASONS.get(outcome, outcome)


def summarise(dataset: PreparedDataset, examples: int) -> DatasetSummary:
    """Summarise a dataset.

    Args:
        dataset: the dataset.
        examples: the number of rows to show of each split and of each reason for dropping.

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
        notes.append(f"rows cannot be shown: {error}")
    return DatasetSummary(
        meta=dataset.meta,
        uri=dataset.uri,
        size=sum(entry.size for entry in dataset.artifact.files),
        files=len(dataset.artifact.files),
        prepared=storage.modified(storage.join(dataset.uri, storage.MANIFEST)),
        profile=profile,
        examples=shown,
        dropped=dropped_rows(dataset, examples),
        notes=notes,
    )


def _examples(dataset: PreparedDataset, split: str, count: int) -> list[dict[str, Any]]:
    """Random rows, seeded by the fingerprint, of one row group, or of several if one has too few rows."""
    draws = np.random.default_rng([int(dataset.fingerprint[:16], 16), SPLITS.index(split)])
    sizes = dataset.group_sizes(split)
    filled = np.flatnonzero(sizes)
    weights = sizes[filled] / sizes[filled].sum()
    indices = draws.choice(filled, min(len(filled), count), replace=False, p=weights).tolist()
    examples: list[dict[str, Any]] = []
    for stored in dataset.read([dataset.row_group(split, index) for index in indices], dataset.meta.kept):
        rows = np.sort(draws.permutation(len(stored["index"]))[: count - len(examples)])
        examples += _described(dataset, {name: values[rows] for name, values in stored.items()})
        if len(examples) == count:
            break
    return examples


def _described(dataset: PreparedDataset, stored: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Stored rows as the task describes them, with their kept columns."""
    columns = zip(dataset.meta.kept, stored_columns(dataset.meta.kept), strict=True)
    kept = {column: texts(stored[name]).tolist() for column, name in columns}
    task = dataset.task
    for index in range(len(stored["index"])):
        row = task.describe({name: stored[name][index] for name in task.stored})
        yield row | {column: values[index] for column, values in kept.items() if column not in row}
