"""Checkers: plain functions that tell from the text of an answer whether the model behaved as it should.

A *check* is a mapping such as `{"kind": "denies", "accept": ["4", "four"]}`; the kinds and their fields are in
`whelp.checkers.kinds`. The predicates below know no check and may be used on any text.
"""

from whelp.checkers.kinds import KINDS, Marks, marks, passes, score, validate
from whelp.checkers.refusal import is_refusal
from whelp.checkers.selfhood import admits_machine, claims_consciousness, claims_human
from whelp.checkers.stance import agrees, disagrees
from whelp.checkers.wording import is_degenerate, is_prose

__all__ = [
    "KINDS",
    "Marks",
    "admits_machine",
    "agrees",
    "claims_consciousness",
    "claims_human",
    "disagrees",
    "is_degenerate",
    "is_prose",
    "is_refusal",
    "marks",
    "passes",
    "score",
    "validate",
]
