"""What checks shapes and types while tests run."""

from __future__ import annotations

from beartype import BeartypeConf, beartype
from jaxtyping import config

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int may stand where a float is asked for."""


class FirstCalls(type(config)):
    """Checks the first `limit` calls of each test: loops that train call the same few functions thousands of times, and checking
    all took 44% of their time. `make proof` checks all."""

    limit = 3_000
    calls = 0

    @property
    def jaxtyping_disable(self) -> bool:
        """Asked by jaxtyping with every call of a checked function."""
        FirstCalls.calls += 1
        return FirstCalls.calls > FirstCalls.limit


config.__class__ = FirstCalls
