"""Recipes: what is read, how every mistake is named, and that what is written reads back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from whelp.config import EvaluateConfig, PPOConfig, Recipe, RewardConfig, SFTConfig
from whelp.errors import ConfigError
from whelp.recipe_checks import mistakes
from whelp.recipes import describe, find_recipe, load_recipe, packaged_recipes, to_yaml
from whelp.settings import nearest, sections, settings


def write(folder: Path, text: str) -> str:
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return str(file)


def fails(path: str | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load_recipe(path, overrides)
    return str(raised.value)


class TestPackaged:
    def test_the_default_is_exactly_the_schema_s_defaults(self):
        assert load_recipe(None) == Recipe()

    def test_all_that_ship_load_and_write_to_places_of_their_own(self):
        recipes = {name: load_recipe(name) for name in packaged_recipes()}
        assert set(recipes) == {"assistant", "assistant-full", "checker", "constitutional", "from_base", "smoke"}
        assert {recipe.output_dir for recipe in recipes.values()} == {f"runs/{name}" for name in recipes}

    def test_smoke_runs_the_stages_and_the_model_of_the_default_on_less(self):
        smoke, default = load_recipe("smoke"), Recipe()
        assert (smoke.stages, smoke.model) == (default.stages, default.model)
        assert smoke.ppo.total_episodes < default.ppo.total_episodes
        assert smoke.sft.max_steps is not None
        assert smoke.reward.max_steps is not None

    def test_a_file_wins_over_a_name_and_unknown_names_get_a_hint(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("smoke").write_text("seed: 7\n")
        assert load_recipe("smoke").seed == 7
        assert "Did you mean assistant?" in fails("asistant.yaml")
        with pytest.raises(ConfigError, match=r"no recipe 'nowhere/x\.yaml'"):
            find_recipe("nowhere/x.yaml")


class TestReading:
    def test_values_and_sections(self, tmp_path):
        text = (
            "model: a/m\ntrainable_layers: all\nppo:\n  kl_coef: 1e-2\n  score_clip:\nstages: [sft, evaluate]\nsft:\n"
        )
        recipe = load_recipe(write(tmp_path, text))
        assert (recipe.model, recipe.trainable_layers, recipe.ppo.kl_coef) == ("a/m", "all", 0.01)
        assert recipe.stages == ("sft", "evaluate")
        assert recipe.ppo.score_clip is None
        assert recipe.sft == SFTConfig()

    def test_dashes_and_dotted_keys_in_files(self, tmp_path):
        recipe = load_recipe(write(tmp_path, "output-dir: o\nppo.kl-coef: 0.3\n"))
        assert (recipe.output_dir, recipe.ppo.kl_coef) == ("o", 0.3)

    def test_text_that_looks_like_something_else_stays_text(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("7").mkdir()
        recipe = load_recipe(write(tmp_path, "output_dir: 2024-01-01\nmodel: 7\nsystem_prompt: null\n"))
        assert (recipe.output_dir, recipe.model, recipe.system_prompt) == ("2024-01-01", "7", None)

    @pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "\ufeffseed: 0\n"])
    def test_files_that_say_nothing_are_the_default(self, tmp_path, text):
        assert load_recipe(write(tmp_path, text)) == Recipe()

    @pytest.mark.parametrize(
        ("text", "line"),
        [("seed: 1\nppo: [1\n", 3), ("a: b: c\n", 1), ("ppo:\n\tkl_coef: 1\n", 2), ("seed: 1\n---\nseed: 2\n", 2)],
    )
    def test_bad_yaml_is_named_by_line(self, tmp_path, text, line):
        assert re.search(rf"recipe\.yaml:{line}: is not YAML: ", fails(write(tmp_path, text)))

    def test_an_alias_inside_what_it_names(self, tmp_path):
        assert "is not YAML: nested too deeply" in fails(write(tmp_path, "sft: &s {sftt: *s}\n"))

    def test_the_users_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "d.jsonl").write_text("{}\n")
        recipe = load_recipe(write(tmp_path, "output_dir: ~/runs/x\nsft:\n  train_file: ~/d.jsonl\n"))
        assert (recipe.output_dir, recipe.sft.train_file) == (f"{tmp_path}/runs/x", f"{tmp_path}/d.jsonl")

    def test_other_unreadable_files(self, tmp_path):
        assert "recipe.yaml:1: expected lines of `key: value`" in fails(write(tmp_path, "- a\n- b\n"))
        (tmp_path / "latin.yaml").write_bytes(b"model: \xe9\n")
        assert "not UTF-8" in fails(str(tmp_path / "latin.yaml"))
        assert "cannot be read" in fails(write(tmp_path, "seed: !!python/object:os.system 1\n"))


class TestOverrides:
    def test_they_win_over_the_file_and_dashes_are_underscores(self, tmp_path):
        path = write(tmp_path, "ppo:\n  kl_coef: 1\n")
        recipe = load_recipe(path, ["ppo.kl-coef=0.2", "seed=3", "stages=[sft, report]", "ppo.score_clip=5"])
        assert (recipe.ppo.kl_coef, recipe.seed, recipe.stages, recipe.ppo.score_clip) == (0.2, 3, ("sft", "report"), 5)

    def test_the_last_of_two_wins_and_may_set_a_value_back_to_nothing(self):
        assert load_recipe(None, ["ppo.kl_target=3", "ppo.kl_target="]).ppo.kl_target is None

    @pytest.mark.parametrize("text", ["You are: brief", "a # b", "[x] y", "- z", "a=b", "{c", "007", "*x"])
    def test_text_is_taken_as_it_is(self, text):
        assert load_recipe(None, [f"system_prompt={text}"]).system_prompt == text

    def test_quoted_text(self):
        assert load_recipe(None, ["system_prompt='null'"]).system_prompt == "null"

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("ppo.kl_coeff=1", "override 'ppo.kl_coeff=1': key 'ppo.kl_coeff': unknown; did you mean kl_coef?"),
            ("ppo.gamma=2", "override 'ppo.gamma=2': key 'ppo.gamma': given 2; expected a number from 0 to 1"),
            ("nonsense", "override 'nonsense': expected key=value"),
            ("ppo=1", "is a section; expected one of its keys, for example ppo.train_file=..."),
            ("stages=[sft", "given '[sft', which is not YAML; expected a list of sft, revise, feedback, reward"),
            ("ppo.whiten_advantages=yes", "given 'yes'; expected true or false"),
        ],
    )
    def test_mistakes_name_the_override(self, override, expected):
        assert expected in fails(None, override)


class TestMistakes:
    def test_all_at_once_in_the_order_of_the_file(self, tmp_path):
        text = """\
