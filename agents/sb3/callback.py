"""Values of what an agent sees while it learns, in Stable-Baselines3's log."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from voc_rl.agents.sb3.checks import warn_of_shaped_returns
from voc_rl.agents.sb3.traces import Ended, ValueTraces, calibration
from voc_rl.errors import VOCError, check_positive
from voc_rl.model import VOC, Estimator
from voc_rl.plugin import open_voc


class VOCValueCallback(BaseCallback):
    """Ask a VOC about every observation of the training environments, and log what it says beside what happened.

    Every ``every`` environment steps, at the VOC's own discount and in reward units:

    - ``voc/value``: mean value of the observations since the last time.
    - ``voc/td_residual``, ``voc/td_residual_abs``: mean of r + gamma V(s') - V(s), and of its size.
    - ``voc/predicted``, ``voc/realised``, ``voc/gap``, ``voc/gap_stderr``: mean value, mean realised discounted return
      and the latter minus the former, with its standard error, over the states with a known return in the last
      ``episodes`` episodes (``voc_rl.values``: where a time limit cuts one, at least a horizon before it). Means are
      compared, because a value is a mean of returns.

    It has to see every step: it stands beside other callbacks, not inside one that calls it now and then.

    The values are those of the policy that made the VOC's data. An agent that is better than that policy has a gap
    above zero: that is its lead, and not an error of the VOC.

    Args:
        voc: a run folder or a VOC. estimator: ``head`` or ``sample``.
        every: environment steps between two records; Stable-Baselines3 decides when records are written.
        episodes: finished episodes that the comparison looks back on.

    Raises:
        VOCError: no VOC, or (when learning starts) observations that hold no frames the VOC can read, or a place
            inside another callback.

    Warns:
        UserWarning: another task or other frames than those of the VOC's training data, or a Monitor that logs shaped
            returns.
    """

    def __init__(
        self,
        voc: VOC | str | Path,
        estimator: Estimator = "head",
        every: int = 1000,
        episodes: int = 20,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        check_positive(every, "every")
        check_positive(episodes, "episodes")
        self._voc, self._estimator, self.every = open_voc(voc), estimator, every
        self._episodes: deque[Ended] = deque(maxlen=episodes)
        self._values: list[float] = []
        self._residuals: list[float] = []
        self._next = every
        self._agent: Any = None  # that was looked on last

    def _init_callback(self) -> None:
        self._check_place()  # of what is called once in a while, some are never told that training starts

    def _check_place(self) -> None:
        if self.parent is not None:  # EveryNTimesteps, EvalCallback(callback_after_eval=...)
            raise VOCError(
                f"VOCValueCallback has to see every step, and {type(self.parent).__name__} calls it now and then; put "
                "it beside the other callbacks (`every` sets how often it records)."
            )

    def _on_training_start(self) -> None:
        self._check_place()
        env = self.training_env
        assert isinstance(env, VecEnv)
        warn_of_shaped_returns(env)
        self._traces = ValueTraces(self._voc, env, self._estimator)
        last: Any = self.model._last_obs
        self._traces.start(last)
        if self.num_timesteps == 0 or self._agent is not self.model:  # what another one did is not this one's
            self._episodes.clear()
            self._values.clear()
            self._residuals.clear()
        self._agent = self.model
        self._next = self.num_timesteps + self.every

    def _on_step(self) -> bool:
        self._check_place()  # a list learns its own place after it has begun its callbacks
        found = self.locals
        values, residuals, ended = self._traces.step(
            found["new_obs"], found["rewards"], np.asarray(found["dones"], bool), found["infos"]
        )
        self._values.extend(values.tolist())
        self._residuals.extend(residuals.tolist())
        self._episodes.extend(ended.values())
        if self.num_timesteps >= self._next:
            self._record()
            self._next = self.num_timesteps + self.every
        return True

    def _record(self) -> None:
        residuals = np.array(self._residuals)
        numbers = {
            "value": float(np.mean(self._values)),
            "td_residual": float(residuals.mean()),
            "td_residual_abs": float(np.abs(residuals).mean()),
        }
        known = self._traces.known(list(self._episodes))
        if any(len(predicted) for predicted, _ in known):
            found = calibration(known)
            numbers.update(predicted=found.predicted, realised=found.realised, gap=found.gap)
            if found.episodes > 1:
                numbers["gap_stderr"] = found.gap_stderr
        for name, number in numbers.items():
            self.logger.record(f"voc/{name}", number)
        self._values.clear()
        self._residuals.clear()
