"""`whelp bench conformance`, on a suite of two proofs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from whelp.cli import app, bench

SUITE = """
import pytest

def test_the_sky_is_blue(record_property):
    record_property("wavelength", 4.5e-7)

@pytest.mark.proof
def test_two_is_three():
    assert 2 == 3
"""


def run(*arguments: str):
    return CliRunner().invoke(app, ["bench", "conformance", *arguments], prog_name="whelp")


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tests" / "conformance"
    folder.mkdir(parents=True)
    (folder / "test_colours.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = proof: long\n")
    monkeypatch.setattr(bench, "SUITE", folder)
    monkeypatch.delitem(sys.modules, "test_colours", raising=False)
    return folder


def test_each_proof_is_shown_with_what_it_measured(suite: Path) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert "colours: the sky is blue" in result.stdout and "wavelength 4.5e-07" in result.stdout
    assert "two is three" not in result.stdout
    assert "passed after 0 s: colours: the sky is blue\n" in result.stderr, "a long suite says how far it is"


def test_a_failed_proof_is_an_error(suite: Path) -> None:
    result = run("--all")
    assert result.exit_code == 1
    assert "colours: two is three" in result.stdout and "failed" in result.stdout
    assert "1 of 2 failed" in result.output


def test_a_module_that_does_not_load_is_an_error(suite: Path) -> None:
    (suite / "test_broken.py").write_text("import nothing_at_all\n")
    result = run()
    assert result.exit_code == 1
    assert "test_broken.py" in result.stdout and "cannot be loaded" in result.stdout


def test_without_a_checkout_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SUITE", tmp_path / "none")
    result = run()
    assert result.exit_code == 2
    assert "part of a checkout" in result.output
