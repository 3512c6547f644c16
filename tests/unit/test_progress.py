"""Progress: what a log and a terminal get to see."""

from __future__ import annotations

import io

import pytest

from whelp.progress import PlainProgress, RichProgress, SilentProgress, make_progress, show_numbers


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_stream_decides():
    assert isinstance(make_progress(io.StringIO()), PlainProgress)
    assert isinstance(make_progress(Terminal()), RichProgress)


def test_a_log_gets_the_first_and_last_state_of_a_bar_with_the_newest_numbers():
    stream = io.StringIO()
    progress = PlainProgress(stream, every_seconds=1e9)
    progress.stage("sft", "600 demonstrations")
    with progress.steps("SFT", 40) as steps:
        for i in range(40):
            steps.advance(loss=i, lr=3e-5)
    progress.warn("careful")
    assert stream.getvalue().splitlines() == [
        "== sft: 600 demonstrations",
        "SFT 1/40  loss 0  lr 3e-05  0 s",
        "SFT 40/40  loss 39  lr 3e-05  0 s",
        "warning: careful",
    ]


def test_a_log_gets_every_state_when_time_has_passed_and_none_twice():
    stream = io.StringIO()
    with PlainProgress(stream, every_seconds=0).steps("sampling", None) as steps:
        steps.advance(2)
        steps.advance(3)
    assert stream.getvalue().splitlines() == ["sampling 2  0 s", "sampling 5  0 s"]


def test_a_bar_that_did_not_move_leaves_no_line():
    stream = io.StringIO()
    with PlainProgress(stream).steps("nothing", 3):
        pass
    assert stream.getvalue() == ""


def test_a_terminal_gets_bars_inside_bars_and_brackets_are_no_markup():
    stream = Terminal()
    progress = RichProgress(stream)
    with progress.steps("PPO", 2) as outer:
        with progress.steps("sampling [x]", 4) as inner:
            inner.advance(4, **{"tokens/s": 123.4567})
        progress.say("a [bold]line[/bold]")
        outer.advance(1, kl=0.51234)
    shown = stream.getvalue()
    assert all(text in shown for text in ("PPO", "1/2", "kl 0.5123", "a [bold]line[/bold]"))


@pytest.mark.parametrize(
    "make", [lambda: PlainProgress(io.StringIO()), lambda: RichProgress(Terminal()), SilentProgress]
)
def test_an_error_passes_through_and_the_next_bar_works(make):
    progress = make()
    with pytest.raises(ZeroDivisionError), progress.steps("a", 1):
        raise ZeroDivisionError
    with progress.steps("b", 1) as steps:
        steps.advance(x=1.0)
    progress.stage("end")
    progress.say("said")
    progress.warn("warned")


def test_numbers_have_four_digits():
    assert show_numbers({"loss": 0.693147, "n": 1234, "lr": 0.00003}) == "loss 0.6931  n 1234  lr 3e-05"
