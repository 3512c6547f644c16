"""`whelp explain` and docs/terms.md: the settings, code, metrics, pages and commands of which they speak are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import whelp
from whelp.cli import app
from whelp.errors import ConfigError
from whelp.glossary import Entry, by_group, entries, find, page, place, plain, settings_of
from whelp.settings import sections, settings
from whelp.text.formats import builtins

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/whelp"
each = pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)


def call(*arguments: str, code: int = 0, **environment: str):
    result = CliRunner().invoke(app, list(arguments), prog_name="whelp", env=environment)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result


class TestEntries:
    @each
    def test_its_settings_exist(self, entry: Entry):
        assert [setting.key for setting in settings_of(entry)] == [*entry.settings]

    @each
    def test_its_code_exists(self, entry: Entry):
        assert entry.code
        for code in entry.code:
            file, line = place(code)
            name = code.rpartition(":")[2].rpartition(".")[2]
            assert re.match(rf"\s*(def|class) {name}\b", file.read_text().splitlines()[line - 1]), code

    @each
    def test_its_text_is_a_short_paragraph(self, entry: Entry):
        assert 40 <= len(entry.text.split()) <= 130
        assert 3 <= len(re.findall(r"[.?](?= [A-Z`]| whelp| k\d|$)", entry.text)) <= 6
        assert 10 <= len(entry.short) <= 55

    @each
    def test_it_has_an_equation_or_says_why_none(self, entry: Entry):
        assert bool(entry.equation) != bool(entry.no_equation)
        lines = entry.equation.splitlines()
        assert len(lines) <= 2 and all(len(line) <= 110 for line in lines)
        assert entry.equation.count("(") == entry.equation.count(")")

    @each
    def test_what_it_names_in_passing_exists(self, entry: Entry):
        said = f"{entry.text} {entry.source}"
        keys = set(re.findall(rf"\b(?:{'|'.join(sections())})\.(?!py\b|md\b)\w+", said))
        assert keys <= settings().keys()
        metrics = re.findall(r"\b(?:objective|policy|val|loss)/\w+", said)
        assert all(f'"{metric}"' in (SOURCE / "stages/ppo.py").read_text() for metric in metrics)
        for pages, section in re.findall(r"(docs/[\w/-]+(?:\.md)?)(?:, \"([^\"]+)\")?", said):
            (found,) = ROOT.glob(pages if pages.endswith(".md") else f"{pages}-*.md")
            assert not section or f"## {section}\n" in found.read_text(), section
        for command in re.findall(r"`whelp ([^`]*)`", said):
            assert is_command(command), command

    def test_terms_that_are_related_exist(self):
        names = {entry.name for entry in entries()}
        for entry in entries():
            assert 2 <= len(entry.related) <= 4, entry.name
            assert len({*entry.related} & (names - {entry.name})) == len(entry.related), entry.name

    def test_no_name_or_alias_comes_twice(self):
        names = [plain(name) for entry in entries() for name in (entry.name, *entry.aliases)]
        assert len(names) == len(set(names))

    def test_groups_are_whole(self):
        groups = [group for group, _ in by_group()]
        assert len(groups) == len(set(groups)) > 5
        assert sum(len(found) for _, found in by_group()) == len(entries()) >= 60

    def test_defaults_of_which_the_texts_speak_are_those(self):
        said = {
            "ppo.lam": 1.0,  # GAE
            "ppo.gamma": 1.0,  # discount
            "ppo.ptx_coef": 0.0,  # PTX mix
            "ppo.kl_coef": 0.05,  # zero and unit
            "ppo.kl_target": None,  # adaptive KL
            "ppo.target_kl": None,  # target KL
            "ppo.num_ppo_epochs": 1,  # target KL, minibatch and epoch
            "ppo.missing_eos_penalty": 1.0,
            "ppo.total_episodes": 1280,  # episode
            "ppo.shaping": "none",  # preference as reward
            "ppo.critic": "own",  # value function
        }
        assert {key: settings()[key].default for key in said} == said
        assert settings()["ppo.temperature"].default < 1
        assert settings()["ppo.num_generations"].default > 1

    def test_they_are_no_data_set(self):
        assert not {"glossary", "terms"} & {*builtins()}


def is_command(line: str) -> bool:
    """Whether `annotate stats` or `audit` is a command; what follows a command that has none below it is its own."""
    command = get_command(app)
    for word in line.split():
        below = getattr(command, "commands", None)
        if below is None:
            return True
        if word not in below:
            return False
        command = below[word]
    return True


def test_a_command_is_told_from_what_is_none():
    assert is_command("audit") and is_command("constitution check mine.yaml")
    assert not is_command("frobnicate") and not is_command("constitution frobnicate")


ASKED = """
policy, reference model, RM, reward model, Bradley-Terry, preference, k wise ranking, soft label, margin, calibration,
temperature scaling, sft, loss mask, chat template, ppo, ratio, clip, advantage, gae, critic, value function,
discount, gamma, KL, KL penalty, leash, k1, k3, KL estimator, adaptive KL, entropy, whitening, value clipping,
minibatch, epoch, rollout, episode, on-policy, RLOO, GRPO, DPO, PTX mix, best of n, reward hacking, over-optimisation,
overoptimization, length bias, sycophancy, ensemble, uncertainty, posterior, shaping, preference as reward,
constitution, principle, critique, revision, AI feedback, RLAIF, judge, position bias, trust gate, agreement, alpha,
held-out, clustered bootstrap, confidence interval, win rate, length-controlled win rate, trunk, branch, checkpoint,
LoRA, EOS, missing_eos_penalty, temperature, RLHF, nat, lam, cliprange, kl_coef
"""


def test_what_people_ask_for_is_there():
    found = {asked.strip(): find(asked).name for asked in ASKED.split(",")}
    assert found["RM"] == "reward model" and found["lam"] == "GAE" and found["leash"] == "KL penalty"
    assert len(set(found.values())) >= 60


class TestPlace:
    def test_code_is_found_where_it_stands(self):
        file, line = place("maths/preference.py:BradleyTerry.count")
        above = file.read_text().splitlines()[:line]
        assert above[-1].startswith("    def count(")
        assert next(text for text in reversed(above) if text.startswith("class ")) == "class BradleyTerry:"

    @pytest.mark.parametrize(
        "code",
        ["maths/preference.py:Thurstone", "maths/preference.py:BradleyTerry.no", "maths/none.py:gae", "types.py:Role"],
    )
    def test_what_is_none_is_said(self, code: str):
        with pytest.raises(ValueError, match=re.escape(code)):
            place(code)


class TestPage:
    def test_it_is_up_to_date(self):
        written = (ROOT / "docs/terms.md").read_text(encoding="utf-8")
        assert written == page(), "docs/terms.md is not what is made now: whelp explain --markdown > docs/terms.md"

    def test_its_links_lead_somewhere(self):
        headings = re.findall(r"(?m)^#+ (.+)$", page())
        anchors = [heading.lower().replace(" ", "-") for heading in headings]
        assert len(anchors) == len(set(anchors))
        assert all(re.fullmatch(r"[\w -]+", heading) for heading in headings)
        links = set(re.findall(r"\]\(([^)]+)\)", page()))
        files = {link for link in links if not link.startswith("#")}
        assert {link[1:] for link in links - files} <= {*anchors}
        assert len(files) > 30 and all((ROOT / "docs" / file).is_file() for file in files)


class TestCommand:
    def test_a_term(self):
        shown = call("explain", "clip").stdout
        entry = find("clip")
        assert shown.startswith(f"clip (also: {', '.join(entry.aliases)})\n{entry.short}\n\n{entry.text}\n\n")
        assert (
            "\n    min(ratio * A, clip(ratio, 1 +- cliprange) * A)\n\nsource: Schulman et al. 2017, equation 7\n"
            in shown
        )
        assert "setting: ppo.cliprange (0.2): the ratio is clipped to 1 +- this\n" in shown
        assert shown.endswith("related: ratio, advantage, value clipping\n")
        ((file, line),) = re.findall(r"code: (.*):(\d+) PPOLoss", shown)
        assert Path(file).read_text().splitlines()[int(line) - 1] == "class PPOLoss:"

    @pytest.mark.parametrize("asked", ["KL penalty", "kl-PENALTY", "kl_coef", "leash"])
    def test_an_alias_in_any_spelling(self, asked):
        assert call("explain", *asked.split()).stdout == call("explain", "KL penalty").stdout

    def test_a_term_without_equation_and_one_without_settings(self):
        assert "\n    no equation: it is a token\n" in call("explain", "eos").stdout
        assert "setting:" not in call("explain", "bootstrap").stdout

    def test_an_unknown_term(self):
        shown = call("explain", "best-of-m", code=2)
        assert (shown.stdout, shown.stderr) == ("", "error: there is no term 'best-of-m'; did you mean best-of-n?\n")
        assert call("explain", "penalty", code=2).stderr == (
            "error: there is no term 'penalty'; did you mean missing EOS penalty or KL penalty?\n"
        )
        assert call("explain", "xyzzy", code=2).stderr == (
            "error: there is no term 'xyzzy'; `whelp explain` lists all terms.\n"
        )
        with pytest.raises(ConfigError, match="lists all terms"):
            find(" ")

    def test_without_one_all_are_listed(self):
        shown = call("explain").stdout
        for group, found in by_group():
            assert f"\n{group}\n" in shown
            assert all(re.search(rf"(?m)^  {e.name} +{re.escape(e.short)}$", shown) for e in found)
        assert max(map(len, shown.splitlines())) <= 88

    def test_the_page(self):
        assert call("explain", "--markdown").stdout == page()

    def test_on_a_terminal_lines_are_broken_between_words(self):
        shown = call("explain", "GAE", FORCE_COLOR="1", COLUMNS="60").stdout
        assert "\x1b[1mGAE" in shown
        lines = [line.rstrip() for line in re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()]
        assert max(map(len, lines)) <= 60
        assert find("GAE").text in " ".join(lines)
        assert "    A_t = delta_t + gamma * lam * A_{t+1}" in lines

    @pytest.mark.parametrize(("arguments", "light"), [("[]", {"whelp.config"}), ("['clip']", set())])
    def test_it_starts_light(self, arguments, light):
        code = (
            f"import sys, whelp.cli\nsys.argv = ['whelp', 'explain', *{arguments}]\n"
            "try: whelp.cli.main()\nexcept SystemExit as end: assert not end.code\n"
            f"heavy = {{'torch', 'transformers', 'numpy', 'ruamel.yaml', *{light}}} & set(sys.modules)\nassert not heavy, heavy\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(whelp.__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
