"""Every model's answers to the same prompts, checked and judged; kept as they come, so that nothing is sampled twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whelp.checkers import passes
from whelp.config import EvaluateConfig
from whelp.engines.base import Engine, SamplingParams
from whelp.errors import DataError
from whelp.runs.metrics import MetricsLog
from whelp.stages.context import Samples, Stage, answers_in_order
from whelp.text.chat import Chat, sampled
from whelp.types import Prompt

FILE = "completions.jsonl"
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer with what the checks and the judge say of it; `length` is in tokens."""

    prompt: Prompt
    model: str
    mode: str
    sample: int
    text: str
    passes: bool | None
    """None where the prompt has no check."""
    length: int
    is_finished: bool
    judge: float | None
    """None where there is no judge."""

    def row(self) -> dict[str, Any]:
        return {
            "id": self.prompt.id,
            "category": self.prompt.category,
            "prompt": self.prompt.text,
            "model": self.model,
            "mode": self.mode,
            "sample": self.sample,
            "completion": self.text,
            "passes": self.passes,
            "length": self.length,
            "is_finished": self.is_finished,
            "check": None if self.prompt.check is None else self.prompt.check["kind"],
            "judge": self.judge,
        }

    @classmethod
    def of_row(cls, row: dict[str, Any], prompt: Prompt) -> Answer:
        names = ("model", "mode", "sample", "completion", "passes", "length", "is_finished", "judge")
        return cls(prompt, *(row[name] for name in names))


def collect(
    engine: Engine,
    chat: Chat,
    models: Sequence[str],
    prompts: Sequence[Prompt],
    shown: Sequence[Prompt],
    config: EvaluateConfig,
    stage: Stage,
    has_judge: bool,
    elsewhere: Mapping[str, Samples],
) -> list[Answer]:
    """Greedy answers of every model to `shown` and `prompts`, and samples to `prompts` where `config.samples` asks for some.

    Each model's answers of one mode are a step of the stage: they are written to completions.jsonl, and an evaluation that
    goes on begins behind the last of them.
    """
    modes = ("greedy", "sampled") if config.samples else ("greedy",)
    steps = [(model, mode) for model in models for mode in modes]
    log = MetricsLog(stage.folder, FILE)
    start, _ = stage.resume(engine)
    log.truncate_after(start)
    asked = {prompt.id: prompt for prompt in [*shown, *prompts]}
    answers = [Answer.of_row(row, asked[row["id"]]) for row in log.read(log.path)]
    with stage.listening(), stage.progress.steps("evaluation", len(steps)) as bar:
        bar.advance(start)
        for step, (model, mode) in enumerate(steps[start:], start + 1):
            to_answer = [*shown, *prompts] if mode == "greedy" else prompts
            source = elsewhere.get(model, engine)
            found = answer(engine, chat, model, to_answer, mode, config, stage.seed, has_judge, source)
            for one in found:
                log.append(step, **one.row())
            answers += found
            stage.end_step(engine, step, len(steps))
            bar.advance(1)
    return answers


def answer(
    engine: Engine,
    chat: Chat,
    model: str,
    prompts: Sequence[Prompt],
    mode: str,
    config: EvaluateConfig,
    seed: int,
    has_judge: bool,
    source: Samples,
) -> list[Answer]:
    """One greedy answer to each prompt, or `config.samples` drawn from `source`; all checked, and judged if there is a judge."""
    count, temperature = (1, 0.0) if mode == "greedy" else (config.samples, config.temperature)
    params = SamplingParams(count, temperature, config.max_new_tokens, ("evaluate", model, seed))
    completions = answers_in_order(source, model, prompts, params)
    scores: Iterable[float | None] = [None] * len(completions)
    if has_judge:
        with engine.hold(sampled(chat, completions)) as held:
            scores = engine.rewards("judge", held).mean(0).tolist()
    return [
        Answer(
            c.prompt,
            model,
            mode,
            c.sample,
            c.text,
            None if c.prompt.check is None else passes(c.prompt.check, c.text, c.is_finished),
            len(c.tokens),
            c.is_finished,
            score,
        )
        for c, score in zip(completions, scores, strict=True)
    ]


def aligned(after: Sequence[Answer], before: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    """Each answer beside the other model's to the same prompt (by its id) with the same sample number, in the order of `after`.

    Raises `DataError` that names what either side lacks, or has twice.
    """
    sides = [_by_place(after), _by_place(before)]
    lacking = [
        f"{_name(side)} lacks {_listed(missing)}"
        for side, own, other in ((after, *sides), (before, *reversed(sides)))
        if (missing := [place for place in other if place not in own])
    ]
    if lacking:
        raise DataError(
            f"answers cannot be compared in pairs: {'; '.join(lacking)}. Let both models answer the same prompts, with one "
            "number of samples."
        )
    return [(one, sides[1][place]) for place, one in sides[0].items()]


def _by_place(answers: Sequence[Answer]) -> dict[tuple[str, int], Answer]:
    found: dict[tuple[str, int], Answer] = {}
    for one in answers:
        place = (one.prompt.id, one.sample)
        if place in found:
            raise DataError(
                f"answers cannot be compared in pairs: {_name(answers)} has {_listed([place])} twice. Give each prompt an id "
                "of its own."
            )
        found[place] = one
    return found


def _name(answers: Sequence[Answer]) -> str:
    return " and ".join(dict.fromkeys(f"{one.model} ({one.mode})" for one in answers)) or "a model without answers"


def _listed(places: Sequence[tuple[str, int]]) -> str:
    shown = ", ".join(f"{id} (sample {sample})" for id, sample in places[:_SHOWN])
    return shown + (f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else "")
