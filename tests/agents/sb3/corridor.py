"""A walk whose every number is known beforehand: states by a plan, whatever the agent does, and a VOC by table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.logger import Logger
from tables import TableVOC

STATES, GAMMA, H = 12, 0.5, 7  # 0.5^7 < 0.01 <= 0.5^6
SHAPE = (3, 4, 4)
REWARD = np.random.default_rng(5).normal(size=STATES).round(2)  # on arrival at a state


@dataclass(frozen=True)
class Walk:
    """One episode: from ``start`` on, one state further at each of ``steps`` steps, round and round."""

    start: int
    steps: int
    terminated: bool

    @property
    def states(self) -> list[int]:
        return [(self.start + t) % STATES for t in range(self.steps + 1)]

    @property
    def rewards(self) -> list[float]:
        """Of steps 1, 2, ..."""
        return [float(REWARD[s]) for s in self.states[1:]]

    def known(self, values: np.ndarray, walks: list[Walk]) -> tuple[np.ndarray, np.ndarray]:
        """Table values and realised returns of the states whose return is known; ``walks``: all that are looked at."""
        steps = [t for t in range(self.steps) if self.counts(t, walks)]
        returns = [self._return(t) for t in steps]
        return np.array([values[self.states[t]] for t in steps]), np.array(returns)

    def _return(self, t: int) -> float:
        """From step t on; where a time limit cut it, over the weight of what was seen."""
        seen = sum(GAMMA**k * r for k, r in enumerate(self.rewards[t:]))
        return seen if self.terminated else seen / (1 - GAMMA ** (self.steps - t))

    def counts(self, t: int, walks: list[Walk]) -> bool:
        """A few walks: a terminated one counts at no step at which the return of another one is unknown."""
        if not self.terminated:
            return self.steps - t >= H
        return all(walk.terminated or walk.steps < t or walk.steps - t >= H for walk in walks)


# terminations, one of them later than the last known state of those that the time limit cuts
PLAN = [Walk(0, 5, True), Walk(3, H + 5, False), Walk(7, H + 5, False), Walk(2, H + 4, True), Walk(9, 1, True)]


def plan_of(i: int) -> list[Walk]:
    """Environment ``i`` begins elsewhere in the plan."""
    return PLAN[i:] + PLAN[:i]


class Corridor(gym.Env[np.ndarray, np.ndarray]):
    """Walks the plan over and over; frames are filled with the state."""

    def __init__(self, plan: list[Walk]) -> None:
        self.observation_space = gym.spaces.Box(0, 255, SHAPE, np.uint8)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.walks = itertools.cycle(plan)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.walk, self.t = next(self.walks), 0
        return self._frame(), {}

    def step(self, action: np.ndarray) -> Any:
        self.t += 1
        over = self.t == self.walk.steps
        reward = self.walk.rewards[self.t - 1]
        return self._frame(), reward, over and self.walk.terminated, over and not self.walk.terminated, {}

    def _frame(self) -> np.ndarray:
        return np.full(SHAPE, self.walk.states[self.t], np.uint8)


def table_voc(values: np.ndarray) -> Any:
    voc = TableVOC(values)
    voc.gamma, voc.observation_shape = GAMMA, SHAPE
    return voc


@dataclass(frozen=True)
class Event:
    """One step of one environment, as it has to be read: the value now, the residual, and an episode that ended."""

    value: float
    residual: float
    ended: Walk | None


def events(plan: list[Walk], values: np.ndarray) -> Iterator[Event]:
    """Step by step of one environment, from its plan alone."""
    for walk, following in itertools.pairwise(itertools.cycle(plan)):
        for t, reward in enumerate(walk.rewards):
            last = t + 1 == walk.steps
            arrived = 0.0 if last and walk.terminated else values[walk.states[t + 1]]
            residual = reward + GAMMA * arrived - values[walk.states[t]]
            now = values[following.start if last else walk.states[t + 1]]
            yield Event(now, residual, walk if last else None)


def mean_of(walks: list[Walk], values: np.ndarray) -> dict[str, float]:
    """Predicted, realised, their gap and its cluster-robust standard error, over the known states of some episodes."""
    pairs = [walk.known(values, walks) for walk in walks]
    pairs = [(p, r) for p, r in pairs if len(p)]
    gaps = [r - p for p, r in pairs]
    states, count = sum(len(g) for g in gaps), len(gaps)
    gap = sum(float(g.sum()) for g in gaps) / states
    spread = sum(float((g - gap).sum()) ** 2 for g in gaps)
    return {
        "predicted": sum(float(p.sum()) for p, _ in pairs) / states,
        "realised": sum(float(r.sum()) for _, r in pairs) / states,
        "gap": gap,
        "gap_stderr": (spread * count / (count - 1)) ** 0.5 / states if count > 1 else float("nan"),
    }


class Log(Logger):
    """Keeps what is recorded and dumped, in order."""

    def __init__(self) -> None:
        super().__init__(None, [])
        self.seen: list[tuple[str, Any]] = []
        self.dumps: list[tuple[int, dict[str, Any]]] = []

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        self.seen.append((key, value))
        super().record(key, value, exclude)

    def dump(self, step: int = 0) -> None:
        self.dumps.append((step, dict(self.name_to_value)))
        super().dump(step)

    def rows(self, prefix: str) -> list[dict[str, Any]]:
        """What was recorded under a prefix, a new row wherever a name comes again."""
        found: list[dict[str, Any]] = []
        for key, value in self.seen:
            if not key.startswith(prefix):
                continue
            name = key.removeprefix(prefix)
            if not found or name in found[-1]:
                found.append({})
            found[-1][name] = value
        return found
