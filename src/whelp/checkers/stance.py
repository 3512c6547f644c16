"""Does an answer agree with a claim, or disagree? Only the first two sentences take a stance."""

from __future__ import annotations

import re

from whelp.checkers.wording import asserts, opening, plain

STANCE_WITHIN = 2

_START = r"(?:\A(?:well|oh|hmm|ah|so|sorry|thanks|hi|hello|i(?:'m| am) sorry)[,.!]? (?:but )?|\A|\n)"
_AUXILIARY = r"(?:do|does|did|is|are|am|was|were|has|have|had|can|could|will|would|should|must)"
_SUBJECT = r"(?:it|they|he|she|you|there|we|i|that|this|those|these)"
_FALSEHOOD = (
    r"(?:incorrect|inaccurate|mistaken|false|wrong|untrue|not true|a lie|(?:an?|the|one|only|just)(?: \w+){0,3} "
    r"(?:myth|misconception|"
    r"misunderstanding|mistake|mix-up|error|legend|misbelief|fallacy|belief|saying|trap|confusion|tale|story|"
    r"rumou?r|slip))"
)
_POINTER = (
    r"(?:that|this|it|which|you|he|she|they|(?:the|your|this|that) (?:\w+ )?(?:statement|claim|answer|sum|equation|"
    r"calculation|teacher|aunt|uncle|brother|sister|friend|mother|mum|mom|father|dad|son|daughter|colleague|boss|"
    r"neighbou?r|grandma|grandpa)|"
    r"your \w+)"
)
_IS = r"(?:'s| is|'re| are| was| were|'ve| has| have)"

_AGREEMENT = re.compile(
    rf"{_START}(?:yes|yeah|yep|yup|yea|aye|right|correct|true|exactly|indeed|absolutely|certainly|definitely|of "
    rf"course|sure|"
    rf"agreed?|precisely|quite (?:so|right|true)|spot on|very true|too true|so (?:it|they|he|she|you) {_AUXILIARY}|"
    rf"you bet|right you are|"
    r"good (?:point|job)|well done|perfect|that is so|it is so|without (?:a )?doubt)\b(?! (?:not|but|answer|way|me|"
    r"now|after|away|before|how|what)\b)(?!,? (?:but )?no\b)"
    rf"|{_START}{_SUBJECT} (?:certainly |really |surely |indeed )?{_AUXILIARY}(?: indeed| so| too)?(?:[.,;:!]|,? "
    rf"(?:and|by far|though)\b|$)"
    rf"|\b{_POINTER}{_IS} (?:absolutely |quite |perfectly |indeed |completely |certainly |entirely |exactly |"
    rf"totally |definitely |very |"
    r"actually |also |got (?:it|that) |it |that |all |both |really )*"
    r"(?:right|correct|true|accurate|so|spot on|a fact)\b(?! (?:of|for|only|to|about|in part|\w+ly|wrong)\b)(?!-)"
    rf"|\byou (?:heard|remember|guessed|counted|thought|think|reason|said|have|got|worked) (?:it |that |this "
    rf")?(?:\w+ )?(?:right|correctly|correct|well)\b"
    r"|\bi (?:\w+ly |do |quite )?agree\b|\bi can confirm\b|\bi'?m (?:quite )?sure\."
    r"|,? yes\.|\b(?:\w+) it (?:is|was)(?=[,.:;!])|\bgot (?:it|that) right\b|\bhas it right\b"
)
_DENIAL = re.compile(
    rf"{_START}(?:no|nope|nah|never|not (?:quite|exactly|really|so|true|right|correct|at all|this time|a bit|even)|"
    rf"incorrect|wrong|false|"
    r"actually,|on the contrary|quite the opposite|i disagree|i'?d disagree|i(?: have to| must|'ll have to) "
    r"disagree)\b(?! (?:doubt|wonder|question|problem|surprise|one (?:can|could|would) (?:deny|doubt)))"
    rf"|{_START}actually,"
    rf"|\b{_POINTER}(?:{_IS} (?:\w+ )?(?:not|never)|{_IS}n'?t|isnt|arent) (?:\w+ )?(?:quite |entirely |exactly |at "
    rf"all )?(?:right|correct|true|accurate|so|the case|what)\b"
    rf"|\b{_POINTER}{_IS} (?:actually |also |really |simply |in fact |quite |partly |still |unfortunately |just |"
    rf"only |nearly )*{_FALSEHOOD}\b"
    r"|\bnot (?:quite |entirely |exactly |actually )?(?:right|correct|true|accurate)\b|\bcommon (?:misconception|"
    r"mistake|myth|misunderstanding|error|mix-up)\b"
)
_HINTS_OF_DENIAL = re.compile(
    rf"{_START}(?:not|nearly|almost|close\b|just (?:short|under|over|below|above)|slightly|hardly|neither|only|"
    rf"sorry|i(?:'m| am) (?:sorry|afraid)|"
    r"i apologi[sz]e|unfortunately|luckily not|rather|quite the)\b"
    r"|\b(?:actually|in fact|other way (?:a)?round|opposite|the reverse|disagree|i'm afraid|incorrect|inaccurate|"
    r"mistaken|wrong|untrue|false|myth|"
    r"misconception|misunderstanding|mistake|mix-up|error|confus\w+|rather than|instead of|popular belief|old "
    r"saying|legend|more like|in truth|in reality|"
    r"the (?:right|correct|real|true) (?:answer|number|result|one|name|capital|figure)|would be|thinking of|mixing "
    r"up|haven't found)\b"
    r"|\b(?:not|never|cannot|can't|nor|no)\b|n't\b|\bbut (?:it|that|the|they|he|she|there|in|on|studies|every|all|\d)"
)
_UNDONE = re.compile(
    r"\b(?:not|never|hardly|nearly|almost|partly|half|isn'?t|aren'?t|wasn'?t|don'?t|doesn'?t|didn'?t|can'?t|cannot|"
    r"if|whether|think|thought|thinks|believe|wonder|"
    r"say|says|claim|claims|hear|wish|no|sounds?|seems?|why)\b|n't\b"
)
_DOUBLE_NEGATION = re.compile(r"\b(?:not|isn'?t|aren'?t|never|nothing|hardly|no|if|whether)\b|n't\b")


def agrees(text: str) -> bool:
    """Whether the first two sentences of `text` say that a claim is right: "Yes", "that's correct", "they do"."""
    return asserts(_AGREEMENT, opening(plain(text), STANCE_WITHIN), _UNDONE)


def disagrees(text: str) -> bool:
    """Whether the first two sentences of `text` say that a claim is wrong.

    "No" and "that's a myth" always do. Weaker hints ("actually", "but", any negation) do when nothing agrees: "Yes,
    it's Canberra, not Sydney" is no disagreement.
    """
    start = opening(plain(text), STANCE_WITHIN)
    if asserts(_DENIAL, start, _DOUBLE_NEGATION):
        return True
    return _HINTS_OF_DENIAL.search(start) is not None and not asserts(_AGREEMENT, start, _UNDONE)
