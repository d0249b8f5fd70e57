"""Plots of how a run went: codebook use, training curves, seconds and memory of each stage."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from voc_rl.quantizers import perplexity
from voc_rl.reports.plots import Theme, new_figure, style
from voc_rl.reports.table import DASH, as_number, method

MAX_TOKENS = 16
MAX_CURVES = 24
NOT_CURVES = frozenset({"stage", "step", "time", "seconds", "cpu_seconds", "elapsed", "epoch", "lr", "learning_rate"})
Series = tuple[NDArray[np.float64], NDArray[np.float64]]


def plot_codebook(counts: NDArray[Any], theme: Theme) -> Figure:
    """How often each code occurs, most frequent first, a panel per token; of many tokens an even choice."""
    counts = np.asarray(counts, dtype=np.float64)
    tokens = np.unique(np.linspace(0, len(counts) - 1, min(len(counts), MAX_TOKENS)).round().astype(int))
    columns = min(4, len(tokens))
    rows = -(-len(tokens) // columns)
    figure = new_figure(0.55 + 1.55 * rows, theme, ConstrainedLayoutEngine(hspace=0.07, wspace=0.03))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    size = counts.shape[1]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colour = theme.colour("voc")
    for i, panel in enumerate(panels):
        if i >= len(tokens):
            panel.set_visible(False)
            continue
        share = np.sort(shares[tokens[i]])[::-1]
        style(panel, theme, grid="y")
        panel.stairs(100 * share, np.arange(size + 1) + 0.5, fill=True, color=colour, alpha=0.85)
        panel.axhline(100 / size, color=theme.text, linewidth=1, linestyle=(0, (1, 2)))
        panel.set_title(f"token {tokens[i] + 1}", color=theme.text, fontsize=9.5, fontweight="bold", loc="left")
        note = f"{np.count_nonzero(share)} of {size} used\nperplexity {perplexity(counts[tokens[i]]):.0f}"
        paper = {"facecolor": theme.background, "edgecolor": "none", "pad": 1.5}
        where = {"transform": panel.transAxes, "ha": "right", "va": "top", "bbox": paper}
        panel.text(0.99, 0.94, note, color=theme.muted, fontsize=8.5, linespacing=1.35, **where)
        panel.set_xlim(0.5, size + 0.5)
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(3))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    figure.supxlabel("codes, most frequent first (dotted: all equally frequent)", color=theme.muted, fontsize=9.5)
    return figure


def curve_series(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Series]:
    """(stage, name) -> (steps, values). Of a step logged twice (a resumed run) the last row counts; a part that is the
    whole loss of its stage (a cross-entropy without a value head) is left out."""
    points: dict[tuple[str, str], dict[float, float]] = {}
    for row in rows:
        step = as_number(row.get("step"))
        if math.isnan(step):
            continue
        for name, value in row.items():
            if name not in NOT_CURVES and not math.isnan(as_number(value)):
                points.setdefault((str(row.get("stage", "training")), name), {})[step] = as_number(value)
    arrays = {key: np.array(sorted(series.items())) for key, series in points.items()}
    whole = {stage: a for (stage, name), a in arrays.items() if name == "loss"}
    own = {
        (stage, name): a
        for (stage, name), a in arrays.items()
        if name == "loss" or not np.array_equal(a, whole.get(stage, ()))
    }
    return {key: (a[:, 0], a[:, 1]) for key, a in own.items() if len(a) >= 2}


def plot_curves(rows: Iterable[Mapping[str, Any]], theme: Theme) -> Figure | None:
    """Training curves, a panel per stage and number."""
    series = list(curve_series(rows).items())[:MAX_CURVES]
    if not series:
        return None
    columns = min(4, max(2, len(series)))
    count = -(-len(series) // columns)
    figure = new_figure(0.65 + 1.85 * count, theme, ConstrainedLayoutEngine(hspace=0.08, wspace=0.04))
    panels = figure.subplots(count, columns, squeeze=False).ravel()
    for panel, ((stage, name), (steps, values)) in zip(panels, series, strict=False):
        style(panel, theme)
        colour = theme.methods.get(stage, theme.colour("voc"))
        _curve(panel, steps, values, colour)
        panel.set_title(method(stage).label, color=colour, fontsize=9.5, fontweight="bold", loc="left")
        panel.set_title(name.replace("_", " "), color=theme.muted, fontsize=9, loc="right")
        _curve_scale(panel, values)
    for panel in panels[len(series) :]:
        panel.set_visible(False)
    figure.supxlabel("training step", color=theme.muted, fontsize=9.5)
    return figure


def _curve(panel: Axes, steps: NDArray[np.float64], values: NDArray[np.float64], colour: str) -> None:
    """A curve; a long one faint, with its running mean on top."""
    width = len(values) // 25
    if width < 3:
        panel.plot(steps, values, color=colour, linewidth=1.4)
        return
    kernel = np.ones(width) / width
    weight = np.convolve(np.ones_like(values), kernel, mode="same")
    panel.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
    smooth = np.convolve(values, kernel, mode="same") / weight
    panel.plot(steps, smooth, color=colour, linewidth=1.6)


def _curve_scale(panel: Axes, values: NDArray[np.float64]) -> None:
    """A logarithmic axis where numbers span decades; few ticks in short form."""
    if values.min() > 0 and values.max() / values.min() > 30:
        panel.set_yscale("log")
        panel.yaxis.set_minor_formatter(NullFormatter())
    else:
        panel.yaxis.set_major_locator(MaxNLocator(4))
    panel.xaxis.set_major_locator(MaxNLocator(3))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))


def short_count(value: float) -> str:
    """1500 -> 1.5k, 2000000 -> 2M."""
    for size, sign in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}"
    return f"{value:g}"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size: float) -> str:
    """Bytes in GB (1e9) or MB (1e6)."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def plot_cost(seconds: Mapping[str, Any], peak_bytes: Mapping[str, Any], theme: Theme) -> Figure | None:
    """Seconds and peak memory of each stage, as bars side by side."""
    stages = list(dict.fromkeys([*seconds, *peak_bytes]))
    if not stages:
        return None
    figure = new_figure(0.75 + 0.32 * len(stages), theme, ConstrainedLayoutEngine())
    left, right = figure.subplots(1, 2, sharey=True)
    _bars(left, [as_number(seconds.get(s)) for s in stages], duration, theme.colour("voc"), theme)
    _bars(right, [as_number(peak_bytes.get(s)) for s in stages], memory, theme.colour("mc"), theme)
    left.set_yticks(range(len(stages)), [s.replace("_", " ") for s in stages], color=theme.text)
    left.invert_yaxis()
    for axes, title in ((left, "time"), (right, "peak memory")):
        axes.set_title(title, color=theme.text, fontsize=11, fontweight="bold", loc="left")
    return figure


def _bars(axes: Axes, values: list[float], show: Any, colour: str, theme: Theme) -> None:
    """Horizontal bars with their numbers at the end; a missing number is a dash."""
    style(axes, theme, grid="")
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    known = [0.0 if math.isnan(v) else v for v in values]
    axes.barh(range(len(values)), known, color=colour, height=0.62)
    for i, value in enumerate(values):
        text = DASH if math.isnan(value) else show(value)
        axes.annotate(
            text,
            (known[i], i),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=theme.text,
            fontsize=9,
        )
    axes.set_xlim(0, 1.28 * max([*known, 1e-9]))
