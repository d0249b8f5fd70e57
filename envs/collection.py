"""Collect episodes: one file each, seeded each by its number alone, so that a killed collection can go on.

    SeedSequence([seed, i]) -> reset, policy draws -> episode i -> out/episode_00000i.hdf5

Neither the number of processes nor how often the collection was stopped changes what an episode holds.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import as_completed
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from voc_rl.checkpoints import hold_folder, read_json, write_json
from voc_rl.data import DataSpec, write_episode
from voc_rl.envs.make import make_env
from voc_rl.envs.recording import check_behaviour, record_episode
from voc_rl.errors import VOCError, check_positive, check_seed, few
from voc_rl.policy import BehaviourPolicy
from voc_rl.progress import progress_bar
from voc_rl.workers import worker_pool

SETTINGS = "collect.json"
_STACK = 3  # what pixel policies look at; single frames are stored


@dataclass(frozen=True)
class _Job:
    """What every process needs to know, and what ``collect.json`` remembers (``spec`` and ``seed``)."""

    out: Path
    policy: BehaviourPolicy
    seed: int
    spec: DataSpec

    def path(self, index: int) -> Path:
        return self.out / f"episode_{index:06d}.hdf5"

    def missing(self, episodes: int) -> list[int]:
        """Which of the first ``episodes`` are not there."""
        return [index for index in range(episodes) if not self.path(index).exists()]

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, **asdict(self.spec)}


def collect(
    out: str | Path,
    task: str,
    policy: BehaviourPolicy,
    episodes: int,
    seed: int,
    *,
    max_episode_steps: int | None = None,
    size: int = 84,
    action_repeat: int = 2,
    render: str = "fast",
    processes: int = 1,
    progress: bool = True,
    force: bool = False,
) -> int:
    """Collect ``episodes`` episodes of ``task`` into the folder ``out``; those that are there are kept.

    Row t of an episode holds frame, state and physics at t, the clipped action that led there, the unclipped
    one, its log-probability and policy id, and reward and discount on arrival (``voc_rl.data.Episode``).

    Args:
        out: folder for ``episode_000000.hdf5`` and so on, and for ``collect.json``, the settings.
        policy: what acts; for more than one process it has to pickle. A later call knows it again by its ``repr``, less
            addresses: objects of one class that say no more of themselves are taken for the same.
        episodes: how many there are to be in all.
        seed: with an episode's number, all that its randomness comes from.
        max_episode_steps: agent steps per episode; None is the task's own limit. Rows are one more.
        processes: worker processes; 1 works in this process.
        progress: show a bar with the time left.
        force: delete the folder's episodes first, once nothing can refuse the collection any more.

    Returns:
        The number of episodes collected by this call.

    Raises:
        VOCError: bad arguments, a folder that is in use, was collected with other settings or (where it is to be
            emptied) holds other files of episodes, or a worker that was killed.
    """
    _check_arguments(policy, episodes, processes, seed)
    with ExitStack() as stack:
        env = stack.enter_context(closing(make_env(task, size, _STACK, action_repeat, render, max_episode_steps)))
        job = _Job(Path(out), policy, seed, _spec(env, policy))
        if not force and same_settings(job.out, job.settings()) and not job.missing(episodes):
            return 0  # nothing is written, so several may find that at once
        if processes > 1:
            _check_pickles(policy)
        stack.enter_context(hold_folder(job.out, "folder for episodes"))
        if force:
            _empty(job.out)
        _claim(job)
        todo = job.missing(episodes)
        done = _in_workers(job, processes, todo) if processes > 1 else _in_this_process(job, env, todo)
        there = episodes - len(todo)
        for _ in progress_bar(done, desc=task, unit="episode", total=episodes, initial=there, show=progress):
            pass
    return len(todo)


def _check_arguments(policy: BehaviourPolicy, episodes: int, processes: int, seed: int) -> None:
    check_behaviour(policy)
    check_positive(episodes, "episodes")
    check_positive(processes, "processes")
    check_seed(seed)


def _spec(env: gym.Env, policy: BehaviourPolicy) -> DataSpec:
    inner: Any = env.unwrapped
    if inner.max_episode_steps is None:
        raise VOCError(f"{inner.task} has no time limit of its own; max_episode_steps is needed.")
    return replace(inner.data_spec, policy=_unplaced(repr(policy)))


def _unplaced(words: str) -> str:
    """A ``repr`` without the addresses of objects and functions, which differ at every start; of an object that says no
    more, its class."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", re.sub(r"<(\S+) object at 0x[0-9a-fA-F]+>", r"\1", words))


