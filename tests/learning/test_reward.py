"""A reward model recovers a ranking that is known, and nothing where there is nothing to learn."""

from __future__ import annotations

import contextlib
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from whelp.cli import show
from whelp.config import RewardConfig
from whelp.engines.base import ModelSpec, OptimizerSpec, SamplingParams
from whelp.engines.devices import Compute
from whelp.engines.local import LocalEngine
from whelp.maths.shaping import doubt
from whelp.progress import SilentProgress
from whelp.runs.files import read_json, write_json_atomic
from whelp.runs.metrics import MetricsLog
from whelp.stages import comparisons, controls, reward, trust
from whelp.stages.context import Stage
from whelp.text.chat import Chat, Rendered
from whelp.text.negatives import SOURCE
from whelp.types import Demonstration, Message, Prompt, Ranking, Sequences

LETTERS = "aehiost"
STRANGE = str.maketrans(LETTERS, "QZ7XJ49")


def rankings(count: int, seed: int, is_known: bool = True) -> list[Ranking]:
    """Three answers of one length each; known: the more of the letter e, the better; else ranks are drawn."""
    draw = random.Random(seed)
    made = []
    for i in range(count):
        texts = ["".join(draw.choice(LETTERS) for _ in range(12)) for _ in range(3)]
        counts = [text.count("e") for text in texts]
        ranks = (
            [1 + sum(other > mine for other in counts) for mine in counts] if is_known else draw.sample([1, 2, 3], 3)
        )
        made.append(Ranking(Prompt(f"{seed}-{i}", (Message("user", "spell"),)), tuple(texts), tuple(ranks)))
    return made


def train(
    folder: Path,
    chat: Chat,
    compute: Compute,
    where: Path,
    data: list[Ranking],
    test: list[Ranking],
    changes: dict[str, float] | None = None,
    **spec: float,
):
    engine = LocalEngine(chat, compute)
    settings = {"head": "scalar", "trainable_layers": 3, "optimizer": OptimizerSpec(), "fresh_head": True}
    engine.add("reward", ModelSpec(source=folder, **(settings | spec)))
    config = RewardConfig(num_train_epochs=6, learning_rate=3e-3, per_step_batch_size=16, **(changes or {}))
    return reward.train(engine, chat, data, test, config, Stage(where, SilentProgress(), seed=0)), engine


