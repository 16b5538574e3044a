"""Endpoints in the platform's database: the desired state, the route, the history, and the result of the last change.

    spec, version, …   the last request        route   the applications that get requests now

Every change carries the revision that it was made from, so two deployers cannot overwrite each other. A version that
an endpoint begins to serve is added to its history in the same transaction.
"""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, DateTime, delete
from sqlalchemy.orm import Mapped, Session, mapped_column

from maas_ray.database.base import Base, utc
from maas_ray.database.engine import Database
from maas_ray.database.leases import Lease
from maas_ray.database.platform import Platform, read_platform
from maas_ray.errors import ConflictError, SpecError
from maas_ray.serve.routes import Route, Table
from maas_ray.serve.spec import DeploySpec

if TYPE_CHECKING:
    from maas_ray.settings import Settings


class State(StrEnum):
    """Result of the last change to an endpoint."""

    DEPLOYING = "deploying"
    SERVING = "serving"
    FAILED = "failed"
    REMOVING = "removing"


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
    """Table `served`: the history of each endpoint, oldest first."""

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
    """One entry of an endpoint's history.

    Args:
        number: position in the history, from 1.
        spec: the `DeploySpec`, with its version as requested.
        version, uri, digest: the version it resolved to, and its bundle.
        since: time at which the endpoint began to serve it.
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
        revision: number of changes. 0: the record is not written yet.
        spec: the `DeploySpec`, with its version as requested: `lm@champion` follows that alias.
        version, uri, digest: the version it resolved to, and its bundle.
        application: the Serve application that serves it, or would.
        route: the applications that get its requests now. None: it has no route.
        state: result of the last change.
        problem: why the last change failed. Empty: it succeeded.
        updated: time of the last change.
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

    @property
    def serving_application(self) -> str:
        """The application that answers now, or would if the endpoint served something."""
        return self.route.target.application if self.route else self.application

    @property
    def shared(self) -> bool:
        """True if the shared replicas serve it, or would."""
        return self.spec.get("replicas") == "shared"


class Endpoints:
    """The table of endpoints in the database that the settings name."""

    def __init__(self, settings: "Settings") -> None:
        self._database = Database(settings.database)

    @cached_property
    def platform(self) -> Platform:
        """The platform whose endpoints these are."""
        with self._database.transaction() as session:
            return read_platform(session, self._database.url)

    def all(self) -> list[Record]:
        """Every endpoint, by name."""
        with self._database.transaction() as session:
            return self._all(session)

    def get(self, name: str) -> Record | None:
        """One endpoint."""
        with self._database.transaction() as session:
            row = session.get(EndpointRow, name)
            return _record(row) if row else None

    def lease(self, change: Record) -> Lease:
        """The lease that the deployer of a change holds while it works.

        Args:
            change: the record as written when the change began.
        """
        name = f"{change.name}, revision {change.revision} of {change.updated}"
        return Lease(self._database, name, f"{socket.gethostname()}, process {os.getpid()}")

    def put(self, record: Record) -> Record:
        """Write a record that was made from the newest one.

        Returns:
            The record with its new revision.

        Raises:
            ConflictError: another writer has changed it since `record.revision`.
        """
        (written,) = self.put_all([record])
        return written

    def put_all(self, records: Sequence[Record]) -> list[Record]:
        """Write the records of several endpoints, all or none."""
        with self._database.transaction() as session:
            # Every writer locks the rows in the same order, so that no two wait for each other.
            written = {record.name: self._put(session, record) for record in sorted(records, key=lambda r: r.name)}
            return [written[record.name] for record in records]

    def history(self, name: str) -> list[Served]:
        """An endpoint's history, newest first."""
        with self._database.transaction() as session:
            return [_served(row) for row in self._served(session, name)]

    def remove(self, record: Record) -> None:
        """Delete an endpoint and its history.

        Raises:
            ConflictError: another writer has changed it since `record.revision`.
        """
        with self._database.transaction() as session:
            row = self._unchanged(session, record)
            if row is not None:
                session.execute(delete(ServedRow).where(ServedRow.endpoint == record.name))
                session.delete(row)

    @contextmanager
    def exclusive(self) -> Iterator[Table]:
        """The recorded routing table, which no other writer changes while the block runs."""
        with self._database.transaction(lock=EndpointRow.__tablename__) as session:
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
        """Add an endpoint's version to its history, unless it is the last entry already."""
        last = next(iter(self._served(session, record.name)), None)
        new = {name: getattr(record, name) for name in ("spec", "version", "uri", "digest")}
        if last is None or _entry(record) != _entry(last):
            number = 1 if last is None else last.number + 1
            session.add(ServedRow(endpoint=record.name, number=number, since=record.updated, **new))

    def _served(self, session: Session, name: str) -> list[ServedRow]:
        return session.query(ServedRow).filter_by(endpoint=name).order_by(ServedRow.number.desc()).all()

    def _unchanged(self, session: Session, record: Record) -> EndpointRow | None:
        row = session.get(EndpointRow, record.name, with_for_update=True)
        revision = row.revision if row else 0
        if revision != record.revision:
            raise ConflictError(
                f"endpoint {record.name} was changed by another writer meanwhile (revision {record.revision} → "
                f"{revision}). Look at `maas endpoints`, then try again.",
                code="endpoint_changed",
            )
        return row

    def _all(self, session: Session) -> list[Record]:
        rows = session.query(EndpointRow).order_by(EndpointRow.name).all()
        return [_record(row) for row in rows]


def _entry(of: Record | ServedRow) -> tuple[Any, ...]:
    """Everything that makes two entries of a history differ. Fields that a later version added have their defaults."""
    spec = of.spec
    with suppress(SpecError):  # an earlier version had other fields
        spec = DeploySpec.parse(spec, source="history").document()
    return spec, of.version, of.uri, of.digest


def _served(row: ServedRow) -> Served:
    return Served(row.number, row.spec, row.version, row.uri, row.digest, utc(row.since))


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
        updated=utc(row.updated),
    )
