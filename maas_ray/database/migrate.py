"""Bring a database's tables to this version's by Alembic migrations; processes that start at once wait their turn."""

import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, text

from maas_ray.database.base import VERSION_TABLE

_LOCK_KEY = 0x6D616173  # "maas", for PostgreSQL's advisory locks
_migrating = threading.Lock()


def config() -> Config:
    """Alembic's configuration; `attributes["connection"]` must be set before a command runs."""
    configuration = Config()
    configuration.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return configuration


def migrate(engine: Engine) -> None:
    """Apply the migrations that are missing."""
    configuration = config()
    head = ScriptDirectory.from_config(configuration).get_current_head()
    with _migrating, engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})
        if inspect(connection).has_table(VERSION_TABLE):
            current = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608
            if current == head:
                return
        configuration.attributes["connection"] = connection
        command.upgrade(configuration, "head")
