"""How whelp's time and memory grow: with the batch, the length of the answers, the size of the model, and the number of roles.

    python benchmarks/growth.py run       what is missing on this machine; stop and go on at will
    python benchmarks/growth.py tables    docs/growth.svg, and the slopes between their marks in docs/benchmarks.md

A point is a process of its own: one turn to warm up, then two that count. Batch, length and model size are those of a PPO
iteration (4 layers, 4 epochs); models other than the default have random weights. A role is one more policy that scores the same
sequences. The slope is that of a straight line through the logarithms: 1 is twice the time for twice the work.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import matplotlib
import torch
from races import DOCS, FOUR, Race, Side, Work, contest, ppo_iteration, record_of, scoring, start
from results import RECORDS, ROOT, machine, table, write_between

from whelp import scaling
from whelp.engines.devices import choose
from whelp.models.sources import resolve
from whelp.recipes import load_recipe
from whelp.runs.files import read_json, write_json_atomic

PLOT, SCALING = ROOT / "docs" / "growth.svg", ROOT / "docs" / "scaling.md"
MODELS = ROOT / "runs" / "growth"
SHAPES = {
    14: (192, 12, 3, 1, 512),
    44: (384, 16, 6, 2, 1024),
    135: (576, 30, 9, 3, 1536),
    362: (960, 32, 15, 5, 2560),
    510: (1152, 32, 18, 6, 3072),
}
"""Width, layers, heads, heads of keys and values, and inner width, by the millions of weights that they come to."""
SERIES = {
    "batch": (8, 16, 32, 64),
    "response length": (16, 32, 64, 128),
    "millions of weights": tuple(SHAPES),
    "roles": (1, 2, 4, 8),
}
ROWS = 16
"""Answers where something else is varied."""


def point(series: str, x: int) -> dict[str, float]:
    place, common = start(*([f"model={random_model(x)}"] if series == "millions of weights" else []))
    side, work = FOUR, common | ppo_iteration(place)
    match series:
        case "batch":
            work = of_size(work, x, 48)
        case "response length":
            work = of_size(work, ROWS, x)
        case "millions of weights":
            work = of_size(work, ROWS, 48)
            work["settings"] |= {"model": str(place.base)}
        case "roles":
            side, work = Side("whelp"), common | scoring(place) | {"kind": "roles", "roles": x}
    found = contest(Race(f"{series} {x}", "", lambda _: {}, (side,)), work, rounds=2)
    return {
        "x": x,
        "seconds": median(turn["seconds"] for turn in found["turns"][side.name]),
        "peak_mb": found["peak_mb"][side.name],
    }


def of_size(work: Work, rows: int, length: int) -> Work:
    """A PPO iteration on `rows` answers of `length` tokens."""
    repeated = {name: [work[name][i % len(work[name])] for i in range(rows)] for name in ("texts", "prompts")}
    settings = work["settings"] | {"ppo.batch_size": rows, "ppo.response_length": length}
    return work | repeated | {"lengths": [length] * rows, "settings": settings}


def random_model(millions: int) -> Path:
    """A folder with random weights and the default model's tokenizer, made once."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    base, folder = resolve(load_recipe("assistant", []).model, print), MODELS / f"random-{millions}m"
    if not (folder / "config.json").exists():
        width, layers, heads, key_value_heads, inner = SHAPES[millions]
        tokenizer = AutoTokenizer.from_pretrained(base)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=key_value_heads,
            intermediate_size=inner,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        torch.manual_seed(0)
        tokenizer.save_pretrained(folder)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def run() -> None:
    dtype = str(choose().dtype).removeprefix("torch.")
    record = record_of("growth", machine(), dtype)
    found: dict[str, Any] = read_json(record) or {"machine": machine(), "dtype": dtype, "series": {}}
    for series, values in SERIES.items():
        points = found["series"].setdefault(series, [])
        for x in values:
            if x not in [point["x"] for point in points]:
                points.append(point(series, x))
                write_json_atomic(record, found)


def where(record: dict[str, Any]) -> str:
    return f"{record['machine']}, {record['dtype']}"


def ppo_points(dtype: str) -> list[tuple[str, dict[str, float]]]:
    """(series, point) of every iteration of PPO that was measured in a number format."""
    records = [read_json(file) for file in sorted((RECORDS / "speed").glob(f"growth-*-{dtype}.json"))]
    series = [(name, points) for one in records for name, points in one["series"].items() if name != "roles"]
    return [(name, point) for name, points in series for point in points]


