"""Other rewards than the run's own model, through the whole stage: functions, sums, and a model with another tokenizer."""

from __future__ import annotations

import copy
import io
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pipeline_helpers import WORDS, changed, run, write_jsonl
from safetensors.torch import load_file
from test_stages_alone import only
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from hub_server import serving
from whelp import pipeline
from whelp.config import Recipe
from whelp.errors import ConfigError, DataError
from whelp.progress import PlainProgress, SilentProgress
from whelp.rewards.classifier import ClassifierReward
from whelp.rewards.model import ModelReward
from whelp.runs.metrics import MetricsLog
from whelp.text.chat import CHATML
from whelp.types import Completion, Message, Prompt

CODE = "def brief(completions):\n    return [-float(len(c.tokens)) for c in completions]\n"


def ppo_of(recipe: Recipe, reward: str, **ppo: object) -> Recipe:
    return only(changed(recipe, "ppo", reward=reward, missing_eos_penalty=None, **ppo), "ppo")


def logged(recipe: Recipe) -> list[dict[str, float]]:
    return MetricsLog.read(Path(recipe.output_dir) / "ppo" / "metrics.jsonl")


def scores(recipe: Recipe) -> list[float]:
    return [line["objective/scores"] for line in logged(recipe)]


def test_a_function_is_run_only_where_code_is_allowed(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"{CODE}\nfrom pathlib import Path\nPath({str(tmp_path / 'was_run')!r}).touch()\n")
    asked = ppo_of(recipe, f"{file}:brief")
    with pytest.raises(ConfigError, match=r"names Python code.*mine.py:brief.*--allow_code"):
        run(asked)
    assert "the run asks for --allow_code" in pipeline.plan(asked, SilentProgress()).notes[-1]
    assert not (tmp_path / "was_run").exists()
    pipeline.run(asked, ["whelp", "ppo"], False, SilentProgress(), allow_code=True)
    assert all(-6 <= score <= -1 for score in scores(asked))
    file.write_text(CODE.replace("-float", "2.0 - float"))
    again = pipeline.run(asked, ["whelp", "ppo"], False, SilentProgress(), allow_code=True)
    assert [cost.state for cost in again.costs] == ["ran"], "the code decides the result"
    assert max(scores(asked)) <= 1.0


def test_a_sum_adds_what_its_parts_say(recipe: Recipe, tmp_path: Path) -> None:
    """Of the first batch, before anything is learned: the very same answers are scored three ways."""
    file = tmp_path / "mine.py"
    file.write_text(CODE)
    run(only(recipe, "reward"))
    found = []
    for reward in ("model", f"{file}:brief", f"model - 0.5 * {file}:brief"):
        asked = ppo_of(recipe, reward, total_episodes=8)
        pipeline.run(asked, ["whelp", "ppo"], False, SilentProgress(), allow_code=True)
        found.append(scores(asked)[0])
    assert found[2] == pytest.approx(found[0] - 0.5 * found[1], abs=1e-4)


@pytest.mark.parametrize(("sign", "accuracy"), [(1, 1.0), (-1, 0.0)])
def test_the_reward_is_held_against_the_checks_of_the_policys_own_answers(
    recipe: Recipe, tmp_path: Path, sign: int, accuracy: float
) -> None:
    """The reward is what the check says, or its contrary."""
    file, prompts = tmp_path / "mine.py", tmp_path / "prompts.jsonl"
    file.write_text(
        "from whelp.checkers import passes\n\ndef f(completions):\n"
        f"    return [{sign} * float(passes(c.prompt.check, c.text, c.is_finished)) for c in completions]\n"
    )
    check = {"kind": "length", "any": [*"abcdefghijklmnopqrstuvwxyz"], "max_words": 2}
    write_jsonl(prompts, [{"prompt": f"talk of {w}", "check": check} for w in WORDS])
    asked = ppo_of(recipe, f"{file}:f", train_file=str(prompts), total_episodes=32)
    summary = pipeline.run(asked, ["whelp", "ppo"], False, SilentProgress(), allow_code=True)
    found = summary.results["ppo"]["on_policy"]
    assert [one["step"] for one in found] == [2, 4], "as often as a checkpoint is due"
    assert [one["accuracy"]["mean"] for one in found] == [accuracy, accuracy]


