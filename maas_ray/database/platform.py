"""The platform's identity: one row, made with the database, by which platforms that share a Ray cluster are told apart.

Migrations create the row, under the lock that they hold anyway, so processes that start at once read the same id.
"""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import DateTime, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from maas_ray.database.base import Base


class PlatformRow(Base):
    """Table `platform`."""

    __tablename__ = "platform"

    id: Mapped[str] = mapped_column(primary_key=True)
    created_by: Mapped[str]
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True))


@dataclass(frozen=True)
class Platform:
    """One platform.

    Args:
        id: eight random hexadecimal digits.
        database: URL of its database, without passwords.
        created_by: who created the database, `user@host`.
    """

    id: str
    database: str
    created_by: str

    def __str__(self) -> str:
        return f"{self.id} (database {self.database}, created by {self.created_by})"


def read_platform(session: Session, url: str) -> Platform:
    """The platform whose database this is.

    Args:
        session: a session on the database.
        url: the database's URL without passwords.
    """
    row = session.execute(select(PlatformRow)).scalar_one()
    return Platform(row.id, url, row.created_by)
