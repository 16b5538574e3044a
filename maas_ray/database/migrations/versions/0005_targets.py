"""Targets of autoscaling: the former default, and those that no replica can reach, become the computed default."""

import json
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
    for table, key in (("endpoints", "name"), ("served", "endpoint || '/' || number")):
        update = sa.text(f"UPDATE {table} SET spec = :spec WHERE {key} = :id")  # noqa: S608
        update = update.bindparams(sa.bindparam("spec", type_=sa.JSON()))
        for row in connection.execute(sa.text(f"SELECT {key} AS id, spec FROM {table}")).all():  # noqa: S608
            spec = json.loads(row.spec) if isinstance(row.spec, str) else row.spec
            change(spec, spec.get("scaling") or {})
            connection.execute(update, {"spec": spec, "id": row.id})
