"""What a run will cost, before anything is spent: a rough guess from token counts and the speed of this machine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from whelp.config import Recipe
from whelp.constitution import ranked
from whelp.jobs import JUDGE_EPOCHS, jobs_of, parts_of
from whelp.preflight import scored_by
from whelp.rewards.formula import functions
from whelp.runs.files import nearest_existing, read_json
from whelp.runs.manifest import kind_of
from whelp.scaling import shape_of
from whelp.splits import has_judge
from whelp.stages.reward import POSTERIOR_RANKINGS
from whelp.text.formats import read_demonstrations, read_prompts
from whelp.training import MEASURED_RANKINGS
from whelp.types import Ranking
from whelp.workplace import Workplace

TOKENS_PER_WORD = 1.35
BOOTSTRAPPED = 0.632
"""Share of the prompts that a member of an ensemble learns from."""
PROMPT_TOKENS = 30
ASKED_TOKENS = 60
"""In what a principle asks."""
OVERHEAD, OVERHEAD_IN_FLOAT32 = 1.7, 1.2
"""Heads, softmax over the vocabulary, optimizer, Python, as a multiple of the layers: they weigh more where layers are fast. The
default's stages took 1.0 to 1.4 times their layers in float32, and 1.4 to 2 times in bfloat16."""
MEASURED_LAYERS = 2
MEASURED_ROWS = 16
MEASURED_TOKENS = 80


@dataclass(frozen=True, slots=True)
class Plan:
    rows: Sequence[tuple[str, str, float, float, float, str]]
    """(stage, what, minutes, memory in MB, disk in MB, state)."""
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Speed:
    """FLOP a second that layers of this model reach on this machine."""

    forward: float
    train: float
    decode: float
    """One token a row, 64 rows, without a cache to read."""


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters of a model, as far as its config tells."""

    hidden: int
    layer: float
    head: float
    layers: int
    trainable: int
    lora_rank: int = 0

    @property
    def own(self) -> float:
        """What each role has for itself: its branch, or adapters, as large as those of square maps."""
        return self.branch * (min(1.0, 2 * self.lora_rank / self.hidden) if self.lora_rank else 1.0)

    @property
    def trunk(self) -> float:
        return self.layer * (self.layers - self.trainable)

    @property
    def branch(self) -> float:
        return self.layer * self.trainable

    @property
    def total(self) -> float:
        return self.layer * self.layers + self.head


def plan(recipe: Recipe, place: Workplace) -> Plan:
    """Minutes, memory and disk of every stage that would run; `place` knows the run directory and the machine."""
    size = size_of(place.base, recipe)
    speed = speed_of(place, size)
    overhead = OVERHEAD_IN_FLOAT32 if str(place.compute.dtype) == "torch.float32" else OVERHEAD
    rows = []
    for job in jobs_of(recipe):
        state = _state(place, job.name, parts_of(job, place)[0])
        kind = kind_of(job.name)
        its = replace(size, trainable=_sft_layers(recipe, size)) if kind == "sft" else size
        seconds, sequences = ESTIMATES[kind](recipe, place.at(job.round), its, speed)
        minutes = 0.0 if state == "unchanged" else overhead * seconds / 60
        rows.append((job.name, job.what, minutes, _memory(its, sequences), _disk(its, kind), state))
    if "report" in recipe.stages:
        rows.append(("report", "one page, from what the stages left", 0.1, 300.0, 2.0, "runs"))
    free = shutil.disk_usage(nearest_existing(place.run.path)).free / 1e6
    notes = [f"device: {place.compute.why}", f"disk: {free:,.0f} MB free under {place.run.path}"]
    needed = sum(row[4] for row in rows if row[5] != "unchanged")
    if needed > free:
        notes.append(f"NOT ENOUGH DISK: about {needed:,.0f} MB are needed")
    code = [name for rewards in scored_by(recipe).values() for name in functions(rewards)]
    code += recipe.audit.probes if "audit" in recipe.stages else ()
    if code and not place.allow_code:
        notes.append(f"the run asks for --allow_code, for it runs {', '.join(code)}")
    return Plan(rows, notes)


def speed_of(place: Workplace, size: Size) -> Speed:
    """Measured on a few layers of the model's shape with random weights, in the format the run computes in."""
    import torch
    from transformers import AutoConfig, AutoModel

    compute = place.compute
    if compute.device.type == "cpu":
        torch.set_num_threads(compute.threads)
    config = AutoConfig.from_pretrained(place.base)
    text = config.get_text_config()
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = MEASURED_LAYERS, 64, None
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:MEASURED_LAYERS]
    model = AutoModel.from_config(text, dtype=compute.dtype).to(compute.device)
    batch = torch.zeros(MEASURED_ROWS, MEASURED_TOKENS, dtype=torch.long, device=compute.device)
    step = torch.zeros(64, 1, dtype=torch.long, device=compute.device)

    def train() -> None:
        model(input_ids=batch, use_cache=False).last_hidden_state.float().sum().backward()

    def forward(tokens: torch.Tensor) -> None:
        with torch.no_grad():
            float(model(input_ids=tokens, use_cache=False).last_hidden_state[0, 0, 0])

    flops = 2 * size.layer * MEASURED_LAYERS
    return Speed(
        forward=flops * batch.numel() / _best_time(lambda: forward(batch)),
        train=3 * flops * batch.numel() / _best_time(train),
        decode=flops * step.numel() / _best_time(lambda: forward(step)),
    )