def test_a_preference_over_the_reference_levels_off(recipe: Recipe) -> None:
    run(only(recipe, "reward"))
    found = []
    for shaping in ("none", "preference"):
        asked = ppo_of(recipe, "model", shaping=shaping, total_episodes=8)
        run(asked)
        found.append(logged(asked)[0])
    gain = AutoConfig.from_pretrained(Path(recipe.output_dir) / "reward").reward_gain
    assert abs(found[1]["objective/scores"]) < 2 * gain
    assert found[1]["objective/scores"] != found[0]["objective/scores"]
    assert 0 < found[1]["objective/scores_std"] < 2 * gain


def test_normalized_scores_have_mean_0_and_spread_1(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def f(completions):\n    return [100.0 + 7 * sum(c.tokens) for c in completions]\n")
    asked = ppo_of(recipe, f"{file}:f", normalize_scores=True)
    pipeline.run(asked, ["whelp", "ppo"], False, SilentProgress(), allow_code=True)
    first = logged(asked)[0]
    assert first["objective/scores"] == pytest.approx(0.0, abs=1e-4)
    assert first["objective/scores_std"] == pytest.approx(1.0, abs=1e-4)
    assert all(abs(score) < 3 for score in scores(asked))


def test_a_shared_critic_goes_through_the_stage(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CODE)
    asked = ppo_of(recipe, f"{file}:brief", critic="shared", total_episodes=16)
    pipeline.run(asked, ["whelp", "ppo"], False, SilentProgress(), allow_code=True)
    assert "val/explained" in logged(asked)[-1]


def word_level(folder: Path) -> PreTrainedTokenizerFast:
    """Words of its own, with a chat template of its own."""
    names = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>", "user", "assistant", "hello", "fine", "the"]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"], chat_template=CHATML,
    )  # fmt: skip
    fast.save_pretrained(folder)
    return fast


def classifier_of(base: Path, folder: Path, **config: object) -> AutoModelForSequenceClassification:
    """A reward model with random weights, in the same family and of the same width as the model in `base`."""
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(folder)
    made = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, pad_token_id=1)
    torch.nn.init.normal_(made.score.weight, generator=torch.Generator().manual_seed(0))
    for name, value in config.items():
        setattr(made.config, name, value)
    made.save_pretrained(folder)
    return made.eval()


def turns_of(sample: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": sample["prompt"]},
        {"role": "assistant", "content": sample["completion"]},
    ]


def samples_scored_by(recipe: Recipe, folder: Path, words: str) -> list[dict]:
    """What PPO noted of its first answers, having said `words` of the reward model."""
    said = io.StringIO()
    asked = ppo_of(recipe, "model", reward_model=str(folder), total_episodes=16)
    pipeline.run(asked, ["whelp", "ppo"], False, PlainProgress(said))
    assert words in said.getvalue()
    before, after = (load_file(Path(f) / "model.safetensors") for f in (asked.model, Path(asked.output_dir) / "ppo"))
    assert any(not torch.equal(before[name], after[name]) for name in before if name in after)
    found = MetricsLog.read(Path(asked.output_dir) / "ppo" / "samples.jsonl")
    assert len({sample["score"] for sample in found}) > 2
    return found


def test_a_reward_model_of_whelp_with_another_tokenizer_reads_the_text(
    recipe: Recipe, tiny_model_folder, tmp_path: Path
) -> None:
    """The oracle is `transformers`' own classifier on its own template, up to the end of the answer's turn, and without it where
    the answer was cut off, as the policy's own tokens are."""
    other = tmp_path / "other"
    classifier = classifier_of(tiny_model_folder("qwen3", seed=3), other, reward_gain=1.0)
    fast = word_level(other)
    for sample in samples_scored_by(recipe, other, "has another tokenizer than the policy"):
        ids = fast.apply_chat_template(turns_of(sample), tokenize=True, return_dict=False)
        ids = ids[: len(ids) - list(reversed(ids)).index(fast.eos_token_id)]
        ids = ids if sample["finished"] else ids[:-1]
        with torch.no_grad():
            expected = float(classifier(input_ids=torch.tensor([ids])).logits)
        assert sample["score"] == pytest.approx(expected, abs=1e-4)


