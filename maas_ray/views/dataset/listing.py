"""The list of all datasets."""

from dataclasses import dataclass
from datetime import datetime

from maas_ray import storage
from maas_ray.data.dataset import KIND, PreparedDataset
from maas_ray.data.names import POINTER
from maas_ray.errors import MaasError, NotFoundError, StorageError
from maas_ray.settings import Settings
from maas_ray.views.dataset.summary import parent_of


@dataclass(frozen=True)
class Listed:
    """A dataset in the list."""

    name: str
    fingerprint: str
    """The 16 digits that name it."""
    current: bool
    """True if the name without a fingerprint means this dataset."""
    rows: dict[str, int]
    """The number of rows by split."""
    size: int
    """Bytes of all files."""
    prepared: datetime | None
    parent: str
    """The dataset that it has grown from. Empty: none."""
    uri: str
    problem: str = ""
    """The error when it was read. Empty: none."""


def datasets(settings: Settings) -> list[Listed]:
    """All committed datasets by name, newest first. A damaged one is listed with its problem."""
    home = storage.join(settings.storage, "datasets")
    listed = []
    for name in storage.list_directory(home):
        here = storage.join(home, name)
        current = _current(here)
        for fingerprint in storage.list_directory(here):
            uri = storage.join(here, fingerprint)
            if fingerprint == POINTER or not storage.exists(storage.join(uri, storage.MANIFEST)):
                continue  # not committed: in progress, or interrupted
            listed.append(_listed(name, fingerprint, uri, current=fingerprint == current))
    return sorted(listed, key=lambda item: (item.name, -(item.prepared.timestamp() if item.prepared else 0.0)))


def _current(home: str) -> str:
    try:
        return str(storage.read_json(storage.join(home, POINTER))["fingerprint"])[:16]
    except (NotFoundError, StorageError, KeyError, TypeError):
        return ""


def _listed(name: str, fingerprint: str, uri: str, *, current: bool) -> Listed:
    prepared = storage.modified(storage.join(uri, storage.MANIFEST))
    try:
        dataset = PreparedDataset(storage.open_artifact(uri, KIND))
    except MaasError as error:
        return Listed(name, fingerprint, current, {}, 0, prepared, "", uri, str(error))
    size = sum(entry.size for entry in dataset.artifact.files)
    return Listed(
        name, fingerprint, current, dataset.meta.counts.kept, size, prepared, parent_of(dataset.meta), dataset.uri
    )
