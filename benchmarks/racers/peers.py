"""The peers' side of a race: transformers and TRL, in environments of their own, without whelp (but for the checks that score
answers, where both sides learn from them).

    python peers.py WORK SIDE

TRL's trainers run as they are; a callback holds them between two turns.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __name__ == "__main__":  # before the libraries are loaded, which read it then
    os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LogitsProcessor,
    TrainerCallback,
)
from turns import Turns, asked

FOREVER = 10_000
MICRO = 8
"""Rows, or pairs, in one pass of a trainer: whelp cuts its batches too."""
HAS_CUDA = torch.cuda.is_available()
Work = dict[str, Any]


class InTurns(TrainerCallback):
    """Lets a trainer go on for `turn` steps at a time."""

    def __init__(self, turns: Turns, turn: int, **counts: int):
        self.turns, self.turn, self.counts = turns, turn, counts

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.turns.wait()

    def on_step_end(self, args: object, state: Any, control: object, **_: object) -> None:
        if state.global_step % self.turn == 0:
            self.turns.done(**self.counts)
            self.turns.wait()


class Lengths(LogitsProcessor):
    """Ends each answer where it is told to and nowhere else."""

    def __init__(self, prompt: int, lengths: list[int], end: int):
        self.prompt, self.lengths, self.end = prompt, torch.tensor(lengths), end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        is_last = (input_ids.shape[1] - self.prompt + 1 >= self.lengths).to(scores.device)
        end = scores[:, self.end].clone()
        scores = scores.masked_fill(is_last[:, None], -torch.inf)
        scores[:, self.end] = torch.where(is_last, end, -torch.inf)
        return scores


def language_model(work: Work, dtype: str | None = None) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(work["model"], dtype=getattr(torch, dtype or work["dtype"]))
    return model.to("cuda" if HAS_CUDA else "cpu")


def scorer(work: Work, dtype: str | None = None) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(work["model"])
    return AutoModelForSequenceClassification.from_pretrained(
        work["model"], num_labels=1, dtype=getattr(torch, dtype or work["dtype"]), pad_token_id=tokenizer.pad_token_id
    )


def trainer_settings(**settings: Any) -> dict[str, Any]:
    return {
        "output_dir": tempfile.mkdtemp(),
        "report_to": [],
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_steps": 100,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": False,  # the weights are bfloat16 already where the race is run in it
        "use_cpu": not HAS_CUDA,
        "learning_rate": 1e-6,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "dataloader_pin_memory": False,
    } | settings


def decode(turns: Turns, work: Work, side: Work) -> None:
    model = language_model(work).eval()
    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    batch = tokenizer.pad({"input_ids": work["prompts"]}, return_tensors="pt").to(model.device)
    width = batch["input_ids"].shape[1]
    lengths = Lengths(width, work["lengths"], tokenizer.eos_token_id)
    while True:
        turns.wait()
        with torch.no_grad():
            answers = model.generate(
                **batch, max_new_tokens=max(work["lengths"]), do_sample=True, temperature=work["temperature"], top_k=0,
                top_p=1.0, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
                logits_processor=[lengths], **side,
            )  # fmt: skip
        ended = (answers[:, width:] == tokenizer.eos_token_id).int().argmax(1) + 1
        turns.done(generated=int(ended.sum()))


def forward(turns: Turns, work: Work, side: Work) -> None:
    """Log-probabilities of the answers' tokens, a batch of like lengths at a time."""
    model = language_model(work).eval()
    rows = sorted(zip(work["tokens"], work["is_response"], strict=True), key=lambda row: len(row[0]))
    while True:
        turns.wait()
        scored = 0
        with torch.no_grad():
            for start in range(0, len(rows), side["batch"]):
                tokens, masks = zip(*rows[start : start + side["batch"]], strict=True)
                ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in tokens], batch_first=True)
                counts = torch.nn.utils.rnn.pad_sequence([torch.tensor(m) for m in masks], batch_first=True)[:, 1:]
                ids, counts = ids.to(model.device), counts.to(model.device)
                logprobs = model(ids).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
                scored += len(logprobs[counts])
        turns.done(scored=scored)


