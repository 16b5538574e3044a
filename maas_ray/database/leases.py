"""Leases: a row that says which process alone may do a piece of work. One that is not renewed expires.

The owner does the work inside `Lease.held()`, which renews the row from a thread. After a process dies, its lease
expires and another owner takes over; on the same machine it need not wait for that, if the owner is `this_process`.
Expiry is read on the database's clock, so machines need not agree on the time.
"""

import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy import delete, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from maas_ray.database.base import Base
from maas_ray.database.engine import Database
from maas_ray.errors import ConflictError, MaasError

_POLL_SECONDS = 0.3
_UNKNOWN = "unknown"
_PROCESS = re.compile(r", process (?P<pid>\d+) \((?P<kernel>[^.()]+)\.(?P<started>\d+)\.\w+\)$")


class LeaseRow(Base):
    """Table `leases`."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    expires: Mapped[float]
    """Unix seconds on the database's clock."""


class Lease:
    """A named lease, as one possible owner sees it.

    Args:
        database: the database that holds the row.
        name: the work.
        owner: this process; must differ between any two that could compete.
        seconds: validity without renewal. It is renewed three times in that period.
    """

    def __init__(self, database: Database, name: str, owner: str, *, seconds: float = 15.0) -> None:
        self.name, self.owner = name, owner
        self._database, self._seconds = database, seconds
        self._valid_until = 0.0

    def acquire(self) -> bool:
        """Take or renew the lease. False: another owner holds it."""
        with self._database.transaction(lock=LeaseRow.__tablename__) as session:
            row = session.get(LeaseRow, self.name)  # may wait for other writers
            began = time.monotonic()  # before the database's clock is read, so the row outlives this process's belief
            now = _now(session)
            if row is not None and row.owner != self.owner and row.expires > now and not is_gone(row.owner):
                return False
            session.merge(LeaseRow(name=self.name, owner=self.owner, expires=now + self._seconds))
        self._valid_until = began + self._seconds
        return True

    def release(self) -> None:
        """Give the lease back, if it is still this owner's."""
        self._valid_until = 0.0
        with self._database.transaction() as session:
            session.execute(delete(LeaseRow).where(LeaseRow.name == self.name, LeaseRow.owner == self.owner))

    def taken(self) -> bool:
        """True if an owner holds the lease."""
        with self._database.transaction() as session:
            row = session.get(LeaseRow, self.name)
            return row is not None and row.expires > _now(session)

    def check(self) -> None:
        """Do nothing while the lease is valid. If renewal was late, try once to take the lease again.

        Raises:
            ConflictError: it expired, and another owner holds it or the database does not answer.
        """
        if time.monotonic() < self._valid_until:
            return
        with suppress(MaasError):
            if self.acquire():
                return
        raise ConflictError(f"the lease {self.name!r} of {self.owner} has expired", code="lease_lost")

    @contextmanager
    def held(self, *, wait_seconds: float) -> Iterator["Lease"]:
        """Hold the lease while the block runs.

        Args:
            wait_seconds: longest wait for another owner.

        Raises:
            ConflictError: another owner still holds it.
        """
        deadline = time.monotonic() + wait_seconds
        while not self.acquire():
            if time.monotonic() > deadline:
                raise ConflictError(
                    f"the lease {self.name!r} is still held by {self.holder()} after {wait_seconds:g} s",
                    code="lease_held",
                )
            time.sleep(_POLL_SECONDS)
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(ended,), name=f"lease-{self.name}", daemon=True)
        renewing.start()
        try:
            yield self
        finally:
            ended.set()
            renewing.join()
            with suppress(MaasError):  # the work is done; a row that stays expires
                self.release()

    def _renew(self, ended: threading.Event) -> None:
        while not ended.wait(self._seconds / 3):
            with suppress(MaasError):  # the database may answer at the next attempt; `check` fails after expiry
                if not self.acquire():
                    self._valid_until = 0.0

    def holder(self) -> str:
        """The owner in words, such as `host, process 42`."""
        with self._database.transaction() as session:
            row = session.get(LeaseRow, self.name)
            return row.owner.partition(" (")[0] if row else "nobody"


def this_process() -> str:
    """An owner in this process, distinct from all others, whose end other processes of this machine notice at once."""
    kernel, started = _kernel(), _started(os.getpid())
    return f"{socket.gethostname()}, process {os.getpid()} ({kernel}.{started}.{uuid.uuid4().hex[:8]})"


def is_gone(owner: str) -> bool:
    """True if an owner from `this_process` was a process of this machine and has ended. False: it lives, or unknown."""
    process = _PROCESS.search(owner)
    if process is None or process["kernel"] != _kernel() or process["kernel"] == _UNKNOWN:
        return False
    return _started(int(process["pid"])) != int(process["started"])


def _kernel() -> str:
    """Identifies the running kernel and the namespace in which a process id means a process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot[:13]}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return _UNKNOWN


def _started(pid: int) -> int:
    """When a process started, in clock ticks since boot. 0: it does not exist, or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def _now(session: Session) -> float:
    if session.get_bind().dialect.name == "postgresql":
        return float(session.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
    return time.time()  # SQLite is a file on this machine
