"""The peer's side of `peer.py`: TRL's PPO trains in the exact world. Runs in an environment of its own, without whelp.

    python peer_trl.py WORLD SETTINGS OUT

WORLD holds the model and world.json (prompts as tokens, answers, rewards); SETTINGS is JSON; the trained model and the logged
metrics go to OUT. With the setting "start", the folder of another model that is leashed to the first, one step of plain
gradient descent is taken, and its cosine with the exact gradient of the KL is logged.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

import torch
from datasets import Dataset
from exact_gradient import cosine, kl_gradient
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Identity(nn.Module):
    """The tokens as hidden states, so that the head can look the whole answer up."""

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=[input_ids[..., None].float()])


class TableReward(nn.Module):
    """The world's rewards as a model: the score of a row stands at all of its places."""

    base_model_prefix = "backbone"

    def __init__(self, world: dict, pad: int):
        super().__init__()
        self.backbone = Identity()
        self.world, self.pad = world, pad
        self.answers = {tuple(answer): i for i, answer in enumerate(world["answers"])}
        self.prompts = {tuple(prompt): i for i, prompt in enumerate(world["prompts"])}

    def score(self, hidden: Tensor) -> Tensor:
        scores = [self.of(row) for row in hidden[..., 0].long().tolist()]
        return torch.tensor(scores)[:, None, None].expand(-1, hidden.shape[1], 1)

    def of(self, row: list[int]) -> float:
        """A row is padded on the left, and its answer is short where all answers of a batch are."""
        row = row[next(i for i, token in enumerate(row) if token != self.pad) :]
        prompt = next(prompt for prompt in self.prompts if tuple(row[: len(prompt)]) == prompt)
        answer, end = row[len(prompt) :], self.world["end"]
        answer = answer[: answer.index(end) + 1] if end in answer else answer
        return self.world["rewards"][self.prompts[prompt]][self.answers[tuple(answer)]]


class Critic(nn.Module):
    """A copy of the policy with a linear head, from 0."""

    base_model_prefix = "backbone"

    def __init__(self, folder: Path):
        super().__init__()
        self.backbone = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).model
        self.score = nn.Linear(self.backbone.config.hidden_size, 1, bias=False)
        nn.init.zeros_(self.score.weight)


def without(token: int) -> Any:
    """A hook that makes a language model never say `token`: TRL takes a pad token for the end of an answer."""

    def hide(module: nn.Module, inputs: object, output: Any) -> Any:
        output.logits[..., token] = -1e4
        return output

    return hide


def main() -> None:
    folder, settings, out = Path(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    world = json.loads((folder / "world.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    start, plain = settings.pop("start", folder), None
    policy, reference = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (start, folder))
    if start != folder:
        plain = torch.optim.SGD(policy.parameters(), lr=settings["learning_rate"])
        for model in (policy, reference):
            model.register_forward_hook(without(tokenizer.pad_token_id))
    batch, minibatch = settings.pop("batch_size"), settings.pop("mini_batch_size")
    rows = [{"input_ids": prompt} for prompt in world["prompts"]] * (batch // len(world["prompts"]))
    # With gradients accumulated over micro-batches TRL takes one step a batch, whatever num_mini_batches says: hence none.
    config = PPOConfig(
        output_dir=str(out / "trainer"), per_device_train_batch_size=batch, num_mini_batches=batch // minibatch,
        local_rollout_forward_batch_size=batch,
        response_length=world["response_length"], stop_token="eos", temperature=1.0, report_to=[], bf16=False,
        use_cpu=True, gradient_checkpointing=False, num_sample_generations=0, save_strategy="no", eval_strategy="no",
        logging_steps=1, disable_tqdm=True, **settings,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=config, processing_class=tokenizer, model=policy, ref_model=reference,
        reward_model=TableReward(world, tokenizer.pad_token_id), value_model=Critic(folder),
        train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows[:4]), optimizers=(plain, None),
    )  # fmt: skip
    log = trainer.state.log_history
    if plain is not None:
        answers = [answer for answer in world["answers"] if tokenizer.pad_token_id not in answer]
        exact = kl_gradient(policy, reference, list(policy.parameters()), world["prompts"], answers, world["end"])
        before = [parameter.detach().clone() for parameter in policy.parameters()]
    trainer.train()
    if plain is not None:
        step = [b - a.detach() for a, b in zip(policy.parameters(), before, strict=True)]
        log = [{"cosine": cosine(step, exact)}]
    policy.save_pretrained(out)
    (out / "log.json").write_text(json.dumps(log))


if __name__ == "__main__":
    main()