def test_a_known_ranking_is_recovered(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    result, engine = train(tiny_model_folder("llama"), chat, compute, tmp_path, rankings(160, 1), rankings(60, 2))
    assert result["accuracy_interval"]["low"] > 0.8
    assert result["trusted"], result["verdict"]
    shuffled = {"mean": 0.51, "low": 0.44, "high": 0.58}
    show.trust(result | {"shuffled": [shuffled], "learning_curve": [{"prompts": 8, "accuracy": shuffled}]})
    said = capsys.readouterr().out.split("\n")
    assert said[1] == result["verdict"]
    rate = f"{result['accuracy']:.0%} ({result['accuracy_interval']['low']:.0%} to"
    for words in (
        f"right, in {result['n']:,} pairs of {result['prompts']:,} prompts",
        "63% to 77%: it lies above",
        "the surface of the answers alone",
        "length alone",
        "calibration error",
        "score with length, at equal rank",
        "trained on shuffled ranks",
        "trained on 8 prompts",
        "source  human",
        rate,
        f"{result['calibration']['error']:.3f}, at temperature",
        "51% (44% to 58%)",
    ):
        assert any(words in line for line in said), words
    gain, [shift] = reward.scale(engine, chat, rankings(160, 1), ())
    with engine.hold(comparisons.render(chat, reward.drawn(rankings(160, 1)))[0]) as held:
        scores = engine.rewards("reward", held).mean(0) * gain - shift
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(scores.std()) == pytest.approx(1.0, abs=1e-3)


def test_the_zero_is_the_demonstrations_and_the_unit_the_policys_samples(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path
) -> None:
    folder, data = tiny_model_folder("llama"), rankings(20, 1)
    engine = LocalEngine(chat, compute)
    engine.add("reward", ModelSpec(source=folder, head="scalar", trainable_layers=3, fresh_head=True))
    engine.add("policy", ModelSpec(source=folder, trainable_layers=2))
    shown = [
        Demonstration(str(i), (*r.prompt.messages, Message("assistant", r.completions[0]))) for i, r in enumerate(data)
    ]
    units = {}
    for temperature in (0.2, 1.5):
        sampling = SamplingParams(temperature=temperature, max_new_tokens=8, key=("scale", 0))
        gain, [shift] = reward.scale(engine, chat, data, shown, sampling)
        sampled = [
            chat.completion(chat.prompt(c.prompt), c.tokens)
            for c in engine.sample("policy", [r.prompt for r in data], sampling)
        ]
        assert float(reward.member_scores(engine, sampled).std() * gain) == pytest.approx(1.0, rel=1e-4)
        written = reward.member_scores(engine, [chat.demonstration(d) for d in shown])
        assert float((written * gain - shift).mean()) == pytest.approx(0.0, abs=1e-4)
        units[temperature] = gain
    assert units[0.2] != pytest.approx(units[1.5], rel=0.01), "the unit is that of the temperature"


@pytest.mark.proof
def test_a_loop_of_the_best_answer_is_told_apart_once_it_is_shown_as_a_negative(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path
) -> None:
    """Four times the word has four times its letters e, and nobody ranked such an answer."""
    folder, data, test = tiny_model_folder("llama"), rankings(160, 1), rankings(60, 2)
    without, _ = train(folder, chat, compute, tmp_path / "without", data, test)
    shown, _ = train(folder, chat, compute, tmp_path / "with", data, test, {"negatives": 1.0})
    assert without["train_prompts"] == shown["train_prompts"] == 160
    assert (without["train_negatives"], shown["train_negatives"]) == (0, 160), (
        "every prompt is alike: nothing is off topic"
    )
    loops = [result["above_negatives"]["repeated"]["mean"] for result in (without, shown)]
    assert loops[0] < 0.7 < 0.9 < loops[1]
    assert shown["accuracy_interval"]["low"] > 0.75


@pytest.mark.proof
def test_smoothing_makes_less_sure_and_centring_holds_the_scores_at_zero(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path
) -> None:
    folder, data, test = tiny_model_folder("llama"), rankings(160, 1), rankings(60, 2)
    margins, distances = {}, {}
    changed = {"plain": {}, "smoothed": {"label_smoothing": 0.2}, "centred": {"center_rewards_coefficient": 0.1}}
    for name, changes in changed.items():
        result, engine = train(folder, chat, compute, tmp_path / name, data, test, changes)
        assert result["accuracy_interval"]["low"] > 0.75
        margins[name] = result["margin"]
        distances[name] = float(trust.answer_scores(engine, chat, test).mean().abs())
    assert margins["smoothed"] < 0.6 * margins["plain"]
    assert distances["centred"] < 0.3
    assert distances["centred"] < distances["plain"]


@pytest.mark.proof
def test_a_ranking_without_weight_teaches_next_to_nothing(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path
) -> None:
    """Half of the rankings are the wrong way round; what they count decides what is learned."""
    wrong = [replace(r, ranks=tuple(4 - rank for rank in r.ranks)) for r in rankings(80, 3)]
    accuracy = {}
    for name, weight in (("believed", 3.0), ("hardly", 0.01)):
        data = [*rankings(80, 1), *(replace(r, weight=weight) for r in wrong)]
        result, _ = train(tiny_model_folder("llama"), chat, compute, tmp_path / name, data, rankings(60, 2))
        accuracy[name] = result["accuracy"]
    assert accuracy["believed"] < 0.4
    assert accuracy["hardly"] > 0.75


def test_an_ensemble_learns_from_bootstraps_and_each_member_has_its_zero(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path
) -> None:
    data, test = rankings(160, 1), rankings(60, 2)
    result, engine = train(
        tiny_model_folder("llama"), chat, compute, tmp_path, data, test, {"members": 3}, members=3, seed=5
    )
    assert result["accuracy_interval"]["low"] > 0.8
    with engine.hold(comparisons.render(chat, test)[0]) as held:
        scores = engine.rewards("reward", held)
    better, worse, _ = comparisons.strict_pairs(test)
    each = ((scores[:, better] - scores[:, worse]) > 0).float().mean(1)
    assert each.min() > 0.75, "every member learned"
    assert (scores.std(0) > 1e-3).all(), "and no two the same"
    gain, shifts = reward.scale(engine, chat, data, ())
    ranked = [chat.answer(r.prompt, text) for r in reward.drawn(data) for text in r.completions]
    zeros = (reward.member_scores(engine, ranked) * gain).mean(1)
    assert shifts == pytest.approx(zeros.tolist(), abs=1e-4)
    assert max(shifts) - min(shifts) > 1e-2, "their zeros differ, or one shift would do"


@pytest.mark.parametrize("members", [1, pytest.param(3, marks=pytest.mark.proof)])
def test_it_doubts_its_score_of_what_nobody_ranked(
    members: int, tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path
) -> None:
    """Held-out answers are of the letters that were ranked; the others are as long, of letters that were not."""
    data, test = rankings(160, 1), rankings(60, 2)
    strange = [replace(r, completions=tuple(text.translate(STRANGE) for text in r.completions)) for r in test]
    _, engine = train(
        tiny_model_folder("llama"), chat, compute, tmp_path, data, test, {"members": members}, members=members, seed=5
    )
    doubts = []
    for answers in (test, strange):
        with engine.hold(comparisons.render(chat, answers)[0]) as held:
            doubts.append(doubt(engine.rewards("reward", held), engine.reward_variance("reward", held)))
    known, unknown = doubts
    assert float((unknown[:, None] > known).float().mean()) > 0.9


def test_a_bootstrap_draws_as_many_as_there_are_and_other_ones_for_each_member() -> None:
    drawn = reward.bootstraps(range(400), 3, seed=1)
    assert [sum(counts) for counts in drawn] == [400, 400, 400]
    for counts in drawn:
        assert sum(count > 0 for count in counts) / 400 == pytest.approx(1 - math.exp(-1), abs=0.06)
    assert drawn[0] != drawn[1] != drawn[2]
    assert drawn == reward.bootstraps(range(400), 3, seed=1) != reward.bootstraps(range(400), 3, seed=2)
    assert reward.bootstraps(range(4), 1, seed=1) == [[1, 1, 1, 1]]
    for counts in reward.bootstraps([0, 1, 0, 2, 1, 0], 3, seed=1):
        assert counts[0] == counts[2] == counts[5] and counts[1] == counts[4], "a prompt with all its rankings"
        assert counts[0] + counts[1] + counts[3] == 3


def test_a_drawn_ranking_teaches_nothing(tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path) -> None:
    result, _ = train(
        tiny_model_folder("llama"), chat, compute, tmp_path, rankings(80, 1, is_known=False), rankings(120, 2)
    )
    assert result["accuracy_interval"]["low"] < 0.62
    assert not result["trusted"]
    assert result["verdict"].startswith("UNTRUSTWORTHY")


def test_a_zero_head_starts_at_ln_2(tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path) -> None:
    train(tiny_model_folder("llama"), chat, compute, tmp_path, rankings(16, 1), rankings(4, 2), head_std=0.0)
    assert MetricsLog.read(tmp_path / "metrics.jsonl")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_only_what_the_steps_need_is_read_and_the_baselines_learn_from_it_too(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    honest = LocalEngine.hold
    monkeypatch.setattr(LocalEngine, "hold", lambda self, data: held.append(len(data)) or honest(self, data))
    engine = LocalEngine(chat, compute)
    spec = ModelSpec(source=tiny_model_folder("llama"), head="scalar", optimizer=OptimizerSpec(), fresh_head=True)
    engine.add("reward", spec)
    config = RewardConfig(max_steps=2, per_step_batch_size=4)
    stage = Stage(tmp_path, SilentProgress(), seed=0)
    result = reward.train(engine, chat, rankings(160, 1), rankings(10, 2), config, stage)
    assert held[0] == 2 * 4 * 3, "two steps of four rankings of three answers"
    assert result["train_rankings"] == result["train_prompts"] == 8


@pytest.mark.proof
def test_shuffled_ranks_teach_nothing_and_fewer_prompts_teach_less(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path
) -> None:
    data, test = rankings(160, 1), rankings(80, 2)
    engine = LocalEngine(chat, compute)
    spec = ModelSpec(
        source=tiny_model_folder("llama"), head="scalar", trainable_layers=3, optimizer=OptimizerSpec(), fresh_head=True
    )
    config = RewardConfig(
        num_train_epochs=6, learning_rate=3e-3, per_step_batch_size=16, shuffles=2, learning_curve=(0.05, 1 - 1e-9)
    )
    found = controls.run(engine, chat, spec, data, test, config, Stage(tmp_path, SilentProgress(), seed=0))
    assert len(found["shuffled"]) == 2
    for one in found["shuffled"]:
        assert one["low"] <= 0.55
        assert one["high"] < 0.75
    few, nearly_all, everyone = found["learning_curve"]
    assert (few["prompts"], nearly_all["prompts"], everyone["prompts"]) == (8, 160, 160)
    assert everyone == nearly_all, "the last of them learns from all"
    assert few["accuracy"]["mean"] < nearly_all["accuracy"]["mean"] - 0.05
    assert nearly_all["accuracy"]["low"] > 0.8
    assert engine.models == {}, "none is kept"
    told = controls.told(found)
    assert len(told) == 2
    assert f"{everyone['accuracy']['mean']:.0%} after 160" in told[1]
    inside = [one for one in found["shuffled"] if one["low"] <= 0.5 <= one["high"]]
    assert inside
    assert f"50% lies in {len(inside)} of 2 intervals" in told[0]
    leak, fair, below = ({"mean": m, "low": m - 0.05, "high": m + 0.05} for m in (0.6, 0.5, 0.4))
    assert "A LEAK: 3 of 5" in controls.told({"shuffled": [leak, fair, leak, below, leak]})[0]
    assert "50% lies in 2 of 5" in controls.told({"shuffled": [leak, fair, leak, below, fair]})[0]


@pytest.mark.proof
def test_five_shuffles_of_which_none_shuffles_are_a_leak(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LocalEngine(chat, compute)
    spec = ModelSpec(
        source=tiny_model_folder("llama"), head="scalar", trainable_layers=3, optimizer=OptimizerSpec(), fresh_head=True
    )
    config = RewardConfig(num_train_epochs=3, learning_rate=3e-3, per_step_batch_size=8, shuffles=5)
    told = {}
    for kind in ("honest", "leak"):
        if kind == "leak":
            monkeypatch.setattr(controls, "shuffle", lambda rankings, seed: list(rankings))
        stage = Stage(tmp_path / kind, SilentProgress(), seed=0)
        found = controls.run(engine, chat, spec, rankings(32, 1), rankings(40, 2), config, stage)
        assert len(found["shuffled"]) == 5
        [told[kind]] = controls.told(found)
    assert "A LEAK: 5 of 5 intervals lie above 50%" in told["leak"]
    assert "50% lies in" in told["honest"]


def test_controls_that_were_measured_are_not_trained_again(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModelSpec(source=tiny_model_folder("llama"), head="scalar", optimizer=OptimizerSpec(), fresh_head=True)
    config = RewardConfig(learning_rate=3e-3, per_step_batch_size=16, shuffles=3, learning_curve=(0.5,))
    honest, trained = controls._train, []

    def killed_in_the_third(*arguments: Any) -> None:
        trained.append(arguments[-1])
        if len(trained) == 3:
            raise KeyboardInterrupt
        honest(*arguments)

    def measured(folder: Path) -> dict[str, Any]:
        stage = Stage(folder, SilentProgress(), seed=0)
        return controls.run(LocalEngine(chat, compute), chat, spec, rankings(32, 1), rankings(16, 2), config, stage)

    whole = measured(tmp_path / "whole")
    monkeypatch.setattr(controls, "_train", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "killed")
    assert measured(tmp_path / "killed") == whole
    assert trained[2] == trained[3]
    assert len(set(trained)) == len(trained) - 1, "none but the one that was killed is trained again"


def test_controls_read_no_more_than_the_steps_need(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[int] = []
    monkeypatch.setattr(controls, "_train", lambda *arguments: taught.append(len(arguments[3])))
    spec = ModelSpec(source=tiny_model_folder("llama"), head="scalar", optimizer=OptimizerSpec(), fresh_head=True)
    config = RewardConfig(max_steps=3, per_step_batch_size=4, shuffles=1, learning_curve=(0.5,))
    stage = Stage(tmp_path, SilentProgress(), seed=0)
    own = {"mean": 0.9, "low": 0.8, "high": 1.0, "n": 4}
    found = controls.run(LocalEngine(chat, compute), chat, spec, rankings(40, 1), rankings(8, 2), config, stage, own)
    assert taught == [12, 6]
    assert [one["prompts"] for one in found["learning_curve"]] == [6, 12]


def test_rankings_of_a_source_named_as_made_ones_are_learned_from_and_counted(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path
) -> None:
    named = [replace(r, source=SOURCE) for r in rankings(24, 1)]
    changes = {"negatives": 1.0}
    result, _ = train(tiny_model_folder("llama"), chat, compute, tmp_path, named, rankings(8, 2), changes)
    assert (result["train_rankings"], result["train_pairs"]) == (24, 24 * 3)
    assert result["train_negatives"] > 0


def test_a_model_that_is_wrong_on_answers_of_one_length_is_told_of_from_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What JSON cannot hold is null there: a correlation with a length that never varies."""
    asked = [Prompt(str(i), (Message("user", f"{i}"),)) for i in range(40)]
    data = [Ranking(prompt, ("yes sir", "no sir"), (1, 2)) for prompt in asked]

    class Wrong:
        def rewards(self, name: str, held: Sequences) -> torch.Tensor:
            return torch.tensor([[-1.0, 1.0] * len(held)])[:, : len(held)]

        def hold(self, sequences: Sequences) -> contextlib.nullcontext:
            return contextlib.nullcontext(sequences)

    chat_of_words = SimpleNamespace(answer=lambda prompt, text: Rendered((1, 2), (False, True)))
    write_json_atomic(tmp_path / "metrics.json", trust.measure(Wrong(), chat_of_words, data, data))
    show.trust(read_json(tmp_path / "metrics.json"))
    said = capsys.readouterr().out
    assert "0% (0% to 0%)" in said
    assert re.search(r"score with length, at equal rank\s+unknown", said)
    assert "1000.00" in said


def test_what_a_doubling_of_the_prompts_brings() -> None:
    alike = [{"prompts": 2, "accuracy": {"mean": 0.5, "low": 0.4, "high": 0.6}}] * 2
    [told] = controls.told({"learning_curve": alike})
    assert told.endswith("after 2, 50% after 2."), "no slope of a single number of prompts"
    assert controls.per_doubling([(100, 0.60), (200, 0.63), (800, 0.69)]) == pytest.approx(0.03)


def test_the_scale_is_measured_on_prompts_from_everywhere() -> None:
    chosen = reward.drawn(range(1000))
    assert len(set(chosen)) == reward.SCALE_PROMPTS
    assert min(chosen) < 100 < 900 < max(chosen)
    assert sorted(reward.drawn(range(5))) == [0, 1, 2, 3, 4]


def test_a_share_of_the_prompts_takes_all_their_rankings(
    tiny_model_folder, chat: Chat, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = rankings(12, 1)
    data = [replace(r, prompt=replace(r.prompt, id=f"p{i % 4}")) for i, r in enumerate(once)]
    taught: list[list[int]] = []
    monkeypatch.setattr(controls, "_train", lambda *arguments: taught.append(list(arguments[3])))
    engine = LocalEngine(chat, compute)
    spec = ModelSpec(source=tiny_model_folder("llama"), head="scalar", optimizer=OptimizerSpec(), fresh_head=True)
    config = RewardConfig(learning_curve=(0.5,))
    own = {"mean": 0.9, "low": 0.8, "high": 1.0, "n": 4}
    found = controls.run(engine, chat, spec, data, data, config, Stage(tmp_path, SilentProgress(), seed=0), own)
    assert len(taught) == 1, "the reward model itself is the last point"
    assert found["learning_curve"][0]["prompts"] == 2
    assert found["learning_curve"][1] == {"prompts": 4, "accuracy": own}
    assert len(taught[0]) == 6 and len({i % 4 for i in taught[0]}) == 2


def test_shuffling_keeps_answers_and_ranks() -> None:
    data = rankings(40, 1)
    moved = controls.shuffle(data, 1)
    assert [r.completions for r in moved] == [r.completions for r in data]
    assert [sorted(r.ranks) for r in moved] == [sorted(r.ranks) for r in data]
    assert sum(a.ranks != b.ranks for a, b in zip(moved, data, strict=True)) > 10
    assert moved == controls.shuffle(data, 1) != controls.shuffle(data, 2)
