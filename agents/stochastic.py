"""What all policies that draw their actions share: Stable-Baselines3's ``predict``."""

from __future__ import annotations

from typing import Any

import numpy as np


class StochasticPolicy:
    """``predict`` from two methods: ``draws`` of actions, and their ``mode``. Neither keeps a recurrent state."""

    _rng: np.random.Generator

    def start_episode(self, rng: np.random.Generator) -> None:
        """Nothing to draw: every step is the same policy's."""

    def mode(self, observation: np.ndarray) -> np.ndarray:
        """The deterministic actions, float32 (A,) or (B, A) in [-1, 1], of one observation or a batch."""
        raise NotImplementedError

    def draws(self, observation: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` draws of unclipped actions, float32 (count, A) or (count, B, A), of one pass."""
        raise NotImplementedError

    def draw(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Unclipped actions, float32 (A,) or (B, A), of one observation or a batch."""
        return self.draws(observation, 1, rng)[0]

    def predict(
        self,
        observation: np.ndarray,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Actions, float32 (A,) or (B, A) in [-1, 1], of one observation or a batch, and ``state`` as it was given."""
        actions = self.mode(observation) if deterministic else np.clip(self.draw(observation, self._rng), -1, 1)
        return actions, state
