"""How figures look and are written, and the plot of predicted against true values.

Every plot is a function of arrays and a ``Theme`` that returns a matplotlib ``Figure``; nothing here touches
matplotlib's global state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from voc_rl.checkpoints import atomic_path
from voc_rl.reports.table import method, ordered

Interval = tuple[NDArray[Any], NDArray[Any]]
WIDTH = 10.0  # inches; all figures of a report are equally wide
DPI = 150  # of figures that fit into their bytes
MAX_POINTS = 500
MAX_BYTES = 295_000  # of one picture


@dataclass(frozen=True)
class Theme:
    """Colours of a figure. The method colours follow Okabe and Ito and stay apart for colour-blind eyes."""

    background: str
    text: str
    muted: str
    grid: str
    methods: Mapping[str, str]
    other: str

    def colour(self, name: str) -> str:
        """The colour of a method."""
        return self.methods.get(name, self.other)


LIGHT = Theme(
    background="#ffffff",
    text="#1b1f24",
    muted="#5b6470",
    grid="#e3e6ea",
    methods={
        "voc": "#0072b2",
        "voc_codes": "#56b4e9",
        "voc_head": "#d55e00",
        "mc": "#009e73",
        "td": "#b0508a",
        "one_step": "#b98000",
    },
    other="#6b7280",
)
DARK = Theme(
    background="#14171c",
    text="#e8eaed",
    muted="#a0a9b5",
    grid="#2c323a",
    methods={
        "voc": "#56b4e9",
        "voc_codes": "#2f7fb5",
        "voc_head": "#ff8c4b",
        "mc": "#2ec99a",
        "td": "#e79bc5",
        "one_step": "#f0b93a",
    },
    other="#9aa3ae",
)


def new_figure(height: float, theme: Theme, layout: ConstrainedLayoutEngine | None = None) -> Figure:
    """An empty figure in the theme's colours."""
    return Figure(figsize=(WIDTH, height), facecolor=theme.background, layout=layout)


