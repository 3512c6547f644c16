"""How alembic reaches the database: by the connection that it is given."""

from __future__ import annotations

from alembic import context

from whelp.feedback.schema import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
