"""A world whose values are known: a bright square walks round a ring of columns, and one column pays."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from chains import values, walks

from voc_rl.data import DataSpec, Episode, write_episode
from voc_rl.data.hdf5 import FIRST, LAST, MID
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import OccupancyTraining
from voc_rl.training import NetworkSize, VOCConfig
from voc_rl.values import RewardConfig

CELLS = 4
SPEC = DataSpec(task="square", size=24, render="fast", mujoco="3.0", action_repeat=1, camera=0)
COMMAND = Path(sys.executable).with_name("voc-rl")


def drift(cells: int = CELLS, stay: float = 0.1) -> np.ndarray:
    """(cells, cells): one column to the right, or now and then none."""
    P = np.roll(np.eye(cells), 1, 1) * (1 - stay)
    return P + stay * np.eye(cells)


def pay(cells: int = CELLS) -> np.ndarray:
    """Reward of arriving at a column: 1 at the last, 0 elsewhere."""
    return (np.arange(cells) == cells - 1).astype(float)


def exact_values(gamma: float, cells: int = CELLS, stay: float = 0.1) -> np.ndarray:
    return values(drift(cells, stay), pay(cells), gamma)


def picture(cell: np.ndarray, size: int, cells: int = CELLS) -> np.ndarray:
    """uint8 (T, 3, size, size): a border, and the square in its column."""
    width = size // cells
    frames = np.full((len(cell), 3, size, size), 60, np.uint8)
    frames[:, :, [0, -1]], frames[..., [0, -1]] = 120, 120
    for t, c in enumerate(cell):
        frames[t, :, size // 3 : size // 3 + width, c * width : (c + 1) * width] = 240
    return frames


def write_world(
    folder: Path, episodes: int = 8, rows: int = 40, size: int = 24, cells: int = CELLS, seed: int = 0,
    spec: DataSpec = SPEC,
) -> np.ndarray:  # fmt: skip
    """Write episodes, one file each; returns the columns, int64 (episodes, rows)."""
    paths = walks(drift(cells), episodes, rows, seed)
    for i, cell in enumerate(paths):
        step_type = np.full(rows, MID, np.uint8)
        step_type[0], step_type[-1] = FIRST, LAST
        reward = pay(cells)[cell].astype(np.float32)
        reward[0] = 0
        episode = Episode(
            frames=picture(cell, size, cells),
            action=np.zeros((rows, 1), np.float32),
            reward=reward,
            discount=np.ones(rows, np.float32),
            step_type=step_type,
        )
        write_episode(Path(folder) / f"episode_{i:06d}.hdf5", episode, spec)
    return paths


def loop(steps: int, learning_rate: float = 5e-3, batch_size: int = 64) -> LoopConfig:
    return LoopConfig(steps=steps, batch_size=batch_size, learning_rate=learning_rate)


def small_config(
    gamma: float = 0.5, quantizer: int = 60, steps: int = 60, seed: int = 0, reward: int = 20
) -> VOCConfig:
    """Networks of a few thousand weights, for frames of 24 or 36 pixels, trained for so many steps."""
    return VOCConfig(
        quantizer_config={
            "n_tokens": 2, "levels": (4, 3), "components": 8, "hidden": 32, "decoder_width": 8, "patch": 6,
        },
        quantizer_training=loop(quantizer),
        network=NetworkSize(n_layer=1, n_head=2, width=32, head_hidden=32, head_members=3),
        occupancy=OccupancyTraining(gamma=gamma, loop=loop(steps)),
        reward=RewardConfig(hidden=32, bins=11, loop=loop(reward, batch_size=128)),
        seed=seed,
    )  # fmt: skip


def numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """The scores of metrics.json, without the seconds."""
    return {
        name: {key: value for key, value in scores.items() if key != "cpu_seconds"}
        for name, scores in metrics["methods"].items()
    }


def one_sentence(text: str) -> bool:
    """Whether a message is one line that ends like a sentence, without another sentence in it."""
    return text.count("\n") == 0 and text.endswith((".", "?")) and not re.search(r"\. [A-Z][a-z]+ ", text)


def refusal(call: object, *args: object, **kwargs: object) -> str:
    """What a call says that has to raise a VOCError: one sentence."""
    with pytest.raises(VOCError) as caught:
        call(*args, **kwargs)  # type: ignore[operator]
    assert one_sentence(str(caught.value)), str(caught.value)
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


def together(command: list[str]) -> list[tuple[int, str]]:
    """Exit code and errors of two processes that join, as under torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    around = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(command, env={**around, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]


def outlive(command: list[str], begun: Callable[[], bool], timeout: float = 120) -> list[psutil.Process]:
    """Start ``command``, SIGKILL it once it has ``begun``; which of the processes that it started are there 20 s later.
    They are killed, too."""
    process = psutil.Popen(command)
    deadline = time.monotonic() + timeout
    try:
        while not begun():
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline, "it did not begin"
            time.sleep(0.01)
        started = process.children(recursive=True)
    finally:
        process.kill()
        process.wait()
    alive = psutil.wait_procs(started, timeout=20)[1]
    for one in alive:
        one.kill()
    return alive


def kill_when(path: Path, command: list[str], timeout: float = 120) -> None:
    """Start ``command`` and SIGKILL it as soon as ``path`` exists."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + timeout
    try:
        while not path.exists():
            assert process.poll() is None, f"ended early: {process.communicate()[1].decode()}"
            assert time.monotonic() < deadline, f"{path} did not appear"
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
