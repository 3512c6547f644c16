"""Critique, revision and AI feedback, step by step; the models are scripts."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from typer.testing import CliRunner

from whelp.cli import app
from whelp.config import ConstitutionConfig
from whelp.engines.base import SamplingParams
from whelp.errors import Interrupted
from whelp.judges.base import Comparison, Opinion, tempered
from whelp.progress import SilentProgress
from whelp.stages.constitution import feedback, revision
from whelp.stages.context import Stage
from whelp.text.formats import read_demonstrations, read_principles, read_rankings
from whelp.types import Completion, Message, Prompt

PRINCIPLES = read_principles("builtin:constitution")
HARMLESS = [p for p in PRINCIPLES if p.value == "harmless"]


class Scripted:
    """An engine whose model says what `say` makes of the conversation, last prompt first."""

    def __init__(self, say) -> None:
        self.say = say
        self.asked: list[tuple[tuple[Message, ...], SamplingParams]] = []

    def sample(self, model: str, prompts: Sequence[Prompt], params: SamplingParams) -> Iterator[Completion]:
        assert model == "policy"
        for prompt in reversed(prompts):
            for k in range(params.n):
                self.asked.append((prompt.messages, params))
                text = self.say(prompt.messages, k)
                yield Completion(prompt, text, (1,), (0.0,), not text.endswith("..."), k)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", (Message("user", f"question {i}"),), "harm-x") for i in range(count)]


def stage(folder: Path, name: str = "revise") -> Stage:
    return Stage(folder / name, SilentProgress(), seed=3)


def told(messages: tuple[Message, ...], _: int) -> str:
    """Says what it was asked, so that the whole way can be read off the end."""
    return f"<{len(messages)}:{messages[-1].content}>"


def config(**values: Any) -> ConstitutionConfig:
    return ConstitutionConfig(**values)


# -- critique and revision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_a_chain_is_answer_then_critique_then_revision(rounds: int) -> None:
    engine = Scripted(told)
    [chain] = revision.chains(engine, prompts(1), HARMLESS, config(rounds=rounds), seed=0)
    assert chain.answer == "<1:question 0>"
    assert len(chain.rounds) == rounds
    by_id = {p.id: p for p in HARMLESS}
    answer = chain.answer
    for i, one in enumerate(chain.rounds):
        principle = by_id[one.principle]
        assert one.critique == f"<3:{principle.critique}>"
        assert one.revision == f"<5:{principle.revision}>"
        critique_asked, revision_asked = (engine.asked[1 + 2 * i + k][0] for k in (0, 1))
        assert [m.content for m in critique_asked] == ["question 0", answer, principle.critique]
        assert [m.role for m in revision_asked] == ["user", "assistant", "user", "assistant", "user"]
        assert [m.content for m in revision_asked[1:4]] == [answer, principle.critique, one.critique]
        answer = one.revision
    assert chain.revision == answer
    keys = [params.key for _, params in engine.asked]
    assert len(set(keys)) == len(keys), "no two steps share their random numbers"


def test_principles_are_drawn_uniformly_and_the_same_again() -> None:
    drawn = [revision.drawn(PRINCIPLES, 0, f"prompt {i}", number).id for i in range(1200) for number in range(2)]
    counts = Counter(drawn)
    assert len(counts) == len(PRINCIPLES)
    assert scipy.stats.chisquare([counts[p.id] for p in PRINCIPLES]).pvalue > 0.01
    pairs = Counter(zip(drawn[::2], drawn[1::2], strict=True))
    same = sum(n for (a, b), n in pairs.items() if a == b)
    assert scipy.stats.binomtest(same, 1200, 1 / len(PRINCIPLES)).pvalue > 0.01, "rounds draw anew"
    assert revision.drawn(PRINCIPLES, 0, "x", 0) == revision.drawn(PRINCIPLES, 0, "x", 0)
    assert len({revision.drawn(PRINCIPLES, seed, "x", 0).id for seed in range(40)}) > 5


def test_every_step_is_kept_and_none_is_written_twice(tmp_path: Path) -> None:
    whole = revision.write(Scripted(told), prompts(150), HARMLESS, config(), stage(tmp_path / "whole"))

    asked: list[str] = []

    def dying(messages: tuple[Message, ...], k: int) -> str:
        asked.append(messages[0].content)
        if len(asked) == 5 * revision.AT_ONCE + 100:
            raise KeyboardInterrupt
        return told(messages, k)

    with pytest.raises(KeyboardInterrupt):
        revision.write(Scripted(dying), prompts(150), HARMLESS, config(), stage(tmp_path))
    file = tmp_path / "revise" / revision.CHAINS
    file.write_bytes(file.read_bytes() + b'{"step": 65, "id": "p6')  # torn in the middle of a line
    again = Scripted(told)
    assert revision.write(again, prompts(150), HARMLESS, config(), stage(tmp_path)) == whole
    kept = revision.AT_ONCE
    assert {m[0].content for m, _ in again.asked} == {f"question {i}" for i in range(kept, 150)}
    assert file.read_bytes() == (tmp_path / "whole" / "revise" / revision.CHAINS).read_bytes()
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 150
    assert rows[7]["sampling"] == {"temperature": 0.7, "max_new_tokens": 96, "seed": 3}
    assert rows[7]["prompt"] == [{"role": "user", "content": "question 7"}]
    assert {one["principle"] for row in rows for one in row["rounds"]} <= {p.id for p in HARMLESS}
    assert all(set(one) == {"principle", "critique", "revision"} for row in rows for one in row["rounds"])


def test_ctrl_c_ends_behind_what_is_written(tmp_path: Path) -> None:
    asked = stage(tmp_path)
    asked.stop_requested = True
    with pytest.raises(Interrupted, match=f"stopped after step {revision.AT_ONCE} of 100 of revise"):
        revision.write(Scripted(told), prompts(100), HARMLESS, config(), asked)
    again = Scripted(told)
    revision.write(again, prompts(100), HARMLESS, config(rounds=1), stage(tmp_path))
    assert len(again.asked) == 3 * (100 - revision.AT_ONCE)


def chain(answer: str, revised: str, is_finished: bool = True) -> revision.Chain:
    return revision.Chain(prompts(1)[0], answer, (revision.Round("a", "so so", revised),), is_finished)


def test_what_cannot_be_learned_from_is_sifted_out_and_counted() -> None:
    chains = [
        chain("I will help.", "I will not."),
        chain("I will help.", " "),
        chain("I will help.", "I  WILL help."),
        chain("I will help.", "I will not, for", is_finished=False),
        chain("No, sorry.", "Here is how."),
    ]
    fates = revision.sift(chains, lambda rows: [-float("how" in text) for _, text in rows])
    assert {fate: len(found) for fate, found in fates.items()} == {
        "kept": 1, "empty": 1, "cut off": 1, "a copy": 1, "worse": 1,
    }  # fmt: skip
    assert fates["worse"] == [chains[4]]
    assert revision.sift(chains, None)["kept"] == [chains[0], chains[4]], "without a reward model none is worse"


def test_a_kept_revision_is_a_demonstration(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text(json.dumps(revision.demonstration(chain("Sure.", "No, I won't."))) + "\n")
    [read] = read_demonstrations(file).records
    assert [m.content for m in read.messages] == ["question 0", "No, I won't."]
    assert (read.id, read.category) == ("p0-revised", "harm-x")


# -- feedback ---------------------------------------------------------------------------------------------------------


class Judge:
    """Likes the answer with the larger number; counts what it is asked."""

    name = "scripted"

    def __init__(self, dies_at: int | None = None) -> None:
        self.asked: list[str] = []
        self.dies_at = dies_at

    def opinions(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Opinion | None]]:
        for place, one in enumerate(comparisons):
            if len(self.asked) == self.dies_at:
                raise KeyboardInterrupt
            self.asked.append(one.id)
            first, second = (int(re.findall(r"\d+", text)[-1]) for text in (one.first, one.second))
            yield place, None if "unreadable" in one.first + one.second else Opinion(0.75 if first > second else 0.15)


def answers(messages: tuple[Message, ...], k: int) -> str:
    return ["say 1", "say 3", "say 2", "say 3"][k]


def asked(tmp_path: Path, count: int = 5, **values: Any) -> list[feedback.Pair]:
    found = feedback.answer(Scripted(answers), prompts(count), config(), stage(tmp_path, "feedback"))
    assert found == [("say 1", "say 3", "say 2")] * count, "a text that is said again is not compared with itself"
    return feedback.pairs(prompts(count), found, HARMLESS, config(**values), seed=0)


def test_every_two_answers_are_compared_in_both_orders(tmp_path: Path) -> None:
    judge = Judge()
    labelled = feedback.label(judge, asked(tmp_path), config(), stage(tmp_path, "feedback"))
    assert len(labelled) == 15
    assert Counter(judge.asked) == Counter({c.id: 2 for one in labelled for c in one.pair.comparisons})
    file = tmp_path / "rankings.jsonl"
    rows = list(feedback.preferences(labelled, 1.0, judge.name))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_rankings(file).records
    assert len(read) == 15
    for ranking in read:
        best, worst = (int(text.split()[-1]) for text in ranking.completions)
        assert best > worst
        assert ranking.ranks == (1, 2)
        assert ranking.probability == pytest.approx((0.75 + 0.85) / 2)
        assert ranking.source == "ai"
    assert all({"model", "principles"} <= set(row) for row in rows)
    softer = [row["probability"] for row in feedback.preferences(labelled, 2.0, judge.name)]
    assert softer == pytest.approx([1 / (1 + (0.2 / 0.8) ** 0.5)] * 15)


def test_a_label_is_the_mean_over_its_principles(tmp_path: Path) -> None:
    found = asked(tmp_path, principles_per_label=3)
    assert all(len({p.id for p in pair.principles}) == 3 for pair in found)
    drawn = Counter(p.id for pair in asked(tmp_path / "many", 400, principles_per_label=1) for p in pair.principles)
    assert scipy.stats.chisquare([drawn[p.id] for p in HARMLESS]).pvalue > 0.01

    class ByPrinciple(Judge):
        def opinions(self, comparisons):
            for place, one in enumerate(comparisons):
                p = 0.5 + 0.1 * [h.id for h in HARMLESS].index(one.principle.id)
                is_swapped = int(one.first.split()[-1]) > int(one.second.split()[-1])
                yield place, Opinion(1 - p if is_swapped else p)

    for one in feedback.label(ByPrinciple(), found, config(), stage(tmp_path, "feedback")):
        places = [[h.id for h in HARMLESS].index(p.id) for p in one.pair.principles]
        liked = 0.5 + 0.1 * sum(places) / 3
        is_swapped = int(one.pair.first.split()[-1]) > int(one.pair.second.split()[-1])
        assert one.probability(1.0) == pytest.approx(1 - liked if is_swapped else liked)


def test_a_chain_of_thought_is_clamped_and_nothing_else(tmp_path: Path) -> None:
    pairs = asked(tmp_path)
    plain = feedback.label(Judge(), pairs, config(), stage(tmp_path, "plain"))
    thought = feedback.label(Judge(), pairs, config(judge="choice", thinking=True), stage(tmp_path, "thought"))
    for bounded, free in zip(thought, plain, strict=True):
        assert 0.4 <= bounded.labels[0].first <= 0.6
        assert not 0.4 <= free.labels[0].first <= 0.6
    other = feedback.label(
        Judge(), pairs, config(judge="choice", thinking=True, clamp=(0.3, 0.7)), stage(tmp_path, "other")
    )
    assert {round(max(one.labels[0].first, 1 - one.labels[0].first), 6) for one in other} == {0.7}


def test_labelling_that_is_killed_asks_nothing_again(tmp_path: Path) -> None:
    pairs = asked(tmp_path, 8)
    whole = feedback.label(Judge(), pairs, config(), stage(tmp_path, "whole"))
    dying = Judge(dies_at=21)
    with pytest.raises(KeyboardInterrupt):
        feedback.label(dying, pairs, config(), stage(tmp_path, "feedback"))
    file = tmp_path / "feedback" / feedback.LABELS
    file.write_bytes(file.read_bytes() + b'{"step": 11, "id"')
    again = Judge()
    assert feedback.label(again, pairs, config(), stage(tmp_path, "feedback")) == whole
    assert len(again.asked) == 2 * 24 - 20, "ten labels were whole"
    assert not set(again.asked) & set(dying.asked[:20])


def test_answers_that_are_there_are_not_sampled_again(tmp_path: Path) -> None:
    count = feedback.AT_ONCE + 6
    engine, asked_first = Scripted(answers), stage(tmp_path, "feedback")
    asked_first.stop_requested = True
    with pytest.raises(Interrupted):
        feedback.answer(engine, prompts(count), config(), asked_first)
    again = Scripted(answers)
    found = feedback.answer(again, prompts(count), config(), stage(tmp_path, "feedback"))
    assert len(found) == count
    assert len(again.asked) == 4 * 6


def test_what_the_judge_did_not_say_is_no_label(tmp_path: Path) -> None:
    pairs = [
        feedback.Pair("a", prompts(1)[0], "say 1", "unreadable 2", tuple(HARMLESS[:1])),
        feedback.Pair("b", prompts(1)[0], "say 1", "say 2", tuple(HARMLESS[:1])),
    ]
    labelled = feedback.label(Judge(), pairs, config(), stage(tmp_path, "feedback"))
    assert [one.probability(1.0) is None for one in labelled] == [True, False]
    assert len(list(feedback.preferences(labelled, 1.0, "x"))) == 1
    assert feedback.label(Judge(dies_at=0), pairs, config(), stage(tmp_path, "feedback")) == labelled


def test_temperature_divides_log_odds() -> None:
    assert tempered(0.9, 1.0) == 0.9
    assert tempered(0.8, 2.0) == pytest.approx(2 / 3)
    assert (tempered(0.0, 3.0), tempered(1.0, 3.0), tempered(0.5, 9.0)) == (0.0, 1.0, 0.5)


# -- the command ------------------------------------------------------------------------------------------------------


def whelp(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["constitution", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def principle(id: str, **changes: str) -> str:
    values = {
        "value": "harmless", "principle": f"{id} is kept.", "critique": f"Is {id} kept?", "revision": f"Keep {id}.",
        "comparison": f"Which keeps {id}, A or B?",
    }  # fmt: skip
    return f"- id: {id}\n" + "".join(f"  {key}: {value}\n" for key, value in (values | changes).items())


def test_list_and_check(tmp_path: Path) -> None:
    listed = whelp("list")
    assert all(p.id in listed for p in PRINCIPLES)
    assert "24 principles can be used (6 helpful, 6 honest, 6 harmless, 6 autonomy)\n" in whelp("check")
    mine = tmp_path / "mine.yaml"
    mine.write_text(principle("kindness") + principle("candour", comparison="Which is better?"))
    said = whelp("check", str(mine))
    assert "candour: comparison does not name A and B" in said
    assert "2 principles can be used (2 harmless), 1 doubts" in said
    mine.write_text(principle("kindness") + principle("copied", critique="Is  kindness KEPT?"))
    assert "copied: critique is that of kindness, which is then drawn twice as often" in whelp("check", str(mine))
    mine.write_text(principle("kindness", value="polite"))
    assert "expected one of helpful, honest, harmless, autonomy" in whelp("check", str(mine), code=2)


def test_try_shows_every_step(tiny_model_folder, tmp_path: Path) -> None:
    model = ["--model", str(tiny_model_folder("llama", max_position_embeddings=2048)), "--max_new_tokens", "5"]
    mine = tmp_path / "mine.yaml"
    mine.write_text(principle("kindness") + principle("candour", value="honest"))
    said = whelp("try", "hello there", *model, "--principles", str(mine), "--principle", "candour")
    labels = ["answer", "principle 1: candour", "critique 1", "revision 1", "principle 2: candour", "critique 2"]
    places = [said.index(label) for label in [*labels, "revision 2"]]
    assert places == sorted(places)
    assert said.count("candour is kept.") == 2
    assert "principle 1: kindness" in whelp("try", "hello", *model, "--principles", str(mine), "--rounds", "1")
    refused = whelp("try", "hello", *model, "--principles", str(mine), "--principle", "nope", code=2)
    assert "has no principle 'nope'; it has kindness, candour." in " ".join(refused.split())
