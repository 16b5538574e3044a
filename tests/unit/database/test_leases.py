"""A lease has one owner at a time, also across processes; it outlives nobody for long."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from maas_ray.database.engine import Database
from maas_ray.database.leases import Lease, LeaseRow, is_gone, this_process
from maas_ray.errors import ConflictError
from maas_ray.settings import Settings
from tests.support.errors import raises

# Holds the lease for a moment, many times, and prints when: the parent compares the moments of two such processes.
_CONTEND = """
import os, time
from maas_ray.database.engine import Database
from maas_ray.database.leases import Lease
from maas_ray.settings import Settings

lease = Lease(Database(Settings.from_environment().database), "work", str(os.getpid()), seconds=5)
for _ in range(5):
    with lease.held(wait_seconds=60):
        began = time.monotonic_ns()
        time.sleep(0.02)
        print(began, time.monotonic_ns())
"""


@pytest.fixture
def database(each_database: Settings) -> Database:
    return Database(each_database.database)


def test_a_lease_has_one_owner(database: Database) -> None:
    first, second = Lease(database, "work", "first"), Lease(database, "work", "second")
    assert first.acquire()
    assert not second.acquire()
    assert first.acquire()  # renewed
    assert Lease(database, "other work", "second").acquire()
    second.release()  # not its own, so it stays
    assert not second.acquire()
    first.release()
    assert second.acquire()


def test_an_expired_lease_is_taken_over(database: Database) -> None:
    died, heir = Lease(database, "work", "died", seconds=0.3), Lease(database, "work", "heir")
    assert died.acquire()
    died.check()
    with heir.held(wait_seconds=10):
        heir.check()
        with raises(ConflictError, "lease_lost", "work", "died"):
            died.check()
        assert not died.acquire()


def test_a_lease_in_use_is_renewed(database: Database) -> None:
    owner, other = Lease(database, "work", "owner", seconds=0.6), Lease(database, "work", "other")
    with owner.held(wait_seconds=0):
        time.sleep(1.5)
        owner.check()
        with raises(ConflictError, "lease_held", "work", "owner"), other.held(wait_seconds=0):
            pass
    assert other.acquire()


def test_a_lease_whose_renewal_was_late_is_taken_again_if_nobody_else_has_it(database: Database) -> None:
    late = Lease(database, "work", "late", seconds=0.1)
    assert late.acquire()
    assert late.taken()
    time.sleep(0.2)
    assert not late.taken()
    late.check()
    assert late.taken()


def test_a_lease_counts_from_the_moment_at_which_the_database_let_the_writer_in(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/maas.db")
    lease = Lease(database, "work", "owner", seconds=0.5)
    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as session:
            session.get(LeaseRow, "work")  # now every other writer waits
            taken = pool.submit(lease.acquire)
            time.sleep(0.7)
        assert taken.result(10)
    assert lease._valid_until > time.monotonic()


def test_two_processes_never_hold_a_lease_at_once(each_database: Settings) -> None:
    environment = {**os.environ, **each_database.environment()}
    started = [
        subprocess.Popen([sys.executable, "-c", _CONTEND], env=environment, stdout=-1, stderr=-1) for _ in range(2)
    ]
    spans = []
    for process in started:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode()
        spans += [tuple(map(int, line.split())) for line in out.decode().splitlines()]
    spans.sort()
    assert len(spans) == 10
    assert all(ended <= began for (_, ended), (began, _) in pairwise(spans))


def test_a_killed_owner_is_succeeded(each_database: Settings, database: Database) -> None:
    code = _CONTEND.replace("time.sleep(0.02)", "print('held', flush=True); time.sleep(60)").replace(
        "seconds=5", "seconds=1"
    )
    environment = {**os.environ, **each_database.environment()}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    heir = Lease(database, "work", "heir")
    assert not heir.acquire()
    process.kill()
    process.communicate()
    with heir.held(wait_seconds=10):
        heir.check()


# --- owners that are processes ---------------------------------------------------------------------


def test_a_process_that_has_ended_holds_nothing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/maas.db")
    code = (
        "import sys\nfrom maas_ray.database.engine import Database\n"
        "from maas_ray.database.leases import Lease, this_process\n"
        "lease = Lease(Database(sys.argv[1]), 'work', this_process(), seconds=3600)\n"
        "assert lease.acquire()\nprint(lease.owner, flush=True)\nsys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/maas.db"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        owner = other.stdout.readline().strip()
        ours = Lease(database, "work", this_process())
        assert not is_gone(owner)
        assert not ours.acquire()
        assert ours.holder() == f"{socket.gethostname()}, process {other.pid}"
        other.kill()
        assert other.wait(30) != 0
        assert is_gone(owner)
        assert ours.acquire()


def test_owners_of_one_process_differ_and_unknown_owners_are_not_gone() -> None:
    assert this_process() != this_process()
    assert not is_gone(this_process())
    elsewhere = this_process().replace(f"process {os.getpid()} (", "process 999999999 (another-kernel-")
    for owner in ("", "somebody", "host, process 999999999", elsewhere):
        assert not is_gone(owner), owner
