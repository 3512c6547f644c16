"""Bad answers made by a program: what a reward model must never like, beside what people ranked.

People who rank see few answers that break off, talk of something else or go round in circles; PPO finds them soon enough.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from whelp.text.formats.hashing import prompt_hash, split_by_hash
from whelp.types import Ranking

KINDS = ("cut off", "repeated", "off topic")
SOURCE = "program"
"""`Ranking.source` of what is made here."""
MIN_WORDS = 8
"""An answer of fewer words has no half that could be told from a short answer."""
ROUNDS = 3
_TRIES = 20
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def negatives(rankings: Sequence[Ranking], share: float = 1.0, kinds: Sequence[str] = KINDS) -> list[Ranking]:
    """For a share of the prompts, fixed by hash: the best answer above bad ones of these kinds, which tie.

    What is drawn depends on the prompt alone and, off topic, on which rankings there are. A best answer of fewer than
    `MIN_WORDS` words gets no cut-off twin, a prompt among none of another text nothing off topic, and a prompt for which
    nothing can be made no ranking.
    """
    chosen, _ = split_by_hash(rankings, lambda ranking: ranking.prompt.messages, share, "negatives")
    by_category: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        by_category.setdefault(ranking.prompt.category, []).append(ranking)
    made = []
    for ranking in chosen:
        draw = random.Random(prompt_hash(ranking.prompt.messages))
        best, other = _best(ranking), _other(ranking, by_category, draw)
        texts = {"cut off": cut_off(best, draw), "repeated": repeated(best), "off topic": other and _best(other)}
        bad = dict.fromkeys(text for kind, text in texts.items() if kind in kinds and text and text != best)
        if bad:
            made.append(Ranking(ranking.prompt, (best, *bad), (1, *[2] * len(bad)), SOURCE))
    return made


def cut_off(text: str, draw: random.Random) -> str | None:
    """`text` up to somewhere in its middle, with the end of turn that a model puts where it gives up; None where it is short."""
    words = text.split(" ")
    if len(words) < MIN_WORDS:
        return None
    count = draw.randint(len(words) // 3, 2 * len(words) // 3)
    return " ".join(words[:count]).rstrip(".,;:!? ")


def repeated(text: str) -> str:
    """The first sentence of `text` again and again, as a looping model writes it."""
    first = _SENTENCE_END.split(text.strip())[0]
    return " ".join([first] * (ROUNDS + 1))


def _other(ranking: Ranking, by_category: Mapping[str, Sequence[Ranking]], draw: random.Random) -> Ranking | None:
    """Another prompt, of another category where there is one."""
    strangers = [category for category in by_category if category != ranking.prompt.category]
    pool = by_category[draw.choice(strangers)] if strangers else by_category[ranking.prompt.category]
    tries = (draw.choice(pool) for _ in range(_TRIES))
    return next((other for other in tries if other.prompt.messages != ranking.prompt.messages), None)


def _best(ranking: Ranking) -> str:
    return ranking.completions[ranking.ranks.index(min(ranking.ranks))]
