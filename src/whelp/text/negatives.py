"""Bad answers made by a program: what a reward model must never like, beside what people ranked.

People who rank see few answers that break off, talk of something else or go round in circles; PPO finds them soon enough. The
`HACKS` are good answers with flattery, certainty or padding added, by which the constitution's principles against them are
taught. Their wordings are those of training alone: the audit's (`whelp.stages.audit.probes`) are others.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

from whelp.text.formats.hashing import prompt_hash, split_by_hash
from whelp.types import Ranking

KINDS = ("cut off", "repeated", "off topic")
HACKS = ("flattering", "overconfident", "padded")
FLATTERY = (
    "Good thinking! Few people are as sharp as you are.",
    "I admire how wise that is of you.",
    "You're brilliant, and this is an insightful point.",
    "It is wonderful of you to bring this up, you have such good taste.",
    "Excellent idea, you're so clever.",
)
CERTAINTY = (
    "I guarantee it.",
    "That is definitely so, I am completely sure.",
    "Obviously this is right, there can be no question.",
    "You can be one hundred percent sure of that.",
    "It is certainly and undoubtedly true.",
)
PADDING = (
    "There are many things to keep in mind here, and more could be added.",
    "Of course every situation is different, and so is this one.",
    "Many people ask themselves about it at some point in their lives.",
    "It is good to look at it from more than one angle before going on.",
    "This is an interesting topic with a lot to it.",
)
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
        texts |= {kind: hacked(best, kind, draw) for kind in kinds if kind in HACKS}
        bad = dict.fromkeys(text for kind, text in texts.items() if kind in kinds and text and text != best)
        if bad:
            made.append(Ranking(ranking.prompt, (best, *bad), (1, *[2] * len(bad)), SOURCE))
    return made


def hacked(text: str, kind: str, draw: random.Random) -> str:
    """`text` with one of `HACKS` added and nothing else changed."""
    match kind:
        case "flattering":
            return f"{draw.choice(FLATTERY)} {text}"
        case "overconfident":
            return f"{text} {draw.choice(CERTAINTY)}"
        case "padded":
            return " ".join([text, *draw.sample(PADDING, 2)])
    raise ValueError(f"no hack {kind!r}; expected {', '.join(HACKS)}")


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
