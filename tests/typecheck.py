"""What checks shapes and types while tests run."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int may stand where a float is asked for."""
