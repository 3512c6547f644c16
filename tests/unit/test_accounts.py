"""Who may sign in, and who may not."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from feedback_helpers import Clock
from sqlalchemy import text

from whelp.errors import DataError
from whelp.feedback import accounts as module
from whelp.feedback.accounts import Accounts
from whelp.feedback.store import Store

pytest.importorskip("argon2")
PASSWORD = "correct horse battery"


pytestmark = pytest.mark.usefixtures("quick_hashing")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def users(tmp_path: Path, clock: Clock) -> Iterator[Accounts]:
    store = Store(tmp_path / "x.db", clock=clock)
    yield Accounts(store)
    store.close()


def everything(users: Accounts) -> str:
    """All that the database holds of accounts."""
    with users.store.engine.connect() as connection:
        found = [connection.execute(text(f"SELECT * FROM {t}")).all() for t in ("users", "invites", "sign_ins")]
    return str(found)


def test_who_signed_in_is_known_until_they_sign_out_or_the_time_is_up(users: Accounts, clock: Clock) -> None:
    assert users.is_empty()
    ann = users.add(" Ann   Lee ", PASSWORD, "admin")
    assert not users.is_empty()
    first, second = users.sign_in("Ann Lee", PASSWORD), users.sign_in("Ann Lee", PASSWORD)
    found = users.who(first)
    assert (found.user, found.name, found.role) == (ann, "Ann Lee", "admin")
    assert first != second, "each browser has its own"
    users.sign_out(first)
    assert users.who(first) is None
    assert users.who(second) is not None
    clock.now += module.SIGNED_IN_SECONDS
    assert users.who(second) is None
    assert users.who("") is None


def test_nothing_in_the_database_lets_anybody_in(users: Accounts) -> None:
    admin = users.add("ann", PASSWORD, "admin")
    token, invite = users.sign_in("ann", PASSWORD), users.invite(admin, "annotator")
    written = everything(users)
    assert "argon2id" in written
    assert not any(secret in written for secret in (PASSWORD, token, invite))


@pytest.mark.parametrize(
    ("name", "password"), [("ann", "wrong horse battery"), ("eve", PASSWORD), ("ann", ""), ("", "")]
)
def test_a_wrong_name_and_a_wrong_password_look_alike(name: str, password: str, users: Accounts) -> None:
    users.add("ann", PASSWORD, "annotator")
    with pytest.raises(DataError, match="nobody of that name with that password"):
        users.sign_in(name, password)


def test_a_user_without_a_password_cannot_sign_in_but_be_let_in(users: Accounts) -> None:
    user = users.store.add_user("you", "admin")
    with pytest.raises(DataError, match="nobody of that name"):
        users.sign_in("you", "")
    assert users.who(users.open_for(user)).name == "you"


def test_guessing_takes_longer_and_longer(users: Accounts, clock: Clock) -> None:
    users.add("ann", PASSWORD, "annotator")
    users.add("bob", PASSWORD, "annotator")
    guesses = waited = 0
    while waited < 3600:
        try:
            users.sign_in("ann", f"guess {guesses}")
        except DataError as error:
            if "try again" not in str(error):
                guesses += 1
                continue
        clock.now += 1
        waited += 1
    assert guesses < 20, "in an hour"
    with pytest.raises(DataError, match="try again in"):
        users.sign_in("ann", PASSWORD)
    users.sign_in("bob", PASSWORD)
    clock.now += module.LONGEST_WAIT
    users.sign_in("ann", PASSWORD)
    with pytest.raises(DataError, match="nobody of that name"):
        users.sign_in("ann", "one more guess")
    users.sign_in("ann", PASSWORD)


def test_guesses_at_once_count_each(users: Accounts) -> None:
    users.add("ann", PASSWORD, "annotator")
    checked = []

    def guess(i: int) -> None:
        try:
            users.sign_in("ann", f"guess number {i}")
        except DataError as error:
            checked.append("nobody of that name" in str(error))

    threads = [threading.Thread(target=guess, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(checked) == 16
    assert sum(checked) == module.FREE_FAILURES + 1


def test_an_invitation_makes_one_user_once(users: Accounts, clock: Clock) -> None:
    admin = users.add("ann", PASSWORD, "admin")
    token = users.invite(admin, "adjudicator")
    with pytest.raises(DataError, match="somebody called 'ann'"):
        users.accept(token, "ann", PASSWORD)
    with pytest.raises(DataError, match="10 to 1000 characters"):
        users.accept(token, "bob", "short")
    users.accept(token, "bob", PASSWORD)
    assert users.who(users.sign_in("bob", PASSWORD)).role == "adjudicator", "what went wrong before did not use it up"
    late = users.invite(admin, "annotator")
    clock.now += module.INVITE_SECONDS + 1
    for used in (token, late, "made-up"):
        with pytest.raises(DataError, match="used or is too old"):
            users.accept(used, "cem", PASSWORD)


def test_an_invitation_taken_twice_at_once_makes_one_user(users: Accounts) -> None:
    token = users.invite(users.add("ann", PASSWORD, "admin"), "annotator")
    made: list[int] = []

    def accept(name: str) -> None:
        with contextlib.suppress(DataError):
            made.append(users.accept(token, name, PASSWORD))

    threads = [threading.Thread(target=accept, args=(f"user {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


@pytest.mark.parametrize("name", ["", "   ", "a\x00b", "x" * 101, "a\u202eb"])
def test_a_name_that_is_none(name: str, users: Accounts) -> None:
    with pytest.raises(DataError, match="1 to 100 printable characters"):
        users.add(name, PASSWORD, "annotator")


def test_who_leaves_is_signed_out_and_one_admin_stays(users: Accounts) -> None:
    ann, bob = users.add("ann", PASSWORD, "admin"), users.add("bob", PASSWORD, "annotator")
    token = users.sign_in("bob", PASSWORD)
    users.change(bob, is_active=False)
    assert users.who(token) is None
    with pytest.raises(DataError, match="nobody of that name"):
        users.sign_in("bob", PASSWORD)
    users.change(bob, is_active=True)
    assert users.who(token) is None
    for change in ({"role": "annotator"}, {"is_active": False}):
        with pytest.raises(DataError, match="one admin must stay"):
            users.change(ann, **change)
    users.change(bob, role="admin")
    users.change(ann, role="annotator")
    assert users.who(users.sign_in("ann", PASSWORD)).role == "annotator"


def test_what_each_role_may(users: Accounts) -> None:
    may = {}
    for role in ("admin", "adjudicator", "annotator"):
        users.add(role, PASSWORD, role)
        found = users.who(users.sign_in(role, PASSWORD))
        may[role] = [found.may(asked) for asked in ("admin", "adjudicator", "annotator")]
    assert may == {"admin": [True, True, True], "adjudicator": [False, True, True], "annotator": [False, False, True]}
