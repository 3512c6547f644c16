"""Models that are named by an address: `openai:MODEL`, `anthropic:MODEL`, or `http://host/v1#MODEL` for a server of one's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple, cast

from whelp.config import EndpointSettings
from whelp.endpoints.client import VENDORS, Endpoint, Provider
from whelp.endpoints.replies import Replies
from whelp.errors import ConfigError
from whelp.feedback.database import default_database

ADDRESS = re.compile(rf"({'|'.join(VENDORS)}):|https?://")


class Address(NamedTuple):
    provider: Provider
    base_url: str | None
    """None: the vendor's own."""
    model: str

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}" if self.base_url is None else f"{self.base_url}#{self.model}"


def is_address(source: str) -> bool:
    return ADDRESS.match(source) is not None


def address_of(source: str) -> Address:
    """Raises `ConfigError` where it names no model."""
    base_url, _, model = source.partition("#")
    provider = "openai"
    if not source.startswith(("http://", "https://")):
        provider, _, model = source.partition(":")
        base_url = None
    if not model:
        raise ConfigError(f"{source} names no model; expected openai:MODEL, anthropic:MODEL or http://host/v1#MODEL.")
    return Address(cast(Provider, provider), base_url, model)


@contextmanager
def opened(address: Address, settings: EndpointSettings) -> Iterator[Endpoint]:
    """What it says is kept in the database of judgements."""
    with closing(Replies(default_database())) as replies:
        yield Endpoint(
            address.model,
            replies,
            address.provider,
            address.base_url,
            settings.concurrency,
            price_in=settings.price_in,
            price_out=settings.price_out,
            max_cost=settings.max_cost,
        )
