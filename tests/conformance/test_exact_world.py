"""Where every answer can be enumerated the optimum is known: PPO must go there.

The leashed objective E[r] - kl_coef * KL(pi || pi_ref) has the optimum pi*(y) = pi_ref(y) exp(r(y) / kl_coef) / Z, and its
value is kl_coef * log Z. The oracle is that closed form, over all answers of at most two tokens of a vocabulary of twelve.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from whelp.config import PPOConfig
from whelp.engines.base import Held, ModelSpec, OptimizerSpec
from whelp.engines.devices import Compute
from whelp.engines.local import LocalEngine
from whelp.progress import SilentProgress
from whelp.runs.metrics import MetricsLog
from whelp.stages import ppo
from whelp.stages.context import Stage
from whelp.text.chat import CHATML, Chat
from whelp.types import Completion, Message, Prompt, Sequences

WORDS = [
    "<pad>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "user",
    "assistant",
    "red",
    "blue",
    "green",
    "one",
    "two",
    "six",
]
END = WORDS.index("<|im_end|>")
PROMPTS = [Prompt(f"p{i}", (Message("user", text),)) for i, text in enumerate(["red", "blue one", "two", "six green"])]
KL_COEF = 0.5


@dataclass(frozen=True)
class World:
    """All answers y of every prompt x with their rewards r(x, y)."""

    answers: list[tuple[int, ...]]
    rewards: torch.Tensor

    def index(self, completion: Completion) -> tuple[int, int]:
        return PROMPTS.index(completion.prompt), self.answers.index(completion.tokens)

    def reward(self, completions: Sequence[Completion], held: Held) -> torch.Tensor:
        return torch.stack([self.rewards[self.index(c)] for c in completions])


def make_world(seed: int) -> World:
    tokens = range(len(WORDS))
    answers = [(END,), *((a, b) for a, b in itertools.product(tokens, tokens) if a != END)]
    generator = torch.Generator().manual_seed(seed)
    return World(answers, (torch.rand(len(PROMPTS), len(answers), generator=generator) * 2 - 1) * 3 * KL_COEF)


@pytest.fixture(scope="module")
def chat() -> Chat:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"], chat_template=CHATML,
    )  # fmt: skip
    return Chat(tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, chat: Chat) -> Path:
    path = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=END, pad_token_id=0, tie_word_embeddings=False, initializer_range=0.1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    chat.tokenizer.save_pretrained(path)
    return path


def log_probabilities(engine: LocalEngine, model: str, world: World) -> torch.Tensor:
    """log pi(y | x) of every answer to every prompt."""
    rendered = [engine.chat.completion(engine.chat.prompt(p), answer) for p in PROMPTS for answer in world.answers]
    with engine.hold(Sequences([r.tokens for r in rendered], [r.is_response for r in rendered])) as held:
        scores = engine.logprobs(model, held)
    return (scores.logprobs * scores.is_response).sum(1).double().reshape(len(PROMPTS), -1)


def train(
    folder: Path, chat: Chat, compute: Compute, where: Path, seed: int, iterations: int
) -> tuple[LocalEngine, World]:
    world = make_world(seed)
    engine = LocalEngine(chat, compute)
    optimizer = OptimizerSpec()
    engine.add("policy", ModelSpec(source=folder, trainable_layers="all", optimizer=optimizer))
    engine.add("reference", ModelSpec(copy_of="policy", trainable_layers="all"))
    engine.add(
        "value", ModelSpec(copy_of="policy", head="scalar", head_std=0.0, trainable_layers="all", optimizer=optimizer)
    )
    config = PPOConfig(
        total_episodes=256 * iterations, batch_size=256, num_mini_batches=2, num_ppo_epochs=4, response_length=2,
        learning_rate=3e-3, value_learning_rate=3e-3, kl_coef=KL_COEF, temperature=1.0, missing_eos_penalty=None,
        save_steps=10_000,
    )  # fmt: skip
    ppo.train(engine, chat, PROMPTS, world.reward, config, Stage(where, SilentProgress(), seed))
    return engine, world


def objective(log_pi: torch.Tensor, log_ref: torch.Tensor, rewards: torch.Tensor) -> float:
    """E[r] - kl_coef * KL, by enumeration, in the mean over prompts."""
    return float((log_pi.exp() * (rewards - KL_COEF * (log_pi - log_ref))).sum(1).mean())


def test_the_answers_are_all_there_are(folder: Path, chat: Chat, compute: Compute) -> None:
    engine = LocalEngine(chat, compute)
    engine.add("policy", ModelSpec(source=folder, trainable_layers="all"))
    total = log_probabilities(engine, "policy", make_world(0)).exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_ppo_goes_to_the_known_optimum(folder: Path, chat: Chat, compute: Compute, tmp_path: Path) -> None:
    engine, world = train(folder, chat, compute, tmp_path, seed=0, iterations=60)
    rewards = world.rewards.double()
    log_ref = log_probabilities(engine, "reference", world)
    log_pi = log_probabilities(engine, "policy", world)
    log_star = torch.log_softmax(log_ref + rewards / KL_COEF, dim=1)
    start, reached, best = (objective(p, log_ref, rewards) for p in (log_ref, log_pi, log_star))
    closed_form = float(KL_COEF * torch.logsumexp(log_ref + rewards / KL_COEF, dim=1).mean())
    assert best == pytest.approx(closed_form, abs=1e-6)
    assert (reached - start) / (best - start) > 0.9
    distance = 0.5 * (log_pi.exp() - log_star.exp()).abs().sum(1).mean()
    assert 0.5 * (log_ref.exp() - log_star.exp()).abs().sum(1).mean() > 0.3
    assert distance < 0.15
    logged = MetricsLog.read(tmp_path / "metrics.jsonl")[-1]
    exact_kl = float((log_pi.exp() * (log_pi - log_ref)).sum(1).mean())
    assert logged["objective/kl"] == pytest.approx(exact_kl, abs=0.35)
