"""A real PostgreSQL of a test run's own: in a temporary directory, on a socket there and on no port."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_DEBIAN = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))


def programs() -> Path | None:
    """The directory of PostgreSQL's programs; None: it is not installed."""
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else _DEBIAN[-1] if _DEBIAN else None


@contextmanager
def running(programs: Path) -> Iterator[str]:
    """The server's directory, which holds its socket. Its time zone is not UTC, as in many a company."""
    with tempfile.TemporaryDirectory(prefix="maas-pg-", dir="/tmp") as directory:
        as_user: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            owner = next(user for name in ("postgres", "nobody") for user in pwd.getpwall() if user.pw_name == name)
            os.chown(directory, owner.pw_uid, owner.pw_gid)
            as_user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        options = {"cwd": directory, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, **as_user}
        data = f"{directory}/data"
        initdb = [programs / "initdb", "-D", data, "-U", "maas", "--auth=trust", "--no-sync", "--encoding=UTF8"]
        subprocess.run([*initdb, "--locale=C"], check=True, **options)
        command = [programs / "postgres", "-D", data, "-k", directory, "-c", "listen_addresses="]
        settings = ["-c", "timezone=Asia/Kolkata", "-c", "fsync=off", "-c", "max_connections=50"]
        with Path(directory, "log").open("wb") as log:
            server = subprocess.Popen([*command, *settings], **(options | {"stderr": log}))
        try:
            _wait(server, directory)
            yield directory
        finally:
            server.terminate()  # it waits for its clients: none is left
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def new_database(directory: str, name: str) -> str:
    """Make a database. Returns its SQLAlchemy URL."""
    import psycopg

    with psycopg.connect(host=directory, user="maas", dbname="postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[call-overload]
    return f"postgresql+psycopg://maas@/{name}?host={directory}"


def _wait(server: "subprocess.Popen[bytes]", directory: str) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(host=directory, user="maas", dbname="postgres").close()
        except psycopg.OperationalError:
            log = Path(directory, "log").read_text(errors="replace")
            assert server.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.1)
        else:
            return
