"""Actors on Ray give the numbers of one process, whichever of them dies. (Ray is installed by hand: pip install 'whelp[ray]'.)"""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ranks
from test_ranks import alone, assert_alike, assert_same_files

from whelp.engines.base import ModelSpec, SamplingParams
from whelp.engines.devices import Compute
from whelp.errors import RunError
from whelp.models.loading import load_tokenizer
from whelp.text.chat import Chat

ray = pytest.importorskip("ray", reason="pip install 'whelp[ray]'")
import torch

from whelp.engines import ray as actors
from whelp.engines.ray import RayEngine

pytestmark = [pytest.mark.proof, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    """Of this machine alone, with as many cores as the tests ask for."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    actors._crews.clear()
    ray.shutdown()


@pytest.fixture
def make(tiny_model_folder) -> Callable[..., RayEngine]:
    chat = Chat(load_tokenizer(tiny_model_folder("llama")))
    return partial(RayEngine, chat, Compute(torch.device("cpu"), torch.float32, 1, "tests"))


def test_learners_and_samplers_give_the_numbers_of_one_process(tiny_model_folder, tmp_path: Path) -> None:
    model = tiny_model_folder("llama")
    expected = alone(model, tmp_path / "alone")
    ranks.run(partial(RayEngine, learners=2, samplers=2), *ranks.read([str(model), str(tmp_path / "ray")]))
    assert_alike(json.loads((tmp_path / "ray" / "numbers.json").read_text()), expected)
    assert_same_files(tmp_path / "ray", tmp_path / "alone")


def answers(engine: Any, model: Path) -> list[tuple[Any, ...]]:
    if not engine.has("policy"):
        engine.add("policy", ModelSpec(model, trainable_layers=2))
    params = SamplingParams(n=4, max_new_tokens=40, key=("killed",))
    return sorted((c.prompt.id, c.sample, c.tokens) for c in engine.sample("policy", ranks.PROMPTS, params))


def test_samplers_that_die_at_any_time_lose_nothing(make: Callable[..., RayEngine], tiny_model_folder) -> None:
    model, draw = tiny_model_folder("llama"), random.Random(0)
    engine = make(samplers=2)
    expected = answers(engine, model)
    for _ in range(10):
        victim, wait = draw.choice(engine.samplers), draw.random()
        killer = threading.Thread(target=lambda v=victim, w=wait: (time.sleep(w), ray.kill(v)))
        killer.start()
        assert answers(engine, model) == expected
        killer.join()
    assert answers(engine, model) == expected


def test_weights_of_another_version_are_refused(make: Callable[..., RayEngine], tiny_model_folder) -> None:
    model = tiny_model_folder("llama")
    engine = make()
    answers(engine, model)
    engine.versions["policy"] = 1
    engine.loaded[0]["policy"] = 1  # as though it had been told
    with pytest.raises(RunError, match="a sampler answered with version 0 of 'policy'; expected 1"):
        answers(engine, model)


def test_a_learner_that_dies_ends_the_run_and_says_so(make: Callable[..., RayEngine], tiny_model_folder) -> None:
    engine = make(learners=2)
    engine.add("policy", ModelSpec(tiny_model_folder("llama"), trainable_layers=2))
    ray.kill(engine.crew.actors[1])
    with pytest.raises(RunError, match="a learner died .* --resume goes on"), engine.hold(ranks.sequences()) as held:
        engine.logprobs("policy", held)
    actors._crews.clear()
