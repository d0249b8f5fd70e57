"""Pictures of stored simulator states: D4RL's HalfCheetah and Walker2d, set in Gymnasium's models and drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from voc_rl.data import DataSpec, Episode, Episodes
from voc_rl.data.border import TO_FILES, check_memory
from voc_rl.envs.gl import import_suite, quiet_models
from voc_rl.envs.render import FrameRenderer
from voc_rl.errors import VOCError
from voc_rl.progress import progress_bar

# D4RL's Walker was recorded on the model of the older versions, in which one foot slides more easily.
MODELS: dict[str, dict[str, Any]] = {"HalfCheetah-v5": {}, "Walker2d-v5": {"xml_file": "walker2d.xml"}}
TOLERANCE = 1e-3
_CAMERA = 0  # the models' one camera, which follows


@dataclass
class StateCheck:
    """What stepping the simulator from every stored state said about the stored next one.

    Attributes:
        steps: how many were compared. mismatched: those with a number that differs by more than ``TOLERANCE`` of its
            size (or of 1, where it is smaller). worst: the largest such difference.
    """

    steps: int = 0
    mismatched: int = 0
    worst: float = 0.0

    @property
    def rate(self) -> float:
        """Share of mismatched steps; above a few per cent, another MuJoCo or another task made the data."""
        return self.mismatched / self.steps if self.steps else 0.0

    def add(self, stored: np.ndarray, simulated: np.ndarray) -> None:
        """Compare one state, without the position along the track, which D4RL's own observations leave out."""
        difference = float(np.max(np.abs(stored - simulated) / np.maximum(np.abs(stored), 1)))
        self.steps += 1
        self.mismatched += not difference <= TOLERANCE  # NaN, where the simulation breaks down, is a mismatch
        self.worst = max(self.worst, difference)

    def __str__(self) -> str:
        return (
            f"{self.mismatched} of {self.steps} stored steps ({self.rate:.2%}) differ from the simulator's; "
            f"the largest difference is {self.worst:.2g}"
        )


class StateRenderer:
    """One of Gymnasium's MuJoCo tasks, set to states (qpos, then qvel), stepped and drawn.

    Args:
        task: HalfCheetah-v5 or Walker2d-v5. size: height and width of a frame, in pixels.

    Raises:
        VOCError: another task, or no headless OpenGL.
    """

    def __init__(self, task: str, size: int = 84) -> None:
        if task not in MODELS:
            raise VOCError(f"States of {task} cannot be drawn; only those of {' and '.join(MODELS)} can.")
        import_suite()  # chooses the OpenGL first
        from dm_control.mujoco import Physics

        self.task = task
        self._env = _gymnasium_task(task)
        self.positions, self.velocities, self.actions = self._env.model.nq, self._env.model.nv, self._env.model.nu
        with quiet_models():
            self._picture = Physics.from_xml_path(self._env.fullpath)  # the same model, drawn as our own tasks are
        self._renderer = FrameRenderer(self._picture, size, _CAMERA, "fast")

    @property
    def spec(self) -> DataSpec:
        """How its frames are made."""
        return DataSpec(task=self.task, action_repeat=1, **self._renderer.making)

    def frame(self, physics: np.ndarray) -> np.ndarray:
        """The frame of a state (nq + nv,), uint8 (3, size, size)."""
        self._picture.data.qpos[:] = physics[: self.positions]
        self._picture.data.qvel[:] = physics[self.positions :]
        self._picture.forward()
        return np.ascontiguousarray(self._renderer.render().transpose(2, 0, 1))

    def step(self, physics: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The state (nq + nv,) that an action leads to from a state, and the observation of it."""
        self._env.set_state(physics[: self.positions], physics[self.positions :])
        observation = self._env.step(action)[0]
        return np.concatenate([self._env.data.qpos, self._env.data.qvel]), observation

    def close(self) -> None:
        """Free the simulation and its GL context."""
        self._picture.free()
        self._env.close()


def _gymnasium_task(task: str) -> Any:
    with quiet_models():
        return gym.make(task, **MODELS[task]).unwrapped


def render_episode(renderer: StateRenderer, episode: Episode, check: StateCheck) -> Episode:
    """The episode with frames, its last state stepped from the one before; ``check`` compares all stored steps.

    Raises:
        VOCError: an episode without the simulator's states, or with those of another model.
    """
    size = renderer.positions + renderer.velocities
    if (
        episode.state is None
        or episode.physics is None
        or episode.physics.shape[1] != size
        or episode.action.shape[1] != renderer.actions
    ):
        found = "no simulator states" if episode.physics is None else f"states of {episode.physics.shape[1]} numbers"
        raise VOCError(
            f"The episode has {found} and actions of {episode.action.shape[1]}; {renderer.task} needs infos/qpos "
            f"({renderer.positions}), infos/qvel ({renderer.velocities}) and actions of {renderer.actions}."
        )
    state, physics, last = episode.state.copy(), episode.physics.copy(), len(episode.reward) - 1
    for t in range(last):
        simulated, observation = renderer.step(physics[t], episode.action[t + 1])
        if t + 1 < last:
            check.add(physics[t + 1][1:], simulated[1:])
            continue
        physics[last] = simulated  # what no file has
        if (state[last] == state[last - 1]).all():  # the file had no observation of it either
            state[last] = observation
        else:
            check.add(state[last], observation)
    frames = np.stack([renderer.frame(row) for row in physics])
    return replace(episode, frames=frames, physics=physics, state=state)


def rendered_episodes(
    states: Episodes, size: int = 84, task: str | None = None, progress: bool = False, check: StateCheck | None = None
) -> Iterator[tuple[Episode, DataSpec]]:
    """Episode after episode with frames, and how they were made; see ``render_states``."""
    task = task or states.spec.task
    if not task:
        raise VOCError(f"{states.paths[0]} does not say its task; name one of {', '.join(MODELS)}.")
    check = StateCheck() if check is None else check
    renderer = StateRenderer(task, size)
    spec = replace(renderer.spec, max_episode_steps=states.spec.max_episode_steps)
    try:
        for i in progress_bar(range(len(states.starts)), desc=task, unit="episode", show=progress):
            yield render_episode(renderer, states.whole(i), check), spec
    finally:
        renderer.close()


def render_states(
    states: Episodes, size: int = 84, task: str | None = None, progress: bool = False
) -> tuple[Episodes, StateCheck]:
    """Draw the frames of a D4RL dataset (``load_dataset("d4rl:FILE.hdf5")``) into memory.

    ``voc-rl data convert`` does the same into files, which are then read frame by frame.

    Args:
        states: episodes with ``physics``: qpos, then qvel. size: height and width of the frames, in pixels.
        task: HalfCheetah-v5 or Walker2d-v5; None is what the file's name says.

    Returns:
        The dataset with frames, and how well the simulator agrees with it.

    Raises:
        VOCError: no task, no simulator states, or those of another model.
    """
    check_memory(len(states) * 3 * size * size, f"Every frame of {states.paths[0]}", TO_FILES)
    check = StateCheck()
    made = rendered_episodes(states, size, task, progress, check)
    first, spec = next(made)

    def episodes() -> Iterator[Episode]:
        yield first
        for episode, _ in made:
            yield episode

    return Episodes.from_episodes(episodes(), spec, Path(states.paths[0]), states.stack), check
