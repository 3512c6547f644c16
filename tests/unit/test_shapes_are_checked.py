"""That shapes are checked while tests run, and from which call on they are not."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import TypeCheckError

from whelp.maths.stats import clustered_bootstrap

typecheck = pytest.importorskip("typecheck", reason="without beartype the tests run, shapes unchecked")


def test_a_wrong_shape_is_found_in_the_first_calls_of_each_test(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = torch.zeros(3), torch.zeros(4, dtype=torch.long)
    with pytest.raises(TypeCheckError):
        clustered_bootstrap(*wrong)
    monkeypatch.setattr(typecheck.FirstCalls, "limit", typecheck.FirstCalls.calls)
    with pytest.raises(RuntimeError):
        clustered_bootstrap(*wrong)