def same_settings(out: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder was collected with these settings, some of those in ``collect.json``; False where it says none,
    or holds no episode.

    Raises:
        VOCError: it was collected with others.
    """
    path = out / SETTINGS
    if not path.exists() or not any(out.glob("*.hdf5")):
        return False
    old = read_json(path, "collection settings")
    differing = [name for name in settings if old.get(name) != settings[name]]
    if differing:
        found = "; ".join(f"{name} was {old.get(name)!r} and is {settings[name]!r}" for name in differing)
        raise VOCError(f"{out} was collected with other settings ({found}); choose another folder.")
    return True


def _empty(out: Path) -> None:
    """Delete the episodes and the settings of a folder, where it holds no other files of episodes."""
    episodes = sorted(out.glob("episode_*.hdf5"))
    if others := sorted(path.name for path in set(out.glob("*.hdf5")).difference(episodes)):
        raise VOCError(f"{out} also holds {few(others)}, which no collection wrote; choose another folder.")
    for file in (*episodes, out / SETTINGS):  # the settings last: while there are episodes, they say whose
        file.unlink(missing_ok=True)


def _claim(job: _Job) -> None:
    """Write the settings into a folder without episodes, or compare them with an old one's; sweep up what was cut."""
    if not same_settings(job.out, job.settings()):
        if any(job.out.glob("*.hdf5")):
            raise VOCError(f"{job.out} holds episodes but no {SETTINGS}; choose another folder.")
        write_json(job.out / SETTINGS, job.settings())
    for pattern in (".episode_*.part", f".{SETTINGS}.*.part"):
        for leftover in job.out.glob(pattern):
            leftover.unlink(missing_ok=True)


def _collect_one(job: _Job, env: gym.Env, index: int) -> None:
    try:
        episode = record_episode(env, job.policy, np.random.SeedSequence([job.seed, index]))
        write_episode(job.path(index), episode, job.spec)
    except Exception as error:
        error.add_note(f"while collecting episode {index} of {job.spec.task} into {job.out}")
        raise


def _in_this_process(job: _Job, env: gym.Env, todo: list[int]) -> Iterator[None]:
    for index in todo:
        _collect_one(job, env, index)
        yield


def _check_pickles(policy: BehaviourPolicy) -> None:
    try:
        pickle.dumps(policy)
    except Exception as error:
        raise VOCError(f"{policy!r} does not pickle ({error}); use processes=1.") from error


def _in_workers(job: _Job, processes: int, todo: list[int]) -> Iterator[None]:
    advice = "the same call goes on from the episodes that are whole"
    with worker_pool(min(processes, len(todo)) or 1, f"collecting into {job.out}", advice) as pool:
        futures = [pool.submit(_work, job, index) for index in todo]
        for future in as_completed(futures):
            future.result()
            yield


_worker_env: gym.Env | None = None


def _work(job: _Job, index: int) -> None:
    """Collect one episode in a worker process, which keeps its environment for the next."""
    global _worker_env
    if _worker_env is None:
        spec = job.spec
        _worker_env = make_env(
            spec.task, spec.size, _STACK, spec.action_repeat, spec.render, spec.max_episode_steps, spec.camera
        )
    _collect_one(job, _worker_env, index)
