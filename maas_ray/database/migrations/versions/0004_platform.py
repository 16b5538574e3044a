"""Platform: one row with a random id, which the applications and the gateway of this database carry."""

import getpass
import secrets
import socket
from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    platform = op.create_table(
        "platform",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
    )
    row = {"id": secrets.token_hex(4), "created_by": f"{_user()}@{socket.gethostname()}", "created": datetime.now(UTC)}
    op.bulk_insert(platform, [row])


def downgrade() -> None:
    op.drop_table("platform")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"
