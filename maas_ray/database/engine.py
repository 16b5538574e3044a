"""One database, SQLite or PostgreSQL: opened, migrated, and changed in transactions whose errors are ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy import exc as sql
from sqlalchemy.orm import Session

from maas_ray.database.migrate import migrate
from maas_ray.errors import ConflictError, StorageError
from maas_ray.redact import hide_secrets

_BUSY_SECONDS = 60


class Database:
    """The database at a SQLAlchemy URL, its tables brought to this version's when it is opened.

    Raises:
        StorageError: it cannot be opened or migrated.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        self.url = hide_secrets(self._engine.url.render_as_string(hide_password=True))
        """Its URL, without passwords."""
        try:
            migrate(self._engine)
        except sql.DatabaseError as error:
            raise self._unusable(error) from error

    @contextmanager
    def transaction(self, *, lock: str | None = None) -> Iterator[Session]:
        """A session whose changes are committed when the block ends, and rolled back when it raises.

        Args:
            lock: a table that nobody else writes to meanwhile. SQLite has one writer at a time anyway.

        Raises:
            ConflictError: another writer created the same row at the same moment.
            StorageError: the database does not answer.
        """
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                if lock and self._engine.dialect.name == "postgresql":
                    session.execute(text(f"LOCK TABLE {lock} IN EXCLUSIVE MODE"))
                yield session
        except sql.IntegrityError as error:
            raise ConflictError(
                f"another writer created the same row at the same moment: {error.orig}. Try again.",
                code="concurrent_write",
            ) from error
        except sql.DatabaseError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: sql.DatabaseError) -> StorageError:
        return StorageError(f"the database {self.url} cannot be used: {error.orig}", code="database_unusable")


def open_engine(url: str) -> Engine:
    """The engine for a SQLAlchemy URL. SQLite's directory is created.

    Raises:
        StorageError: the URL is wrong, or its driver is not installed.
    """
    connect_args = {"timeout": _BUSY_SECONDS} if url.startswith("sqlite") else {}
    try:
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, poolclass=NullPool, connect_args=connect_args)
    except (sql.ArgumentError, ImportError, OSError) as error:
        raise StorageError(f"MAAS_DATABASE: {url!r} cannot be used: {error}", code="database_unusable") from error
    if engine.dialect.name == "sqlite":
        # Python's driver begins a transaction only at the first write. Two writers that have both read by then
        # would fail instead of waiting for each other, so every transaction begins as a writer.
        @event.listens_for(engine, "connect")
        def _no_implicit_begin(connection: Any, _: Any) -> None:
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
