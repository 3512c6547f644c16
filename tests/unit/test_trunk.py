"""Trunk + branch against the whole model, for every family; folders that `transformers` loads again."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from whelp.errors import ModelError
from whelp.models import anatomy, loading
from whelp.models.anatomy import num_layers
from whelp.models.check import check_cut
from whelp.models.loading import load_source, load_tokenizer
from whelp.models.trunk import Cut, cut
from whelp.text.chat import CHATML

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt2")
TIED = {"qwen2", "gemma3_text", "gpt2"}


def tokens_for(model: nn.Module, batch: int = 3, length: int = 30) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(7))


def logits_of(parts: Cut, tokens: torch.Tensor) -> torch.Tensor:
    hidden = parts.branch(parts.trunk(tokens, use_cache=False), use_cache=False)
    assert parts.head is not None
    return parts.head(hidden.flatten(0, 1)).unflatten(0, tokens.shape)


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


# -- parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainable_layers", ["all", 1, 2, 3, 4, 9])
@torch.no_grad()
def test_trunk_and_branch_are_the_whole_model(family, trainable_layers, tiny_model_folder, whole_model):
    model = whole_model(tiny_model_folder(family))
    tokens = tokens_for(model)
    expected = model(input_ids=tokens).logits
    parts = cut(model, trainable_layers, with_head=True)
    torch.testing.assert_close(logits_of(parts, tokens), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_parity_in_bf16(family, tiny_model_folder, whole_model):
    model = whole_model(tiny_model_folder(family), torch.bfloat16)
    tokens = tokens_for(model)
    expected = model(input_ids=tokens).logits.float()
    found = logits_of(cut(model, 2, with_head=True), tokens)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() <= 0.02 * expected.abs().max()


def test_cutting_leaves_the_whole_model_as_it_was(family, tiny_model_folder, whole_model):
    model = whole_model(tiny_model_folder(family))
    names = list(model.state_dict())
    tokens = tokens_for(model)
    with torch.no_grad():
        before = model(input_ids=tokens).logits
        cut(model, 2, with_head=True)
        assert torch.equal(model(input_ids=tokens).logits, before)
    assert list(model.state_dict()) == names
    assert model.config.num_hidden_layers == 4


def test_where_the_cut_is(tiny_model_folder, whole_model):
    model = whole_model(tiny_model_folder("llama"))
    layers = model.model.layers
    parts = cut(model, 1, with_head=False)
    assert list(parts.trunk.decoder.layers) == list(layers)[:3]
    assert list(parts.branch.decoder.layers) == list(layers)[3:]
    assert parts.head is None
    assert not any(p.requires_grad for p in parts.trunk.parameters())
    assert not any(isinstance(m, nn.Embedding) for m in parts.branch.modules())


@pytest.mark.parametrize("trainable_layers", ["all", 4, 100])
def test_more_layers_than_there_are_is_all_of_them(trainable_layers, tiny_model_folder, whole_model):
    parts = cut(whole_model(tiny_model_folder("llama")), trainable_layers, with_head=True)
    tokens = torch.tensor([[1, 2, 3]])
    assert parts.trunk.decoder is None
    assert parts.trunk(tokens) is tokens
    assert num_layers(parts.head.model) == 0


def test_gradients_reach_the_branch_and_stop_at_the_trunk(family, tiny_model_folder, whole_model):
    model = whole_model(tiny_model_folder(family)).requires_grad_(False)
    parts = cut(model, 2, with_head=True)
    parts.branch.requires_grad_(True)
    logits_of(parts, tokens_for(model)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parts.branch.parameters())
    assert all(p.grad is None for p in parts.trunk.parameters())


def test_equal_trunks_have_equal_keys(tiny_model_folder, whole_model):
    def key(layers, seed=0):
        return cut(whole_model(tiny_model_folder("llama", seed=seed)), layers, with_head=False).trunk.key

    assert key(2) == key(2)
    assert key(2) != key(1)
    assert key(2) != key(2, seed=1)


# -- the check ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("trainable_layers", ["all", 1, 3])
def test_the_check_passes(family, trainable_layers, dtype, tiny_model_folder, whole_model):
    model = whole_model(tiny_model_folder(family), dtype)
    assert check_cut(model, cut(model, trainable_layers, with_head=True)) is None


def test_the_check_notices_positions_added_twice(tiny_model_folder, whole_model):
    model = whole_model(tiny_model_folder("gpt2"))
    parts = cut(model, 2, with_head=True)
    parts.branch.decoder.wpe = model.transformer.wpe
    assert "trunk and branch differ" in (check_cut(model, parts) or "")


def test_the_check_notices_a_family_with_the_wrong_plan(monkeypatch, tiny_model_folder, whole_model):
    monkeypatch.setitem(anatomy.ANATOMIES, "gpt2", anatomy.Anatomy("transformer", "h", "ln_f"))
    model = whole_model(tiny_model_folder("gpt2"))
    assert check_cut(model, cut(model, 2, with_head=True)) is not None


def test_the_check_notices_layer_types_that_were_not_sliced(tiny_model_folder, whole_model):
    model = whole_model(tiny_model_folder("gemma3_text"))
    parts = cut(model, 3, with_head=True)
    parts.branch.decoder.config.layer_types = list(model.config.layer_types)
    assert "differ from the whole model" in (check_cut(model, parts) or "")


def test_the_check_notices_a_lost_final_norm(family, tiny_model_folder, whole_model):
    model = whole_model(tiny_model_folder(family))
    parts = cut(model, 2, with_head=True)
    setattr(parts.branch.decoder, anatomy.anatomy_of(model).norm, nn.Identity())
    assert "trunk and branch differ" in (check_cut(model, parts) or "")


def test_the_check_notices_a_head_without_its_soft_cap(tiny_model_folder, whole_model):
    model = whole_model(tiny_model_folder("gemma3_text"))
    parts = cut(model, 2, with_head=True)
    parts.head.model.config = copy.copy(model.config)
    parts.head.model.config.final_logit_softcapping = None
    assert "the head alone differs" in (check_cut(model, parts) or "")


@pytest.mark.parametrize("wrong", ["mistral", "gemma3_text"])
def test_the_check_notices_a_window_that_decoding_forgets(wrong, monkeypatch, tiny_model_folder, whole_model):
    from whelp.models import cache

    def everything(config, positions, width):
        full = (positions[:, None] >= torch.arange(width)[None, :])[:, None, None, :]
        return full if wrong == "mistral" else {"full_attention": full, "sliding_attention": full}

    monkeypatch.setattr(cache, "decode_masks", everything)
    model = whole_model(tiny_model_folder(wrong))
    assert "decoding with a cache differs" in (check_cut(model, cut(model, 2, with_head=True)) or "")


def test_the_check_reports_what_does_not_run(tiny_model_folder, whole_model):
    model = whole_model(tiny_model_folder("llama"))
    parts = cut(model, 2, with_head=True)
    parts.branch.decoder.layers = nn.ModuleList([nn.Linear(5, 5)])
    assert "does not run" in (check_cut(model, parts) or "")


def test_the_check_makes_no_more_logits_than_it_reads(tiny_model_folder, whole_model, monkeypatch):
    """A window of 4096 and a vocabulary of 262,144 would be gigabytes."""
    model = whole_model(tiny_model_folder("mistral"))
    parts = cut(model, 2, with_head=True)
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.numel() // output.shape[-1]))
    assert check_cut(model, parts) is None
    assert max(seen) <= 4


# -- loading --------------------------------------------------------------------------------------------------------


def test_a_family_that_cannot_be_cut_runs_whole_and_says_so(monkeypatch, tiny_model_folder, compute):
    monkeypatch.setitem(anatomy.ANATOMIES, "gpt2", anatomy.Anatomy("transformer", "h", "ln_f"))
    # The head adds positions as well, so with a scalar head only the cut itself is at fault.
    source = load_source(tiny_model_folder("gpt2"), "scalar", compute, 2)
    assert source.cut.trunk.decoder is None
    (note,) = source.notes
    assert "runs whole" in note
    assert "trainable_layers: all" in note
    assert load_source(tiny_model_folder("llama"), "lm", compute, 2).notes == ()


def test_a_family_that_fails_whole_too_is_refused(monkeypatch, tiny_model_folder, compute):
    monkeypatch.setattr(loading, "check_cut", lambda model, parts: "trunk and branch differ")
    with pytest.raises(ModelError, match="this model family is not supported"):
        load_source(tiny_model_folder("llama"), "lm", compute, 2)


def test_a_plan_that_does_not_fit_names_the_file_to_change(monkeypatch, tiny_model_folder, compute):
    monkeypatch.setitem(anatomy.ANATOMIES, "llama", anatomy.Anatomy("transformer"))
    with pytest.raises(ModelError, match=r"'llama' is not built as transformer\.layers.*anatomy\.py"):
        load_source(tiny_model_folder("llama"), "lm", compute, 2)


def test_a_folder_without_weights(tiny_model_folder, tmp_path, compute):
    (tmp_path / "config.json").write_text((tiny_model_folder("llama") / "config.json").read_text())
    with pytest.raises(ModelError, match=r"cannot load a model from .*safetensors only"):
        load_source(tmp_path, "lm", compute, 2)


def test_a_pickle_is_not_opened(tiny_model_folder, whole_model, tmp_path, compute):
    (tmp_path / "config.json").write_text((tiny_model_folder("llama") / "config.json").read_text())
    torch.save(whole_model(tiny_model_folder("llama")).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors only"):
        load_source(tmp_path, "lm", compute, 2)


def test_a_damaged_weight_file(tiny_model_folder, tmp_path, compute):
    (tmp_path / "config.json").write_text((tiny_model_folder("llama") / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    with pytest.raises(ModelError, match="cannot load a model from"):
        load_source(tmp_path, "lm", compute, 2)


def test_weights_that_do_not_fit_the_config(tiny_model_folder, tmp_path, compute):
    good = tiny_model_folder("llama")
    config = json.loads((good / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    (tmp_path / "model.safetensors").write_bytes((good / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"lacks 9 of the weights .*layers\.4"):
        load_source(tmp_path, "lm", compute, 2)


def test_the_tokenizer_gets_a_pad_that_ends_no_turn(tiny_model_folder, tiny_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token not in (None, "<|im_end|>", "<|im_start|>")


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(ModelError, match="cannot load a tokenizer"):
        load_tokenizer(tmp_path)


# -- export ---------------------------------------------------------------------------------------------------------


def changed(source) -> None:
    """Other weights in the branch (and, where the head belongs to it, in the head)."""
    generator = torch.Generator().manual_seed(3)
    parameters = {id(p): p for p in source.cut.branch.parameters()}
    if source.cut.trunk.decoder is None and source.cut.head is not None:
        parameters |= {id(p): p for p in source.cut.head.parameters()}
    with torch.no_grad():
        for p in parameters.values():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("trainable_layers", [2, "all"])
@torch.no_grad()
def test_an_exported_policy_reloads(family, trainable_layers, tiny_model_folder, whole_model, compute, tmp_path):
    source = load_source(tiny_model_folder(family), "lm", compute, trainable_layers)
    twin = load_source(tiny_model_folder(family), "lm", compute, trainable_layers)  # trained beside its source
    changed(twin)
    tokens = tokens_for(source.model)
    expected = logits_of(twin.cut, tokens)
    source.export(tmp_path / "out", "lm", [(twin.cut.branch, twin.cut.head)], 1.0, {"whelp_stage": "ppo"})

    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(model.eval()(input_ids=tokens).logits, expected, rtol=1e-5, atol=1e-5)
    assert (
        model(input_ids=tokens).logits - whole_model(tiny_model_folder(family))(input_ids=tokens).logits
    ).abs().max() > 0.1
    assert model.config.whelp_stage == "ppo"
    if family in TIED:
        assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")


def test_what_else_stands_in_the_folder(tiny_model_folder, tiny_tokenizer, compute, tmp_path):
    source = load_source(tiny_model_folder("llama"), "lm", compute, 2)
    source.export(tmp_path / "ppo", "lm", [(source.cut.branch, source.cut.head)], 1.0, {})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ppo")
    assert tokenizer.chat_template == CHATML
    assert tokenizer.pad_token == "<pad>"
    turns = [{"role": "user", "content": "Hello"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == tiny_tokenizer.apply_chat_template(
        turns, tokenize=False
    )
    generation = json.loads((tmp_path / "ppo" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert generation["pad_token_id"] == tokenizer.pad_token_id
    config = json.loads((tmp_path / "ppo" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    card = (tmp_path / "ppo" / "README.md").read_text()
    assert "AutoModelForCausalLM" in card
    assert str(tmp_path) not in card
    again = load_source(tmp_path / "ppo", "lm", compute, 2)
    assert again.cut.trunk.key == source.cut.trunk.key


@torch.no_grad()
def test_an_exported_reward_model_reloads_as_a_classifier(family, tiny_model_folder, compute, tmp_path):
    source = load_source(tiny_model_folder(family), "scalar", compute, 2)
    changed(source)
    source.scalar_head.reset(seed=1)
    tokens = tokens_for(source.model)
    # A classifier reads the last token that is not padding.
    tokens[tokens == source.model.config.pad_token_id] = 5
    hidden = source.cut.branch(source.cut.trunk(tokens, use_cache=False), use_cache=False)
    expected = 2.5 * source.scalar_head(hidden[:, -1])
    extra = {"reward_shift": 0.25}
    source.export(tmp_path / "reward", "scalar", [(source.cut.branch, source.scalar_head)], 2.5, extra)

    folder = tmp_path / "reward"
    model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.num_labels == 1
    assert model.config.reward_shift == 0.25
    assert model.config.architectures[0].endswith("ForSequenceClassification")
    torch.testing.assert_close(model.eval()(input_ids=tokens).logits[:, 0], expected, rtol=1e-5, atol=1e-5)
    padded = torch.cat([tokens, torch.full((3, 4), model.config.pad_token_id)], 1)
    mask = torch.cat([torch.ones_like(tokens), torch.zeros(3, 4, dtype=torch.long)], 1)
    scores = model(input_ids=padded, attention_mask=mask).logits[:, 0]
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)

    again = load_source(folder, "scalar", compute, 2)
    assert again.has_scalar_head
    hidden = again.cut.branch(again.cut.trunk(tokens, use_cache=False), use_cache=False)
    torch.testing.assert_close(again.scalar_head(hidden[:, -1]), expected, rtol=1e-5, atol=1e-5)


def test_the_head_of_a_reward_model_keeps_its_fp32_weights(tiny_model_folder, compute_bf16, tmp_path):
    source = load_source(tiny_model_folder("llama"), "scalar", compute_bf16, 2)
    source.scalar_head.reset(seed=1)
    source.export(tmp_path / "reward", "scalar", [(source.cut.branch, source.scalar_head)], 1.0, {})
    again = load_source(tmp_path / "reward", "scalar", compute_bf16, 2)
    assert torch.equal(again.scalar_head.linear.weight, source.scalar_head.linear.weight)


def test_members_stand_beside_and_come_back(tiny_model_folder, compute, tmp_path):
    sources = [load_source(tiny_model_folder("llama"), "scalar", compute, 2) for _ in range(2)]
    changed(sources[1])
    for i, source in enumerate(sources):
        source.scalar_head.reset(seed=i)
    parts = [(s.cut.branch, s.scalar_head) for s in sources]
    sources[0].export(tmp_path / "reward", "scalar", parts, 2.0, {})
    saved = load_file(tmp_path / "reward" / "member-1" / "model.safetensors")
    assert {name.split(".")[2] for name in saved if ".layers." in name} == {"2", "3"}

    again = load_source(tmp_path / "reward", "scalar", compute, 2)
    template = _Member(copy.deepcopy(again.cut.branch), again.scalar_head)
    member = again.member(1, template)
    for found, expected in zip(member.branch.parameters(), sources[1].cut.branch.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(member.head.linear.weight, 2.0 * sources[1].scalar_head.linear.weight)


class _Member:
    def __init__(self, branch, head):
        self.branch, self.head = branch, head


def test_members_and_another_number_of_layers(tiny_model_folder, compute, tmp_path):
    """More layers than were trained is the same model; fewer cannot hold what was trained."""
    sources = [load_source(tiny_model_folder("llama"), "scalar", compute, 2) for _ in range(2)]
    changed(sources[1])
    folder = tmp_path / "reward"
    sources[0].export(folder, "scalar", [(s.cut.branch, s.scalar_head) for s in sources], 1.0, {})

    more = load_source(folder, "scalar", compute, 3)
    member = more.member(1, _Member(copy.deepcopy(more.cut.branch), more.scalar_head))
    layers, trained = member.branch.decoder.layers, sources[1].cut.branch.decoder.layers
    assert torch.equal(layers[2].mlp.up_proj.weight, trained[1].mlp.up_proj.weight)
    assert torch.equal(layers[0].mlp.up_proj.weight, more.cut.branch.decoder.layers[0].mlp.up_proj.weight)

    fewer = load_source(folder, "scalar", compute, 1)
    with pytest.raises(ModelError, match="trainable_layers"):
        fewer.member(1, _Member(copy.deepcopy(fewer.cut.branch), fewer.scalar_head))


def test_a_reward_model_is_no_policy(tiny_model_folder, compute, tmp_path):
    source = load_source(tiny_model_folder("llama"), "scalar", compute, 2)
    source.export(tmp_path / "reward", "scalar", [(source.cut.branch, source.scalar_head)], 1.0, {})
    with pytest.raises(ModelError, match="is a reward model"):
        load_source(tmp_path / "reward", "lm", compute, 2)


def test_a_classifier_of_several_labels_is_no_reward_model(tiny_model_folder, compute, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder("llama"), num_labels=3)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="classifier of 3 labels"):
        load_source(tmp_path, "scalar", compute, 2)


def test_exporting_leaves_the_config_of_the_source_alone(tiny_model_folder, compute, tmp_path: Path):
    source = load_source(tiny_model_folder("llama"), "lm", compute, 2)
    source.export(tmp_path / "a", "lm", [(source.cut.branch, source.cut.head)], 1.0, {"reward_shift": 9})
    assert not hasattr(source.config, "reward_shift")
