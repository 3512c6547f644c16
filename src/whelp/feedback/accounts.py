"""Who may do what: passwords, one-time invites, and browsers that are signed in.

What a browser or a link holds is a random token of 256 bits; the database holds its hash, so that who reads the database
cannot sign in with it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING

from sqlalchemy import Select, bindparam, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from whelp.errors import ConfigError, DataError
from whelp.feedback.schema import Invite, SignIn, User
from whelp.feedback.store import ROLES, Role, Store, new_user

if TYPE_CHECKING:
    from argon2 import PasswordHasher

SHORTEST_PASSWORD, LONGEST_PASSWORD = 10, 1_000
INVITE_SECONDS = 7 * 24 * 3600.0
SIGNED_IN_SECONDS = 14 * 24 * 3600.0
FREE_FAILURES = 4
"""Wrong passwords in a row, behind which each costs twice the wait of the one before."""
LONGEST_WAIT = 900.0
WRONG = "there is nobody of that name with that password."


@dataclass(frozen=True, slots=True)
class SignedIn:
    """Who sends a request."""

    user: int
    name: str
    role: Role

    def may(self, role: Role) -> bool:
        """Whether they may do what somebody of `role` does: an admin may do all, an adjudicator what annotators do."""
        return ROLES.index(self.role) <= ROLES.index(role)


class Accounts:
    """The users of a store."""

    def __init__(self, store: Store):
        self.store = store

    def is_empty(self) -> bool:
        """Whether nobody can sign in."""
        with self.store.reading() as session:
            return not session.scalar(select(func.count()).select_from(User).where(User.password_hash.is_not(None)))

    def add(self, name: str, password: str, role: Role) -> int:
        """Raises `DataError` for a name that is taken or empty, and a password that is too short."""
        return self.store.add_user(good_name(name), role, hashed(password))

    def invite(self, by: int, role: Role) -> str:
        """The token of a link that makes one user of `role`, once, within a week."""
        token = secrets.token_urlsafe(32)
        with self.store.writing() as session:
            expires_at = self.store.clock() + INVITE_SECONDS
            session.add(Invite(token_hash=hash_of(token), role=role, created_by=by, expires_at=expires_at))
        return token

    def accept(self, token: str, name: str, password: str) -> int:
        """Raises `DataError` where the link was used, is too old or was never given, and as `add` does."""
        name, password_hash = good_name(name), hashed(password)
        now = self.store.clock()
        with self.store.writing() as session:
            invite = session.scalar(select(Invite).where(Invite.token_hash == hash_of(token)).with_for_update())
            if invite is None or invite.used_by is not None or invite.expires_at < now:
                raise DataError("this invitation was used or is too old; ask for another.")
            user = new_user(session, name, invite.role, password_hash, now)
            invite.used_by = user
            return user

    def sign_in(self, name: str, password: str) -> str:
        """The token of a browser. Raises `DataError` for a wrong name or password, the same for both, and while too many wrong
        ones make the name wait."""
        known = self._attempt(name)
        if not _is_right(password, known.password_hash if known else None) or known is None:
            raise DataError(WRONG)
        with self.store.writing(known.id) as session:
            user = session.get_one(User, known.id)
            user.failures, user.locked_until = 0, 0.0
            return self._signed_in(session, user.id)

    def _attempt(self, name: str) -> User | None:
        """Whose password is to be checked, counted as wrong for now: hashing takes a while, and no lock is held meanwhile."""
        now = self.store.clock()
        with self.store.writing() as session:
            user = session.scalar(select(User).where(User.name == name, User.is_active).with_for_update())
            if user is None:
                return None
            if user.locked_until > now:
                raise DataError(f"too many wrong passwords; try again in {user.locked_until - now:.0f} seconds.")
            user.failures += 1
            if user.failures > FREE_FAILURES:
                user.locked_until = now + min(LONGEST_WAIT, 2.0 ** (user.failures - FREE_FAILURES))
            return user

    def open_for(self, user: int) -> str:
        """The token of a browser that needs no password: on the user's own machine."""
        with self.store.writing() as session:
            return self._signed_in(session, user)

    def _signed_in(self, session: Session, user: int) -> str:
        now, token = self.store.clock(), secrets.token_urlsafe(32)
        session.execute(delete(SignIn).where(SignIn.expires_at < now))
        session.add(SignIn(token_hash=hash_of(token), user_id=user, expires_at=now + SIGNED_IN_SECONDS))
        return token

    def who(self, token: str) -> SignedIn | None:
        """Whose browser this is; None: nobody's."""
        with self.store.reading() as session:
            user = session.scalar(_signed_in_by(), {"token_hash": hash_of(token), "now": self.store.clock()})
            return None if user is None else SignedIn(user.id, user.name, user.role)  # pyright: ignore[reportArgumentType]

    def sign_out(self, token: str) -> None:
        with self.store.writing() as session:
            session.execute(delete(SignIn).where(SignIn.token_hash == hash_of(token)))

    def local_user(self, name: str) -> int:
        """Whoever sits at this machine, made the first time."""
        try:
            return self.store.add_user(name, "admin")
        except (DataError, IntegrityError):  # there, or made by another request in this moment
            known = self.store.user_named(name)
            assert known is not None
            return known

    def people(self) -> list[User]:
        with self.store.reading() as session:
            return list(session.scalars(select(User).order_by(User.name)))

    def change(self, user: int, role: Role | None = None, is_active: bool | None = None) -> None:
        """Who is no longer active is signed out everywhere. Raises `DataError` where no admin would be left."""
        admins = select(User.is_active).where(User.role == "admin").order_by(User.id).with_for_update()
        with self.store.writing() as session:
            session.scalars(admins).all()  # one change at a time
            changed = session.get(User, user)
            if changed is None:
                raise DataError(f"there is nobody with number {user}; go back to the list.")
            changed.role = role or changed.role
            changed.is_active = changed.is_active if is_active is None else is_active
            session.flush()
            if not any(session.scalars(admins)):
                raise DataError("one admin must stay; make somebody else an admin first.")
            if not changed.is_active:
                session.execute(delete(SignIn).where(SignIn.user_id == user))


