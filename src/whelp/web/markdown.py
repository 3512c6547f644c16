"""What a model says, as HTML that can do no harm."""

from __future__ import annotations

from functools import cache, lru_cache

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

TAGS = {
    "p", "br", "hr", "em", "strong", "s", "code", "pre", "blockquote", "ul", "ol", "li", "h1", "h2", "h3", "h4", "h5", "h6",
    "table", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip
"""No link and no picture: what a model says leads nowhere, and tells nobody that it was read."""


@cache
def parser() -> MarkdownIt:
    """HTML in the text is shown as it is written."""
    return MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])


@lru_cache(2048)
def render(text: str) -> Markup:
    """Sanitised HTML: the parser lets no tag through, and what it makes itself is filtered once more."""
    written = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    return Markup(nh3.clean(parser().render(written), tags=TAGS, attributes={}))
