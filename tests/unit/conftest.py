"""Unit tests use no cluster: whoever starts or joins one here fails."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import create_engine

from maas_ray.registry import client
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


@pytest.fixture(scope="session", autouse=True)
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow's new databases in this process are copies of one: its sixty migrations take a second or two each time."""
    template = tmp_path_factory.mktemp("mlflow") / "empty.db"
    connect = client.first_connection

    @contextmanager
    def first_connection(settings: Settings) -> Iterator[None]:
        database = Path(settings.mlflow.removeprefix("sqlite:///"))
        with connect(settings):
            if settings.mlflow.startswith("sqlite:///") and not database.exists():
                if not template.exists():
                    _create_mlflow_tables(template)
                shutil.copyfile(template, database)
            yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "first_connection", first_connection)
        yield


def _create_mlflow_tables(path: Path) -> None:
    """As MLflow does at the first connection, without the rows that it writes then."""
    from mlflow.store.db import utils

    engine = create_engine(f"sqlite:///{path}.partial")
    utils._initialize_tables(engine)
    engine.dispose()
    Path(f"{path}.partial").rename(path)


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
