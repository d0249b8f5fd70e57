"""A small Markov decision process with exact occupancies, three policies for it, and data of a uniform behaviour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from chains import episodes_of
from tables import random_table

from voc_rl.data import Episodes, taken_actions
from voc_rl.occupancy import StitchedChain

S, A, LAST = 10, 3, 9  # states, actions, the terminal state
END = S


@dataclass(frozen=True)
class Decisions:
    """P (S, A, S), rewards (S,) on arrival, and policies (3, S, A), from good to bad. The last state is terminal."""

    P: np.ndarray
    reward: np.ndarray
    policies: np.ndarray

    def chain(self, policy: np.ndarray) -> np.ndarray:
        """(S + 1, S + 1) under policy (S, A): the terminal state is followed by END, and END by itself."""
        return with_end(np.einsum("sa,sat->st", policy, self.P))

    def occupancy(self, policy: np.ndarray, gamma: float) -> np.ndarray:
        """mu(. | s, a), (S, A, S + 1), END last: the action first, then the policy."""
        later = (1 - gamma) * np.linalg.inv(np.eye(S + 1) - gamma * self.chain(policy))
        first = np.zeros((S, A, S + 1))
        first[..., :S] = self.P
        first[LAST] = np.eye(S + 1)[END]
        return first @ later

    def state_occupancy(self, policy: np.ndarray, gamma: float) -> np.ndarray:
        """mu(. | s), (S, S + 1): the policy from the first step on."""
        return np.einsum("sa,sat->st", policy, self.occupancy(policy, gamma))

    def values(self, policy: np.ndarray, gamma: float) -> np.ndarray:
        """V (S,)."""
        return self.state_occupancy(policy, gamma)[:, :S] @ self.reward / (1 - gamma)


def with_end(P: np.ndarray) -> np.ndarray:
    """A chain (S, S) whose last state is terminal, with END behind it: (S + 1, S + 1)."""
    Q = np.zeros((S + 1, S + 1))
    Q[:S, :S] = P
    Q[LAST] = Q[END] = np.eye(S + 1)[END]
    return Q


UNIFORM = np.full((S, A), 1 / A)


def decisions(seed: int = 0, deterministic: bool = False) -> Decisions:
    """A random process; policies with probabilities in tenths: (nearly) the best, in between, (nearly) the worst."""
    P, _ = random_table(S, A, seed, terminal=(LAST,))
    if deterministic:
        P = np.eye(S)[P.argmax(2)]
    reward = np.random.default_rng(seed + 1).normal(size=S)
    process = Decisions(P, reward, np.zeros((0, S, A)))
    good = UNIFORM
    for _ in range(20):  # policy iteration
        action_values = process.occupancy(good, 0.9)[..., :S] @ reward
        good = np.eye(A)[action_values.argmax(1)]
    ranks = action_values.argsort(1).argsort(1)  # 0: worst action
    shares = np.array([[0.1, 0.1, 0.8], [0.2, 0.6, 0.2], [0.7, 0.2, 0.1]])
    return Decisions(P, reward, shares[:, ranks])


def logged(process: Decisions, rows: int, seed: int = 0, limit: int = 12) -> tuple[Episodes, np.ndarray]:
    """About ``rows`` rows of a uniform behaviour from uniform starts, at most ``limit`` an episode, and the states."""
    rng = np.random.default_rng(seed)
    count = rows // 6
    states, actions = np.full((count, limit), -1), np.zeros((count, limit), int)
    states[:, 0] = rng.integers(LAST, size=count)
    cumulative = process.P.cumsum(2)
    for t in range(1, limit):
        going = np.flatnonzero((states[:, t - 1] >= 0) & (states[:, t - 1] != LAST))
        actions[going, t] = rng.integers(A, size=len(going))
        odds = cumulative[states[going, t - 1], actions[going, t]]
        states[going, t] = (rng.random((len(going), 1)) > odds).sum(1).clip(max=S - 1)
    there = states >= 0
    lengths = there.sum(1)
    flat = states[there]
    onehot = np.eye(A)[actions[there]]
    firsts = np.cumsum(lengths) - lengths
    onehot[firsts] = 0.0
    reward = process.reward[flat]
    reward[firsts] = 0.0
    ended = states[np.arange(count), lengths - 1] == LAST
    return episodes_of(np.split(reward, firsts[1:]), ended, onehot), flat


def choose(odds: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draws int64 (N, draws) from rows of odds (N, C) that sum to one."""
    return (rng.random((len(odds), draws, 1)) > odds.cumsum(1)[:, None]).sum(2).clip(max=odds.shape[1] - 1)


def actions_of(process: Decisions, states: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
    """What the three policies do at each row, float32 (3, N, draws, A)."""
    rng = np.random.default_rng(seed)
    drawn = [choose(policy[states], draws, rng) for policy in process.policies]
    return np.eye(A, dtype=np.float32)[np.stack(drawn)]


def exact_shares(process: Decisions, states: np.ndarray) -> np.ndarray:
    """Thirty actions of each policy at each row, one-hot float32 (3, N, 30, A), in exactly its shares."""
    shares = np.rint(30 * process.policies).astype(int)  # (3, S, A)
    actions = np.array([[np.repeat(np.arange(A), row) for row in policy] for policy in shares])  # (3, S, 30)
    return np.eye(A, dtype=np.float32)[actions[:, states]]


def empirical(process: Decisions, dataset: Episodes, states: np.ndarray) -> Decisions:
    """The process whose transitions are the frequencies in the data; the terminal state leads to itself."""
    going = np.flatnonzero(dataset.steps_left > 0)
    counts = np.zeros((S, A, S))
    np.add.at(counts, (states[going], taken_actions(dataset)[going].argmax(1), states[going + 1]), 1)
    counts[LAST, :, LAST] = 1
    return Decisions(counts / counts.sum(2, keepdims=True), process.reward, process.policies)


def chains_of(
    process: Decisions, dataset: Episodes, states: np.ndarray, draws: int, seed: int = 0
) -> list[StitchedChain]:
    """What stitching gives where states are known: from each row to a random row that followed its state and action."""
    rng = np.random.default_rng(seed)
    going = np.flatnonzero(dataset.steps_left > 0)
    pair = states[going] * A + taken_actions(dataset)[going].argmax(1)
    order, counts = going[pair.argsort(kind="stable")], np.bincount(pair, minlength=S * A)
    firsts = counts.cumsum() - counts
    found = []
    for policy in process.policies:
        asked = np.where(states == LAST, 0, states)[:, None] * A + choose(policy[states], draws, rng)
        arrival = order[firsts[asked] + rng.integers(counts[asked])] + 1
        found.append(StitchedChain(arrival, np.zeros(arrival.shape, np.float32), dataset.terminal))
    return found


def frequencies(found: np.ndarray) -> np.ndarray:
    """Shares (S + 1,) of states and END (S) in an array of them."""
    return np.bincount(found.ravel(), minlength=S + 1) / found.size
