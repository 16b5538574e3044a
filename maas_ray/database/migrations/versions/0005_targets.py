"""Targets of autoscaling: the former default, and those that no replica can reach, become the computed default."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_FIELD = "target_ongoing_requests"
_FORMER_DEFAULT = 16.0  # stored in every spec


def upgrade() -> None:
    def unset(spec: dict[str, Any], scaling: dict[str, Any]) -> None:
        if scaling.get(_FIELD) == _FORMER_DEFAULT or (scaling.get(_FIELD) or 0) > spec.get("max_ongoing_requests", 32):
            scaling[_FIELD] = None

    _rewrite(unset)


def downgrade() -> None:
    def remove(spec: dict[str, Any], scaling: dict[str, Any]) -> None:
        if scaling.get(_FIELD, 0) is None:  # earlier versions fill it in, but do not accept null
            del scaling[_FIELD]

    _rewrite(remove)


def _rewrite(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the stored specs, each given with its `scaling`."""
    connection = op.get_bind()
    for name, keys in (("endpoints", ("name",)), ("served", ("endpoint", "number"))):
        table = sa.table(name, *map(sa.column, keys), sa.column("spec", sa.JSON()))
        for row in connection.execute(sa.select(table)).mappings().all():
            spec = row["spec"]
            change(spec, spec.get("scaling") or {})
            same = (table.c[key] == row[key] for key in keys)
            connection.execute(sa.update(table).where(*same).values(spec=spec))
