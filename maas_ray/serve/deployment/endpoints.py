"""The platform's database: which endpoint should stand, what it serves, what it served before, and what became of it.

    spec, version, …   what was asked for last        route   what the gateway sends requests to now

Every change carries the revision it was made from, so that two deployers cannot overwrite each other. What
an endpoint began to serve is added to its history in the same transaction.
Tables are made and changed by Alembic migrations, applied when the database is opened.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, Connection, DateTime, Engine, NullPool, create_engine, delete, event, inspect, text
from sqlalchemy import exc as sql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from maas_ray.errors import ConflictError, StorageError
from maas_ray.serve.routes import Route, Table

if TYPE_CHECKING:
    from maas_ray.settings import Settings

VERSION_TABLE = "maas_alembic_version"
_LOCK_KEY = 0x6D616173  # "maas", for PostgreSQL's advisory locks
_BUSY_SECONDS = 60
_migrating = threading.Lock()


class State(StrEnum):
    """What became of the last change to an endpoint."""

    DEPLOYING = "deploying"
    SERVING = "serving"
    FAILED = "failed"
    REMOVING = "removing"


class Base(DeclarativeBase):
    """The platform's tables."""


class EndpointRow(Base):
    """Table `endpoints`."""

    __tablename__ = "endpoints"

    name: Mapped[str] = mapped_column(primary_key=True)
    revision: Mapped[int]
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    version: Mapped[str]
    uri: Mapped[str]
    digest: Mapped[str]
    application: Mapped[str]
    route: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    state: Mapped[str]
    problem: Mapped[str]
    updated: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class ServedRow(Base):
    """Table `served`: what each endpoint began to serve, oldest first."""

    __tablename__ = "served"

    endpoint: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    version: Mapped[str]
    uri: Mapped[str]
    digest: Mapped[str]
    since: Mapped[datetime] = mapped_column(DateTime(timezone=True))


@dataclass(frozen=True)
class Served:
    """What an endpoint serves or served.

    Args:
        number: 1 for the first of an endpoint.
        spec: the `DeploySpec`, its version as it was asked for.
        version, uri, digest: what that resolved to, and the bundle.
        since: when it began.
    """

    number: int
    spec: dict[str, Any]
    version: str
    uri: str
    digest: str
    since: datetime


@dataclass(frozen=True)
class Record:
    """One endpoint as recorded.

    Args:
        name: public model name.
        revision: grows by one with every change; 0 has not been written yet.
        spec: the `DeploySpec`, its version as it was asked for: `lm@champion` follows that alias.
        version, uri, digest: what it resolved to, and the bundle.
        application: the Serve application that serves it, or would.
        route: where the gateway sends requests now. None: nowhere.
        state: what became of the last change.
        problem: why it failed. Empty: it did not.
    """

    name: str
    revision: int
    spec: dict[str, Any]
    version: str
    uri: str
    digest: str
    application: str
    route: Route | None
    state: State
    problem: str = ""
    updated: datetime | None = None


