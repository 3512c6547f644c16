"""What a person sees while a stage runs: a live display on a terminal, plain lines elsewhere. Results go to stdout,
all of this to stderr."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO, final

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as LiveBars

EVERY_SECONDS = 5.0


class Steps(Protocol):
    """Counted work, `with progress.steps("PPO", 40) as steps: steps.advance(reward=0.3)`."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def advance(self, n: int = 1, **numbers: float) -> None:
        """`n` more are done; `numbers` are shown beside the bar until newer ones of the same name come."""
        ...


class Progress(Protocol):
    """Where a stage says what it does."""

    def stage(self, name: str, detail: str = "") -> None:
        """A stage begins."""
        ...

    def steps(self, description: str, total: int | None) -> Steps:
        """Work that can be counted; `total` None where its end is not known. May stand inside other steps."""
        ...

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...


def make_progress(stream: TextIO | None = None) -> Progress:
    """Live on a terminal, plain lines elsewhere; `stream` is stderr unless given."""
    shown: TextIO = sys.stderr if stream is None else stream
    return RichProgress(shown) if shown.isatty() else PlainProgress(shown)


@final
class SilentProgress:
    """Says nothing."""

    def stage(self, name: str, detail: str = "") -> None:
        pass

    def steps(self, description: str, total: int | None) -> Steps:
        return _SilentSteps()

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass


@final
class _SilentSteps:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def advance(self, n: int = 1, **numbers: float) -> None:
        pass


@final
class PlainProgress:
    """Lines for a log: of each bar the first and last state, and between them one every few seconds."""

    def __init__(self, stream: TextIO | None = None, every_seconds: float = EVERY_SECONDS) -> None:
        self.stream = stream or sys.stderr
        self.every_seconds = every_seconds

    def stage(self, name: str, detail: str = "") -> None:
        self.say(f"== {name}{': ' + detail if detail else ''}")

    def steps(self, description: str, total: int | None) -> Steps:
        return _PlainSteps(self, description, total)

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def warn(self, text: str) -> None:
        self.say(f"warning: {text}")


@final
class _PlainSteps:
    def __init__(self, progress: PlainProgress, description: str, total: int | None) -> None:
        self.progress, self.description, self.total = progress, description, total
        self.done = self.printed = 0
        self.numbers: dict[str, float] = {}
        self.started = self.last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.done > self.printed:
            self._print()

    def advance(self, n: int = 1, **numbers: float) -> None:
        self.done += n
        self.numbers.update(numbers)
        if not self.printed or time.monotonic() - self.last >= self.progress.every_seconds:
            self._print()

    def _print(self) -> None:
        self.printed, self.last = self.done, time.monotonic()
        of = "" if self.total is None else f"/{self.total}"
        shown = f"  {show_numbers(self.numbers)}" if self.numbers else ""
        self.progress.say(f"{self.description} {self.done}{of}{shown}  {self.last - self.started:.0f} s")


@final
class RichProgress:
    """Live bars with the newest numbers; what is said scrolls by above them."""

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console

        self.console: Console = Console(file=stream or sys.stderr, highlight=False)
        self.bars: LiveBars | None = None
        self.open = 0

    def stage(self, name: str, detail: str = "") -> None:
        from rich.text import Text

        self.console.print(Text.assemble((f"\n{name}", "bold"), (f"  {detail}" if detail else "", "dim")))

    def steps(self, description: str, total: int | None) -> Steps:
        return _RichSteps(self, description, total)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        from rich.text import Text

        self.console.print(Text.assemble(("warning: ", "bold yellow"), text))

    def enter(self) -> LiveBars:
        """The one live display; bars inside bars share it."""
        if self.bars is None:
            self.bars = _live_bars(self.console)
            self.bars.start()
        self.open += 1
        return self.bars

    def leave(self) -> None:
        self.open -= 1
        if not self.open and self.bars is not None:
            self.bars.stop()
            self.bars = None


@final
class _RichSteps:
    def __init__(self, progress: RichProgress, description: str, total: int | None) -> None:
        self.progress, self.description, self.total = progress, description, total
        self.numbers: dict[str, float] = {}

    def __enter__(self) -> Self:
        self.bars = self.progress.enter()
        self.task = self.bars.add_task(self.description, total=self.total, numbers="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop_task(self.task)
        if self.progress.open > 1:
            self.bars.remove_task(self.task)
        self.progress.leave()

    def advance(self, n: int = 1, **numbers: float) -> None:
        self.numbers.update(numbers)
        self.bars.update(self.task, advance=n, numbers=show_numbers(self.numbers))


def _live_bars(console: Console) -> LiveBars:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as LiveBars

    return LiveBars(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}", style="cyan", markup=False),
        console=console,
    )


def show_numbers(numbers: dict[str, float]) -> str:
    """`loss 0.412  lr 3e-05`: four significant digits."""
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def rate(interval: Mapping[str, float | None], form: str = ".0%") -> str:
    """A mean and its interval, as metrics hold them: 63% (60% to 66%); "unknown" where it is not known."""
    known = [
        value for name in ("mean", "low", "high") if (value := interval[name]) is not None and not math.isnan(value)
    ]
    return "{} ({} to {})".format(*(f"{value:{form}}" for value in known)) if len(known) == 3 else "unknown"