def _best_time(work: Callable[[], None]) -> float:
    """Seconds, the least of a few tries after one to warm up."""
    work()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def size_of(folder: Path, recipe: Recipe) -> Size:
    shape = shape_of(read_json(folder / "config.json"))
    trainable = shape.layers if recipe.trainable_layers == "all" else min(shape.layers, int(recipe.trainable_layers))
    return Size(shape.hidden, shape.layer, shape.table, shape.layers, trainable, recipe.lora_rank)


def _train(size: Size, speed: Speed, tokens: float, response: float, epochs: float) -> float:
    """Seconds to train an LM branch on trunk outputs that are there: forward and backward in every epoch."""
    return epochs * (6 * size.branch * tokens + 4 * size.head * response) / speed.train


def _sft(recipe: Recipe, place: Workplace, size: Size, speed: Speed) -> tuple[float, float]:
    records = read_demonstrations(recipe.sft.train_file).records
    words = sum(len(m.content.split()) for d in records for m in d.messages)
    tokens = words * TOKENS_PER_WORD + 10 * len(records)
    steps = -(-len(records) // recipe.sft.per_step_batch_size) * recipe.sft.num_train_epochs
    epochs = recipe.sft.num_train_epochs * min(1.0, (recipe.sft.max_steps or steps) / steps)
    trunk = 2 * size.trunk * tokens * min(1.0, epochs) / speed.forward
    return trunk + _train(size, speed, tokens, 0.7 * tokens, epochs), tokens


def _sft_layers(recipe: Recipe, size: Size) -> int:
    return size.layers if recipe.sft_layers == "all" else min(size.layers, recipe.sft_layers)


def _reward(recipe: Recipe, place: Workplace, size: Size, speed: Speed) -> tuple[float, float]:
    split = place.rankings
    labelled = place.round * _labelled(recipe, place)
    people = ranked(recipe.constitution, split.train) if place.has_feedback else split.train
    pairs = _pairs(recipe, place) if place.has_feedback else 0.0
    learned = _ranked_tokens(people) + _answers(recipe, labelled, recipe.rounds.num_generations, size, speed)[2]
    learned += 2 * pairs * (PROMPT_TOKENS + 0.7 * recipe.constitution.max_new_tokens)
    seconds, tokens = _preferences(recipe, round(len(people) + pairs), learned, split.held_out, 1, size, speed)
    curve = recipe.reward.learning_curve
    if again := recipe.reward.shuffles + sum(curve) + bool(curve and not recipe.reward.is_like_its_controls):
        once = 6 * size.branch * learned * recipe.reward.num_train_epochs / speed.train
        seconds += again * once + 2 * size.trunk * tokens / speed.forward  # one pass of the trunk serves them all
    return seconds, tokens


def _labeller(recipe: Recipe, place: Workplace, size: Size, speed: Speed) -> tuple[float, float]:
    split = place.rankings
    return _preferences(recipe, len(split.train), _ranked_tokens(split.train), split.held_out, 1, size, speed)


def _judge(recipe: Recipe, place: Workplace, size: Size, speed: Speed) -> tuple[float, float]:
    split = place.rankings
    learned = split.held_out
    return _preferences(recipe, len(learned), _ranked_tokens(learned), split.train, JUDGE_EPOCHS, size, speed)


def _preferences(
    recipe: Recipe,
    count: int,
    learned: float,
    held_out: Sequence[Ranking],
    epochs: int,
    size: Size,
    speed: Speed,
) -> tuple[float, float]:
    """The `learned` tokens of `count` rankings and what is held out are both scored, the first are also trained on."""
    config = recipe.reward
    epochs *= config.num_train_epochs
    steps = -(-count // config.per_step_batch_size) * epochs
    passes = epochs * min(1.0, (config.max_steps or steps) / steps)
    learned *= min(1.0, passes)  # what no step needs is not read
    measured = min(1.0, MEASURED_RANKINGS / max(1, len(held_out))) if has_judge(recipe) else 1.0
    train = (1 + config.negatives) * learned
    test = measured * _ranked_tokens(held_out)
    branches = 1 if config.members == 1 else config.members * BOOTSTRAPPED
    branch = 6 * size.branch * train * max(1.0, passes) * branches / speed.train
    fitted = min(1.0, POSTERIOR_RANKINGS / max(1, count)) * learned * config.members
    scored = 2 * (size.trunk + size.branch) * (train + test) + 2 * size.branch * fitted
    return scored / speed.forward + branch, max(train, test)


def _ranked_tokens(rankings: Sequence[Ranking]) -> float:
    """What the answers to a prompt begin with is computed once."""
    words = sum(len(text.split()) for r in rankings for text in (r.prompt.text, *r.completions))
    return words * TOKENS_PER_WORD + 10 * len(rankings)


def _dpo(recipe: Recipe, place: Workplace, size: Size, speed: Speed) -> tuple[float, float]:
    """As a reward model, but every answer's words are scored by the policy and its reference."""
    records = place.rankings.loaded.records
    tokens = _ranked_tokens(records)
    share, response = len(place.rankings.train) / len(records), 0.7 * tokens
    scoring = (2 * size.trunk + 2 * 2 * size.branch) * tokens + 2 * 2 * size.head * response
    steps = max(1, -(-int(share * len(records)) // recipe.dpo.per_step_batch_size) * recipe.dpo.num_train_epochs)
    epochs = recipe.dpo.num_train_epochs * min(1.0, (recipe.dpo.max_steps or steps) / steps)
    return scoring / speed.forward + share * _train(size, speed, tokens, response, epochs), tokens


def _answers(recipe: Recipe, prompts: float, each: int, size: Size, speed: Speed) -> tuple[float, float, float]:
    """(seconds to sample, tokens of the answers, tokens with their prompts) of so many answers to each of so many prompts, as PPO
    samples them."""
    response, asked = prompts * each * recipe.ppo.response_length * 0.5, prompts * PROMPT_TOKENS
    return 2 * size.total * (response / speed.decode + asked / speed.forward), response, asked + response


def _labelled(recipe: Recipe, place: Workplace) -> int:
    """Prompts that a round ranks answers to."""
    return min(recipe.rounds.prompts, len(place.prompts.records))


def _label(recipe: Recipe, place: Workplace, size: Size, speed: Speed) -> tuple[float, float]:
    """The answers are scored by the reward model that the policy learned from, and by what ranks them."""
    seconds, _, tokens = _answers(recipe, _labelled(recipe, place), recipe.rounds.num_generations, size, speed)
    scored = 2 if recipe.rounds.label_model else 1
    return seconds + scored * 2 * size.total * tokens / speed.forward, tokens


def _revise(recipe: Recipe, place: Workplace, size: Size, speed: Speed) -> tuple[float, float]:
    """An answer, and a critique and a revision a round; each reads what was said before it."""
    config, count = recipe.constitution, len(place.red_team.records)
    turns = 1 + 2 * config.rounds
    written = count * turns * config.max_new_tokens * 0.7
    read = count * (turns * PROMPT_TOKENS + 2 * config.rounds * (config.max_new_tokens + ASKED_TOKENS))
    return 2 * size.total * (written / speed.decode + read / speed.forward), 0


def _pairs(recipe: Recipe, place: Workplace) -> float:
    """That a judge labels."""
    answers = recipe.constitution.num_generations
    return len(place.red_team.records) * answers * (answers - 1) / 2


def _feedback(recipe: Recipe, place: Workplace, size: Size, speed: Speed) -> tuple[float, float]:
    """Answers, and every two of them judged in both orders; an endpoint's time is not known."""
    config, count = recipe.constitution, len(place.red_team.records)
    answer = PROMPT_TOKENS + config.max_new_tokens * 0.7
    written = count * config.num_generations * config.max_new_tokens * 0.7
    pairs = _pairs(recipe, place) * config.principles_per_label
    each = {"reward": 0.0, "endpoint": 0.0, "choice": 2 * answer + ASKED_TOKENS, "verdict": answer + ASKED_TOKENS}
    thought = 2 * pairs * config.max_new_tokens * 0.7 if config.thinking and config.judge == "choice" else 0.0
    read = 2 * (pairs + config.trust_pairs) * each[config.judge] * (1 + config.examples)
    read += count * config.num_generations * answer * (2 if config.judge == "reward" else 1)
    return 2 * size.total * ((written + thought) / speed.decode + read / speed.forward), 0


def _ppo(recipe: Recipe, place: Workplace, size: Size, speed: Speed) -> tuple[float, float]:
    config = recipe.ppo
    prompts = config.total_episodes / config.num_generations
    decode, response, tokens = _answers(recipe, prompts, config.num_generations, size, speed)
    roles = 4 if config.second_opinion is None else 5
    scoring = (2 * size.trunk + roles * 2 * size.branch) * tokens + 2 * 2 * size.head * response
    if config.shaping == "preference":  # an answer of the SFT model to each prompt
        more, _, reference = _answers(recipe, prompts, 1, size, speed)
        decode, scoring = decode + more, scoring + 2 * (size.trunk + size.branch) * reference
    value = 6 * size.branch * tokens * config.num_ppo_epochs / speed.train if config.advantage == "gae" else 0.0
    policy = _train(size, speed, tokens, response, config.num_ppo_epochs)
    return decode + scoring / speed.forward + value + policy, config.batch_size * (
        config.response_length + PROMPT_TOKENS
    )


def _evaluate(recipe: Recipe, place: Workplace, size: Size, speed: Speed) -> tuple[float, float]:
    config = recipe.evaluate
    count = len(read_prompts(config.prompts).records)
    count = min(count, config.max_prompts or count)
    models = 1 + len({"sft", "ppo", "dpo"} & set(recipe.stages))
    answers = models * count * (1 + config.samples) + 64
    response = answers * config.max_new_tokens * 0.7
    return 2 * size.total * (response / speed.decode + answers * PROMPT_TOKENS / speed.forward), 0


AUDITED = 36
"""Answers that the probes make of a case, about."""


def _audit(recipe: Recipe, place: Workplace, size: Size, speed: Speed) -> tuple[float, float]:
    """Every probe in every dose, and two policies' greedy answers."""
    texts = AUDITED * recipe.audit.max_cases
    if "evaluate" in recipe.stages and recipe.audit.reward_model is None:
        texts += 2 * min(len(place.evaluation.records), recipe.evaluate.max_prompts or len(place.evaluation.records))
    return 2 * size.total * 2 * PROMPT_TOKENS * texts / speed.forward, 0


def _memory(size: Size, held_tokens: float) -> float:
    """Libraries, one copy of the model, four branches, optimizer state of two, and held activations."""
    held = 2 * held_tokens * size.hidden
    copies = 2 * size.branch if size.lora_rank else 0.0  # the reward model's layers are not the policy's
    return 700 + (2 * size.total + copies + 4 * 2 * size.own + 2 * 12 * size.own + held) / 1e6 + 600


def _disk(size: Size, stage: str) -> float:
    model = 2 * size.total / 1e6
    checkpoint = 24 * size.own / 1e6 if stage == "ppo" else 12 * size.own / 1e6
    return 5.0 if stage in ("evaluate", "audit", "label", "revise", "feedback") else model + checkpoint


def _state(place: Workplace, name: str, parts: dict) -> str:
    kind = place.run.stage_state(name, parts).kind
    return {"done": "unchanged", "changed": "runs again", "partial": "resumes", "new": "runs"}[kind]


ESTIMATES: dict[str, Callable[[Recipe, Workplace, Size, Speed], tuple[float, float]]] = {
    "sft": _sft,
    "reward": _reward,
    "judge": _judge,
    "labeller": _labeller,
    "revise": _revise,
    "feedback": _feedback,
    "label": _label,
    "ppo": _ppo,
    "dpo": _dpo,
    "evaluate": _evaluate,
    "audit": _audit,
}
"""Seconds of a stage's layers, and the tokens that it holds."""
