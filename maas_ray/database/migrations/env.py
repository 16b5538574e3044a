"""Run by Alembic on the connection that `maas_ray.database.migrate` opened; it also holds the lock."""

from alembic import context

from maas_ray.database.base import VERSION_TABLE, Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=False,  # the transaction is the caller's
    render_as_batch=True,  # SQLite alters a table by copying it
)
context.run_migrations()
