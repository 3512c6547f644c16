"""A reward as a recipe writes it: sums, and functions of the user's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch

from whelp.engines.base import SamplingParams
from whelp.errors import ConfigError, DataError
from whelp.recipes import load_recipe
from whelp.rewards.compose import AgainstReference, FunctionReward, WeightedSum, load_function
from whelp.rewards.formula import functions, parse
from whelp.rewards.model import ModelReward, TextReward
from whelp.text.chat import Chat
from whelp.types import Completion, Message, Prompt, Sequences

PROMPT = Prompt("p", (Message("user", "go"),))


def completions(*texts: str) -> list[Completion]:
    return [Completion(PROMPT, text, (1,), (0.0,), True, i) for i, text in enumerate(texts)]


class Scores:
    """An engine whose ensemble has given its scores, and how much each member doubts its own."""

    def __init__(self, scores: torch.Tensor, variance: torch.Tensor):
        self.scores, self.variance = scores, variance

    def rewards(self, name: str, held: object) -> torch.Tensor:
        return self.scores

    def reward_variance(self, name: str, held: object) -> torch.Tensor:
        return self.variance


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", [1.0, 0.0]), ("min", [0.5, -3.0]), ("uncertainty", [0.975 - 0.03, -0.9 - 0.2])]
)
def test_members_are_joined_from_zeros_of_their_own(how: str, expected: list[float]) -> None:
    """Both members think the first answer good; they are at odds over the second, and the first member doubts its own more."""
    engine = Scores(torch.tensor([[11.5, 13.0], [0.5, -3.0]]), torch.tensor([[0.5, 4.0], [0.1, 0.0]]))
    reward = ModelReward(engine, "reward", torch.tensor([10.0, 0.0]), how, 0.1)
    assert reward(completions("a", "b"), None).tolist() == pytest.approx(expected, abs=1e-6)


class ReferenceSampler:
    """An engine whose reference gives each prompt one answer, and which holds what it is given."""

    def __init__(self, answers: dict[str, Completion]):
        self.answers = answers
        self.asked: list[list[str]] = []

    def sample(self, model: str, prompts: list[Prompt], params: SamplingParams) -> Iterator[Completion]:
        assert (model, params.n) == ("reference", 1)
        self.asked.append([prompt.id for prompt in prompts])
        yield from (self.answers[prompt.id] for prompt in reversed(prompts))  # in the order in which they finish

    @contextmanager
    def hold(self, sequences: Sequences) -> Iterator[Sequences]:
        yield sequences


@pytest.mark.parametrize(("as_sampled", "is_finished", "ends"), [(True, True, 1), (True, False, 0), (False, False, 1)])
def test_a_cut_off_answer_ends_as_what_reads_it_was_taught(
    as_sampled: bool, is_finished: bool, ends: int, chat: Chat
) -> None:
    read: list[Sequences] = []

    class Reader:
        def hold(self, sequences: Sequences) -> nullcontext[Sequences]:
            read.append(sequences)
            return nullcontext(sequences)

        def rewards(self, name: str, held: Sequences) -> torch.Tensor:
            return torch.zeros(1, len(held))

    answer = Completion(Prompt("p", (Message("user", "Hello"),)), " I am fine", (), (), is_finished)
    TextReward(ModelReward(Reader(), "reward", torch.zeros(1)), chat, as_sampled)([answer], None)
    [tokens], [mask] = read[0].tokens, read[0].is_response
    written = [token for token, is_response in zip(tokens, mask, strict=True) if is_response]
    assert written.count(chat.tokenizer.eos_token_id) == ends
    assert chat.decode(written).strip() == "I am fine"


def test_an_answer_is_held_against_the_references_to_its_prompt(chat: Chat) -> None:
    prompts = [Prompt(id, (Message("user", id),)) for id in "ab"]
    references = {p.id: Completion(p, "", tuple(range(5, 8 + i)), (0.0,), True) for i, p in enumerate(prompts)}
    answers = [Completion(prompts[i % 2], "", (5,) * (1 + i), (0.0,), True, i // 2) for i in range(4)]
    worth = {3: 2.0, 4: -1.0, 1: 2.0, 2: 5.0}  # by how many tokens

    def by_length(completions: list[Completion], held: Sequences) -> torch.Tensor:
        assert held is None or held.response_lengths == [len(c.tokens) for c in completions]
        return torch.tensor([worth[len(c.tokens)] for c in completions])

    engine = ReferenceSampler(references)
    reward = AgainstReference(by_length, 0.8, engine, chat, SamplingParams())  # type: ignore[arg-type]
    found = reward(answers, None)  # type: ignore[arg-type]
    assert engine.asked == [["a", "b"]], "each prompt once"
    ahead = [2.0 - 2.0, 5.0 + 1.0, 2.0 - 2.0, -1.0 + 1.0]
    expected = [0.8 * (4 / (1 + math.exp(-gap / 0.8)) - 2) for gap in ahead]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    assert found[0] == found[2] == found[3] == 0


@pytest.mark.parametrize(
    ("formula", "weights"),
    [
        ("model", {"model": 1.0}),
        ("0.5*checker", {"checker": 0.5}),
        (
            " model + 0.5 * checker - 2e-1 * my/rewards.py:brief ",
            {"model": 1.0, "checker": 0.5, "my/rewards.py:brief": -0.2},
        ),
        ("- .5 * model + checker", {"model": -0.5, "checker": 1.0}),
        ("-1 * model", {"model": -1.0}),
        ("a-b.py:c", {"a-b.py:c": 1.0}),
    ],
)
def test_a_formula_is_read(formula: str, weights: dict[str, float]) -> None:
    assert parse(formula) == pytest.approx(weights)


@pytest.mark.parametrize(
    ("formula", "fault"),
    [
        (" - ", "'-' is no reward"),
        ("modle", "'modle' is no reward"),
        ("model+checker", "'model\\+checker' is no reward"),
        ("model + ", "'model \\+' is no reward"),
        ("model + model", "model stands twice"),
        ("0 * model", "model has the weight 0"),
        ("1e999 * model", "model has the weight 1e999"),
        ("rewards.py", "'rewards.py' is no reward"),
        ("model checker", "'model checker' is no reward"),
    ],
)
def test_a_bad_formula_is_named(formula: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse(formula)
    with pytest.raises(ConfigError, match=r"ppo.reward.*expected model, checker, .*FILE.py:FUNCTION"):
        load_recipe("assistant", [f"ppo.reward={formula}"])


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"there is no file 'gone.py'"):
        load_recipe("assistant", ["ppo.reward=model + gone.py:f"])


def test_functions_are_found() -> None:
    assert functions(parse("model - 0.1 * a.py:f + b.py:g")) == ["a.py:f", "b.py:g"]


def test_a_sum_weighs_its_parts() -> None:
    parts = [(2.0, lambda c, held: torch.tensor([1.0, 3.0])), (-0.5, lambda c, held: torch.tensor([4.0, 0.0]))]
    assert WeightedSum(parts)(completions("a", "b"), None).tolist() == [0.0, 6.0]  # type: ignore[arg-type]


def test_a_function_of_a_file_scores(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def words(completions):\n    return [len(c.text.split()) for c in completions]\n")
    reward = load_function(f"{file}:words")
    assert reward(completions("a b", "c"), None).tolist() == [2.0, 1.0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f(completions):\n    return 1 / 0\n", "f failed: ZeroDivisionError: division by zero"),
        ("def f(completions):\n    return [1.0]\n", r"returned a shape of \(1,\) for 2 completions"),
        ("def f(completions):\n    return [[1.0], [2.0]]\n", r"a shape of \(2, 1\) for 2"),
        ("def f(completions):\n    return [1.0, float('nan')]\n", r"returned nan for 'b' \(1 of 2 are not finite\)"),
        ("def f(completions):\n    return None\n", "f failed: "),
    ],
)
def test_what_a_function_does_wrong_is_named(tmp_path: Path, code: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    with pytest.raises(DataError, match=message):
        load_function(f"{file}:f")(completions("a", "b"), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("f = 1\n", "has no function f"),
        ("def f(:\n", "cannot be run: SyntaxError"),
        ("import nothing_at_all", "ModuleNotFoundError"),
    ],
)
def test_a_file_without_the_function_is_named(tmp_path: Path, code: str, message: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    with pytest.raises(DataError, match=message):
        load_function(f"{file}:f")


def test_scores_of_a_tensor_pass_through() -> None:
    reward = FunctionReward("f", lambda c: torch.arange(len(c)))  # type: ignore[arg-type,return-value]
    assert reward(completions("a", "b"), None).tolist() == [0.0, 1.0]  # type: ignore[arg-type]
