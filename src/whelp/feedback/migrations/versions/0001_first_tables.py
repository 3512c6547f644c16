"""Projects, users, their invites and sign-ins, items, assignments, and revisions that nobody can change."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")
SECONDS = sa.Float(53)
KEPT = "revisions are never changed and never deleted"


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("id", KEY, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("guidelines", sa.String, nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("lease_seconds", SECONDS, nullable=False),
        sa.Column("min_seconds", SECONDS, nullable=False),
        sa.Column("gold_every", sa.Integer, nullable=False),
        sa.Column("created_at", SECONDS, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("name", name="uq_projects_name"),
    )
    op.create_table(
        "users",
        sa.Column("id", KEY, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("password_hash", sa.String, nullable=True),
        sa.Column("is_active", sa.Boolean, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("locked_until", SECONDS, nullable=False),
        sa.Column("created_at", SECONDS, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("name", name="uq_users_name"),
    )
    op.create_table(
        "invites",
        sa.Column("id", KEY, nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("created_by", KEY, nullable=False),
        sa.Column("used_by", KEY, nullable=True),
        sa.Column("expires_at", SECONDS, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_invites"),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name="fk_invites_created_by"),
        sa.ForeignKeyConstraint(["used_by"], ["users.id"], name="fk_invites_used_by"),
        sa.UniqueConstraint("token_hash", name="uq_invites_token_hash"),
    )
    op.create_table(
        "sign_ins",
        sa.Column("id", KEY, nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("user_id", KEY, nullable=False),
        sa.Column("expires_at", SECONDS, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sign_ins"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_sign_ins_user_id"),
        sa.UniqueConstraint("token_hash", name="uq_sign_ins_token_hash"),
    )
    op.create_index("ix_sign_ins_user_id", "sign_ins", ["user_id"])
    op.create_table(
        "items",
        sa.Column("id", KEY, nullable=False),
        sa.Column("project_id", KEY, nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("messages", sa.JSON, nullable=False),
        sa.Column("category", sa.String, nullable=False),
        sa.Column("completions", sa.JSON, nullable=False),
        sa.Column("sources", sa.JSON, nullable=False),
        sa.Column("gold", sa.JSON, nullable=True),
        sa.Column("priority", SECONDS, nullable=True),
        sa.Column("shuffle", SECONDS, nullable=False),
        sa.Column("is_open", sa.Boolean, nullable=False),
        sa.Column("created_at", SECONDS, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_items"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_items_project_id"),
        sa.UniqueConstraint("project_id", "key", name="uq_items_project_id_key"),
    )
    queue = ["project_id", "is_open", "priority", "shuffle"]
    op.create_index("ix_items_project_id_is_open_priority_shuffle", "items", queue)
    op.create_table(
        "assignments",
        sa.Column("id", KEY, nullable=False),
        sa.Column("item_id", KEY, nullable=False),
        sa.Column("user_id", KEY, nullable=False),
        sa.Column("is_verdict", sa.Boolean, nullable=False),
        sa.Column("order", sa.JSON, nullable=False),
        sa.Column("draft", sa.JSON, nullable=True),
        sa.Column("shown_at", SECONDS, nullable=False),
        sa.Column("expires_at", SECONDS, nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("revisions", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_assignments"),
        sa.ForeignKeyConstraint(["item_id"], ["items.id"], name="fk_assignments_item_id"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_assignments_user_id"),
        sa.UniqueConstraint("item_id", "user_id", "is_verdict", name="uq_assignments_item_id_user_id_is_verdict"),
    )
    op.create_index("ix_assignments_item_id", "assignments", ["item_id"])
    op.create_index("ix_assignments_user_id_state", "assignments", ["user_id", "state"])
    op.create_table(
        "revisions",
        sa.Column("id", KEY, nullable=False),
        sa.Column("assignment_id", KEY, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("request", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("ranks", sa.JSON, nullable=True),
        sa.Column("strength", sa.Integer, nullable=True),
        sa.Column("is_both_bad", sa.Boolean, nullable=False),
        sa.Column("comment", sa.String, nullable=False),
        sa.Column("seconds", SECONDS, nullable=False),
        sa.Column("created_at", SECONDS, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_revisions"),
        sa.ForeignKeyConstraint(["assignment_id"], ["assignments.id"], name="fk_revisions_assignment_id"),
        sa.UniqueConstraint("assignment_id", "number", name="uq_revisions_assignment_id_number"),
        sa.UniqueConstraint("request", name="uq_revisions_request"),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"CREATE FUNCTION keep_revisions() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '{KEPT}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER keep_revisions BEFORE UPDATE OR DELETE ON revisions FOR EACH ROW EXECUTE FUNCTION keep_revisions()"
        )
    else:
        for what in ("UPDATE", "DELETE"):
            name = f"keep_revisions_{what.lower()}"
            op.execute(f"CREATE TRIGGER {name} BEFORE {what} ON revisions BEGIN SELECT RAISE(ABORT, '{KEPT}'); END")


def downgrade() -> None:
    for table in ("revisions", "assignments", "items", "sign_ins", "invites", "users", "projects"):
        op.drop_table(table)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION keep_revisions")
