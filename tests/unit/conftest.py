"""Unit tests use no cluster: whoever starts or joins one here fails."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from maas_ray.settings import Settings
from tests.support import postgres

# No deadline: other work on the machine is not the code's fault. In CI the same examples every time.
hypothesis.settings.register_profile("maas", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("maas")


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.init`, explicit or implied by a remote call, raises."""
    # Ray itself reads it, so this also holds in a process that a test starts, and costs no import of Ray.
    monkeypatch.setenv("RAY_ADDRESS", "forbidden://unit-tests-use-no-cluster")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a fresh platform; `MAAS_*` of this process say the same."""
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    return Settings.from_environment()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The directory of a PostgreSQL server."""
    programs = postgres.programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres.running(programs) as directory:
        yield directory


@pytest.fixture(params=["sqlite", "postgresql"])
def each_database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a fresh platform, with each kind of database."""
    monkeypatch.setenv("MAAS_HOME", str(tmp_path / "home"))
    if request.param == "postgresql":
        server = request.getfixturevalue("postgresql")
        monkeypatch.setenv("MAAS_DATABASE", postgres.new_database(server, uuid.uuid4().hex))
    return Settings.from_environment()
