"""The base class of every table. A table is declared in the room that reads and writes it; migrations are here."""

from datetime import UTC, datetime

from sqlalchemy.orm import DeclarativeBase

VERSION_TABLE = "maas_alembic_version"
"""Alembic's record of the migrations applied. Named, because MLflow may keep its own in the same database."""


class Base(DeclarativeBase):
    """Base of the platform's tables; `Base.metadata` knows those whose modules are imported."""


def utc(moment: datetime) -> datetime:
    """A stored moment with its time zone: SQLite stores none, PostgreSQL answers in its session's."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