seed: -1
outputdir: y
ppo:
  kl_coeff: 0.05
  whiten_advantages: 1
  score_clip: .inf
  gamma: .nan
dtype: bf16
seed: 2
evaluate: 5
rewards:
  memberz: 2
"""
        path = write(tmp_path, text)
        lines = fails(path, "ppo.lam=x", "zzz=1").splitlines()
        assert lines[0] == "recipe.yaml: 12 mistakes"
        assert [line.strip() for line in lines[1:]] == [
            f"{path}:2: key 'outputdir': unknown; did you mean output_dir?",
            f"{path}:4: key 'ppo.kl_coeff': unknown; did you mean kl_coef?",
            f"{path}:5: key 'ppo.whiten_advantages': given 1; expected true or false",
            f"{path}:6: key 'ppo.score_clip': given inf; expected a number above 0 or nothing",
            f"{path}:7: key 'ppo.gamma': given nan; expected a number from 0 to 1",
            f"{path}:8: key 'dtype': given 'bf16'; expected one of auto, bfloat16, float32",
            f"{path}:9: key 'seed': given twice; it stands on line 1 already",
            f"{path}:10: key 'evaluate': is a section; expected indented lines below it, of prompts, max_prompts, "
            "samples, temperature, max_new_tokens, judge, judge_fraction, judges, trust_pairs, concurrency, votes, price_in, "
            "price_out, max_cost",
            f"{path}:11: key 'rewards': unknown; did you mean reward?",
            f"{path}:12: key 'reward.memberz': unknown; did you mean members?",
            "override 'ppo.lam=x': key 'ppo.lam': given 'x'; expected a number from 0 to 1",
            "override 'zzz=1': key 'zzz': unknown; a recipe has " + ", ".join(Recipe.model_fields),
        ]

    def test_one_alone_stands_on_one_line(self, tmp_path):
        path = write(tmp_path, "seed: -1\n")
        assert fails(path) == f"{path}:1: key 'seed': given -1; expected a whole number of at least 0"

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("seed: 1.5", "given 1.5; expected a whole number of at least 0"),
            ("seed: true", "given true; expected a whole number"),
            ("model:", "given nothing; expected text"),
            ("model: {a: 1}", "given a mapping; expected text"),
            ("trainable_layers: some", "given 'some'; expected a whole number above 0 or all"),
            (
                "stages: [sft, pppo]",
                "given [sft, pppo]; expected a list of sft, revise, feedback, reward, ppo, dpo, evaluate, audit, report",
            ),
            ("stages: sft", "given 'sft'; expected a list"),
            ("ppo.kl_coef: '0.1'", "given '0.1'; expected a number of at least 0"),
            ("reward.label_smoothing: 0.7", "given 0.7; expected a number of at least 0 and below 0.5"),
            ("reward.learning_curve: [2]", "given [2]; expected a list of numbers above 0 and below 1"),
        ],
    )
    def test_what_was_given_and_what_is_expected(self, tmp_path, line, expected):
        assert expected in fails(write(tmp_path, line + "\n"))

    @pytest.mark.parametrize(
        ("key", "near"),
        [
            ("kl_coef", ["ppo.kl_coef"]),
            ("ppo.num_train_epochs", ["ppo.num_ppo_epochs"]),
            ("ppo.lerning_rate", ["ppo.learning_rate"]),
            ("learning_rate", ["sft.learning_rate", "reward.learning_rate", "ppo.learning_rate", "dpo.learning_rate"]),
            ("evaluation", ["evaluate"]),
            ("qqqqqq", []),
        ],
    )
    def test_the_nearest_key_may_stand_in_another_section(self, key, near):
        assert nearest(key) == near

    def test_a_setting_left_out_on_purpose_says_why(self):
        assert "value_learning_rate" in fails(None, "ppo.vf_coef=0.1")
        assert load_recipe(None, ["ppo.critic=shared", "ppo.vf_coef=0.2"]).ppo.value_coef == 0.2
        assert load_recipe(None, ["ppo.critic=shared"]).ppo.value_coef == 0.1
        assert load_recipe(None).ppo.value_coef == 1.0


class TestBetweenValues:
    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            (
                ["ppo.kl_estimator=k3"],
                r"'ppo.kl_estimator': given k3; expected k1\..*in the reward its gradient is wrong",
            ),
            (["ppo.batch_size=10"], "'ppo.batch_size': given 10, which num_mini_batches 4 does not divide.*example 8"),
            (["ppo.batch_size=2"], "expected a multiple of 4, for example 4"),
            (
                ["ppo.advantage=rloo", "ppo.num_generations=1"],
                "'ppo.num_generations': given 1; expected at least 2, for rloo compares",
            ),
            (["ppo.num_generations=3"], "'ppo.batch_size': given 128, which num_generations 3 does not divide"),
            (["ppo.total_episodes=127"], "'ppo.total_episodes': given 127; expected at least one batch, of 128"),
            (
                ["stages=[ppo, sft]", "ppo.reward=checker"],
                "given ppo, sft; expected each stage once and in this order: sft, ppo",
            ),
            (["stages=[sft, sft]"], "expected each stage once and in this order: sft$"),
            (["stages=[]"], "given an empty list; expected some of sft, revise, feedback"),
            (["stages=[sft, ppo]", "output_dir=none"], "ppo needs a reward model and none/reward does not exist"),
            (["stages=[report]", "output_dir=none"], "report shows what other stages did and none does not exist"),
            (["sft.train_file=gone.jsonl"], "'sft.train_file': there is no file 'gone.jsonl'"),
            (["ppo.train_file=builtin:promts"], "given builtin:promts; expected one of .*builtin:prompts"),
            (["ppo.shaping=preference", "ppo.reward=checker"], "expected model there: its score is shaped"),
            (["rounds.n=1", "ppo.reward=checker"], "a round trains a reward model for PPO"),
            (
                ["ppo.critic_warmup_iterations=10"],
                "given 10, but there are 10 iterations, so that the policy would never learn",
            ),
            ([f"seed={2**40}"], "'seed': given 1099511627776"),
            (["device=gpu"], "'device': given 'gpu'; expected auto, cpu, cuda"),
            (["model=smolm2-135m"], "'model': no model 'smolm2-135m'.*Did you mean smollm2-135m-instruct?"),
            (["reward.model=runs/none/sft"], "'reward.model': no model 'runs/none/sft': it is neither a folder here"),
        ],
    )
    def test_refused(self, overrides, expected, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert re.search(expected, fails(None, *overrides))

    @pytest.mark.parametrize(
        "overrides",
        [
            ["ppo.batch_size=8", "ppo.total_episodes=8"],
            ["stages=[sft, ppo]", "ppo.reward=checker"],
            ["stages=[ppo]", "ppo.reward_model=somebody/rewards"],
            ["stages=[ppo]", "output_dir=earlier"],
            ["stages=[report]", "output_dir=earlier"],
            ["stages=[sft]", "reward.train_file=not-read-by-this-run.jsonl"],
            ["device=cuda:1"],
            ["model=somebody/language"],
            ["model=earlier"],
            ["stages=[sft]", "reward.model=not-used-by-this-run"],
            ["rounds.n=1", "stages=[sft]"],
            ["rounds.n=1", "stages=[evaluate, report]"],
        ],
    )
    def test_allowed(self, overrides, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("earlier/reward").mkdir(parents=True)
        assert mistakes(load_recipe(None, overrides)) == []

    def test_they_are_named_by_line_beside_other_mistakes(self, tmp_path):
        path = write(tmp_path, "seed: x\nppo:\n  num_mini_batches: 5\n  kl_estimator: k3\n")
        text = fails(path)
        assert f"{path}:1: key 'seed': given 'x'" in text
        assert f"{path}:3: key 'ppo.batch_size': given 128, which num_mini_batches 5 does not divide" in text
        assert f"{path}:4: key 'ppo.kl_estimator'" in text

    def test_a_wrong_value_makes_no_second_mistake(self):
        assert "multiple" not in fails(None, "ppo.batch_size=-3")


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
rates = st.floats(1e-9, 1e9)
recipes = st.builds(
    Recipe,
    model=texts,
    output_dir=texts,
    seed=st.integers(0, 2**31),
    trainable_layers=st.one_of(st.integers(1, 99), st.just("all")),
    system_prompt=st.one_of(st.none(), texts),
    stages=st.lists(st.sampled_from(["sft", "reward"]), max_size=3).map(tuple),
    sft=st.builds(SFTConfig, learning_rate=rates, max_steps=st.one_of(st.none(), st.integers(1, 9))),
    reward=st.builds(
        RewardConfig,
        model=st.one_of(st.none(), texts),
        learning_curve=st.lists(st.floats(0.01, 0.99), max_size=2).map(tuple),
    ),
    ppo=st.builds(PPOConfig, whiten_advantages=st.booleans(), kl_coef=rates, kl_target=st.one_of(st.none(), rates)),
    evaluate=st.builds(EvaluateConfig, judge=st.booleans()),
)


class TestWriting:
    @given(recipes, st.booleans())
    def test_what_is_written_reads_back(self, recipe, commented):
        values = YAML(typ="safe", pure=True).load(to_yaml(recipe, commented, header="two\nlines"))
        values["stages"] = tuple(values["stages"])
        for name in ("learning_curve", "negative_kinds"):
            values["reward"][name] = tuple(values["reward"][name])
        for name in ("values", "clamp"):
            values["constitution"][name] = tuple(values["constitution"][name])
        values["audit"]["probes"] = tuple(values["audit"]["probes"])
        values["evaluate"]["judges"] = tuple(values["evaluate"]["judges"])
        assert Recipe.model_validate(values, strict=True) == recipe

    @pytest.mark.parametrize(
        "text", ["null", "true", "1e5", "- a", "a: b", "a #b", "", "~", "2024-01-01", "yes", "#", "."]
    )
    def test_text_that_yaml_would_read_otherwise(self, tmp_path, text):
        path = write(tmp_path, to_yaml(Recipe(system_prompt=text)))
        assert load_recipe(path).system_prompt == text

    def test_every_key_stands_there_with_what_it_does(self):
        text = to_yaml(Recipe())
        for key, setting in settings().items():
            assert re.search(rf"^(  )?{key.rpartition('.')[2]}:.*# {re.escape(setting.description)}$", text, re.M), key
        assert "#" not in to_yaml(Recipe(), commented=False)

    def test_describe_covers_the_schema(self):
        named = {f"{section}.{name}" for section, kind in sections().items() for name in kind.model_fields}
        assert {setting.key for section in sections() for setting in describe(section)} == named
        assert {setting.key for setting in describe()} == set(Recipe.model_fields) - set(sections())
        kl = next(setting for setting in describe("ppo") if setting.name == "kl_coef")
        assert (kl.default, kl.expected) == (0.05, "a number of at least 0")
        assert all(setting.description for setting in settings().values())
