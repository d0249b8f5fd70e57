"""What a policy is, for everything that acts or is evaluated: Stable-Baselines3's ``predict``."""

from __future__ import annotations

from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Policy(Protocol):
    """Anything with Stable-Baselines3's ``predict``, plus the word for what it looks at.

    ``observation`` is ``"state"`` (the flat state, float32 (B, S) or (S,)) or ``"pixels"`` (stacked frames,
    uint8 (B, 3K, H, W) or (3K, H, W)).
    """

    observation: Literal["state", "pixels"]

    def predict(
        self,
        observation: np.ndarray,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Actions, float32 in [-1, 1], for one observation or a batch, and the recurrent state (or None)."""
        ...


@runtime_checkable
class BehaviourPolicy(Protocol):
    """A policy that collects data: it draws actions from a generator and says how likely they were."""

    observation: Literal["state", "pixels"]

    def start_episode(self, rng: np.random.Generator) -> None:
        """Called once before each episode (a mixture draws its first member here)."""
        ...

    def sample(self, observation: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, int]:
        """For one observation: the *unclipped* action (A,), its log-density, and the id of the acting policy."""
        ...
