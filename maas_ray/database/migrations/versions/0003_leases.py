"""Leases: which process alone may do a piece of work, and until when."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("leases")
