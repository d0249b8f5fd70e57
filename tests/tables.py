"""Small Markov decision processes as environments whose frames name the state, and a VOC that is a table."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from voc_rl.data import DataSpec
from voc_rl.values import ValueEstimate

SHAPE = (3, 2, 2)


def frame(state: int) -> np.ndarray:
    """uint8 (3, 2, 2), filled with the state."""
    return np.full(SHAPE, state, np.uint8)


class Table(gym.Env[np.ndarray, int]):
    """An MDP by its tables: P (S, A, S), rewards on arrival R (S, A, S), terminal states; starts are uniform."""

    def __init__(self, P: np.ndarray, R: np.ndarray, terminal: tuple[int, ...] = (), limit: int = 10**9) -> None:
        self.P, self.R, self.terminal, self.limit = P, R, terminal, limit
        self.observation_space = gym.spaces.Box(0, 255, SHAPE, np.uint8)
        self.action_space = gym.spaces.Discrete(P.shape[1])
        self.starts = [s for s in range(len(P)) if s not in terminal]
        self.state = self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.state, self.steps = int(self.np_random.choice(self.starts)), 0
        return frame(self.state), {"state": self.state}

    def step(self, action: int) -> Any:
        before = self.state
        self.state = int(self.np_random.choice(len(self.P), p=self.P[before, action]))
        self.steps += 1
        reward = float(self.R[before, action, self.state])
        terminated = self.state in self.terminal
        truncated = self.steps >= self.limit and not terminated
        return frame(self.state), reward, terminated, truncated, {"state": self.state}


class TableVOC:
    """A VOC whose values are a table; counts how often it is asked, and for how many states."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.gamma, self.spec = np.asarray(values, float), 0.9, DataSpec()
        self.observation_shape = SHAPE
        self.asked: list[int] = []
        self.check_spec = lambda *asked: None

    def context(self, obs: np.ndarray) -> tuple[np.ndarray, None]:
        """The states that frames name."""
        assert (obs == obs[:, :1, :1, :1]).all()
        self.asked.append(len(obs))
        return obs[:, 0, 0, 0], None

    def value_of_codes(self, states: np.ndarray, *args: Any, **options: Any) -> ValueEstimate:
        mean = self.values[states]
        return ValueEstimate(mean, 0 * mean, mean, mean, 0.9, "nothing")

    def value(self, obs: np.ndarray, *args: Any, **options: Any) -> ValueEstimate:
        return self.value_of_codes(*self.context(obs), *args, **options)


def random_table(states: int, actions: int, seed: int, terminal: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """P (S, A, S) with three possible arrivals each, and rewards R (S, A, S)."""
    rng = np.random.default_rng(seed)
    P = np.zeros((states, actions, states))
    for s in range(states):
        for a in range(actions):
            P[s, a, rng.choice(states, 3, replace=False)] = rng.dirichlet(np.ones(3))
    for s in terminal:
        P[s] = 0.0
        P[s, :, s] = 1.0
    return P, rng.normal(size=(states, actions, states))


def optimal_q(P: np.ndarray, R: np.ndarray, gamma: float, terminal: tuple[int, ...] = ()) -> np.ndarray:
    """Q* (S, A) by value iteration; the value of a terminal state is 0."""
    going = np.ones(len(P))
    going[list(terminal)] = 0.0
    Q = np.zeros(P.shape[:2])
    for _ in range(3000):
        Q = (P * (R + gamma * going * Q.max(1))).sum(2)
    return Q
