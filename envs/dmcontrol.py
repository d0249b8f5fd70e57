"""dm_control's suite as Gymnasium environments whose simulator state can be stored and restored."""

from __future__ import annotations

import difflib
import inspect
import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils import EzPickle

from voc_rl.data import DataSpec
from voc_rl.envs.gl import import_suite, quiet_models
from voc_rl.envs.render import FrameRenderer, simulator_versions
from voc_rl.errors import VOCError, check_positive

_UNBOUNDED = 1e9  # lqr states its unlimited forces as +-1e10; they are not rescaled


class DMControlEnv(gym.Env[np.ndarray, np.ndarray], EzPickle):
    """One task of the dm_control suite: flat state observations, actions in [-1, 1], restorable.

    Observations are the task's observation dictionary, flattened and concatenated in its own order, float32
    (S,). Actions are float32 (A,) in [-1, 1], rescaled to the task's bounds; what lies outside is clipped.
    At the time limit an episode is truncated; it terminates only where the task itself ends it.

    ``info`` holds, at reset and at every step, ``state`` (the observation), ``physics`` (float64 (P,),
    MuJoCo's mjSTATE_INTEGRATION vector) and ``discount`` (product over the repeated steps; 0 at a
    termination).

    ``reset(seed=s, options={"physics": v})`` continues from ``v``: same frame, and same rewards and frames
    from there on, bit for bit. What a task draws into its *model* (targets of reacher, finger-turn, fish-swim,
    swimmer, manipulator and stacker; gains of point_mass-hard; the terrain of quadruped-escape) is not part of
    ``v``: it follows from ``s``, which must then be the seed of the episode of ``v``; without a seed the running
    episode's model stays.
    Observations of forces and accelerations (quadruped, dog, hopper's touch) are derived anew at ``v``, and
    agree with the original ones from the first step on.

    Args:
        task: ``"domain-task"``, for example ``"walker-walk"`` or ``"ball_in_cup-catch"``.
        action_repeat: control steps per agent step; rewards are summed, discounts multiplied.
        max_episode_steps: agent steps before an episode is truncated; None is the task's own limit.
        size: height and width of a rendered frame, in pixels.
        render: ``"fast"`` (no shadows, reflections, multisampling) or ``"faithful"`` (dm_control's render).
        camera: index of the camera; None is 2 for quadruped and 0 for all others.
        render_mode: Gymnasium's word; only ``"rgb_array"``, which None is too.

    Raises:
        VOCError: an unknown task, profile, camera or render mode; no headless OpenGL.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (as in gym.Env)

    def __init__(
        self,
        task: str,
        action_repeat: int = 1,
        max_episode_steps: int | None = None,
        size: int = 84,
        render: str = "fast",
        camera: int | None = None,
        render_mode: str | None = "rgb_array",
    ) -> None:
        EzPickle.__init__(self, task, action_repeat, max_episode_steps, size, render, camera, render_mode)
        if render_mode not in ("rgb_array", None):
            raise VOCError(f"render_mode is {render_mode!r}; 'rgb_array' is needed.")
        check_positive(action_repeat, "action_repeat")
        if max_episode_steps is not None:
            check_positive(max_episode_steps, "max_episode_steps")
        self.task, self.action_repeat, self.render_mode = task, action_repeat, "rgb_array"
        self._env, own_limit = _load(task)
        if max_episode_steps is None and own_limit is not None:
            max_episode_steps = max(1, own_limit // action_repeat)
        self.max_episode_steps = max_episode_steps  # None: the task has no limit
        if camera is None:
            camera = 2 if task.startswith("quadruped-") else 0  # what the field's pixel benchmarks look through
        self._renderer = FrameRenderer(self.physics, size, camera, render)
        fps = 1 / (self._env.control_timestep() * action_repeat)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": max(1, round(fps))}
        self._set_spaces()
        self._steps = 0
        self._seeded = self._running = self._closed = False

    def _set_spaces(self) -> None:
        spec = self._env.action_spec()
        low, high = np.asarray(spec.minimum, np.float64), np.asarray(spec.maximum, np.float64)
        bounded = np.abs(high) < _UNBOUNDED
        # Bounds of exactly [-1, 1] have middle 0 and half 1, and leave every bit of an action as it is.
        self._middle = np.where(bounded, (high + low) / 2, 0.0)
        self._half = np.where(bounded, (high - low) / 2, 1.0)
        state_size = sum(math.prod(part.shape) for part in self._env.observation_spec().values())
        self.action_space = gym.spaces.Box(-1.0, 1.0, spec.shape, np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (state_size,), np.float32)

    @property
    def physics(self) -> Any:
        """The task's ``dm_control.mujoco.Physics``."""
        return self._env.physics

    @property
    def rendering(self) -> dict[str, Any]:
        """What frames are made with: size, render, camera, backend, versions of mujoco and dm_control."""
        return self._renderer.making

    @property
    def data_spec(self) -> DataSpec:
        """What data collected here, and models trained on them, record of the environment."""
        return DataSpec(
            task=self.task, action_repeat=self.action_repeat, max_episode_steps=self.max_episode_steps or 0,
            **self.rendering,
        )  # fmt: skip

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode, or continue from ``options["physics"]``; the step count starts at zero.

        Raises:
            VOCError: a physics vector of another length, or with NaN or infinite numbers.
        """
        self._check_open()
        super().reset(seed=seed)
        vector = (options or {}).get("physics")
        if vector is not None:
            vector = self._check_physics(vector)
        if seed is not None or not self._seeded:
            self._env.task.random.seed(int(self.np_random.integers(2**32)))
        if vector is None or seed is not None or not self._running:
            observation = self._env.reset().observation
        if vector is not None:
            observation = self._restore(vector)
        self._steps = 0
        self._seeded = self._running = True
        return self._report(observation, 1.0)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one agent step: ``action_repeat`` control steps, fewer where the task ends.

        Raises:
            VOCError: an action of another shape, or with NaN or infinite numbers.
            ResetNeeded: before the first ``reset`` and after the task has ended.
        """
        control = self._control(action)
        self._check_open()
        if not self._running:
            raise ResetNeeded("The episode is over or has not begun; call reset() before step().")
        reward, discount = 0.0, 1.0
        for _ in range(self.action_repeat):
            timestep = self._env.step(control)
            reward += float(timestep.reward)
            discount *= float(timestep.discount)
            if timestep.last():
                break
        self._steps += 1
        over = bool(timestep.last())
        terminated = over and discount == 0.0  # dm_control ends with discount 1 where only a clock ran out
        truncated = not terminated and (over or self._steps == self.max_episode_steps)
        self._running = not over
        observation, info = self._report(timestep.observation, discount)
        return observation, reward, terminated, truncated, info

    def render(self) -> Any:
        """The present frame, uint8 (size, size, 3)."""
        self._check_open()
        return self._renderer.render()

    def close(self) -> None:
        """Free the simulation and its GL context; the environment cannot be used afterwards."""
        self._running, self._closed = False, True
        self.physics.free()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedEnvironmentError("The environment is closed; make a new one.")

    def _report(self, observation: dict[str, Any], discount: float) -> tuple[np.ndarray, dict[str, Any]]:
        state = np.concatenate([np.ravel(part) for part in observation.values()]).astype(np.float32)
        return state, {"state": state.copy(), "physics": self._physics_vector(), "discount": discount}

    def _control(self, action: np.ndarray) -> np.ndarray:
        values = np.asarray(action, dtype=np.float64)
        if values.shape != self.action_space.shape:
            raise VOCError(f"The action has shape {values.shape}; {self.action_space.shape} is needed.")
        if not np.isfinite(values).all():
            raise VOCError(f"The action {values} is not finite; numbers in [-1, 1] are needed.")
        return self._middle + self._half * np.clip(values, -1.0, 1.0)

    def _physics_vector(self) -> np.ndarray:
        import mujoco

        vector = np.empty(self._physics_size(), np.float64)
        model, data = self.physics.model.ptr, self.physics.data.ptr
        mujoco.mj_getState(model, data, vector, mujoco.mjtState.mjSTATE_INTEGRATION)
        return vector

    def _physics_size(self) -> int:
        import mujoco

        return int(mujoco.mj_stateSize(self.physics.model.ptr, mujoco.mjtState.mjSTATE_INTEGRATION))

    def _check_physics(self, vector: Any) -> np.ndarray:
        vector, size = np.asarray(vector, dtype=np.float64), self._physics_size()
        if vector.shape != (size,):
            raise VOCError(
                f"options['physics'] has shape {vector.shape}; ({size},) is needed, info['physics'] of "
                f"{self.task} under MuJoCo {simulator_versions()['mujoco']}."
            )
        if not np.isfinite(vector).all():
            raise VOCError("options['physics'] holds NaN or infinite numbers; finite ones are needed.")
        return vector

    def _restore(self, vector: np.ndarray) -> dict[str, Any]:
        import mujoco

        model, data = self.physics.model.ptr, self.physics.data.ptr
        integration = mujoco.mjtState.mjSTATE_INTEGRATION
        mujoco.mj_setState(model, data, vector, integration)
        self.physics.forward()  # derives what frames and rewards need, and may move the solver's warm start
        mujoco.mj_setState(model, data, vector, integration)
        return self._env.task.get_observation(self.physics)


def _load(task: str) -> tuple[Any, int | None]:
    """The dm_control environment without its time limit, and that limit in control steps (None: no limit)."""
    suite = import_suite()
    known = {f"{domain}-{name}": (domain, name) for domain, name in suite.ALL_TASKS}
    if task not in known:
        close = difflib.get_close_matches(str(task), known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else "walker-walk, for example, is one."
        raise VOCError(f"Unknown task {task!r}; {hint}")
    domain, name = known[task]
    limit = inspect.signature(getattr(suite, domain).SUITE[name]).parameters["time_limit"].default
    with quiet_models():
        # The generator also shapes lqr's model, which must be the same everywhere; reset() seeds it anew.
        env = suite.load(domain, name, task_kwargs={"random": 0, "time_limit": math.inf})
    return env, None if math.isinf(limit) else round(limit / env.control_timestep())
