"""The pages as a browser asks for them, and as somebody does who means harm."""

from __future__ import annotations

import re
from html import unescape

import pytest
from markupsafe import escape

pytest.importorskip("fastapi")
from web_helpers import HERE, PASSWORD, browser, filled, signed_in

from whelp.feedback.accounts import Accounts
from whelp.feedback.judgements import NewItem
from whelp.feedback.store import Store
from whelp.types import Message
from whelp.web.accounts import own_path
from whelp.web.markdown import render
from whelp.web.security import HEADERS

pytestmark = pytest.mark.usefixtures("quick_hashing")


def form_of(page: str) -> tuple[str, str]:
    """(where the judgement goes, its key)"""
    found = re.search(r'id="judge" method="post" action="([^"]+)".*?name="key" value="(\w+)"', page, re.S)
    assert found, page
    return found[1], found[2]


def undo_key(page: str) -> str:
    return re.search(r'id="undo".*?name="key" value="(\w+)"', page, re.S)[1]


# -- judging ----------------------------------------------------------------------------------------------------------


def test_who_sits_at_the_machine_judges_without_an_account(store: Store) -> None:
    project, client = filled(store), browser(store)
    assert "helpful" in client.get("/").text
    questions = []
    for _ in range(3):
        page = client.get(f"/projects/{project}/annotate").text
        questions.append(re.search(r"question \d", page)[0])
        assert client.get(f"/projects/{project}/annotate").text.count(questions[-1]) == 1, "a reload shows the same"
        action, key = form_of(page)
        answer = client.post(
            action, data={"kind": "vote", "key": key, "rank": ["2", "1"], "strength": "3", "comment": " hm "}
        )
        assert answer.status_code == 200
        assert answer.history[0].status_code == 303, "a form sees the next page; a reload sends nothing again"
    assert sorted(questions) == ["question 0", "question 1", "question 2"]
    assert "nothing left" in client.get(f"/projects/{project}/annotate").text
    votes = store.votes(project)
    assert [(v.user, v.strength, v.comment, [v.ranks[i] for i in v.order]) for v in votes] == [
        ("you", 3, "hm", [2, 1])
    ] * 3


def test_a_script_gets_the_next_task_alone(store: Store) -> None:
    project, client = filled(store), browser(store)
    action, key = form_of(client.get(f"/projects/{project}/annotate").text)
    form = {"kind": "vote", "key": key, "rank": ["1", "1"], "both_bad": "true"}
    answer = client.post(action, data=form, headers={"X-Requested-With": "fetch"})
    assert "<html" not in answer.text
    assert form_of(answer.text)[0] != action
    again = client.post(action, data=form, headers={"X-Requested-With": "fetch"})
    assert again.status_code == 200
    [vote] = store.votes(project)
    assert vote.is_both_bad


def test_drafts_and_undone_votes_come_back(store: Store) -> None:
    project, client = filled(store), browser(store)
    page = client.get(f"/projects/{project}/annotate").text
    action, key = form_of(page)
    draft = {"ranks": [2, 1], "strength": 2, "is_both_bad": False, "comment": 'a "quoted" <b>comment</b>'}
    assert client.post(action.replace("judge", "draft"), json=draft).status_code == 204

    def shown(page: str) -> dict:
        import json

        return json.loads(unescape(re.search(r'data-draft="([^"]*)"', page)[1]))

    assert shown(client.get(f"/projects/{project}/annotate").text) == draft
    client.post(action, data={"kind": "vote", "key": key, "rank": ["2", "1"], "comment": "sure"})
    page = client.get(f"/projects/{project}/annotate").text
    assert shown(page) == {}
    back = client.post(
        f"/projects/{project}/annotate/undo", data={"key": undo_key(page)}, headers={"X-Requested-With": "fetch"}
    )
    assert form_of(back.text)[0] == action
    assert (shown(back.text)["ranks"], shown(back.text)["comment"]) == ([2, 1], "sure")
    assert store.votes(project) == []


@pytest.mark.parametrize(
    ("form", "status", "message"),
    [
        ({"kind": "vote", "rank": ["", "1"]}, 409, "give every one a place"),
        ({"kind": "vote", "rank": ["1"]}, 409, "expected 2 numbers"),
        ({"kind": "vote", "rank": ["1", "9"]}, 409, "from 1, the best, to 2"),
        ({"kind": "vote", "rank": ["1", "-2"]}, 409, "give every one a place"),
        ({"kind": "vote"}, 409, "expected 2 numbers"),
        ({"kind": "flag"}, 409, "a flag needs a reason"),
        ({"kind": "steal"}, 409, "expected vote, skip or flag"),
        ({"kind": "vote", "rank": ["1", "2"], "key": "short"}, 422, ""),
        ({}, 422, ""),
    ],
)
def test_a_form_that_cannot_be_used(form: dict, status: int, message: str, store: Store) -> None:
    project, client = filled(store), browser(store)
    action, key = form_of(client.get(f"/projects/{project}/annotate").text)
    answer = client.post(action, data={"key": key} | form, headers={"X-Requested-With": "fetch"})
    assert answer.status_code == status
    assert message in answer.text
    assert store.votes(project) == []


