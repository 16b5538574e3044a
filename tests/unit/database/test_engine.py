"""The database is migrated once by whoever opens it first, and its errors name what is wrong; in both databases."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from maas_ray.database.base import VERSION_TABLE, Base
from maas_ray.database.engine import Database, open_engine
from maas_ray.database.leases import LeaseRow
from maas_ray.database.migrate import config
from maas_ray.errors import StorageError
from maas_ray.serve.deployment.endpoints import EndpointRow, Endpoints, ServedRow
from maas_ray.settings import Settings
from tests.support.errors import raises
from tests.unit.serve.deployment.test_drift import SERVING


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


def test_stored_targets_of_autoscaling_that_were_not_chosen_are_computed(each_database: Settings) -> None:
    endpoints = Endpoints(each_database)
    for name, target, most in (("default", 16.0, 32), ("beyond", 20.0, 4), ("chosen", 3.0, 32)):
        spec = {"version": "m/1", "max_ongoing_requests": most, "scaling": {"target_ongoing_requests": target}}
        endpoints.put(replace(SERVING, name=name, spec=spec, revision=0))
    with open_engine(each_database.database).begin() as connection:
        configuration = config()
        configuration.attributes["connection"] = connection
        command.stamp(configuration, "0004")
        command.upgrade(configuration, "0005")
    found = {one.name: one.spec["scaling"]["target_ongoing_requests"] for one in endpoints.all()}
    assert found == {"default": None, "beyond": None, "chosen": 3.0}
    assert {endpoints.history(name)[0].spec["scaling"]["target_ongoing_requests"] for name in found} == {None, 3.0}
    with open_engine(each_database.database).begin() as connection:
        configuration.attributes["connection"] = connection
        command.downgrade(configuration, "0004")
    assert [one.spec["scaling"] for one in endpoints.all()] == [{}, {"target_ongoing_requests": 3.0}, {}]
