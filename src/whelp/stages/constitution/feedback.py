"""AI feedback: which of the policy's answers a judge prefers by written principles (Bai et al. 2022, Constitutional AI,
section 4)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from whelp.config import ConstitutionConfig
from whelp.engines.base import Engine, SamplingParams
from whelp.judges.base import Comparison, Judge, Label, tempered
from whelp.runs.metrics import MetricsLog
from whelp.stages.context import Stage, answers_in_order
from whelp.stages.hearing import hear
from whelp.types import Principle, Prompt

ANSWERS, LABELS = "answers.jsonl", "labels.jsonl"
AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Pair:
    """Two different answers to a prompt, and the principles by which they are compared."""

    id: str
    prompt: Prompt
    first: str
    second: str
    principles: tuple[Principle, ...]

    @property
    def comparisons(self) -> list[Comparison]:
        """One under each principle."""
        asked = (self.prompt.messages, self.first, self.second)
        return [Comparison(f"{self.id}/{principle.id}", *asked, principle) for principle in self.principles]


def answer(
    engine: Engine, prompts: Sequence[Prompt], config: ConstitutionConfig, stage: Stage
) -> list[tuple[str, ...]]:
    """The different answers of the engine's "policy" to each prompt, kept in `ANSWERS`: what stands there is not sampled
    again."""
    log = MetricsLog(stage.folder, ANSWERS)
    done = [tuple(row["answers"]) for row in log.whole()]
    params = SamplingParams(config.num_generations, config.temperature, config.max_new_tokens, ("feedback", stage.seed))
    with stage.listening(), stage.progress.steps("answers", len(prompts)) as bar:
        bar.advance(len(done))
        while len(done) < len(prompts):
            batch = prompts[len(done) : len(done) + AT_ONCE]
            said: dict[str, list[str]] = {prompt.id: [] for prompt in batch}
            for completion in answers_in_order(engine, "policy", batch, params):
                said[completion.prompt.id].append(completion.text.strip())
            for id, texts in said.items():
                done.append(tuple(dict.fromkeys(text for text in texts if text)))
                log.append(len(done), id=id, answers=done[-1], sampled=len(texts))
            bar.advance(len(batch))
            stage.heed(len(done), len(prompts))
    return done


def pairs(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[str]],
    principles: Sequence[Principle],
    config: ConstitutionConfig,
    seed: int,
) -> list[Pair]:
    """Every two answers to a prompt, each pair under principles of its own, drawn uniformly."""
    count = min(config.principles_per_label, len(principles))
    found = []
    for prompt, texts in zip(prompts, answers, strict=True):
        for (i, first), (j, second) in combinations(enumerate(texts), 2):
            id = f"{prompt.id}/{i}-{j}"
            found.append(
                Pair(id, prompt, first, second, tuple(random.Random(f"{seed}/{id}").sample(principles, count)))
            )
    return found


@dataclass(frozen=True, slots=True)
class Labelled:
    """A pair and what the judge said of it under each of its principles; None where it said nothing that can be read."""

    pair: Pair
    labels: tuple[Label | None, ...]

    def probability(self, temperature: float) -> float | None:
        """That the first answer is better: the mean over the principles; None where none was read."""
        read = [tempered(label.first, temperature) for label in self.labels if label is not None]
        return sum(read) / len(read) if read else None


def label(judge: Judge, asked: Sequence[Pair], config: ConstitutionConfig, stage: Stage) -> list[Labelled]:
    """What the judge says of each pair under each of its principles."""
    comparisons = [comparison for pair in asked for comparison in pair.comparisons]
    heard = hear(judge, comparisons, stage, LABELS, bounds(config))
    return [Labelled(pair, tuple(heard[comparison.id] for comparison in pair.comparisons)) for pair in asked]


def bounds(config: ConstitutionConfig) -> tuple[float, float]:
    """Between which a label is kept: those of a chain of thought are held near the middle."""
    return config.clamp if config.thinking else (0.0, 1.0)


def preferences(labelled: Sequence[Labelled], temperature: float, model: str) -> Iterator[dict[str, Any]]:
    """Records as `read_rankings` reads them, the likelier answer chosen; what nobody could read is left out."""
    for one in labelled:
        first = one.probability(temperature)
        if first is None:
            continue
        pair, is_first = one.pair, first >= 0.5
        chosen, rejected = (pair.first, pair.second) if is_first else (pair.second, pair.first)
        yield {
            "id": pair.prompt.id,
            "category": pair.prompt.category,
            "prompt": [m.as_dict() for m in pair.prompt.messages],
            "chosen": chosen,
            "rejected": rejected,
            "probability": max(first, 1.0 - first),
            "source": "ai",
            "model": model,
            "principles": [principle.id for principle in pair.principles],
        }