def style(axes: Axes, theme: Theme, grid: Literal["both", "x", "y", ""] = "both") -> None:
    """Quiet axes: no box, light grid, muted ticks."""
    axes.set_facecolor(theme.background)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)
    axes.tick_params(colors=theme.muted, labelsize=9, length=0, pad=5)
    if grid:
        axes.grid(True, axis=grid, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.label.set(color=theme.muted, fontsize=9.5)
    axes.yaxis.label.set(color=theme.muted, fontsize=9.5)


def legend(figure: Figure, handles: list[Any], theme: Theme, **options: Any) -> None:
    """A frameless legend in the theme's colours."""
    figure.legend(
        handles=handles,
        frameon=False,
        fontsize=9.5,
        labelcolor=theme.text,
        ncols=len(handles),
        handlelength=2.2,
        **options,
    )


def to_png(figure: Figure, dpi: int, colours: int) -> bytes:
    """A figure as a PNG with a palette, which takes a third of the bytes of a full-colour one."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    picture = Image.fromarray(np.ascontiguousarray(pixels)).quantize(colours, method=Image.Quantize.MEDIANCUT)
    out = io.BytesIO()
    picture.save(out, format="png", optimize=True)
    return out.getvalue()


def fitted_png(figure: Figure) -> bytes:
    """A figure as a PNG of at most ``MAX_BYTES``: as sharp as possible, coarser until it fits."""
    dpi, colours = DPI, 256
    while len(png := to_png(figure, dpi, colours)) > MAX_BYTES and dpi > 30:
        dpi, colours = int(dpi * max(0.5, 0.97 * (MAX_BYTES / len(png)) ** 0.5)), 128
    return png


def save(path: Path, figure: Figure) -> None:
    """Write a figure as a PNG of at most ``MAX_BYTES``, in one step."""
    png = fitted_png(figure)
    with atomic_path(path) as temporary:
        temporary.write_bytes(png)


def finite(*arrays: NDArray[Any]) -> NDArray[np.float64]:
    """All finite numbers of some arrays, flat."""
    flat = np.concatenate([np.asarray(a, dtype=np.float64).ravel() for a in arrays] or [np.zeros(0)])
    return flat[np.isfinite(flat)]


def value_range(*arrays: NDArray[Any]) -> tuple[float, float]:
    """Limits that hold all of the first array and nearly all of the others; wild ones stay outside."""
    numbers = finite(*arrays)
    if numbers.size == 0:
        return 0.0, 1.0
    low, high = np.quantile(numbers, [0.002, 0.998])
    certain = finite(arrays[0])
    if certain.size:
        low, high = min(low, certain.min()), max(high, certain.max())
    margin = 0.05 * (high - low) or max(0.5, 0.05 * abs(high))
    return float(low - margin), float(high + margin)


def plot_scatter(
    truth: NDArray[Any],
    predictions: Mapping[str, NDArray[Any]],
    intervals: Mapping[str, Interval],
    theme: Theme,
    notes: Mapping[str, str] | None = None,
) -> Figure:
    """Predicted against true values, one panel per method; the constant is a line in every panel.

    ``notes`` are short texts (scores) for the corner of each panel.
    """
    names = [name for name in ordered(predictions) if name != "constant"] or ordered(predictions)
    columns = min(3, max(1, len(names)))
    rows = -(-max(1, len(names)) // columns)
    height = 0.55 + 3.35 * rows
    below_legend = (0, 0, 1, 1 - 0.4 / height)
    figure = new_figure(height, theme, ConstrainedLayoutEngine(rect=below_legend, hspace=0.06, wspace=0.03))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    low, high = value_range(truth, *(predictions[name] for name in names))
    constant = finite(predictions["constant"]) if "constant" in predictions else np.zeros(0)
    for i, panel in enumerate(panels):
        if i >= len(names):
            panel.set_visible(False)
            continue
        name = names[i]
        style(panel, theme)
        panel.plot([low, high], [low, high], color=theme.text, linewidth=1, zorder=1.5)
        if constant.size:
            panel.axhline(float(constant.mean()), color=theme.muted, linewidth=1.1, linestyle=(0, (1, 2)), zorder=1.4)
        _points(panel, truth, predictions[name], intervals.get(name), theme.colour(name))
        panel.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        _outside(panel, truth, predictions[name], (low, high), theme.colour(name))
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(5))
        panel.set_title(method(name).label, color=theme.colour(name), fontsize=11, fontweight="bold", loc="left")
        if notes and notes.get(name):
            panel.set_title(notes[name], color=theme.muted, fontsize=9, loc="right")
        if i % columns == 0:
            panel.set_ylabel("predicted value")
        if i + columns >= len(names):
            panel.set_xlabel("true discounted return")
            panel.tick_params(labelbottom=True)
    _scatter_legend(figure, bool(constant.size), bool(intervals), theme)
    return figure


def _points(panel: Axes, truth: NDArray[Any], predicted: NDArray[Any], interval: Interval | None, colour: str) -> None:
    """Points with their intervals; of many states, every few are drawn."""
    every = slice(None, None, -(-len(truth) // MAX_POINTS) or 1)
    x, y = np.asarray(truth)[every], np.asarray(predicted)[every]
    if interval is not None:
        low, high = (np.asarray(bound)[every] for bound in interval)
        panel.vlines(x, low, high, color=colour, linewidth=0.9, alpha=0.28, zorder=2)
    panel.scatter(x, y, s=13, color=colour, alpha=0.6, linewidths=0, zorder=3)


def _outside(
    panel: Axes, truth: NDArray[Any], predicted: NDArray[Any], limits: tuple[float, float], colour: str
) -> None:
    """Triangles at the edge for predictions beyond it."""
    for beyond, edge, marker in (
        (predicted > limits[1], limits[1], "^"),
        (predicted < limits[0], limits[0], "v"),
    ):
        if np.any(beyond):
            x = np.asarray(truth)[beyond]
            panel.scatter(x, np.full(len(x), edge), s=26, marker=marker, color=colour, clip_on=False, zorder=4)


def _scatter_legend(figure: Figure, constant: bool, intervals: bool, theme: Theme) -> None:
    """The lines of the panels, above them."""
    handles = [Line2D([], [], color=theme.text, linewidth=1, label="predicted = true")]
    if constant:
        dots = (0, (1, 2))
        handles.append(Line2D([], [], color=theme.muted, linewidth=1.1, linestyle=dots, label="the constant"))
    if intervals:
        style_: dict[str, Any] = {
            "marker": "|",
            "markersize": 12,
            "markeredgewidth": 1.2,
            "linestyle": "none",
        }
        handles.append(Line2D([], [], color=theme.muted, label="interval (VOC only)", **style_))
    legend(figure, handles, theme, loc="upper left", bbox_to_anchor=(0.04, 1.0))
