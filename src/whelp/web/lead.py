"""The lead's pages: what is asked of whom, what came in, and what is learned from it."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, UploadFile
from fastapi.responses import RedirectResponse, Response

from whelp.errors import ConfigError, DataError
from whelp.feedback.accounts import SignedIn
from whelp.feedback.database import DATABASE_VARIABLE
from whelp.feedback.export import FORMATS, rows_of
from whelp.feedback.statistics import PUBLISHED, statistics
from whelp.feedback.store import Store
from whelp.runs.files import as_lines, read_json
from whelp.text.items import read_items
from whelp.web.pages import Id, page, store_of
from whelp.web.processes import Processes
from whelp.web.security import at_least

routes = APIRouter()
Admin = Annotated[SignedIn, Depends(at_least("admin"))]
Adjudicator = Annotated[SignedIn, Depends(at_least("adjudicator"))]
Whole = Annotated[int, Form(ge=0, le=1_000_000)]
LONGEST_NAME, LONGEST_GUIDELINES, MOST_SAMPLES = 100, 50_000, 16


@dataclass(frozen=True, slots=True)
class ProjectProgress:
    id: int
    name: str
    mine: int
    given: int
    wanted: int


def progress_of_all(store: Store, user: int) -> list[ProjectProgress]:
    return [ProjectProgress(id, name, *store.progress(id, user)) for name, id in store.projects().items()]


@routes.post("/projects")
def make(request: Request, user: Admin, name: Annotated[str, Form()]) -> Response:
    name = " ".join(name.split())
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise DataError(f"a project's name has 1 to {LONGEST_NAME} printable characters; take another one.")
    return to_lead(store_of(request).add_project(name))


@routes.get("/projects/{project}")
def lead(request: Request, project: Id, user: Adjudicator) -> Response:
    store = store_of(request)
    return page(
        request,
        "lead.html",
        user=user,
        project=store.rules(project),
        found=statistics(store, project),
        published=PUBLISHED,
        formats=list(FORMATS),
        **_work(request, project),
    )


@routes.get("/projects/{project}/work")
def work(request: Request, project: Id, user: Adjudicator) -> Response:
    """What runs in the background, for the page to show anew."""
    return page(request, "work.html", user=user, project=store_of(request).rules(project), **_work(request, project))


@routes.post("/projects/{project}/rules")
def rules(
    request: Request,
    project: Id,
    user: Admin,
    overlap: Annotated[int, Form(ge=1, le=100)],
    lease_minutes: Annotated[int, Form(ge=1, le=100_000)],
    min_seconds: Whole,
    gold_every: Whole,
    guidelines: Annotated[str, Form(max_length=LONGEST_GUIDELINES)] = "",
) -> Response:
    store_of(request).change_rules(
        project,
        overlap=overlap,
        lease_seconds=60.0 * lease_minutes,
        min_seconds=float(min_seconds),
        gold_every=gold_every,
        guidelines=guidelines,
    )
    return to_lead(project)


@routes.post("/projects/{project}/import")
def add(
    request: Request, project: Id, user: Admin, file: UploadFile, gold: Annotated[bool, Form()] = False
) -> Response:
    """Prompts with completions, in any format of rankings."""
    store = store_of(request)
    store.rules(project)
    with uploaded(file) as path:
        items, _ = read_items(path, gold)
    store.add_items(project, items)
    return to_lead(project)


@routes.post("/projects/{project}/sample")
def sample(
    request: Request,
    project: Id,
    user: Admin,
    prompts: Annotated[str, Form(max_length=200_000)],
    model: Annotated[str, Form(max_length=500)] = "",
    n: Annotated[int, Form(ge=2, le=MOST_SAMPLES)] = 4,
) -> Response:
    """`prompts`: one a line."""
    asked = [line.strip() for line in prompts.splitlines() if line.strip()]
    if not asked:
        raise DataError("there is no prompt; write one a line.")
    name, folder = store_of(request).rules(project).name, _folder(project)
    file = processes_of(request).folder / folder / "prompts.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in dict.fromkeys(asked)))
    _start(request, f"{folder}/sample", ["sample", "--n", str(n), *_model(model), "--", name, str(file)])
    return to_lead(project)


@routes.post("/projects/{project}/train")
def train(request: Request, project: Id, user: Admin, model: Annotated[str, Form(max_length=500)] = "") -> Response:
    name, folder = store_of(request).rules(project).name, _folder(project)
    output = str(processes_of(request).folder / folder)
    _start(request, folder, ["train", "--output_dir", output, *_model(model), "--", name])
    return to_lead(project)


@routes.post("/projects/{project}/shuffle")
def shuffle(request: Request, project: Id, user: Admin) -> Response:
    """Ask at random again."""
    store_of(request).rules(project)
    store_of(request).prioritise(project, {})
    return to_lead(project)


@routes.get("/projects/{project}/export/{format}")
def export(request: Request, project: Id, format: str, user: Admin) -> Response:
    if format not in FORMATS:
        raise ConfigError(f"there is no format {format[:20]!r}; there are {', '.join(FORMATS)}.")
    store = store_of(request)
    name = re.sub(r"\W+", "-", store.rules(project).name, flags=re.ASCII).strip("-") or "votes"
    found, _ = rows_of(store, project, format)  # pyright: ignore[reportArgumentType]
    return Response(
        as_lines(found),
        media_type="application/jsonl",
        headers={"Content-Disposition": f'attachment; filename="{name}-{format}.jsonl"'},
    )


def to_lead(project: int) -> Response:
    return RedirectResponse(f"/projects/{project}", 303)


def processes_of(request: Request) -> Processes:
    return request.app.state.processes


@contextmanager
def uploaded(file: UploadFile) -> Iterator[Path]:
    """A file of the same ending; errors name it as the person does."""
    name = re.sub(r"[^\w.-]+", "_", file.filename or "upload")[-80:].lstrip(".")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (name or "upload")
        path.write_bytes(file.file.read())
        try:
            yield path
        except DataError as error:
            raise DataError(str(error).replace(f"{folder}/", "")) from error


def _folder(project: int) -> str:
    return f"annotate-{project}"


def _model(model: str) -> list[str]:
    return [f"--model={model.strip()}"] if model.strip() else []


def _start(request: Request, job: str, arguments: list[str]) -> None:
    database = {DATABASE_VARIABLE: store_of(request).database}  # its password belongs on no command line
    processes_of(request).start(job, ["annotate", *arguments], database)


def _work(request: Request, project: int) -> dict[str, Any]:
    processes, folder = processes_of(request), _folder(project)
    return {
        "training": processes.look(folder),
        "sampling": processes.look(f"{folder}/sample"),
        "learned": read_json(processes.folder / folder / "reward" / "metrics.json"),
        "run": folder if (processes.folder / folder / "manifest.json").is_file() else None,
    }
