"""Labels drawn from a reward that is known: the model comes to the Bayes rate, and is as sure as it is right."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

from whelp.config import RewardConfig
from whelp.engines.base import ModelSpec, OptimizerSpec
from whelp.engines.devices import Compute
from whelp.engines.local import LocalEngine
from whelp.progress import SilentProgress
from whelp.runs.metrics import MetricsLog
from whelp.stages import reward, trust
from whelp.stages.context import Stage
from whelp.text.chat import Chat
from whelp.types import Message, Prompt, Ranking

LETTERS = "aehiost"


def worth(text: str) -> float:
    return 0.7 * text.count("e")


def how_likely(ranking: Ranking) -> float:
    """That people prefer the first of two answers: Bradley-Terry on what they are worth."""
    first, second = ranking.completions
    return 1 / (1 + math.exp(worth(second) - worth(first)))


def labelled(prompts: int, answers: int, seed: int) -> list[Ranking]:
    """Every two answers to a prompt, each pair with a winner drawn by how likely it is."""
    draw = random.Random(seed)
    made = []
    for i in range(prompts):
        prompt = Prompt(f"{seed}-{i}", (Message("user", "spell"),))
        texts = list(dict.fromkeys("".join(draw.choice(LETTERS) for _ in range(10)) for _ in range(answers)))
        for a, first in enumerate(texts):
            for second in texts[:a]:
                shown = Ranking(prompt, (first, second), (1, 2))
                made.append(shown if draw.random() < how_likely(shown) else Ranking(prompt, (second, first), (1, 2)))
    return made


@pytest.mark.proof
def test_the_bayes_rate_is_reached_and_it_is_as_sure_as_it_is_right(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path
) -> None:
    data, test = labelled(12_000, 2, seed=1), labelled(12_000, 2, seed=2)
    engine = LocalEngine(chat, compute)
    spec = ModelSpec(
        source=tiny_model_folder("llama"),
        head="scalar",
        head_std=0.0,
        trainable_layers=3,
        optimizer=OptimizerSpec(),
        fresh_head=True,
    )
    engine.add("reward", spec)
    config = RewardConfig(num_train_epochs=2, learning_rate=2e-3, per_step_batch_size=32)
    result = reward.train(engine, chat, data, test, config, Stage(tmp_path, SilentProgress(), seed=0))

    first = MetricsLog.read(tmp_path / "metrics.jsonl")[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    scores = trust.answer_scores(engine, chat, test).tolist()
    likely = [how_likely(ranking) for ranking in test]
    best = sum(max(p, 1 - p) for p in likely) / len(test)
    chosen = [p if a > b else 1 - p for p, a, b in zip(likely, scores[::2], scores[1::2], strict=True)]
    assert sum(chosen) / len(test) > best - 0.01
    assert result["calibration"]["error"] < 0.03
