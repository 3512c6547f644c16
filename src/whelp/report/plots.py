"""Small plots as inline SVG, in the page's own colours and font.

matplotlib writes fixed colours; here each is a stand-in that is then replaced by one of the page's CSS variables, so
that one drawing serves light mode, dark mode and print. Text stays text: smaller than its outlines, and selectable.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from whelp.report.artifacts import Interval, Json, number
from whelp.report.words import decimal

MODEL_COLORS = {"base": "base", "sft": "sft", "rlhf": "rlhf", "dpo": "dpo", "helpful": "helpful"}
_STAND_INS = {"ink": "#010101", "muted": "#020202", "line": "#030303", "base": "#040404", "sft": "#050505"}
_STAND_INS |= {"rlhf": "#060606", "dpo": "#070707", "helpful": "#080808"}
_MAX_POINTS = 300
_DRAWABLE = 1e12  # beyond, ticks lose their arithmetic: such a value is a gap, and stands in the tables
_LABEL_HEIGHT = 0.085  # of the axes
_RC: dict[Any, Any] = {
    "svg.hashsalt": "whelp",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": _STAND_INS["ink"],
    "axes.edgecolor": _STAND_INS["line"],
    "axes.labelcolor": _STAND_INS["muted"],
    "xtick.color": _STAND_INS["muted"],
    "ytick.color": _STAND_INS["muted"],
    "axes.formatter.use_mathtext": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _STAND_INS["line"],
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "lines.linewidth": 1.6,
}


@final
@dataclass(frozen=True, slots=True)
class Line:
    """One labelled line; None is a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    color: str = "rlhf"


def from_log(log: Sequence[Json], key: str, label: str, color: str = "rlhf") -> Line:
    """The values of one key of a metrics.jsonl by step (by line where there is no step)."""
    steps = [number(row.get("step")) for row in log]
    x = [float(i) if step is None or abs(step) > _DRAWABLE else step for i, step in enumerate(steps)]
    y = [number(row.get(key)) for row in log]
    return Line(label, x, [value if value is not None and abs(value) < _DRAWABLE else None for value in y], color)


