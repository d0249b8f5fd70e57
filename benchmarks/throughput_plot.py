"""The picture of the throughput benchmark: speed-ups by size, and seconds as one number changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from voc_rl.benchmarks.throughput_table import SIZES
from voc_rl.reports.plots import save

COLOURS = {"cpu": "#0072b2", "cuda": "#d55e00"}


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: left the sampler (bars) and the training step (hatched), right the scaling, both logarithmic."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    devices = [name for name in COLOURS if name in results]
    for i, name in enumerate(devices):
        part = results[name]
        own = [size for size in SIZES if "training_speedup" in part.get(size, {})]
        for j, (what, hatch) in enumerate((("sampler_speedup", ""), ("training_speedup", "///"))):
            at = [SIZES.index(size) + 0.2 * (2 * i + j) for size in own]
            label = f"{name}: {'sampling' if j == 0 else 'a training step'}"
            left.bar(at, [part[size][what] for size in own], 0.18, color=COLOURS[name], hatch=hatch, label=label,
                     edgecolor="white")  # fmt: skip
        for what, marker in (("samples", "o"), ("states", "s"), ("tokens", "^"), ("width", "D")):
            rows = sorted((row["value"], row["seconds"]) for row in part.get("scaling", []) if row["what"] == what)
            if rows:
                right.plot(*zip(*rows, strict=True), marker=marker, color=COLOURS[name], label=f"{name}: {what}")
    left.set_yscale("log")
    left.set_xticks([i + 0.2 * (len(devices) - 0.5) for i in range(len(SIZES))], SIZES)
    left.set_ylabel("times faster than the reference")
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("samples, states, tokens or width; the others as in the table")
    right.set_ylabel("seconds of sampling")
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both", linewidth=0.5)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4 if axes is right else 2)
    save(path, figure)
