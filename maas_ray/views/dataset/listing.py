"""What datasets there are."""

from dataclasses import dataclass
from datetime import datetime

from maas_ray import storage
from maas_ray.data.dataset import KIND, POINTER, PreparedDataset
from maas_ray.errors import MaasError, NotFoundError, StorageError
from maas_ray.settings import Settings
from maas_ray.views.dataset.look import parent_of


@dataclass(frozen=True)
class Listed:
    """A dataset in the list of all."""

    name: str
    fingerprint: str
    """The 16 digits that it is named by."""
    current: bool
    """Whether the name alone means it."""
    rows: dict[str, int]
    """Rows kept, by split."""
    size: int
    """Bytes of all its files."""
    prepared: datetime | None
    parent: str
    """The one that it has grown from. Empty: none."""
    uri: str
    problem: str = ""
    """Why it cannot be read. Empty: it can."""


def datasets(settings: Settings) -> list[Listed]:
    """All committed datasets, by name, the newest of a name first; a damaged one says so."""
    home = storage.join(settings.storage, "datasets")
    found = []
    for name in storage.list_directory(home):
        here = storage.join(home, name)
        current = _current(here)
        for fingerprint in storage.list_directory(here):
            uri = storage.join(here, fingerprint)
            if fingerprint == POINTER or not storage.exists(storage.join(uri, storage.MANIFEST)):
                continue  # what is no dataset yet: an attempt is under way, or was killed
            found.append(_listed(name, fingerprint, uri, current=fingerprint == current))
    return sorted(found, key=lambda one: (one.name, -(one.prepared.timestamp() if one.prepared else 0.0)))


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