@pytest.mark.parametrize(
    ("project", "status", "message"),
    [
        ("99", 409, "there is no project"),
        ("-1", 409, "there is no project"),
        ("x", 422, "project: "),
        (str(2**63), 422, "project: "),
    ],
)
def test_a_project_that_is_not_there(project: str, status: int, message: str, store: Store) -> None:
    answer = browser(store).get(f"/projects/{project}/annotate")
    assert answer.status_code == status
    assert message in answer.text
    assert "Back to the projects" in answer.text


# -- accounts ---------------------------------------------------------------------------------------------------------


def test_a_team_signs_in(store: Store) -> None:
    project, users = filled(store), Accounts(store)
    admin = users.add("ann", PASSWORD, "admin")
    client = browser(store, host_names=None)
    asked = client.get(f"/projects/{project}/annotate")
    assert asked.url.path == "/sign_in"
    wrong = client.post("/sign_in", data={"name": "ann", "password": "wrong horse", "to": "/"})
    assert (wrong.status_code, "nobody of that name" in wrong.text) == (401, True)
    right = client.post("/sign_in", data={"name": "ann", "password": PASSWORD, "to": f"/projects/{project}/annotate"})
    assert right.url.path == f"/projects/{project}/annotate"
    cookie = right.history[0].headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=lax", "path=/"))
    client.post("/sign_out")
    assert client.get("/").url.path == "/sign_in"

    token = users.invite(admin, "annotator")
    other = browser(store, host_names=None)
    assert other.post(f"/invites/{token}", data={"name": "bob", "password": "short"}).status_code == 400
    assert other.post(f"/invites/{token}", data={"name": "bob", "password": PASSWORD}).url.path == "/"
    assert "bob" in other.get("/").text
    assert (
        "was used"
        in browser(store, host_names=None).post(f"/invites/{token}", data={"name": "cem", "password": PASSWORD}).text
    )


def test_an_account_ends_the_open_door(store: Store) -> None:
    client = browser(store)
    assert client.get("/").url.path == "/"
    Accounts(store).add("ann", PASSWORD, "admin")
    assert browser(store).get("/").url.path == "/sign_in"


def test_the_door_is_not_open_to_other_machines(store: Store) -> None:
    assert browser(store, host_names=None).get("/").url.path == "/sign_in"
    assert store.user_named("you") is None


# -- harm -------------------------------------------------------------------------------------------------------------

ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/seen.png)",
    "<a href='https://evil.example'>x</a> [y](https://evil.example)",
    "<style>body{display:none}</style><iframe src=//evil.example></iframe>",
    "```\n</code></pre><script>alert(1)</script>\n```",
    "<svg/onload=alert(1)>",
]


@pytest.mark.parametrize("said", ATTACKS)
def test_what_a_model_says_can_do_nothing(said: str, store: Store) -> None:
    project = store.add_project("<script>alert('project')</script>")
    store.add_items(project, [NewItem((Message("user", said),), (said + " one", said + " two"))])
    page = browser(store).get(f"/projects/{project}/annotate").text
    tags = set(re.findall(r"<\s*([a-z0-9]+)", page[page.index("<main") :].lower()))
    assert not tags & {"script", "img", "iframe", "style", "svg", "object", "embed", "a"}
    assert not re.search(r"<[^>]*\son\w+\s*=", page), "no handler in any tag"
    assert "javascript:" not in re.sub(r">[^<]*<", "><", page)


def test_markdown_is_shown_as_meant() -> None:
    assert render("**bold** and `code`\n\n- a\n- b") == (
        "<p><strong>bold</strong> and <code>code</code></p>\n<ul>\n<li>a</li>\n<li>b</li>\n</ul>\n"
    )
    assert "<td>1</td>" in render("| a |\n|---|\n| 1 |")
    assert render("a \ud83d b") == "<p>a ? b</p>\n"
    assert render("2 < 3 & <b>") == "<p>2 &lt; 3 &amp; &lt;b&gt;</p>\n"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://localhost:9000"},
        {"Origin": HERE, "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {},
    ],
)
def test_another_site_cannot_send_forms(headers: dict[str, str], store: Store) -> None:
    project, client = filled(store), browser(store)
    action, key = form_of(client.get(f"/projects/{project}/annotate").text)
    client.headers.pop("Origin")
    answer = client.post(action, data={"kind": "vote", "key": key, "rank": ["1", "2"]}, headers=headers)
    assert answer.status_code == 403
    assert store.votes(project) == []


