"""Pictures of the control benchmark: returns, curves, and frames of the policies as they act."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from voc_rl.checkpoints import atomic_path
from voc_rl.reports.plots import MAX_BYTES, save

SHEET = 8  # frames of a row
FILM = ("behaviour", "bc_top10", "mc_awr", "voc_awr")
FILM_FRAMES = 75  # at most; fewer where they would not fit into the file
FRAME_MS = 80


def save_plot(path: Path, found: Mapping[str, Any]) -> None:
    """Returns by method with their intervals."""
    tasks = found["tasks"]
    rows = -(-len(tasks) // 2)
    figure = Figure(figsize=(5.5 * min(len(tasks), 2), 5.5 * rows))
    axes = figure.subplots(rows, min(len(tasks), 2), squeeze=False)
    for axis in axes.flat[len(tasks) :]:
        axis.axis("off")
    for axis, (name, task) in zip(axes.flat, tasks.items(), strict=False):
        methods = list(task["methods"])
        means = np.array([task["methods"][m]["mean"] for m in methods])
        low, high = (np.array([task["methods"][m][end] for m in methods]) for end in ("low", "high"))
        errors = np.maximum([means - low, high - means], 0)
        by_voc = np.array([m.startswith(("voc", "planner", "zero_shot")) for m in methods])
        for own, colour, label in ((by_voc, "tab:orange", "values by a VOC"), (~by_voc, "tab:gray", "others")):
            axis.barh(np.flatnonzero(own), means[own], xerr=errors[:, own], color=colour, label=label)
        axis.set_yticks(range(len(methods)), methods, fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(left=0)
        axis.set_title(name)
        axis.set_xlabel("return of an episode")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="upper center", ncols=2)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    save(path, figure)


def save_sheet(path: Path, folder: Path) -> None:
    """Frames of the first episode of some methods, one row each; nothing where none were kept."""
    files = sorted(folder.glob("*.npy"))
    if not files:
        return
    rows = [_spread(np.load(file, allow_pickle=False), SHEET) for file in files]
    figure = Figure(figsize=(8, 1.25 * len(rows)))
    axes = figure.subplots(len(rows), 1, squeeze=False)
    for axis, file, frames in zip(axes[:, 0], files, rows, strict=True):
        axis.imshow(np.concatenate(list(frames.transpose(0, 2, 3, 1)), 1))
        axis.set_title(file.stem.replace("_", ", ", 1), fontsize=7, loc="left", pad=2)
        axis.axis("off")
    figure.tight_layout(pad=0.3)
    save(path, figure)


def save_curves(path: Path, found: Mapping[str, Any]) -> None:
    """Returns against steps of the training, of the methods that have a curve; nothing where none has."""
    curves = {
        task: {method: own["curve"] for method, own in numbers["methods"].items() if "curve" in own}
        for task, numbers in found["tasks"].items()
    }
    curves = {task: own for task, own in curves.items() if own}
    if not curves:
        return
    figure = Figure(figsize=(5.5 * len(curves), 3.8))
    axes = figure.subplots(1, len(curves), squeeze=False)
    for axis, (task, own) in zip(axes[0], curves.items(), strict=True):
        for method, curve in own.items():
            axis.plot(curve["steps"], curve["returns"], marker="o", markersize=3, label=method)
        axis.set_title(task)
        axis.set_xlabel("optimiser steps")
        axis.set_ylabel("return of an episode")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8)
    figure.tight_layout()
    save(path, figure)


def save_film(path: Path, folder: Path, tasks: Sequence[str]) -> None:
    """A GIF of the kept frames of ``FILM``, one row for each task, of at most ``MAX_BYTES``; nothing without frames."""
    rows = []
    for task in tasks:
        files = {method: folder / f"{task}_{method}.npy" for method in FILM}
        rows.append([(m, np.load(file, allow_pickle=False)) for m, file in files.items() if file.exists()])
    rows = [row for row in rows if row]
    if not rows:
        return
    length = min(FILM_FRAMES, *(len(frames) for row in rows for _, frames in row))
    pictures = [_tiles([[(name, frames[i]) for name, frames in row] for row in rows]) for i in range(length)]
    while len(content := _gif(pictures)) > MAX_BYTES:
        pictures = pictures[: int(0.97 * len(pictures) * MAX_BYTES / len(content))]
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _tiles(rows: list[list[tuple[str, np.ndarray]]]) -> Image.Image:
    """Frames (3, H, W) with their names above, row by row."""
    side, label = rows[0][0][1].shape[1], 12
    picture = Image.new("RGB", (side * max(map(len, rows)), (side + label) * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    for y, row in enumerate(rows):
        for x, (name, frame) in enumerate(row):
            draw.text((side * x + 2, (side + label) * y), name, fill="black")
            picture.paste(Image.fromarray(frame.transpose(1, 2, 0)), (side * x, (side + label) * y + label))
    return picture


def _gif(pictures: list[Image.Image]) -> bytes:
    """All in the colours of the first, so that what does not change costs nothing."""
    first = pictures[0].quantize(24, dither=Image.Dither.NONE)
    pictures = [first, *(picture.quantize(palette=first, dither=Image.Dither.NONE) for picture in pictures[1:])]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=FRAME_MS, loop=0)
    return buffer.getvalue()


def _spread(frames: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of some frames, evenly from first to last."""
    return frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int)]
