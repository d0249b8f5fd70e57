"""How fast frames are drawn and read: ``fast`` against dm_control's own picture, processes, files."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from voc_rl.data import DataSpec, Episode, Episodes, write_episode
from voc_rl.data.hdf5 import FIRST, LAST, MID

TASK, SIZE = "cheetah-run", 84
ROUNDS = 5


def storage(say: Callable[[str], None]) -> dict[str, Any]:
    """Frames drawn a second (where MuJoCo is installed) and observations read a second, in one and in two processes."""
    found: dict[str, Any] = {"reading": reading()}
    say(f"reading: {found['reading']}")
    if find_spec("mujoco") is not None and find_spec("dm_control") is not None:
        found["rendering"] = rendering()
        say(f"rendering: {found['rendering']}")
        found["processes"] = processes()
        say(f"processes: {found['processes']}")
    return found


def reading(episodes: int = 8, rows: int = 500, batch: int = 128) -> dict[str, float]:
    """Stacked observations a second, at random rows of freshly written HDF5 files of smooth frames."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        write_smooth_episodes(Path(folder), episodes, rows)
        dataset = Episodes.open(Path(folder))
        files = _rate(lambda: len(dataset.observations(dataset.sample_rows(batch, rng))))
        dataset.load_frames()
        memory = _rate(lambda: len(dataset.observations(dataset.sample_rows(batch, rng))))
    return {"observations_per_second_from_files": files, "observations_per_second_from_memory": memory}


def write_smooth_episodes(folder: Path, episodes: int, rows: int) -> None:
    """Episodes of smooth moving frames of the usual size, with rewards of zero, as HDF5 files."""
    rng = np.random.default_rng(0)
    for i in range(episodes):
        picture = rng.integers(0, 256, (3, SIZE // 12, SIZE // 12), dtype=np.uint8).repeat(12, 1).repeat(12, 2)
        frames = np.stack([np.roll(picture, t, 2) for t in range(rows)])
        kinds = np.r_[FIRST, np.full(rows - 2, MID), LAST].astype(np.uint8)
        zeros, action = np.zeros(rows, np.float32), np.zeros((rows, 6), np.float32)
        write_episode(folder / f"episode_{i:06d}.hdf5", Episode(frames, action, zeros, zeros + 1, kinds), DataSpec())


def rendering() -> dict[str, float]:
    """Frames a second of both profiles, taking turns, in this process."""
    from voc_rl.envs.dmcontrol import DMControlEnv

    envs = {profile: DMControlEnv(TASK, size=SIZE, render=profile) for profile in ("fast", "faithful")}
    rates: dict[str, list[float]] = {profile: [] for profile in envs}
    for env in envs.values():
        env.reset(seed=0)
        env.render()
    for _ in range(ROUNDS):
        for profile, env in envs.items():
            rates[profile].append(_rate(lambda env=env: env.render() is not None, 1.0))  # type: ignore[misc]
    for env in envs.values():
        env.close()
    fast, faithful = (float(np.median(rates[profile])) for profile in ("fast", "faithful"))
    return {"fast": fast, "faithful": faithful, "speedup": fast / faithful}


def processes(seconds: float = 3.0) -> dict[str, Any]:
    """Frames a second, stepped and drawn, of two processes against one, taking turns; the load is that before."""
    load = os.getloadavg()[0]
    one, two = np.median([[_together(count, seconds) for count in (1, 2)] for _ in range(ROUNDS)], axis=0).tolist()
    return {"one": one, "two": two, "speedup": two / one, "load_before": load, "cores": len(os.sched_getaffinity(0))}


def _together(count: int, seconds: float) -> float:
    context = multiprocessing.get_context("spawn")
    barrier, frames = context.Barrier(count), context.Queue()
    workers = [context.Process(target=_draw, args=(barrier, frames, seconds)) for _ in range(count)]
    for worker in workers:
        worker.start()
    total = sum(frames.get() for _ in workers)
    for worker in workers:
        worker.join()
    return total / seconds


def _draw(barrier: Any, frames: Any, seconds: float) -> None:
    from voc_rl.envs import make_env

    env = make_env(TASK, SIZE)
    env.reset(seed=0)
    action = np.zeros(env.action_space.shape or (), np.float32)
    env.step(action)
    barrier.wait()
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        _, _, terminated, truncated, _ = env.step(action)
        count += 1
        if terminated or truncated:
            env.reset()
    env.close()
    frames.put(count)


def _rate(work: Callable[[], int], seconds: float = 2.0) -> float:
    """What ``work`` counts, a second."""
    work()
    count, started = 0, time.perf_counter()
    while (used := time.perf_counter() - started) < seconds:
        count += work()
    return count / used
