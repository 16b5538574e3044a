"""The record of the cluster that `maas up` started on this machine: `$MAAS_HOME/cluster.json`.

Processes are recorded by id and start time, so that `maas down` never ends a process that reuses an id.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from maas_ray import storage
from maas_ray.errors import ClusterError, NotFoundError, StorageError
from maas_ray.settings import Settings

_FILE = "cluster.json"


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Args:
        address: the address for `ray.init`, `host:port`.
        dashboard: URL of the dashboard, which also accepts jobs. Empty: there is none, or it is not known.
        origin: in a few words, who started it.
    """

    address: str
    dashboard: str
    origin: str


@dataclass(frozen=True)
class RecordedProcess:
    """A process by its id and start time, which together are never reused."""

    pid: int
    started: float

    @classmethod
    def of(cls, process: psutil.Process) -> "RecordedProcess":
        return cls(process.pid, process.create_time())

    def running(self) -> psutil.Process | None:
        """The process, if it still runs."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            if process.create_time() == self.started and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


@dataclass(frozen=True)
class State:
    """Contents of `cluster.json`."""

    address: str
    dashboard: str
    auth: str
    temp_dir: str
    log: str
    parent: RecordedProcess
    children: tuple[RecordedProcess, ...]

    @classmethod
    def read(cls, settings: Settings) -> "State | None":
        """The recorded cluster. None: there is none.

        Raises:
            ClusterError: the file is damaged.
        """
        path = _path(settings)
        try:
            document = storage.read_json(path)
            parent = RecordedProcess(**document.pop("parent"))
            children = tuple(RecordedProcess(**child) for child in document.pop("children"))
            return cls(**document, parent=parent, children=children)
        except NotFoundError:
            return None
        except (StorageError, KeyError, TypeError) as error:
            raise ClusterError(
                f"{path} is not readable ({error}); remove it if no cluster runs.", code="cluster_state_damaged"
            ) from error

    def write(self, settings: Settings) -> None:
        document: dict[str, Any] = asdict(self)
        storage.write_json(_path(settings), document)

    @staticmethod
    def forget(settings: Settings) -> None:
        Path(_path(settings)).unlink(missing_ok=True)

    @property
    def cluster(self) -> Cluster:
        return Cluster(self.address, self.dashboard, "started by `maas up`")


@contextmanager
def exclusive(settings: Settings) -> Iterator[None]:
    """One `up` or `down` at a time."""
    home = Path(settings.home)
    home.mkdir(parents=True, exist_ok=True)
    with (home / "cluster.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _path(settings: Settings) -> str:
    return storage.join(settings.home, _FILE)