@cache
def _signed_in_by() -> Select[User]:
    """Asked with every request: putting it together takes longer than running it."""
    is_valid = (SignIn.token_hash == bindparam("token_hash"), SignIn.expires_at > bindparam("now"))
    return select(User).join(SignIn, SignIn.user_id == User.id).where(*is_valid, User.is_active)


def _is_right(password: str, password_hash: str | None) -> bool:
    """Takes as long where there is no hash to check against."""
    from argon2.exceptions import VerifyMismatchError

    try:
        hasher().verify(password_hash or nobody(), password[:LONGEST_PASSWORD])
    except VerifyMismatchError:
        return False
    return password_hash is not None


def good_name(name: str) -> str:
    name = " ".join(name.split())
    if not name or len(name) > 100 or not name.isprintable():
        raise DataError("a name has 1 to 100 printable characters; take another one.")
    return name


def hashed(password: str) -> str:
    """Raises `DataError` where it is too short to be one, or too long."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise DataError(f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters; take another one.")
    return hasher().hash(password)


@cache
def hasher() -> PasswordHasher:
    """Argon2id with the parameters of RFC 9106's second choice, which is the library's default."""
    try:
        from argon2 import PasswordHasher
    except ImportError as error:
        raise ConfigError("accounts need argon2: pip install 'whelp[web]'") from error
    return PasswordHasher()


@cache
def nobody() -> str:
    """To check a password against where there is no user: it takes as long."""
    return hasher().hash(secrets.token_urlsafe(32))


def hash_of(token: str) -> str:
    return sha256(token.encode()).hexdigest()