def test_a_request_that_is_too_long_is_not_read(store: Store) -> None:
    project, client = filled(store), browser(store)
    action, key = form_of(client.get(f"/projects/{project}/annotate").text)
    endless = client.post(action, content=(b"x" * 1000 for _ in range(3)))
    assert endless.status_code == 413
    form = {"kind": "vote", "key": key, "rank": ["1", "2"], "comment": "x" * 1_000_001}
    assert client.post(action, data=form).status_code == 413
    form["comment"] = "x" * 6_000
    assert "at most 5000 are kept" in client.post(action, data=form).text
    assert store.votes(project) == []


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.5:8000", "", "["])
def test_a_foreign_name_that_leads_here_is_refused(host: str, store: Store) -> None:
    assert browser(store).get("/", headers={"Host": host}).status_code == 421
    assert browser(store).get("/", headers={"Host": "127.0.0.1:8000"}).status_code == 200


@pytest.mark.parametrize("cookie", ["", "x", "' OR 1=1 --", "a" * 10_000])
def test_a_made_up_cookie_is_nobody(cookie: str, store: Store) -> None:
    Accounts(store).add("ann", PASSWORD, "admin")
    client = browser(store, host_names=None)
    client.headers["Cookie"] = f"whelp_sign_in={cookie}"
    assert client.get("/").url.path == "/sign_in"
    assert client.post("/projects/1/annotate/undo", data={"key": "a" * 32}).status_code == 401


def test_nobody_judges_the_task_of_another(store: Store) -> None:
    project, clients = filled(store), []
    for name in ("ann", "eve"):
        clients.append(signed_in(store, name, "annotator"))
    ann, eve = clients
    action, key = form_of(ann.get(f"/projects/{project}/annotate").text)
    stolen = eve.post(action, data={"kind": "vote", "key": key, "rank": ["1", "2"]})
    assert (stolen.status_code, "is not yours" in stolen.text) == (409, True)
    assert eve.post(action.replace("judge", "draft"), json={}).status_code == 409
    assert store.votes(project) == []


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static/..%5capp.py", "/static//etc/passwd"],
)
def test_no_file_but_the_static_ones_is_given_out(path: str, store: Store) -> None:
    answer = browser(store).get(path)
    assert answer.status_code == 404
    assert "import" not in answer.text


def test_every_answer_says_what_the_page_never_does(store: Store) -> None:
    client = browser(store)
    for path in ("/", "/static/app.css", "/nowhere", "/sign_in"):
        headers = client.get(path).headers
        assert all(headers[name] == value for name, value in HEADERS.items()), path
    assert client.get("/").headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("to", "path"),
    [("/projects/1", "/projects/1"), ("//evil.example", "/"), ("/\\evil.example", "/"), ("https://evil", "/")],
)
def test_signing_in_leads_to_no_other_site(to: str, path: str) -> None:
    assert own_path(to) == path


INJECTIONS = [
    "'; DROP TABLE revisions; --",
    "' OR '1'='1",
    '"); DELETE FROM users; --',
    "%' AND 1=(SELECT 1)--",
    "{{7*7}}",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_what_is_typed_is_text_and_no_statement(text: str, store: Store) -> None:
    client = browser(store)
    client.post("/projects", data={"name": text})
    project = store.project(text)
    store.add_items(project, [NewItem((Message("user", text),), (text, f"{text} again"))])
    action, key = form_of(client.get(f"/projects/{project}/annotate").text)
    client.post(action.replace("judge", "draft"), json={"comment": text})
    client.post(action, data={"kind": "vote", "key": key, "rank": ["1", "2"], "comment": text})
    [vote] = store.votes(project)
    assert vote.comment == text
    assert store.items(project)[0].completions == (text, f"{text} again")
    page = client.get(f"/projects/{project}").text
    assert escape(text) in page
    assert "49" not in page.partition("<h1>")[2].partition("</h1>")[0]
    Accounts(store).add("ann", PASSWORD, "admin")
    for name, password in ((text, PASSWORD), ("ann", text)):
        refused = browser(store, host_names=None).post("/sign_in", data={"name": name, "password": password, "to": "/"})
        assert refused.status_code == 401
    assert client.get(f"/projects/{project}/export/{text}").status_code in (404, 409)
    assert [person.name for person in Accounts(store).people()] == ["ann", "you"]
