"""What every checker sees of a text: its plain wording, words and sentences, and whether it is language at all."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

MAX_FOURGRAM = 3
"""A run of four words may occur this often."""
MAX_SENTENCE = 2
"""The same sentence may occur this often."""
MIN_UNIQUE_SHARE = 0.3
"""Different words over all words, for texts long enough to tell (`LONG_TEXT` words)."""
LONG_TEXT = 30
MIN_WORDS = 3
MIN_FUNCTION_SHARE = 0.2
MAX_WORDS_PER_SENTENCE = 60

# curly quotes and dashes by number: they look too much like the plain ones to be read safely
_PLAIN = str.maketrans(
    {0x2018: "'", 0x2019: "'", 0x02BC: "'", 0xB4: "'", 0x201C: '"', 0x201D: '"', 0x201E: '"', 0x2013: "-", 0x2014: ", "}
)
_MARKDOWN = re.compile(r"[*`~|]+|(?m:^[ \t]*(?:#{1,6}|>)+[ \t]*)|(?<!\w)_+|_+(?!\w)")
_SPEAKER = re.compile(r"\A(?:(?:assistant|answer|response)\s*:|assistant\n)\s*", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")
_QUOTED = re.compile(r'"[^"]{0,400}"')
_CLAUSE_EDGE = re.compile(r"[.,;:!?\n]|\bbut\b|\bthough\b|\bbecause\b")
_GLUE = """a about after all an and any are as at be been before but by can could did do does down each every
for from had has have he her him his how i if in into is it its it's just may might more most must my no not
of off on once one only or other our out over own she should so some such than that the their them then there these
they this those through to too under until up upon very was we were what when where which while who why will with
would you your don't doesn't isn't can't won't i'm you're that's they're"""
FUNCTION_WORDS = frozenset(_GLUE.split())


def plain(text: str) -> str:
    """`text` in lower case with straight quotes and without markdown marks, speaker names and outer space.

    Line breaks stay, since they end a sentence; all other runs of white space become one space.
    """
    text = unicodedata.normalize("NFKC", text.translate(_PLAIN))
    text = _SPEAKER.sub("", _MARKDOWN.sub("", text).strip())
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line).lower()


def unquoted(text: str) -> str:
    """`text` without what stands in double quotes, which is somebody else's voice; whole if nothing else is left."""
    rest = _QUOTED.sub(" ", text)
    return rest if len(words(rest)) >= MIN_WORDS else text


def words(text: str) -> list[str]:
    """The words of `text` as they stand, numbers among them."""
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """The sentences of `text`; a line break ends one too."""
    return [part.strip() for part in _SENTENCE_END.split(text) if words(part)]


def opening(text: str, count: int) -> str:
    """The first `count` sentences of `text`, one a line."""
    return "\n".join(sentences(text)[:count])


def asserts(pattern: re.Pattern[str], text: str, unless: re.Pattern[str]) -> bool:
    """Whether `pattern` occurs in `text` in a clause in which nothing before it matches `unless`.

    This keeps "that's correct" apart from "I don't think that's correct".
    """
    for match in pattern.finditer(text):
        edges = [edge.end() for edge in _CLAUSE_EDGE.finditer(text, 0, match.start())]
        if not unless.search(text, edges[-1] if edges else 0, match.start()):
            return True
    return False


def stem_hits(stems: Sequence[str], text: str) -> int:
    """How many different `stems` begin a word of `text`."""
    text = plain(text)
    return sum(re.search(rf"(?<!\w){re.escape(stem)}", text) is not None for stem in distinct_stems(stems))


def distinct_stems(stems: Sequence[str]) -> set[str]:
    """`stems` without those that another one begins: one word must not count for "bake" and for "baker"."""
    plain_stems = {plain(stem) for stem in stems}
    return {s for s in plain_stems if not any(s != other and s.startswith(other) for other in plain_stems)}


def is_degenerate(text: str) -> bool:
    """Whether `text` is no answer to anything: too short, made of marks, or going round in circles.

    True for fewer than 3 words, for mostly marks, for texts of more than 40 characters that are mostly non-letters
    (short sums are fine), for four words in a row that occur more than 3 times, for a sentence that occurs more than
    twice, and for over 30 words of which fewer than 30% differ.
    """
    text = plain(text)
    tokens = words(text)
    if len(tokens) < MIN_WORDS or _is_mostly_marks(text):
        return True
    fourgrams = Counter(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
    repeated = Counter(tuple(words(sentence)) for sentence in sentences(text))
    return (
        max(fourgrams.values(), default=0) > MAX_FOURGRAM
        or max(repeated.values()) > MAX_SENTENCE
        or (len(tokens) > LONG_TEXT and len(set(tokens)) < MIN_UNIQUE_SHARE * len(tokens))
    )


def _is_mostly_marks(text: str) -> bool:
    solid = [character for character in text if not character.isspace()]
    letters = sum(character.isalpha() for character in solid)
    marks = sum(not character.isalnum() for character in solid)
    return letters == 0 or marks * 2 > len(solid) or (len(solid) > 40 and letters * 2 < len(solid))


def is_prose(text: str) -> bool:
    """Whether `text` is made of sentences and not of key words strung together.

    Key words lack what holds a sentence together: of running English at least a fifth are words such as "the" and
    "of", several different ones, and a full stop comes sooner or later.
    """
    tokens = words(plain(text))
    glue = [token for token in tokens if token in FUNCTION_WORDS]
    return (
        len(glue) >= MIN_FUNCTION_SHARE * len(tokens)
        and len(set(glue)) >= min(5, len(tokens) // 8)
        and len(tokens) <= MAX_WORDS_PER_SENTENCE * max(1, len(sentences(plain(text))))
    )