def exported_scores(folder: Path, ids: Sequence[int]) -> tuple[list[float], list[float]]:
    """What each member of an exported reward model makes of these tokens in `transformers`, less its recorded zero, and the
    variance of that by its posterior."""
    scores, variances = [], []
    for member, shift in enumerate(AutoConfig.from_pretrained(folder).reward_member_shifts):
        classifier = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
        if member:  # its own layers and score, under their names in the whole model
            weights = load_file(folder / f"member-{member}" / "model.safetensors")
            assert classifier.load_state_dict(weights, strict=False).unexpected_keys == []
        with torch.no_grad():
            outputs = classifier(input_ids=torch.tensor([list(ids)]), output_hidden_states=True)
        scores.append(float(outputs.logits) - shift)
        posterior = load_file(folder / (f"member-{member}" if member else "") / "posterior.safetensors")
        read = outputs.hidden_states[-1][0, -1] - posterior["mean"]
        variances.append(float(read @ posterior["root"] @ posterior["root"].T @ read))
    return scores, variances


@pytest.mark.parametrize(
    ("how", "joined"),
    [
        ("mean", lambda scores, _: statistics.mean(scores)),
        ("min", lambda scores, _: min(scores)),
        (
            "uncertainty",
            lambda scores, own: statistics.mean(scores) - 2.0 * (statistics.pvariance(scores) + statistics.mean(own)),
        ),
    ],
)
def test_the_scores_of_ppo_are_those_of_the_exported_members(
    how: str, joined, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Completion] = []
    honest = ModelReward.__call__
    monkeypatch.setattr(
        ModelReward, "__call__", lambda self, answers, held: read.extend(answers) or honest(self, answers, held)
    )
    several = changed(recipe, "reward", members=3)
    run(only(several, "sft", "reward"))
    run(ppo_of(several, "model", reward_aggregation=how, uncertainty_coef=2.0, total_episodes=16))
    folder = Path(recipe.output_dir)
    logged_samples = MetricsLog.read(folder / "ppo" / "samples.jsonl")
    assert len(logged_samples) >= 8
    for sample in logged_samples:
        [answer] = [c for c in read if (c.prompt.text, c.text) == (sample["prompt"], sample["completion"])]
        tokenizer = AutoTokenizer.from_pretrained(folder / "reward")
        turns = turns_of(sample)[:1]
        asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
        scores, variances = exported_scores(folder / "reward", [*asked, *answer.tokens])
        assert sample["score"] == pytest.approx(joined(scores, variances), rel=1e-4, abs=1e-4)
        assert max(scores) - min(scores) > 1e-3, "the members differ, so that the way they are joined shows"
        assert min(variances) > 1e-3, "and doubt their own"


SHOUTED = "{% for m in messages %}{{ 'the ' + m['role'] + ' ' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
"""A newline behind the last turn is read too: which token counts is the classifier's choice, not whelp's."""


