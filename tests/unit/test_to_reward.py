"""The race to a reward: both sides score alike, save between turns, and the table reads their curves."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from whelp.checkers import score
from whelp.progress import SilentProgress
from whelp.recipes import load_recipe
from whelp.rewards.rules import CheckerReward
from whelp.runs.manifest import Run
from whelp.types import Completion, Message, Prompt
from whelp.workplace import Workplace

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks" / part) for part in (".", "racers")]
to_reward, races, ours = (
    pytest.importorskip(name, reason="benchmarks/ lies beside tests/") for name in ("to_reward", "races", "ours")
)
SRC = str(Path(__file__).parents[2] / "src")


def test_both_sides_score_an_answer_alike(chat) -> None:
    """TRL pads prompts at their left and answers at their right, and writes 0 there."""
    pytest.importorskip("datasets")
    peers = pytest.importorskip("peers")
    prompts = [
        Prompt("a", (Message("user", "are you fine?"),), check={"kind": "affirms"}),
        Prompt("b", (Message("user", "the end, today"),), check={"kind": "length", "any": ["four"], "max_words": 3}),
    ]
    rows = [chat.prompt(prompt) for prompt in prompts]
    work = {
        "source": SRC,
        "prompts": [list(row) for row in rows],
        "checks": [prompt.check for prompt in prompts],
        "header": chat.tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"],
    }
    checker = peers.Checker(work, chat.tokenizer)
    end = chat.tokenizer.eos_token_id
    width = max(map(len, rows))
    scores = set()
    for prompt, row in zip(prompts, rows, strict=True):
        for text in ("Yes, I am fine.", "four four four four four four", "no", "two and two is four"):
            for is_finished in (True, False):
                answer = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
                padded = [0] * (width - len(row)) + list(row) + answer + [end] * is_finished + [0] * 3 * is_finished
                [expected] = CheckerReward(False)([Completion(prompt, text, (), (), is_finished)], None).tolist()
                assert checker.of(padded) == pytest.approx(expected)
                scores.add(expected)
    assert len(scores) > 3


def test_whelps_side_learns_and_is_saved_between_turns(
    tiny_model_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = ("ppo.total_episodes=16", "ppo.batch_size=8", "ppo.num_mini_batches=2", "ppo.num_generations=1")
    small = (f"model={tiny_model_folder('llama')}", "trainable_layers=2", "dtype=float32", "ppo.response_length=6")
    place = Workplace(load_recipe("assistant", [*small, *batch]), Run(tmp_path / "run"), SilentProgress())
    chat, check = place.chat(place.base), {"kind": "length", "any": ["e"], "max_words": 2}
    prompts = [
        Prompt(word, (Message("user", word),), check=check)
        for word in ("hello", "the end", "today", "four", "two", "fine", "user", "how are you")
    ]
    work = {
        "texts": [p.text for p in prompts],
        "prompts": [list(chat.prompt(p)) for p in prompts],
        "checks": [check] * len(prompts),
    }
    turns = SimpleNamespace(save=None)
    side = ours.learn(turns, place, work)
    saved = []
    for turn in (1, 2):
        assert next(side) == {"episodes": 8}
        turns.save(tmp_path / str(turn))
        saved.append(AutoModelForCausalLM.from_pretrained(tmp_path / str(turn)).state_dict())
    assert any((saved[0][name] != saved[1][name]).any() for name in saved[0])
    assert next(side, None) is None
    monkeypatch.setattr(to_reward, "HELD_OUT", 18)
    assert to_reward.judged(place, place.base)["kl"]["mean"] == pytest.approx(0.0, abs=1e-6)
    seen: list[tuple[Completion, ...]] = []
    honest = CheckerReward.__call__
    monkeypatch.setattr(
        CheckerReward,
        "__call__",
        lambda self, answers, held: (seen.append(tuple(answers)), honest(self, answers, held))[1],
    )
    found = to_reward.judged(place, tmp_path / "2")
    kls = []
    for answer in seen[0]:
        asked = chat.prompt(answer.prompt)
        ids, logprobs = torch.tensor([[*asked, *answer.tokens]]), []
        for folder in (tmp_path / "2", place.base):
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            with torch.no_grad():
                scaled = (model(ids).logits[0, len(asked) - 1 : -1] / place.recipe.ppo.temperature).log_softmax(-1)
            logprobs.append(scaled.gather(1, torch.tensor(answer.tokens)[:, None]).sum())
        kls.append(float(logprobs[0] - logprobs[1]))
    assert found["kl"]["mean"] == pytest.approx(sum(kls) / len(kls), abs=1e-4)
    assert abs(found["kl"]["mean"]) > 1e-3
    assert found["reward"]["mean"] == pytest.approx(float(honest(CheckerReward(False), seen[0], None).mean()), abs=1e-6)


def test_a_side_writes_its_model_where_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "racer.py").write_text(
        "from turns import Turns\n"
        "turns = Turns()\n"
        "turns.save = lambda folder: folder.mkdir(parents=True)\n"
        "while True:\n"
        "    turns.wait()\n"
        "    turns.done(episodes=1)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(races.RACERS))
    side = races.Side("a", str(tmp_path / "racer.py"))
    seconds, versions = to_reward.learn(side, {}, 2, tmp_path / "policies")
    assert len(seconds) == 2
    assert "torch" in versions
    assert sorted(p.name for p in (tmp_path / "policies").iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("wanted", "turns"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.8, 3.0), (0.55, 2.5), (0.9, None)]
)
def test_when_a_curve_reaches_a_reward(wanted: float, turns: float | None) -> None:
    assert to_reward.reaching([0.0, 0.5, 0.3, 0.8], wanted) == (turns if turns is None else pytest.approx(turns))
    if turns is not None:
        assert to_reward.between([0.0, 10.0, 40.0, 60.0], turns) == pytest.approx(
            {0.0: 0.0, 0.5: 5.0, 1.0: 10.0, 3.0: 60.0, 2.5: 50.0}[turns]
        )


def test_the_table_says_when_whelp_had_earned_what_each_peer_did() -> None:
    def curve(*rewards: float) -> list[dict]:
        return [{"reward": {"mean": r, "low": r - 0.1, "high": r + 0.1}, "kl": {"mean": 10 * r}} for r in rewards]

    full, lora = ({"learning_rate": 1.0, "lora": lora} for lora in (False, True))
    record = {
        "before": curve(0.0)[0],
        "sides": {
            "whelp": {"seconds": [10.0, 10.0], "curve": curve(0.2, 0.4), "settings": {}},
            "TRL, 1": {"seconds": [100.0, 100.0], "curve": curve(0.1, 0.3), "settings": full},
            "TRL, 2": {"seconds": [100.0, 100.0], "curve": curve(0.2, 0.1), "settings": full},
            "LoRA": {"seconds": [50.0, 50.0], "curve": curve(0.6, 0.5), "settings": lora},
        },
    }
    trl, other, adapted = to_reward.rows(record)
    assert other[2:] == ["+0.20 (+0.10 to +0.30), 2.0 nats, 100 s", "2.0 nats, 10 s", "10.0"]
    assert trl == ["TRL, 1", "+0.00", "+0.30 (+0.20 to +0.40), 3.0 nats, 200 s", "3.0 nats, 15 s", "13.3"]
    assert adapted[2:] == ["+0.60 (+0.50 to +0.70), 6.0 nats, 50 s", "never", ""]
    record["before"] = curve(0.5)[0]
    assert to_reward.rows(record)[0][3:] == ["no more than before", ""]
    del record["sides"]["LoRA"]
    assert [name for name, *_ in to_reward.rows(record)] == ["TRL, 1", "TRL, 2"]


def test_a_check_asks_for_few_words_that_name_what_was_asked_about() -> None:
    one = Prompt("a", (Message("user", "How do I bring water to the boil in a kettle?"),), "howto")
    turns = Prompt("b", (Message("user", "kettle"), Message("assistant", "yes"), Message("user", "kettle")))
    [found] = to_reward.checked([one, turns, Prompt("c", (Message("user", "Is it so?"),))])
    assert (found.id, found.category) == ("a", "howto")
    assert score(found.check, "Put the kettle on the stove.", True) == 1.0
    wordy = (
        "Put the kettle on the stove and then wait for a long while until it has come to the boil, and then some more."
    )
    assert score(found.check, wordy, True) < 0.9
    assert score(found.check, "Ask someone else.", True) < 0.9
