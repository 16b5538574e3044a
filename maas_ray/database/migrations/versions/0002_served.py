"""Served: what each endpoint serves and served before; it begins with what is served now."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "served",
        sa.Column("endpoint", sa.String(), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("uri", sa.String(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
    )
    op.execute(
        "INSERT INTO served (endpoint, number, spec, version, uri, digest, since) "
        "SELECT name, 1, spec, version, uri, digest, updated FROM endpoints WHERE state = 'serving'"
    )


def downgrade() -> None:
    op.drop_table("served")