class Endpoints:
    """The table of endpoints in the database that the settings name. Migrated when it is made."""

    def __init__(self, settings: "Settings") -> None:
        self._engine = _open(settings.database)
        _migrate(self._engine)

    def all(self) -> list[Record]:
        """Every endpoint, by name."""
        with self._transaction() as session:
            return self._all(session)

    def get(self, name: str) -> Record | None:
        """One endpoint."""
        with self._transaction() as session:
            row = session.get(EndpointRow, name)
            return _record(row) if row else None

    def put(self, record: Record) -> Record:
        """Write a record made from the newest one.

        Returns:
            The record with its new revision.

        Raises:
            ConflictError: somebody else wrote since `record.revision`.
        """
        (written,) = self.put_all([record])
        return written

    def put_all(self, records: Sequence[Record]) -> list[Record]:
        """`put` for several endpoints: all of them or none."""
        with self._transaction() as session:
            # Every writer takes the rows in the same order, so that no two wait for each other.
            written = {record.name: self._put(session, record) for record in sorted(records, key=lambda r: r.name)}
            return [written[record.name] for record in records]

    def history(self, name: str) -> list[Served]:
        """What an endpoint serves and served, newest first."""
        with self._transaction() as session:
            return [_served(row) for row in self._served(session, name)]

    def remove(self, record: Record) -> None:
        """Forget an endpoint and its history.

        Raises:
            ConflictError: somebody else wrote since `record.revision`.
        """
        with self._transaction() as session:
            row = self._unchanged(session, record)
            if row is not None:
                session.execute(delete(ServedRow).where(ServedRow.endpoint == record.name))
                session.delete(row)

    @contextmanager
    def exclusive(self) -> Iterator[Table]:
        """The routing table as recorded, which nobody changes while the block runs."""
        with self._transaction(exclusive=True) as session:
            yield tuple(record.route for record in self._all(session) if record.route is not None)

    def _put(self, session: Session, record: Record) -> Record:
        row = self._unchanged(session, record)
        if row is None:
            row = EndpointRow(name=record.name)
            session.add(row)
        written = replace(record, revision=record.revision + 1, updated=datetime.now(UTC))
        for name in ("revision", "spec", "version", "uri", "digest", "application", "problem", "updated"):
            setattr(row, name, getattr(written, name))
        row.state = written.state.value
        row.route = None if written.route is None else written.route.document()
        if written.state is State.SERVING:
            self._remember(session, written)
        return written

    def _remember(self, session: Session, record: Record) -> None:
        """Add what an endpoint serves to its history, unless that was the last thing already."""
        last = next(iter(self._served(session, record.name)), None)
        new = {name: getattr(record, name) for name in ("spec", "version", "uri", "digest")}
        if last is None or any(getattr(last, name) != value for name, value in new.items()):
            number = 1 if last is None else last.number + 1
            session.add(ServedRow(endpoint=record.name, number=number, since=record.updated, **new))

    def _served(self, session: Session, name: str) -> list[ServedRow]:
        return session.query(ServedRow).filter_by(endpoint=name).order_by(ServedRow.number.desc()).all()

    def _unchanged(self, session: Session, record: Record) -> EndpointRow | None:
        row = session.get(EndpointRow, record.name, with_for_update=True)
        revision = row.revision if row else 0
        if revision != record.revision:
            raise ConflictError(
                f"endpoint {record.name} was changed by somebody else meanwhile (revision {record.revision} → "
                f"{revision}). Look at `maas endpoints`, then try again."
            )
        return row

    def _all(self, session: Session) -> list[Record]:
        rows = session.query(EndpointRow).order_by(EndpointRow.name).all()
        return [_record(row) for row in rows]

    @contextmanager
    def _transaction(self, *, exclusive: bool = False) -> Iterator[Session]:
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                if exclusive and self._engine.dialect.name == "postgresql":
                    session.execute(text("LOCK TABLE endpoints IN EXCLUSIVE MODE"))
                yield session
        except sql.IntegrityError as error:
            raise ConflictError(f"somebody else wrote to the database at the same moment: {error.orig}") from error
        except sql.DatabaseError as error:
            raise _unusable(self._engine, error) from error


def _served(row: ServedRow) -> Served:
    return Served(row.number, row.spec, row.version, row.uri, row.digest, _utc(row.since))


def _record(row: EndpointRow) -> Record:
    return Record(
        name=row.name,
        revision=row.revision,
        spec=row.spec,
        version=row.version,
        uri=row.uri,
        digest=row.digest,
        application=row.application,
        route=None if row.route is None else Route.parse(row.route, source=f"endpoint {row.name}"),
        state=State(row.state),
        problem=row.problem,
        updated=_utc(row.updated),
    )


def _utc(moment: datetime) -> datetime:
    """SQLite keeps no time zone; PostgreSQL answers in its session's."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _open(url: str) -> Engine:
    connect_args = {"timeout": _BUSY_SECONDS} if url.startswith("sqlite") else {}
    try:
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(url, poolclass=NullPool, connect_args=connect_args)
    except (sql.ArgumentError, ImportError, OSError) as error:
        raise StorageError(f"MAAS_DATABASE: {url!r} cannot be used: {error}") from error
    if engine.dialect.name == "sqlite":
        # Python's driver begins transactions late and for writing later still; then two writers, each
        # holding what it has read, fail instead of waiting. So they begin at once and for writing.
        @event.listens_for(engine, "connect")
        def _no_implicit_begin(connection: Any, _: Any) -> None:
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _migrate(engine: Engine) -> None:
    """Bring the tables to this version's; of several processes one does it and the others wait."""
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    head = ScriptDirectory.from_config(config).get_current_head()
    try:
        with _migrating, engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
            if inspect(connection).has_table(VERSION_TABLE):
                current = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608
                if current == head:
                    return
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except sql.DatabaseError as error:
        raise _unusable(engine, error) from error


def _unusable(engine: Engine, error: sql.DatabaseError) -> StorageError:
    return StorageError(f"the database {engine.url.render_as_string()} cannot be used: {error.orig}")
