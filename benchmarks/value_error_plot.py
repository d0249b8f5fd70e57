"""The picture of ``value_error``: errors against discounts, a panel per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from voc_rl.benchmarks.value_error_table import BASE, PIXELS
from voc_rl.reports.plots import LIGHT, legend, new_figure, save, style
from voc_rl.reports.table import METHODS

HEIGHT, APART, LEAST = 4.2, 0.07, 0.01  # inches; between methods at one discount; smallest error that is drawn
OTHER = {"musik": "^", "dino": "s", "vqgan": "D"}  # markers of other quantizers
DASHES = {"paper": (0, (4, 2)), "constant": (0, (1, 2)), "voc_codes": (0, (3, 2))}


def draw_errors(tasks: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Write a PNG; ``tasks``: task -> an entry per discount, as in value_error.json."""
    figure = new_figure(HEIGHT, LIGHT, ConstrainedLayoutEngine(rect=(0, 0, 1, 0.92)))
    panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for axes, (task, entries) in zip(panels, tasks.items(), strict=True):
        style(axes, LIGHT)
        for i, method in enumerate(METHODS):
            _line(axes, method, entries, (i - len(METHODS) / 2) * APART)
        axes.set_title(task, color=LIGHT.text, fontsize=11, fontweight="bold", loc="left")
        axes.set_yscale("log")
        axes.set_xticks(range(len(entries)), [f"γ = {entry['gamma']:g}" for entry in entries])
        axes.set_yticks([0.03, 0.1, 0.3, 1, 3], ["0.03", "0.1", "0.3", "1", "3"], minor=False)
        axes.minorticks_off()
    panels[0].set_ylabel("error (1 = the best constant); bars: sd over seeds")
    handles: dict[str, Any] = {str(line.get_label()): line for axes in panels for line in axes.lines}
    handles = {name: line for name, line in handles.items() if name[0] != "_"}
    for name in sorted(
        {row["sees"] for entries in tasks.values() for e in entries for row in e["methods"]} & set(OTHER)
    ):
        mark: dict[str, Any] = {"marker": OTHER[name], "fillstyle": "none", "linestyle": "none"}
        handles[name] = Line2D([], [], color=LIGHT.muted, label=name, **mark)
    legend(figure, list(handles.values()), LIGHT, loc="upper left", bbox_to_anchor=(0.03, 1.0), columnspacing=1.1)
    save(path, figure)


def _line(axes: Axes, method: str, entries: Sequence[Mapping[str, Any]], shift: float) -> None:
    """A method's errors with their spread over seeds; those of other quantizers beside it."""
    rows = [(x + shift, row) for x, entry in enumerate(entries) for row in entry["methods"] if row["method"] == method]
    colour, drawn = LIGHT.colour(method), [(x, row) for x, row in rows if row["sees"] in (BASE, PIXELS)]
    if drawn:
        errors = [max(row["error"], LEAST) for _, row in drawn]
        dashes: Any = DASHES.get(method, "-")
        axes.plot([x for x, _ in drawn], errors, color=colour, marker="o", markersize=4, linestyle=dashes, label=method)
    for x, row in rows:
        error, spread = max(row["error"], LEAST), row["error_spread"] or 0.0
        axes.vlines(x, max(error - spread, LEAST), error + spread, color=colour, linewidth=1)
        if row["sees"] in OTHER:
            axes.plot(x + APART / 2, error, color=colour, marker=OTHER[row["sees"]], markersize=5, fillstyle="none")
