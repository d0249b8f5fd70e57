"""How figures look and are written, and the plots of values: predicted against true, and along an episode.

Every plot is a function of arrays and a ``Theme`` that returns a matplotlib ``Figure``; nothing here touches
matplotlib's global state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from voc_rl.benchmarks.report_table import method, ordered

Interval = tuple[NDArray[Any], NDArray[Any]]
Band = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
WIDTH = 10.0  # inches; all figures of a report are equally wide
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
        "voc_head": "#ff8c4b",
        "mc": "#2ec99a",
        "td": "#e79bc5",
        "one_step": "#f0b93a",
    },
    other="#9aa3ae",
)


def new_figure(height: float, theme: Theme, width: float = WIDTH, **options: Any) -> Figure:
    """An empty figure in the theme's colours."""
    figure = Figure(figsize=(width, height), facecolor=theme.background, **options)
    FigureCanvasAgg(figure)
    return figure


def style(axes: Axes, theme: Theme, grid: str = "both") -> None:
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


def to_png(figure: Figure, dpi: int = 150, colours: int = 256) -> bytes:
    """A figure as a PNG with a palette, which takes a third of the bytes of a full-colour one."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    picture = Image.fromarray(np.ascontiguousarray(pixels)).quantize(colours, method=Image.Quantize.MEDIANCUT)
    out = io.BytesIO()
    picture.save(out, format="png", optimize=True)
    return out.getvalue()


def fitted_png(figure: Figure, limit: int = MAX_BYTES) -> bytes:
    """A figure as a PNG of at most ``limit`` bytes: as sharp as possible, coarser until it fits."""
    dpi, colours = 150, 256
    while len(png := to_png(figure, dpi, colours)) > limit and dpi > 30:
        dpi, colours = int(dpi * max(0.5, 0.97 * (limit / len(png)) ** 0.5)), 128
    return png


def finite(*arrays: NDArray[Any]) -> NDArray[np.float64]:
    """All finite numbers of some arrays, flat."""
    flat = np.concatenate([np.asarray(a, dtype=np.float64).ravel() for a in arrays] or [np.zeros(0)])
    return flat[np.isfinite(flat)]


def value_range(*arrays: NDArray[Any]) -> tuple[float, float]:
    """Limits with a margin that hold all of the first array and nearly all of the others; wild ones stay outside."""
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
    figure = new_figure(0.55 + 3.35 * rows, theme, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.4 / figure.get_figheight()), hspace=0.06, wspace=0.03)
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
            panel.axhline(
                float(constant.mean()), color=theme.muted, linewidth=1.1, linestyle=(0, (1, 2)), zorder=1.4
            )
        _points(panel, truth, predictions[name], intervals.get(name), theme.colour(name))
        panel.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        _outside(panel, truth, predictions[name], (low, high), theme.colour(name))
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(5))
        panel.set_title(
            method(name).label, color=theme.colour(name), fontsize=11, fontweight="bold", loc="left"
        )
        if notes and notes.get(name):
            panel.set_title(notes[name], color=theme.muted, fontsize=9, loc="right")
        if i % columns == 0:
            panel.set_ylabel("predicted value")
        if i + columns >= len(names):
            panel.set_xlabel("true discounted return")
            panel.tick_params(labelbottom=True)
    _scatter_legend(figure, bool(constant.size), bool(intervals), theme)
    return figure


def _points(
    panel: Axes, truth: NDArray[Any], predicted: NDArray[Any], interval: Interval | None, colour: str
) -> None:
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
            panel.scatter(
                x, np.full(len(x), edge), s=26, marker=marker, color=colour, clip_on=False, zorder=4
            )


def _scatter_legend(figure: Figure, constant: bool, intervals: bool, theme: Theme) -> None:
    """The lines of the panels, above them."""
    handles = [Line2D([], [], color=theme.text, linewidth=1, label="predicted = true")]
    if constant:
        dots = (0, (1, 2))
        handles.append(Line2D([], [], color=theme.muted, linewidth=1.1, linestyle=dots, label="the constant"))
    if intervals:
        style_ = {"marker": "|", "markersize": 12, "markeredgewidth": 1.2, "linestyle": "none"}
        handles.append(Line2D([], [], color=theme.muted, label="interval (VOC only)", **style_))
    legend(figure, handles, theme, loc="upper left", bbox_to_anchor=(0.04, 1.0))


def plot_episode(
    frames: NDArray[Any],
    truth: NDArray[Any],
    values: Mapping[str, Band],
    theme: Theme,
    pictures: int = 12,
) -> Figure:
    """Values along one episode, with the episode's frames below on the same time axis.

    The frame shown in a cell is the one at the cell's middle, marked by a tick in the plot above it.
    """
    steps = max(1, len(frames))
    pictures = min(pictures, steps)
    left, width = 0.065, 0.925
    cell = WIDTH * width / pictures
    bottom, plot_height, top = 0.5, 3.1, 0.5
    height = bottom + cell + 0.08 + plot_height + top
    figure = new_figure(height, theme)
    axes = figure.add_axes((left, (bottom + cell + 0.08) / height, width, plot_height / height))
    film = figure.add_axes((left, bottom / height, width, cell / height))
    style(axes, theme, grid="y")
    style(film, theme, grid="")
    edges = np.linspace(-0.5, steps - 0.5, pictures + 1)
    middles = np.clip(np.round((edges[:-1] + edges[1:]) / 2).astype(int), 0, steps - 1)
    gap = 0.02 * (edges[1] - edges[0])
    for t, start, end in zip(middles, edges[:-1], edges[1:], strict=True):
        if len(frames):
            film.imshow(
                to_hwc(frames[t]),
                extent=(start + gap, end - gap, 0, 1),
                aspect="auto",
                interpolation="lanczos",
            )
        axes.axvline(t, color=theme.grid, linewidth=0.8, zorder=0)
    handles = _episode_lines(axes, np.asarray(truth, dtype=float), values, theme)
    axes.set(xlim=(-0.5, steps - 0.5), ylabel="value")
    axes.set_ylim(
        *value_range(np.asarray(truth, dtype=float), *(b for band in values.values() for b in band))
    )
    axes.tick_params(labelbottom=False)
    film.set(xlim=(-0.5, steps - 0.5), ylim=(0, 1), yticks=[], xlabel="agent step")
    film.spines["left"].set_visible(False)
    film.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    legend(figure, handles, theme, loc="upper left", bbox_to_anchor=(left - 0.012, 1.0))
    return figure


def _episode_lines(
    axes: Axes, truth: NDArray[np.float64], values: Mapping[str, Band], theme: Theme
) -> list[Line2D]:
    """Draw bands, lines and the stretch whose truth is not known; return what the legend shows."""
    handles = []
    for i, name in enumerate(ordered(values)):
        mean, low, high = (np.asarray(v, dtype=float) for v in values[name])
        steps = np.arange(len(mean))
        axes.fill_between(steps, low, high, color=theme.colour(name), alpha=0.2, linewidth=0)
        dashes = (["-", (0, (5, 1.5)), (0, (2, 1))])[i % 3]
        handles += axes.plot(steps, mean, color=theme.colour(name), linewidth=1.7, linestyle=dashes)
        handles[-1].set_label(method(name).label)
    known = np.flatnonzero(np.isfinite(truth))
    if known.size:
        line = axes.plot(
            np.arange(len(truth)), truth, color=theme.text, linewidth=1.5, label="true discounted return"
        )
        handles = line + handles
    if len(truth) and known.size < len(truth):
        start = int(known[-1]) + 0.5 if known.size else -0.5
        axes.axvspan(start, len(truth) - 0.5, color=theme.grid, alpha=0.45, linewidth=0, zorder=0.5)
        axes.text(
            len(truth) - 1, 1.0, "truth unknown: too few steps left ", transform=axes.get_xaxis_transform(),
            color=theme.muted, fontsize=8.5, ha="right", va="bottom",
        )  # fmt: skip
    return handles


def to_hwc(frame: NDArray[Any]) -> NDArray[np.uint8]:
    """A (C, H, W) frame as (H, W, 3); of a stack the newest frame, of a grey one three equal channels."""
    frame = np.asarray(frame)
    newest = frame[-3:] if len(frame) >= 3 else np.repeat(frame[-1:], 3, axis=0)
    return np.ascontiguousarray(newest.transpose(1, 2, 0)).astype(np.uint8)