def train_sft(turns: Turns, work: Work, side: Work) -> None:
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"input_ids": tokens, "completion_mask": [int(is_response) for is_response in mask]}
        for tokens, mask in zip(work["tokens"], work["is_response"], strict=True)
    ]
    steps = -(-len(rows) // work["batch"])
    length = sum(len(row["input_ids"]) for row in rows) // steps
    model = language_model(work)
    while True:  # as many packed rows as whelp takes steps
        config = SFTConfig(**trainer_settings(
            per_device_train_batch_size=1, max_length=length, packing=True, completion_only_loss=True, max_steps=FOREVER,
        ))  # fmt: skip
        trainer = SFTTrainer(
            model=model, args=config, train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(work["model"]),
        )  # fmt: skip
        if len(trainer.train_dataset) <= steps:
            break
        length += length // 50
    turn = work["epochs"] * len(trainer.train_dataset)
    tokens = work["epochs"] * sum(len(row["input_ids"]) for row in trainer.train_dataset)
    trainer.add_callback(InTurns(turns, turn, trained=tokens, steps=turn))
    trainer.train()


def train_reward(turns: Turns, work: Work, side: Work) -> None:
    from trl import RewardConfig, RewardTrainer

    tokens = work["tokens"]
    pairs = [{"chosen_ids": tokens[better], "rejected_ids": tokens[worse]} for better, worse in work["pairs"]]
    config = RewardConfig(**trainer_settings(
        per_device_train_batch_size=MICRO, gradient_accumulation_steps=work["batch"] // MICRO, max_length=None,
        max_steps=FOREVER,
    ))  # fmt: skip
    trainer = RewardTrainer(
        model=scorer(work), args=config, train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(work["model"]),
    )  # fmt: skip
    turn = work["epochs"] * -(-len(pairs) // work["batch"])
    trainer.add_callback(InTurns(turns, turn, pairs=work["epochs"] * len(pairs), steps=turn))
    trainer.train()


def lora_of(side: Work) -> Any:
    """None: the whole policy learns."""
    if not side.get("lora"):
        return None
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")


def train_ppo(turns: Turns, work: Work, side: Work) -> None:
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    count, length, epochs = len(work["prompts"]), max(work["lengths"]), work["epochs"]
    config = PPOConfig(**trainer_settings(
        per_device_train_batch_size=MICRO, gradient_accumulation_steps=count // MICRO, num_mini_batches=1,
        local_rollout_forward_batch_size=count,
        num_ppo_epochs=epochs, response_length=length, temperature=work["temperature"], num_sample_generations=0,
        total_episodes=FOREVER * count,
    ))  # fmt: skip
    lora = lora_of(side)
    data = Dataset.from_list([{"input_ids": prompt} for prompt in work["prompts"]])
    tokens = count * length
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=language_model(work),
        ref_model=None if lora else language_model(work), reward_model=scorer(work), value_model=scorer(work),
        train_dataset=data, eval_dataset=data, peft_config=lora,
        callbacks=[InTurns(turns, 1, generated=tokens, trained=tokens * epochs, steps=epochs)],
    )  # fmt: skip
    trainer.train()


class Prompts(torch.nn.Module):
    """Gives the tokens as they are, where TRL asks a reward model's layers for its hidden states."""

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(hidden_states=[input_ids])


class Checker(torch.nn.Module):
    """Scores as whelp's `CheckerReward` does, by the very same functions."""

    base_model_prefix = "prompts"

    def __init__(self, work: Work, tokenizer: Any):
        super().__init__()
        sys.path.insert(0, work["source"])
        self.prompts = Prompts()
        self.tokenizer = tokenizer
        self.checks = {tuple(prompt): check for prompt, check in zip(work["prompts"], work["checks"], strict=True)}
        self.header = work["header"]

    def score(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B T 1]: the score of a row at all of its positions."""
        scores = torch.tensor([self.of(row) for row in tokens.tolist()], device=tokens.device)
        return scores[:, None, None].expand(*tokens.shape, 1)

    def of(self, row: list[int]) -> float:
        from whelp.checkers import score
        from whelp.monitors.surface import repetition

        first = next(i for i, token in enumerate(row) if token != 0)  # TRL writes 0 where there is padding
        size = len(self.header)
        behind = next(i for i in range(first + size, len(row) + 1) if row[i - size : i] == self.header)
        answer = row[behind:]
        is_finished = self.tokenizer.eos_token_id in answer
        answer = answer[: answer.index(self.tokenizer.eos_token_id)] if is_finished else answer
        text = self.tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        check = self.checks[tuple(row[first:behind])]
        return 2.0 * score(check, text, is_finished) - 1.0 - repetition(text)


def learn(turns: Turns, work: Work, side: Work) -> None:
    """PPO by TRL's own defaults but for what both sides are given, and the penalty of cut-off answers, which its examples set. A
    turn is as many episodes as one of whelp's. The weights are float32: in bfloat16 such small steps would be lost."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(work["model"], padding_side="left")
    batch, turn = work["batch"], work["turn"] // work["batch"]
    config = PPOConfig(**trainer_settings(
        per_device_train_batch_size=MICRO, gradient_accumulation_steps=batch // MICRO, num_mini_batches=1,
        local_rollout_forward_batch_size=batch, num_ppo_epochs=4, response_length=work["response"],
        temperature=work["temperature"], num_sample_generations=0, stop_token="eos", kl_coef=work["kl_coef"],
        total_episodes=work["episodes"], learning_rate=side["learning_rate"], missing_eos_penalty=1.0, adam_beta2=0.999,
        bf16=work["dtype"] == "bfloat16",
    ))  # fmt: skip
    lora = lora_of(side)
    data = Dataset.from_list([{"input_ids": prompt} for prompt in work["prompts"]])
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=language_model(work, "float32"),
        ref_model=None if lora else language_model(work, "float32"), reward_model=Checker(work, tokenizer),
        value_model=scorer(work, "float32"),
        train_dataset=data, eval_dataset=data, peft_config=lora,
        callbacks=[InTurns(turns, turn, episodes=work["turn"])],
    )  # fmt: skip

    def save(folder: Path) -> None:
        policy = trainer.accelerator.unwrap_model(trainer.model).policy
        policy = deepcopy(policy).merge_and_unload() if lora else policy
        policy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    turns.save = save
    trainer.train()


KINDS: dict[str, Callable[[Turns, Work, Work], None]] = {
    "decode": decode,
    "forward": forward,
    "sft": train_sft,
    "reward": train_reward,
    "ppo": train_ppo,
    "learn": learn,
}


def main() -> None:
    turns = Turns()
    work, side = asked()
    torch.set_num_threads(work["threads"])
    torch.manual_seed(0)
    KINDS[work["kind"]](turns, work, side)


if __name__ == "__main__":
    main()
