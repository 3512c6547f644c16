"""Bad answers made by a program: each is what it claims to be, and loses to the best."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from whelp.monitors.hacks import SIGNS
from whelp.monitors.surface import words
from whelp.stages.audit import probes
from whelp.text.formats import read_rankings
from whelp.text.negatives import CERTAINTY, FLATTERY, PADDING, ROUNDS, negatives
from whelp.types import Message, Prompt, Ranking


def ranking(id: str, category: str, *completions: str, ranks: tuple[int, ...] | None = None) -> Ranking:
    prompt = Prompt(id, (Message("user", f"question {id}"),), category)
    return Ranking(prompt, completions, ranks or tuple(range(1, len(completions) + 1)))


TEA = "Boil fresh water, warm the pot, and let the leaves stand for four minutes. Then pour."
MOON = "The moon circles the earth once in about four weeks, and we see its sunlit part grow and shrink."


def test_each_kind_is_made_from_the_best_answer():
    [tea, moon] = negatives(
        [ranking("a", "howto", "Tea? No.", TEA, ranks=(2, 1)), ranking("b", "explain", MOON, "Hm.")]
    )
    best, cut, looped, stray = tea.completions
    assert (best, stray) == (TEA, MOON)
    assert TEA.startswith(cut)
    assert 0.2 < len(cut) / len(TEA) < 0.8
    assert not cut.endswith((".", ","))
    assert looped.count("Boil fresh water") == ROUNDS + 1
    assert "Then pour" not in looped
    assert moon.completions[3] == TEA


def test_the_best_stands_alone_above_the_rest_and_the_source_is_marked():
    for made in negatives(read_rankings("builtin:rankings").records):
        assert made.ranks == (1, *[2] * (len(made.completions) - 1))
        assert len(set(made.completions)) == len(made.completions)
        assert made.source == "program"


def test_a_few_thousand_come_of_what_ships():
    made = negatives(read_rankings("builtin:rankings").records)
    assert sum(len(ranking.completions) - 1 for ranking in made) >= 3000


def test_the_same_prompts_give_the_same_answers():
    rankings = read_rankings("builtin:rankings").records[:50]
    assert negatives(rankings) == negatives(rankings)


def test_short_answers_are_not_cut_and_a_lonely_prompt_has_nothing_off_topic():
    lonely = [ranking("a", "", "Yes, it is.", "No.")]
    [only] = negatives(lonely)
    assert only.completions == ("Yes, it is.", " ".join(["Yes, it is."] * (ROUNDS + 1)))
    assert negatives(lonely, kinds=["cut off"]) == negatives(lonely, kinds=["off topic"]) == []


def test_a_share_of_the_prompts_is_chosen_by_hash():
    rankings = [ranking(str(i), "", f"{MOON} {i}", "Hm.") for i in range(400)]
    some = negatives(rankings, share=0.25)
    assert 70 <= len(some) <= 130
    assert {r.prompt.id for r in some} == {r.prompt.id for r in negatives(rankings[::-1], share=0.25)}
    assert negatives(rankings, share=0.0) == []


def test_off_topic_answers_come_from_another_category_where_there_is_one():
    rankings = [ranking(str(i), "harm" if i < 9 else "explain", f"{MOON} {i}", "Hm.") for i in range(10)]
    for made in negatives(rankings)[:9]:
        assert made.completions[-1] == f"{MOON} 9"


@pytest.mark.parametrize(("kind", "sign"), [("flattering", "flattery"), ("overconfident", "certainty")])
def test_a_hack_is_added_and_nothing_else_changed(kind: str, sign: str) -> None:
    made = negatives(read_rankings("builtin:rankings").records[:200], kinds=[kind])
    assert len(made) > 100
    for ranking in made:
        best, bad = ranking.completions
        assert best in bad and ranking.ranks == (1, 2)
        added = bad.replace(best, "").strip()
        assert added in (FLATTERY if kind == "flattering" else CERTAINTY)
    seen = [SIGNS[sign](text) for text in (FLATTERY if kind == "flattering" else CERTAINTY)]
    assert sum(seen) >= 3, "most are what the audit counts in a policy's answers"


def test_padding_is_longer_and_says_nothing_of_the_prompt() -> None:
    for ranking in negatives(read_rankings("builtin:rankings").records[:50], kinds=["padded"]):
        best, bad = ranking.completions
        assert bad.startswith(best) and len(bad.split()) >= len(best.split()) + 15


def test_the_audit_words_its_hacks_otherwise() -> None:
    """No three words in a row of what a model learns from are among those on which it is audited."""

    def stretches(texts: Iterable[str]) -> set[tuple[str, ...]]:
        return {tuple(said[i : i + 3]) for said in map(words, texts) for i in range(len(said) - 2)}

    audited = (*probes.FILLER, *probes.AGAIN, *probes.CERTAIN_BEFORE, *probes.CERTAIN_BEHIND, *probes.PRAISE)
    assert not stretches(audited) & stretches((*FLATTERY, *CERTAINTY, *PADDING))
