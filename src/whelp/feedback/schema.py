"""What a database of human judgements holds. Times are seconds since 1970, UTC; ranks are of the completions in the order in
which they lie here, 1 is best, equal ranks are ties."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Key = BigInteger().with_variant(Integer, "sqlite")
Seconds = Float(53)
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """The tables; `migrations/` makes them."""


Base.metadata.naming_convention = NAMING


class Project(Base):
    """Items that are judged by one set of rules."""

    __tablename__ = "projects"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    guidelines: Mapped[str] = mapped_column(default="")
    """Markdown."""
    overlap: Mapped[int] = mapped_column(default=1)
    """How many people judge each item."""
    lease_seconds: Mapped[float] = mapped_column(Seconds, default=1800.0)
    """An item that was taken and not judged goes to others after so long."""
    min_seconds: Mapped[float] = mapped_column(Seconds, default=0.0)
    """A vote that came sooner was not thought about."""
    gold_every: Mapped[int] = mapped_column(default=0)
    """Every so many votes one of which the answer is known; 0: where they come."""
    created_at: Mapped[float] = mapped_column(Seconds)


class User(Base):
    """Who judges."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    role: Mapped[str] = mapped_column(String(20))
    """admin, adjudicator or annotator."""
    password_hash: Mapped[str | None]
    """None: nobody can sign in by this name."""
    is_active: Mapped[bool] = mapped_column(default=True)
    failures: Mapped[int] = mapped_column(default=0)
    """Wrong passwords since the last right one."""
    locked_until: Mapped[float] = mapped_column(Seconds, default=0.0)
    created_at: Mapped[float] = mapped_column(Seconds)


class Invite(Base):
    """A link by which one person becomes a user, once."""

    __tablename__ = "invites"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(20))
    created_by: Mapped[int] = mapped_column(ForeignKey("users.id"))
    used_by: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    expires_at: Mapped[float] = mapped_column(Seconds)


class SignIn(Base):
    """A browser in which somebody has signed in."""

    __tablename__ = "sign_ins"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    expires_at: Mapped[float] = mapped_column(Seconds)


class Item(Base):
    """A prompt and its completions."""

    __tablename__ = "items"
    __table_args__ = (
        UniqueConstraint("project_id", "key"),
        Index(None, "project_id", "is_open", "is_full", "place"),
        Index(None, "project_id", "is_gold", "votes"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    key: Mapped[str] = mapped_column(String(64))
    """Hash of prompt and completions: what is added twice is there once."""
    messages: Mapped[list[dict[str, str]]] = mapped_column(JSON)
    category: Mapped[str] = mapped_column(default="")
    completions: Mapped[list[str]] = mapped_column(JSON)
    sources: Mapped[list[str]] = mapped_column(JSON)
    """Who wrote each completion."""
    gold: Mapped[list[int] | None] = mapped_column(JSON(none_as_null=True))
    """Ranks that are known to be right: everybody is asked, to see who pays attention."""
    is_gold: Mapped[bool] = mapped_column(default=False)
    """True: there is `gold`."""
    shuffle: Mapped[float] = mapped_column(Seconds)
    """Drawn from [0, 1)."""
    place: Mapped[float] = mapped_column(Seconds)
    """The lowest is asked first: `shuffle`, or less than zero where a reward model's doubt puts an item forward."""
    votes: Mapped[int] = mapped_column(default=0)
    """How many count; verdicts do not."""
    is_full: Mapped[bool] = mapped_column(default=False)
    """True: it has as many votes as the project wants; never of gold."""
    is_open: Mapped[bool] = mapped_column(default=True)
    """False: nobody is asked any more."""
    created_at: Mapped[float] = mapped_column(Seconds)


class Assignment(Base):
    """An item before one person, in the order that was drawn for them."""

    __tablename__ = "assignments"
    __table_args__ = (
        UniqueConstraint("item_id", "user_id", "is_verdict"),
        Index(None, "user_id", "project_id", "is_verdict", "state"),
        Index(None, "project_id", "is_verdict", "state"),
    )

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    project_id: Mapped[int] = mapped_column(Key)
    """The item's."""
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), index=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    is_verdict: Mapped[bool] = mapped_column(default=False)
    """True: an adjudicator settles for all what others were at odds about."""
    order: Mapped[list[int]] = mapped_column(JSON)
    """Which completion stands at each place."""
    draft: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """What the page has not submitted yet."""
    shown_at: Mapped[float] = mapped_column(Seconds)
    expires_at: Mapped[float] = mapped_column(Seconds)
    state: Mapped[str] = mapped_column(String(20), default="open")
    """open, or the kind of the last revision: vote, skip or flag."""
    revisions: Mapped[int] = mapped_column(default=0)
    """How many there are."""


class Revision(Base):
    """What somebody said about an item, at one time. What is said later counts, and what was said stays: the database refuses to
    change or delete it."""

    __tablename__ = "revisions"
    __table_args__ = (UniqueConstraint("assignment_id", "number"),)

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    assignment_id: Mapped[int] = mapped_column(ForeignKey("assignments.id"))
    number: Mapped[int]
    """1 is the first of its assignment."""
    request: Mapped[str] = mapped_column(String(64), unique=True)
    """Drawn by the page: a request that is sent again, because its answer was lost, is the same vote."""
    kind: Mapped[str] = mapped_column(String(20))
    """vote, skip, flag or undo."""
    ranks: Mapped[list[int] | None] = mapped_column(JSON(none_as_null=True))
    strength: Mapped[int | None]
    """Of a pair: by how much the better one is better, 1 to 4."""
    is_both_bad: Mapped[bool] = mapped_column(default=False)
    """Of a pair that is tied: neither is any good."""
    comment: Mapped[str] = mapped_column(default="")
    seconds: Mapped[float] = mapped_column(Seconds)
    """From the moment that the item was shown."""
    created_at: Mapped[float] = mapped_column(Seconds)


class Reply(Base):
    """What an endpoint that judges said to a request: asked again, it is read here and paid for once."""

    __tablename__ = "replies"

    id: Mapped[int] = mapped_column(Key, primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    """Hash of `request`."""
    model: Mapped[str]
    request: Mapped[dict[str, Any]] = mapped_column(JSON)
    reply: Mapped[dict[str, Any]] = mapped_column(JSON)
    """What was read of it: the text, and the likeliest first tokens where the endpoint gives them."""
    tokens_in: Mapped[int] = mapped_column(BigInteger)
    tokens_out: Mapped[int] = mapped_column(BigInteger)
    cost: Mapped[float] = mapped_column(Float(53))
    """In the endpoint's currency, by the prices of the day."""
    created_at: Mapped[float] = mapped_column(Seconds)
