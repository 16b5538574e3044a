"""MLflow's own client: connected by one process at a time, and with this platform's error if MLflow does not answer."""

import fcntl
import functools
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from maas_ray.database.engine import Database
from maas_ray.database.leases import Lease, this_process
from maas_ray.errors import StorageError
from maas_ray.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_MIGRATION_SECONDS = 600.0
_ABSENT = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED")
"""MLflow's error codes that say nothing about the request: it may succeed later."""


def mlflow_client(settings: Settings) -> "MlflowClient":
    """MLflow's client for tracking and registry at the settings' URI, without its chatter.

    Its methods raise `StorageError` with the code `mlflow_unavailable` if MLflow does not answer, and MLflow's own
    exceptions if it refuses.
    """
    uri = settings.mlflow
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines at the end of each run
    if uri.startswith(_SQLITE):
        Path(uri.removeprefix(_SQLITE)).parent.mkdir(parents=True, exist_ok=True)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # logs each exception that it raises
    with first_connection(settings), _translated(uri):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        if not is_server(uri):
            client.search_registered_models(max_results=1)  # the registry's tables are created at its first call
    return cast("MlflowClient", _Client(client, uri))


def is_server(uri: str) -> bool:
    """True if MLflow is a server; False if it is a database that this process opens itself."""
    return uri.startswith(("http://", "https://"))


class _Client:
    """MLflow's client, with its exceptions translated."""

    def __init__(self, client: Any, uri: str) -> None:
        self._client, self._uri = client, uri

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return self._translating(value) if callable(value) else value

    def _translating(self, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **named: Any) -> Any:
            with _translated(self._uri):
                return method(*arguments, **named)

        return call


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except MlflowException as error:
        if error.error_code not in _ABSENT:
            raise
        raise _unavailable(uri, error) from error
    except (DBAPIError, OSError) as error:
        raise _unavailable(uri, error) from error


def _unavailable(uri: str, error: Exception) -> StorageError:
    shown = re.sub(r"(//[^:/@]*):[^@/]*@", r"\1:***@", uri)
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return StorageError(f"MLflow at {shown} does not answer: {first}", code="mlflow_unavailable")


def first_connection(settings: Settings) -> Any:
    """Wait for other processes that connect: the first one creates the tables, which MLflow does without a lock."""
    if settings.mlflow.startswith(_SQLITE):
        return _file_lock(Path(f"{settings.mlflow.removeprefix(_SQLITE)}.lock"))
    if is_server(settings.mlflow) or "://" not in settings.mlflow:
        return nullcontext()
    lease = Lease(Database(settings.database), "mlflow/connect", this_process())
    return lease.held(wait_seconds=_MIGRATION_SECONDS)


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Hold a file's lock, which the kernel releases when the process ends."""
    try:
        file = path.open("w")
    except OSError:  # a directory that cannot be written to holds a database that exists
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
