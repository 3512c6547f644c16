"""A world in which every answer can be enumerated, so that what PPO should reach is known in closed form.

Four prompts, twelve tokens, answers of at most two of them (133), a two-layer Llama. The leashed objective
E[r] - kl_coef * KL(pi || pi_ref) has the optimum pi*(y) = pi_ref(y) exp(r(y) / kl_coef) / Z, and its value is kl_coef * log Z.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from whelp.config import PPOConfig
from whelp.engines.base import Held, ModelSpec, OptimizerSpec
from whelp.engines.devices import Compute
from whelp.engines.local import LocalEngine
from whelp.progress import SilentProgress
from whelp.rewards.base import Reward
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
TOKENS = range(len(WORDS))
ANSWERS = [(END,), *((a, b) for a, b in itertools.product(TOKENS, TOKENS) if a != END)]
PLACE = {answer: i for i, answer in enumerate(ANSWERS)}


def make_chat() -> Chat:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"], chat_template=CHATML,
    )  # fmt: skip
    return Chat(tokenizer)


def save_model(folder: Path, chat: Chat, seed: int) -> None:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama", vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, eos_token_id=END, pad_token_id=0, tie_word_embeddings=False, initializer_range=0.1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)


def log_probabilities(engine: LocalEngine, model: str) -> Tensor:
    """log pi(y | x) of every answer to every prompt [4 133], by full passes."""
    rendered = [engine.chat.completion(engine.chat.prompt(p), answer) for p in PROMPTS for answer in ANSWERS]
    with engine.hold(Sequences([r.tokens for r in rendered], [r.is_response for r in rendered])) as held:
        scores = engine.logprobs(model, held)
    return (scores.logprobs * scores.is_response).sum(1).double().reshape(len(PROMPTS), -1)


def log_probabilities_in(folder: Path, chat: Chat, compute: Compute) -> Tensor:
    """The same of the model in a folder."""
    engine = LocalEngine(chat, compute)
    engine.add("policy", ModelSpec(source=folder, trainable_layers="all"))
    return log_probabilities(engine, "policy")


@dataclass(frozen=True)
class World:
    """A reward for every answer to every prompt [4 133], and the price of a nat."""

    rewards: Tensor
    kl_coef: float

    @classmethod
    def random(cls, seed: int, kl_coef: float) -> World:
        """Rewards between -3 and 3 kl_coef."""
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(len(PROMPTS), len(ANSWERS), generator=generator, dtype=torch.float64)
        return cls((uniform * 2 - 1) * 3 * kl_coef, kl_coef)

    def reward(self, completions: Sequence[Completion], held: Held) -> Tensor:
        places = [(PROMPTS.index(c.prompt), PLACE[c.tokens]) for c in completions]
        return torch.stack([self.rewards[place] for place in places]).float()

    def optimum(self, log_ref: Tensor) -> Tensor:
        """log pi*(y | x) [4 133]."""
        return torch.log_softmax(log_ref + self.rewards / self.kl_coef, dim=1)

    def leashed(self, log_pi: Tensor, log_ref: Tensor) -> Tensor:
        """r - kl_coef log(pi / pi_ref) of every answer [4 133]: at the optimum a constant for each prompt, kl_coef log Z."""
        return self.rewards - self.kl_coef * (log_pi - log_ref)

    def objective(self, log_pi: Tensor, log_ref: Tensor) -> float:
        """E[r] - kl_coef KL, in the mean over prompts."""
        return float((log_pi.exp() * self.leashed(log_pi, log_ref)).sum(1).mean())


def total_variation(log_p: Tensor, log_q: Tensor) -> float:
    """In the mean over prompts; 0 for equal distributions, 1 for disjoint ones."""
    return float(0.5 * (log_p.exp() - log_q.exp()).abs().sum(1).mean())


def spread(values: Tensor, log_p: Tensor) -> float:
    """The standard deviation of `values` under each prompt's distribution, the root of the mean square over prompts."""
    probability = log_p.exp()
    mean = (probability * values).sum(1, keepdim=True)
    return float((probability * (values - mean) ** 2).sum(1).mean().sqrt())


Look = Callable[[LocalEngine], None]
"""Called with the engine before each iteration's updates, when its answers are sampled and about to be scored."""


def train(
    source: Path,
    chat: Chat,
    compute: Compute,
    where: Path,
    world: World,
    seed: int,
    look: Look | None = None,
    reference: Path | None = None,
    second_opinion: Reward | None = None,
    **recipe: object,
) -> LocalEngine:
    """PPO by `stages/ppo.py` on `engines/local.py`; `recipe` changes settings of PPO. The leash is tied to the model that it
    starts from, unless `reference` is the folder of another."""
    engine = LocalEngine(chat, compute)
    optimizer = OptimizerSpec(eps=1e-5)
    critic = ModelSpec(copy_of="policy", head="scalar", head_std=0.0, trainable_layers="all", optimizer=optimizer)
    engine.add("policy", ModelSpec(source=source, trainable_layers="all", optimizer=optimizer))
    origin = ModelSpec(copy_of="policy") if reference is None else ModelSpec(source=reference)
    engine.add("reference", replace(origin, trainable_layers="all"))
    engine.add("value", critic)

    def reward(completions: Sequence[Completion], held: Held) -> Tensor:
        if look is not None:
            look(engine)
        return world.reward(completions, held)

    config = PPOConfig.model_validate(RECIPE | {"kl_coef": world.kl_coef} | recipe)
    stage = Stage(where, SilentProgress(), seed, config.save_steps)
    ppo.train(engine, chat, PROMPTS, reward, config, stage, second_opinion=second_opinion)
    return engine


BATCH = 1024
RECIPE: dict[str, object] = {
    "total_episodes": BATCH * 200, "batch_size": BATCH, "num_mini_batches": 8, "num_ppo_epochs": 1, "response_length": 2,
    "learning_rate": 2.5e-3, "warmup_ratio": 0.2, "value_learning_rate": 1e-2, "cliprange_value": 10.0,
    "critic_warmup_iterations": 5, "temperature": 1.0, "missing_eos_penalty": None, "whiten_advantages": False,
    "save_steps": 10_000, "watch": "off",
}  # fmt: skip
"""At the optimum every answer's leashed reward is the same, so that advantages vanish and their noise with them; whitening
would blow up what is left of it. What the first, ignorant critic says would drive answers away that then are rarely seen again:
the policy waits for it, and starts slowly. At twice this learning rate it lost an answer of 0.9% of the optimum for good (it
gave it 0.002%) with one of three seeds."""
