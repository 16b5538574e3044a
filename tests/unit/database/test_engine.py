"""The database is migrated once by whoever opens it first, and its errors name what is wrong; in both databases."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from maas_ray.database.base import VERSION_TABLE, Base
from maas_ray.database.engine import Database, open_engine
from maas_ray.database.leases import LeaseRow
from maas_ray.errors import StorageError
from maas_ray.serve.deployment.endpoints import EndpointRow, Endpoints, ServedRow
from maas_ray.settings import Settings
from tests.support.errors import raises


def test_processes_that_start_at_once_migrate_once(each_database: Settings) -> None:
    code = (
        "from maas_ray.serve.deployment.endpoints import Endpoints; from maas_ray.settings import Settings; "
        "print(Endpoints(Settings.from_environment()).all())"
    )
    environment = {**os.environ, **each_database.environment()}
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=-1, stderr=-1) for _ in range(3)]
    for process in started:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out.decode().strip()) == (0, "[]"), err.decode()


def test_migrations_create_the_tables_that_are_declared(each_database: Settings) -> None:
    Endpoints(each_database)
    with open_engine(each_database.database).connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert {EndpointRow.__table__, ServedRow.__table__, LeaseRow.__table__} <= set(Base.metadata.tables.values())
    assert all(change[0] == "remove_table" and change[1].name == VERSION_TABLE for change in differences)


@pytest.mark.parametrize("url", ["sqlite:///{}/file", "nosuch://user:secret@x", "sqlite:////proc/nope/x.db"])
def test_a_database_that_cannot_be_used_is_named_without_its_password(tmp_path: Path, url: str) -> None:
    (tmp_path / "file").write_text("not a database, but long enough to be taken for a broken one" * 20)
    url = url.format(tmp_path)
    with raises(StorageError, "database_unusable", url.replace("secret", "***")) as caught:
        Database(url)
    assert "secret" not in str(caught.value)
