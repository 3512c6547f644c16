"""What endpoints that judge have said, so that nothing is paid for twice."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
SECONDS = sa.Float(53)


def upgrade() -> None:
    op.create_table(
        "replies",
        sa.Column("id", KEY, nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("model", sa.String, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("reply", sa.JSON, nullable=False),
        sa.Column("tokens_in", sa.BigInteger, nullable=False),
        sa.Column("tokens_out", sa.BigInteger, nullable=False),
        sa.Column("cost", SECONDS, nullable=False),
        sa.Column("created_at", SECONDS, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_replies"),
        sa.UniqueConstraint("key", name="uq_replies_key"),
    )


def downgrade() -> None:
    op.drop_table("replies")
