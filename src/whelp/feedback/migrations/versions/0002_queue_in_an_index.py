"""What decides who is asked what next lies in an index: counting and sorting took longer with every item."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
SECONDS = sa.Float(53)
VOTES = "(SELECT count(*) FROM assignments AS a WHERE a.item_id = items.id AND a.state = 'vote' AND NOT a.is_verdict)"
OVERLAP = "(SELECT overlap FROM projects AS p WHERE p.id = items.project_id)"


def upgrade() -> None:
    op.add_column("items", sa.Column("place", SECONDS, nullable=False, server_default="0"))
    op.add_column("items", sa.Column("votes", sa.Integer, nullable=False, server_default="0"))
    for name in ("is_gold", "is_full"):
        op.add_column("items", sa.Column(name, sa.Boolean, nullable=False, server_default=sa.false()))
    op.execute(f"UPDATE items SET place = coalesce(-priority, shuffle), votes = {VOTES}, is_gold = gold IS NOT NULL")
    op.execute(f"UPDATE items SET is_full = NOT is_gold AND votes >= {OVERLAP}")
    op.drop_index("ix_items_project_id_is_open_priority_shuffle", "items")
    op.drop_column("items", "priority")
    op.create_index("ix_items_project_id_is_open_is_full_place", "items", ["project_id", "is_open", "is_full", "place"])
    op.create_index("ix_items_project_id_is_gold_votes", "items", ["project_id", "is_gold", "votes"])
    op.add_column("assignments", sa.Column("project_id", KEY, nullable=False, server_default="0"))
    op.execute(
        "UPDATE assignments SET project_id = (SELECT project_id FROM items WHERE items.id = assignments.item_id)"
    )
    op.drop_index("ix_assignments_user_id_state", "assignments")
    of_user = ["user_id", "project_id", "is_verdict", "state"]
    op.create_index("ix_assignments_user_id_project_id_is_verdict_state", "assignments", of_user)
    of_project = ["project_id", "is_verdict", "state"]
    op.create_index("ix_assignments_project_id_is_verdict_state", "assignments", of_project)


def downgrade() -> None:
    op.drop_index("ix_assignments_project_id_is_verdict_state", "assignments")
    op.drop_index("ix_assignments_user_id_project_id_is_verdict_state", "assignments")
    op.drop_column("assignments", "project_id")
    op.create_index("ix_assignments_user_id_state", "assignments", ["user_id", "state"])
    op.drop_index("ix_items_project_id_is_gold_votes", "items")
    op.drop_index("ix_items_project_id_is_open_is_full_place", "items")
    op.add_column("items", sa.Column("priority", SECONDS, nullable=True))
    op.execute("UPDATE items SET priority = -place WHERE place <> shuffle")
    for name in ("place", "votes", "is_gold", "is_full"):
        op.drop_column("items", name)
    queue = ["project_id", "is_open", "priority", "shuffle"]
    op.create_index("ix_items_project_id_is_open_priority_shuffle", "items", queue)
