"""Is a model cut in two still the same model, and does it read a flat row as it reads sequences? Asked of every model when it is
loaded."""

from __future__ import annotations

import torch
from torch import Tensor

from whelp.models.anatomy import Pretrained
from whelp.models.cache import SlotCache, forward
from whelp.models.layout import allow_flat, flat, forbid_flat
from whelp.models.trunk import Cut

MAX_CHECKED_WINDOW = 4096


@torch.no_grad()
def check_cut(model: Pretrained, parts: Cut) -> str | None:
    """None when trunk + branch give what the whole model gives, plain and cached; else what differs."""
    try:
        tokens = _random_tokens(model)
        whole = _final_hidden(model, tokens)
        cut_whole = parts.branch(parts.trunk(tokens, use_cache=False), use_cache=False)
        if not _close(cut_whole, whole):
            return f"trunk and branch differ from the whole model by {_difference(cut_whole, whole):.2g}"
        if parts.head is not None:
            rows = whole[:, -2:].flatten(0, 1)
            logits = model(input_ids=tokens, use_cache=False, logits_to_keep=2).logits.flatten(0, 1)
            if not _close(parts.head(rows), logits):
                return f"the head alone differs from the whole model by {_difference(parts.head(rows), logits):.2g}"
            return _check_decode(parts, tokens, whole)
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError) as error:
        return f"the cut model does not run ({type(error).__name__}: {error})"
    return None


@torch.no_grad()
def check_flat(model: Pretrained) -> str | None:
    """Let the model read flat rows. None when it gives for a flat row of three sequences what it gave for each alone with its
    own attention; else it may not, and this is what differs."""
    first, second = _random_tokens(model).tolist()
    half = len(first) // 2
    rows = [first, first[:half] + second[half:-3], second[: half + 1]]
    tokens = [torch.tensor(row, device=model.device) for row in rows]
    alone = [_final_hidden(model, row[None])[0] for row in tokens]
    allow_flat(model)
    try:
        layout = flat(rows, [0, 0, 1], model.device)
        outputs = model.base_model(input_ids=layout.join(tokens), use_cache=False, **layout.arguments)
        whole = outputs.last_hidden_state[0]
        found = [whole[place[: len(row)]] for row, place in zip(rows, layout.place, strict=True)]
        pairs = list(zip(found, alone, strict=True))
        if all(_close(*pair) for pair in pairs):
            return None
        problem = f"differs from its sequences by {max(_difference(*pair) for pair in pairs):.2g}"
    except (AttributeError, TypeError, ValueError, RuntimeError, IndexError, KeyError) as error:
        problem = f"does not run ({type(error).__name__}: {error})"
    forbid_flat(model)
    return f"a flat row {problem}"


def _check_decode(parts: Cut, tokens: Tensor, whole: Tensor) -> str | None:
    """Two rows of different length, prefilled together, then one token each."""
    length = tokens.shape[1]
    short = length - 3
    decoder = parts.branch.decoder
    layers = decoder.config.num_hidden_layers + (
        parts.trunk.decoder.config.num_hidden_layers if parts.trunk.decoder else 0
    )
    cache = SlotCache(layers, 2, length)
    cache.prefill(torch.arange(2, device=tokens.device))
    forward(parts, tokens[:, : length - 1], cache)
    positions = torch.tensor([length - 1, short], device=tokens.device)
    cache.decode(positions)
    step = forward(parts, tokens[torch.arange(2), positions][:, None], cache)[:, 0]
    expected = whole[torch.arange(2), positions]
    if not _close(step, expected):
        return f"decoding with a cache differs from the whole model by {_difference(step, expected):.2g}"
    return None


def _random_tokens(model: Pretrained) -> Tensor:
    """Longer than any sliding window of the model that is not larger than a few thousand tokens."""
    config = model.config.get_text_config()
    window = min(getattr(config, "sliding_window", None) or 0, MAX_CHECKED_WINDOW)
    length = min(window + 24, getattr(config, "max_position_embeddings", None) or 24)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (2, length), generator=generator).to(model.device)


def _final_hidden(model: Pretrained, tokens: Tensor) -> Tensor:
    return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def _close(found: Tensor, expected: Tensor) -> bool:
    """Equal up to rounding: kernels of another shape add in another order."""
    bound = 1e-4 if found.dtype == torch.float32 else 0.05
    return _difference(found, expected) <= bound