def curves(name: str, lines: Sequence[Line], xlabel: str, marks: Mapping[str, float | None] | None = None) -> Markup:
    """Lines over a shared axis, each labelled at its end with its last value; "" when no line has two values.

    `marks` are single values that get a small labelled rule: `{"held out, before": 3.1}`.
    """
    drawn = [line for line in map(_binned, lines) if sum(value is not None for value in line.y) > 1]
    if not drawn:
        return Markup("")
    with _style():
        figure, axes = _panel(xlabel)
        labels = []
        for line in drawn:
            axes.plot(line.x, _with_gaps(line.y), color=_STAND_INS[line.color], clip_on=False)
            last = next(value for value in reversed(line.y) if value is not None)
            labels.append((last, f"{line.label} {decimal(last)}".strip(), _STAND_INS[line.color]))
        for text, value in (marks or {}).items():
            if value is not None and abs(value) < _DRAWABLE:
                axes.axhline(value, color=_STAND_INS["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
                labels.append((value, f"{text} {decimal(value)}", _STAND_INS["muted"]))
        _label_ends(axes, labels)
        return _svg(figure, name, "; ".join(text for _, text, _ in labels))


def path(name: str, line: Line, xlabel: str, alt: str) -> Markup:
    """A walk through a plane in the order of its points, with the first and the last one labelled."""
    pairs = [(x, y) for x, y in zip(line.x, line.y, strict=True) if y is not None]
    if len(pairs) < 2:
        return Markup("")
    with _style():
        figure, axes = _panel(xlabel)
        color = _STAND_INS[line.color]
        x, y = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        axes.plot(x, y, color=color, linewidth=0.8, alpha=0.55, clip_on=False)
        axes.plot(x, y, "o", color=color, markersize=3, clip_on=False)
        for text, point in (("first", pairs[0]), ("last", pairs[-1])):
            axes.annotate(text, point, xytext=(5, 5), textcoords="offset points")
        return _svg(figure, name, alt)


def reliability(name: str, lines: Sequence[Line], alt: str) -> Markup:
    """Accuracy against confidence, both from a half to one, beside the diagonal on which they agree; "" without a point."""
    drawn = [line for line in lines if len(line.x)]
    if not drawn:
        return Markup("")
    with _style():
        figure, axes = _panel("confidence")
        axes.plot([0.5, 1], [0.5, 1], color=_STAND_INS["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
        labels = []
        for line in drawn:
            y = _with_gaps(line.y)
            axes.plot(line.x, y, "o-", color=_STAND_INS[line.color], markersize=3, clip_on=False)
            labels.append((y[-1], line.label, _STAND_INS[line.color]))
        axes.set_xlim(0.5, 1)
        axes.set_ylim(min(0.4, *(value for line in drawn for value in line.y if value is not None)), 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
        _label_ends(axes, labels)
        return _svg(figure, name, alt)


def forest(
    name: str,
    rows: Sequence[tuple[str, Sequence[tuple[str, Interval]]]],
    alt: str,
    reference: float | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
) -> Markup:
    """Rates, or differences of rates, with their intervals: a block a row, in it a point and a bar for each (colour, rate); ""
    without a rate. What lies beyond `limits` is drawn at their edge."""
    known = [(label, [(color, rate) for color, rate in rates if rate.is_known]) for label, rates in rows]
    known = [row for row in known if row[1]]
    if not known:
        return Markup("")
    slots = max(len(rates) for _, rates in known)
    height = len(known) * (10 * slots + 12) + 34
    with _style():
        figure = Figure(figsize=(540 / 72, height / 72))
        axes = figure.add_axes((150 / 540, 26 / height, 375 / 540, 1 - 30 / height))
        _forest_axes(axes, [label for label, _ in known], reference, limits)
        for row, (_, rates) in enumerate(known):
            for slot, (color, rate) in enumerate(rates):
                _bar(
                    axes, row + (slot - (len(rates) - 1) / 2) * 10 / (10 * slots + 12), rate, _STAND_INS[color], limits
                )
        return _svg(figure, name, alt)


def _bar(axes: Axes, at: float, rate: Interval, color: str, limits: tuple[float, float]) -> None:
    least, most = limits
    mean, low, high = (None if end is None else min(max(end, least), most) for end in (rate.mean, rate.low, rate.high))
    if low is not None and high is not None:
        axes.plot([low, high], [at, at], color=color, alpha=0.5, solid_capstyle="round", clip_on=False)
    if mean is not None:
        axes.plot([mean], [at], "o", color=color, markersize=4.5, clip_on=False)


def _forest_axes(axes: Axes, labels: Sequence[str], reference: float | None, limits: tuple[float, float]) -> None:
    axes.set_xlim(*limits)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    shown = [label if len(label) <= 24 else label[:23] + "…" for label in labels]
    axes.set_yticks(range(len(shown)), shown, color=_STAND_INS["ink"], fontsize=10, parse_math=False)
    axes.tick_params(length=0)
    if reference is not None:
        axes.axvline(reference, color=_STAND_INS["muted"], linewidth=0.9, linestyle=(0, (2, 2)))


@contextmanager
def _style() -> Iterator[None]:
    """The user's own matplotlib settings must not change the report; nor must a name in a script that matplotlib's
    font lacks print a warning, when the browser's fonts draw it."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matplotlib.rcdefaults()
        for name, value in _RC.items():
            matplotlib.rcParams[name] = value
        yield


def _panel(xlabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.2, 2.5))
    axes = figure.add_axes((0.12, 0.18, 0.58, 0.76))
    axes.tick_params(length=0)
    axes.margins(x=0.01, y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], integer=xlabel in ("step", "iteration")))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.ticklabel_format(useOffset=False)
    axes.set_xlabel(xlabel)
    return figure, axes


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Right of the axes, each at its value, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    ordered = sorted(labels)
    places = [(value - low) / (high - low) for value, _, _ in ordered]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + _LABEL_HEIGHT)
    places[-1] = min(places[-1], 1.0)
    for i in range(len(places) - 2, -1, -1):
        places[i] = min(places[i], places[i + 1] - _LABEL_HEIGHT)
    for at, (_, text, color) in zip(places, ordered, strict=True):
        axes.text(1.02, at, text, transform=axes.transAxes, color=color, va="center", parse_math=False)


def _binned(line: Line) -> Line:
    """At most `_MAX_POINTS` points, each the mean of what falls into it."""
    size = -(-len(line.x) // _MAX_POINTS)
    if size <= 1:
        return line
    x, y = [], []
    for start in range(0, len(line.x), size):
        known = [value for value in line.y[start : start + size] if value is not None]
        x.append(sum(line.x[start : start + size]) / len(line.x[start : start + size]))
        y.append(sum(known) / len(known) if known else None)
    return Line(line.label, x, y, line.color)


def _with_gaps(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _svg(figure: Figure, name: str, alt: str) -> Markup:
    """The drawing as an element for the page: no prolog, no metadata, ids of its own, colours by name."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", buffer.getvalue(), flags=re.S)
    body = re.search(r"<svg[^>]*>(.*)</svg>", svg, flags=re.S)
    box = re.search(r'viewBox="([^"]*)"', svg)
    assert body is not None and box is not None, "matplotlib wrote no svg element"
    # Tags alone are rewritten: what stands between them is text, some of it from people's data.
    drawing = re.sub(r"<[^>]+>", lambda tag: _page_tag(tag[0], name), body[1])
    drawing = re.sub(r">\s+<", "><", drawing).strip()
    return Markup(f'<svg class="plot" viewBox="{box[1]}" role="img" aria-label="{escape(alt)}">{drawing}</svg>')


def _page_tag(tag: str, name: str) -> str:
    tag = re.sub(r"\s+", " ", tag)
    tag = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", tag)
    tag = re.sub(r"font-family: [^;\"]*; ", "", tag)
    tag = re.sub(r' transform="rotate\(-0 [^"]*"', "", tag)
    for variable, stand_in in _STAND_INS.items():
        tag = tag.replace(stand_in, f"var(--{variable})")
    # Groups are named by counting (axes_1); only clips and markers are ever referred to.
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)
    tag = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', tag)
    tag = tag.replace('xlink:href="#', f'href="#{name}-').replace("url(#", f"url(#{name}-")
    return re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), tag)
