"""Bad answers made by a program: what a reward model must never like, beside what people ranked.

People who rank see few answers that break off, talk of something else or go round in circles; PPO finds them soon enough.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from whelp.text.formats.hashing import prompt_hash
from whelp.types import Ranking

SOURCE = "program"
"""`Ranking.source` of what is made here."""
MIN_WORDS = 8
"""An answer of fewer words has no half that could be told from a short answer."""
ROUNDS = 3
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def negatives(rankings: Sequence[Ranking]) -> list[Ranking]:
    """For each prompt its best answer above three bad ones that tie: cut off, off topic, repeating itself.

    What is drawn depends on the prompt alone and, for the one off topic, on which other prompts there are. A best answer of
    fewer than `MIN_WORDS` words gets no cut-off twin; one prompt alone gets none that is off topic.
    """
    made = []
    for ranking in rankings:
        best = _best(ranking)
        others = [other for other in rankings if other.prompt.category != ranking.prompt.category] or [
            other for other in rankings if other.prompt.messages != ranking.prompt.messages
        ]
        draw = random.Random(prompt_hash(ranking.prompt.messages))
        bad = [*cut_off(best, draw), repeated(best)]
        if others:
            bad.append(_best(draw.choice(others)))
        bad = [text for text in dict.fromkeys(bad) if text != best]
        made.append(Ranking(ranking.prompt, (best, *bad), (1, *[2] * len(bad)), SOURCE))
    return made


def cut_off(text: str, draw: random.Random) -> list[str]:
    """`text` up to somewhere in its middle, as a sampler's length limit leaves it; none where it is short."""
    words = text.split(" ")
    if len(words) < MIN_WORDS:
        return []
    count = draw.randint(len(words) // 3, 2 * len(words) // 3)
    return [" ".join(words[:count]).rstrip(".,;:!? ")]


def repeated(text: str) -> str:
    """The first sentence of `text` again and again, as a looping model writes it."""
    first = _SENTENCE_END.split(text.strip())[0]
    return " ".join([first] * (ROUNDS + 1))


def _best(ranking: Ranking) -> str:
    return ranking.completions[ranking.ranks.index(min(ranking.ranks))]