@pytest.mark.parametrize(
    "kind", ["another tokenizer", "the policy's vocabulary", "a family that cannot be cut", "no template"]
)
def test_a_reward_model_of_others_scores_as_transformers_runs_it(
    kind: str, recipe: Recipe, tiny_model_folder, tiny_tokenizer, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    torch.manual_seed(0)
    match kind:
        case "another tokenizer":
            classifier_of(tiny_model_folder("qwen3", seed=3), other)
            fast = word_level(other)
            fast.chat_template = SHOUTED
        case "the policy's vocabulary":
            classifier_of(tiny_model_folder("llama", seed=3), other)
            fast = copy.deepcopy(tiny_tokenizer)
            fast.chat_template = SHOUTED
        case _:
            family = "gpt_neox" if kind != "no template" else "bert"
            fast = word_level(other)
            (other / "chat_template.jinja").unlink()
            fast.chat_template = None if kind == "no template" else SHOUTED
            config = AutoConfig.for_model(
                family, vocab_size=len(fast), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                intermediate_size=32, num_labels=1, pad_token_id=1, initializer_range=0.5,
            )  # fmt: skip
            AutoModelForSequenceClassification.from_config(config).save_pretrained(other)
    fast.save_pretrained(other)
    classifier = AutoModelForSequenceClassification.from_pretrained(other).eval()
    for sample in samples_scored_by(recipe, other, "was not made by whelp"):
        if kind == "no template":
            inputs = fast(sample["prompt"], sample["completion"], return_tensors="pt")
        else:
            inputs = fast.apply_chat_template(turns_of(sample), return_tensors="pt", return_dict=True)
        with torch.no_grad():
            assert sample["score"] == pytest.approx(float(classifier(**inputs).logits), abs=1e-4)


def test_a_long_conversation_keeps_the_token_that_a_classifier_reads(tmp_path: Path) -> None:
    """BERT's head reads [CLS]; `transformers` itself is asked about [CLS] and the last tokens."""
    fast = word_level(tmp_path)
    fast.chat_template = None
    start, end = fast.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<|im_start|> $A <|im_end|>", "<|im_start|> $A <|im_end|> $B:1 <|im_end|>:1",
        [("<|im_start|>", start), ("<|im_end|>", end)],
    )  # fmt: skip
    config = AutoConfig.for_model(
        "bert", vocab_size=len(fast), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        num_labels=1, pad_token_id=1, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    classifier = AutoModelForSequenceClassification.from_config(config).eval()
    answer = Completion(Prompt("p", (Message("user", "hello fine the " * 5),)), "the fine hello fine", (), (), True)
    whole = fast("hello fine the " * 5, answer.text, return_tensors="pt")
    assert whole["input_ids"][0, 0] == start
    cut = {key: torch.cat([value[:, :1], value[:, -9:]], 1) for key, value in whole.items()}
    with torch.no_grad():
        expected, headless = (
            float(classifier(**inputs).logits)
            for inputs in (cut, {key: value[:, -10:] for key, value in whole.items()})
        )
    [score] = ClassifierReward(classifier, fast, 10)([answer], None).tolist()
    assert score == pytest.approx(expected, abs=1e-5)
    assert score != pytest.approx(headless, abs=1e-2)


def test_a_template_that_refuses_a_conversation_is_named(tmp_path: Path) -> None:
    fast = word_level(tmp_path)
    fast.chat_template = "{{ raise_exception('no system turns here') }}"
    asked = Prompt("p", (Message("system", "the"), Message("user", "hello")))
    with pytest.raises(DataError, match="refuses a conversation of the turns system, user, assistant: no system turns"):
        ClassifierReward(None, fast, 10).encode(Completion(asked, "fine", (), (), True))


def test_a_reward_model_may_start_from_a_base_with_another_tokenizer(
    recipe: Recipe, tiny_model_folder, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    AutoModelForCausalLM.from_pretrained(tiny_model_folder("qwen3", seed=3)).save_pretrained(other)
    word_level(other)
    said = io.StringIO()
    apart = changed(recipe, "reward", model=str(other))
    asked = only(changed(apart, "ppo", total_episodes=16, reward="model"), "sft", "reward", "ppo")
    pipeline.run(asked, ["whelp", "run"], False, PlainProgress(said))
    assert "its unit is the spread of the ranked answers" in said.getvalue()
    assert "has another tokenizer than the policy: it reads the answers' text" in said.getvalue()
    assert len(logged(asked)) == 2


@pytest.mark.proof
def test_a_reward_model_of_the_hub_is_named_by_its_id(
    recipe: Recipe, tiny_model_folder, tiny_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, which finds its hub on localhost."""
    other = tmp_path / "other"
    classifier_of(tiny_model_folder("llama", seed=3), other)
    tiny_tokenizer.save_pretrained(other)
    asked = ppo_of(recipe, "model", reward_model="owner/tiny", total_episodes=16)
    (tmp_path / "recipe.json").write_text(asked.model_dump_json())
    with serving(other, "models", tmp_path / "cache", monkeypatch) as hub:
        command = [sys.executable, "-m", "whelp", "ppo", str(tmp_path / "recipe.json")]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert any(path.endswith("/model.safetensors") for path in hub.asked)
    assert "was not made by whelp" in said.stdout + said.stderr
    assert len(logged(asked)) == 2


def test_a_critic_knows_nothing_before_it_learns(recipe: Recipe) -> None:
    """It starts from the reward model's layers and not from its head, which before an answer's end says nothing of worth."""
    run(only(recipe, "reward"))
    asked = ppo_of(recipe, "model", num_generations=1, normalize_scores=True)
    run(asked)
    first = logged(asked)[0]
    assert first["objective/scores_std"] > 0.5, "there is something to explain"
    assert first["val/explained"] == pytest.approx(0.0, abs=1e-6)