def shape_and_work(series: str, x: int) -> tuple[scaling.Shape, scaling.Work]:
    """Of a point, for what `whelp.scaling` predicts."""
    width, layers, heads, key_value_heads, inner = SHAPES[x if series == "millions of weights" else 135]
    rows = x if series == "batch" else ROWS
    response = x if series == "response length" else 48
    work = scaling.Work(rows=rows, prompt=45, response=response, epochs=4, trainable_layers=4)
    return scaling.Shape(width, layers, heads, key_value_heads, inner, 49_152), work


def predictions() -> str:
    """What arithmetic says of what was measured."""
    rows = []
    for series, point in ppo_points("float32"):
        shape, work = shape_and_work(series, int(point["x"]))
        time, memory = (
            sum(scaling.seconds(shape, work, scaling.LAPTOP).values()),
            scaling.peak(shape, work, scaling.LAPTOP),
        )
        measured = f"{point['seconds']:.1f} s, {point['peak_mb'] / 1024:.1f} GB"
        told = f"{time:.1f} s, {memory / 2**30:.1f} GB"
        errors = f"{time / point['seconds'] - 1:+.0%}, {memory / 2**20 / point['peak_mb'] - 1:+.0%}"
        rows.append([f"{series} {point['x']}", measured, told, errors])
    return table(["what grows", "measured", "predicted", "off by"], rows)


def plans() -> str:
    """Iterations on machines that were not here."""
    rows = []
    for name, shape in scaling.SHAPES.items():
        for devices in (1, 8, 64):
            cells = [name, str(devices)]
            for layers in (None, shape.layers // 4):
                work = scaling.Work(1024, 256, 512, trainable_layers=layers, slots=128, piece=8192)
                most = scaling.peak(shape, work, scaling.H100, devices) / scaling.GB
                time = sum(scaling.seconds(shape, work, scaling.H100, devices).values())
                cells += [f"{most:,.0f}" + (" (too much)" if most > 80 else ""), f"{time:,.0f}"]
            rows.append(cells)
    heading = ["model", "GPUs", "all layers: GB of each", "seconds", "a quarter of the layers: GB of each", "seconds"]
    return table(heading, rows)


def slope(points: Sequence[dict[str, float]], key: str) -> float:
    return linear_regression(*zip(*((math.log(p["x"]), math.log(p[key])) for p in points), strict=True)).slope


def write_tables() -> None:
    records = [read_json(file) for file in sorted((RECORDS / "speed").glob("growth-*.json"))]
    rows = [
        [
            where(one),
            name,
            f"{points[0]['x']} to {points[-1]['x']}",
            f"{points[0]['seconds']:.1f} to {points[-1]['seconds']:.1f} s",
            f"{slope(points, 'seconds'):.2f}",
            f"{points[0]['peak_mb'] / 1024:.1f} to {points[-1]['peak_mb'] / 1024:.1f} GB",
        ]
        for one in records
        for name, points in one["series"].items()
        if len(points) > 1
    ]
    text = (
        table(["machine", "what grows", "from, to", "time", "slope", "peak memory"], rows)
        if rows
        else "Nothing is recorded."
    )
    write_between(DOCS, "growth", text)
    write_between(SCALING, "predictions", predictions())
    write_between(SCALING, "plans", plans())
    if records:
        plot(records)


def plot(records: Sequence[dict[str, Any]]) -> None:
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "whelp"
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    grid: Any = figure.subplots(2, len(SERIES), sharex="col")
    for column, name in enumerate(SERIES):
        for axes, key, scale, label in (
            (grid[0][column], "seconds", 1, "seconds"),
            (grid[1][column], "peak_mb", 1024, "peak GB"),
        ):
            for one in records:
                points = one["series"].get(name, [])
                x, y = [p["x"] for p in points], [p[key] / scale for p in points]
                axes.plot(x, y, "o-", markersize=3, linewidth=1.2, label=where(one))
                if key == "seconds":  # twice the time for twice the work
                    axes.plot(
                        x, [y[0] * one / x[0] for one in x], ":", color="#8c959f", linewidth=1, label="in proportion"
                    )
            axes.set_xscale("log", base=2)
            axes.set_xticks(SERIES[name], [str(x) for x in SERIES[name]], fontsize=7)
            axes.minorticks_off()
            if key == "seconds":
                axes.set_yscale("log", base=2)
                axes.yaxis.set_major_formatter("{x:g}")
            else:
                axes.set_ylim(bottom=0, top=1.05 * axes.get_ylim()[1])
            axes.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axes.set_ylabel(label)
        grid[1][column].set_xlabel(name)
    grid[0][0].legend(frameon=False, fontsize=7)
    figure.savefig(PLOT, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "tables"])
    if parser.parse_args().command == "run":
        run()
    else:
        write_tables()


if __name__ == "__main__":
    main()
