"""Stitched chains on a small decision process: where frames name the state, they are the empirical process itself."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from chains import episodes_of, total_variation
from decisions import END, LAST, A, Decisions, S, decisions, empirical, exact_shares, frequencies, logged
from scipy.optimize import minimize
from scipy.special import logsumexp

from voc_rl.data import Episodes
from voc_rl.errors import VOCError
from voc_rl.occupancy import Candidates, StitchedChain, find_candidates, stitch
from voc_rl.occupancy.stitching import RIDGE, _balanced, _weights

GAMMA = 0.9
ALL = 600  # candidates: all rows of a state, and others


def names(states: np.ndarray) -> torch.Tensor:
    """Features that name the state, float32 (N, S)."""
    return torch.from_numpy(np.eye(S, dtype=np.float32)[states])


@cache
def chains(deterministic: bool) -> tuple[Decisions, Episodes, np.ndarray, list[StitchedChain]]:
    process = decisions(deterministic=deterministic)
    dataset, states = logged(process, 1500)
    candidates = find_candidates(dataset, names(states), count=ALL)
    found = [
        stitch(candidates, drawn, dataset.terminal, np.random.default_rng(0), bandwidth=1e-3)
        for drawn in exact_shares(process, states)
    ]
    return process, dataset, states, found


def arrived_rewards(dataset: Episodes, process: Decisions, states: np.ndarray) -> np.ndarray:
    reward = process.reward[states]
    np.testing.assert_allclose(dataset.reward[dataset.step_type > 0], reward[dataset.step_type > 0], rtol=1e-6)
    return dataset.reward.astype(float)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9])
def test_values_of_a_process_without_chance(gamma: float) -> None:
    """Every (state, action) always leads to the same state: the chain has the process's own values, exactly."""
    process, dataset, states, found = chains(True)
    reward = arrived_rewards(dataset, process, states)
    for policy, chain in zip(process.policies, found, strict=True):
        V = process.values(policy, gamma)
        np.testing.assert_allclose(chain.values(reward, gamma), V[states], atol=1e-3)
        assert (chain.values(reward, gamma)[dataset.terminal] == 0).all()
        assert np.ptp(V) > 0.5


def test_a_right_critic_mends_a_chain_that_jumps_anywhere() -> None:
    process, dataset, states, found = chains(True)
    reward, gamma = arrived_rewards(dataset, process, states), 0.9
    going = np.flatnonzero(dataset.steps_left > 0)
    jumps = np.random.default_rng(0).choice(going, (len(dataset), 4)) + 1
    astray = StitchedChain(jumps, found[0].distance, dataset.terminal)
    for policy in process.policies:
        V = process.values(policy, gamma)[states]
        taken = np.zeros(len(dataset))
        taken[going] = reward[going + 1] + gamma * V[going + 1] * ~dataset.terminal[going + 1]
        correction = astray.jump_correction(V, taken)
        np.testing.assert_allclose(astray.values(reward, gamma, correction), V, atol=1e-3)
        assert np.abs(astray.values(reward, gamma) - V).mean() > 0.2 * np.ptp(V)


def test_values_of_the_empirical_process() -> None:
    """With chance, rows that are equally near take turns: the solved empirical process, in the mean of such draws."""
    process, dataset, states, _ = chains(False)
    reward, own = arrived_rewards(dataset, process, states), empirical(process, dataset, states)
    candidates = find_candidates(dataset, names(states), count=ALL)
    for policy, drawn in zip(process.policies, exact_shares(process, states), strict=True):
        V, values = own.values(policy, GAMMA), np.zeros(len(dataset))
        for seed in range(2):
            rng = np.random.default_rng(seed)
            values += stitch(candidates, drawn, dataset.terminal, rng, bandwidth=1e-3).values(reward, GAMMA) / 2
        mean = np.array([values[states == s].mean() for s in range(S)])
        error = np.abs(mean - V).max() / np.ptp(V)
        print(f"stitched values: {error:.4f} of max V - min V from the solved empirical process")
        assert error < 0.06
    V = [own.values(policy, GAMMA) for policy in process.policies]
    assert min(np.abs(V[0] - V[1]).max(), np.abs(V[1] - V[2]).max()) / np.ptp(V[0]) > 0.1  # the bound tells them apart


def test_values_are_the_solution_of_the_chain() -> None:
    """Whatever the arrivals are, V = mean over draws of r + gamma V at the row arrived at."""
    rng = np.random.default_rng(0)
    N, M = 40, 3
    chain = StitchedChain(rng.integers(N, size=(N, M)), np.zeros((N, M)), rng.random(N) < 0.1)
    reward = rng.normal(size=N)
    A_ = np.zeros((N, N))
    np.add.at(A_, (np.repeat(np.arange(N), M), chain.arrival.ravel()), 1 / M)
    V = np.linalg.solve(np.eye(N) - 0.95 * A_ * ~chain.terminal, A_ @ reward)
    V[chain.terminal] = 0.0
    np.testing.assert_allclose(chain.values(reward, 0.95), V, atol=1e-3 * np.abs(V).max())


def test_futures_have_the_law_of_the_empirical_process() -> None:
    process, dataset, states, found = chains(False)
    own = empirical(process, dataset, states)
    for number, (policy, chain) in enumerate(zip(process.policies, found, strict=True)):
        rows = np.repeat(np.flatnonzero(states != LAST)[:, None], 200, 1)
        futures = chain.futures(rows, GAMMA, np.random.default_rng(number))
        assert futures.shape == rows.shape
        reached = np.where(futures < 0, END, states[futures])
        law = np.array([frequencies(reached[states[rows[:, 0]] == s]) for s in range(LAST)])
        exact = own.state_occupancy(policy, GAMMA)[:LAST]
        distance = total_variation(law, exact).max()
        print(f"stitched futures, policy {number}: total variation {distance:.4f}")
        assert distance < 0.03
        assert np.abs(law - exact)[:, END].max() < 0.015
        assert exact[:, END].max() > 0.2  # END is no small part
    assert (chain.futures(np.flatnonzero(dataset.terminal), GAMMA, np.random.default_rng(0)) == -1).all()


def test_distance_is_zero_where_a_row_matches() -> None:
    _, dataset, states, found = chains(False)
    for chain in found:
        assert chain.distance[states != LAST].max() < 1e-6
    # where no row of state 0 with action 2 may be followed, another one is, and the distance tells
    candidates = find_candidates(dataset, names(states), count=ALL)
    lacking = (states == 0) & (candidates.taken[:, 2] == 1)
    at = np.flatnonzero(states == 0)[:5]
    drawn = np.broadcast_to(np.eye(A, dtype=np.float32)[2], (len(dataset), 1, A))
    chain = stitch(candidates, drawn, dataset.terminal, np.random.default_rng(0), bandwidth=1e-3, allowed=~lacking)
    other = candidates.squared[at]
    frames = other[other > 0.1].min()  # of another state
    np.testing.assert_allclose(chain.distance[at, 0] ** 2, min(2.0**2 * 2, frames), rtol=1e-5)
    assert chain.distance[(states != 0) & (states != LAST)].max() < 1e-6


def test_allowed_rows_alone_are_followed() -> None:
    process, dataset, states, _ = chains(False)
    candidates = find_candidates(dataset, names(states), count=ALL)
    allowed = np.random.default_rng(0).random(len(dataset)) < 0.3
    chain = stitch(
        candidates,
        exact_shares(process, states)[0],
        dataset.terminal,
        np.random.default_rng(0),
        bandwidth=1e-3,
        allowed=allowed,
    )
    assert allowed[chain.arrival - 1].all()
    assert chain.excluded == 0.0
    free = stitch(
        candidates, exact_shares(process, states)[0], dataset.terminal, np.random.default_rng(0), bandwidth=1e-3
    )
    assert not allowed[free.arrival - 1].all()
    nowhere = stitch(
        candidates, exact_shares(process, states)[0], dataset.terminal, np.random.default_rng(0), bandwidth=1e-3,
        allowed=np.zeros(len(dataset), bool),
    )  # fmt: skip
    np.testing.assert_array_equal(nowhere.arrival, free.arrival)  # none may be followed: all are candidates again
    np.testing.assert_array_equal(nowhere.distance, free.distance)
    assert (nowhere.excluded, free.excluded) == (1.0, 0.0)
    of_state = find_candidates(dataset, names(states), count=20)  # all of the row's own state, but for the terminal one
    without = stitch(
        of_state, exact_shares(process, states)[0], dataset.terminal, np.random.default_rng(0), allowed=states != 3
    )
    assert without.excluded == pytest.approx((states == 3).mean())
    assert without.excluded > 0.05


def line(positions: list[float]) -> tuple[Episodes, torch.Tensor]:
    """One episode whose frames are numbers; the action at each row is 0."""
    return episodes_of([np.zeros(len(positions))], [False]), torch.tensor(positions)[:, None]


def test_candidates_by_hand() -> None:
    dataset, features = line([0.0, 1.0, 3.0, 7.0, 7.5])
    found = find_candidates(dataset, features, count=3)
    assert found.row.tolist() == [[0, 1, 2], [1, 0, 2], [2, 1, 0], [3, 2, 1], [3, 2, 1]]  # never the last row
    distances = np.array([[0, 1, 3], [0, 1, 2], [0, 2, 3], [0, 4, 6], [0.5, 4.5, 6.5]])
    unit = 3.0  # the median distance to the furthest of the three
    np.testing.assert_allclose(found.squared, (distances / unit) ** 2, rtol=1e-4, atol=1e-9)


def test_of_equal_frames_the_candidates_are_a_random_sample() -> None:
    """600 rows of one picture: candidates from early and late rows alike, and all of them candidates of some."""
    dataset, features = line([0.0] * 600 + [1.0])
    found = find_candidates(dataset, features).row[:600]
    assert found.shape == (600, 128)
    assert all(len(set(rows)) == 128 for rows in found.tolist())
    assert (found < 300).mean() == pytest.approx(0.5, abs=0.1)
    assert len(np.unique(found)) > 250  # three samples of 128; one alone would be all that there is


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_units_do_not_matter(scale: float, shift: float) -> None:
    rng = np.random.default_rng(0)
    dataset = episodes_of([np.zeros(200)], [False], rng.uniform(-1, 1, (200, 2)))
    features = torch.from_numpy(rng.normal(size=(200, 6)).astype(np.float32))
    drawn = rng.uniform(-1, 1, (200, 3, 2)).astype(np.float32)
    plain = stitch(
        find_candidates(dataset, features), drawn, dataset.terminal, np.random.default_rng(0), bandwidth=1e-3
    )
    other = stitch(
        find_candidates(dataset, scale * (features + shift)),
        drawn,
        dataset.terminal,
        np.random.default_rng(0),
        bandwidth=1e-3,
    )
    assert (plain.arrival == other.arrival).mean() > 0.99
    np.testing.assert_allclose(np.median(other.distance), np.median(plain.distance), rtol=1e-2)


def test_equally_near_rows_share_the_visits() -> None:
    candidates = Candidates(
        np.array([[0, 1, 2]] * 600), np.zeros((600, 3), np.float32), *[np.zeros((600, 1), np.float32)] * 2
    )
    chain = stitch(candidates, np.zeros((600, 4, 1), np.float32), np.zeros(600, bool), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(chain.arrival.ravel())[1:] / 2400, 1 / 3, atol=0.03)


def test_visits_follow_the_kernel() -> None:
    squared = np.tile(np.array([0.0, 0.2], np.float32), (4000, 1))
    candidates = Candidates(np.array([[0, 1]] * 4000), squared, *[np.zeros((4000, 1), np.float32)] * 2)
    chain = stitch(
        candidates, np.zeros((4000, 1, 1), np.float32), np.zeros(4000, bool), np.random.default_rng(0), bandwidth=0.2
    )
    assert (chain.arrival == 2).mean() == pytest.approx(1 / (1 + np.e), abs=0.02)  # e^-1 against 1


def drifts(episodes: int, seed: int) -> tuple[Episodes, torch.Tensor]:
    """Episodes of a point that drifts by .05 +- .05 a step from 0 and ends beyond 1, and what it shows: its place, and
    seven components of noise."""
    rng = np.random.default_rng(seed)
    places = []
    for _ in range(episodes):
        place = [0.3 * rng.random()]
        while place[-1] < 1:
            place.append(place[-1] + rng.normal(0.05, 0.05))
        places.append(np.array(place))
    dataset = episodes_of([np.r_[0.0, np.ones(len(place) - 1)] for place in places], [True] * episodes)
    shown = np.concatenate([np.concatenate(places)[:, None], 0.2 * rng.normal(size=(len(dataset), 7))], 1)
    return dataset, torch.from_numpy(shown.astype(np.float32))


def test_balanced_weights_lie_about_their_row() -> None:
    """Nearer to it than the kernel's at the edge of the data, as far as the ridge lets; inside they are those."""
    rng = np.random.default_rng(0)
    place = np.sort(10 * rng.random((400, 1)).astype(np.float32), 0)
    offsets = np.stack([place.T - place[row] for row in (3, 200, 396)])
    kernel = -(offsets[:, 0] ** 2) / 0.2
    tilted = _balanced(kernel, offsets)
    plain, found = ((_weights(logs) * offsets[:, 0]).sum(1) for logs in (kernel, tilted))
    assert (np.abs(found[[0, 2]]) < 0.6 * np.abs(plain[[0, 2]])).all()
    np.testing.assert_array_equal(tilted[1], kernel[1])


def test_balanced_weights_are_those_of_the_lowest_tilt() -> None:
    """Where few rows carry the weight a whole Newton step overshoots; no tilt may lead further away than none."""
    rng = np.random.default_rng(0)
    offsets = rng.normal(size=(200, 4, 40)).astype(np.float32)
    offsets[::2, 0] += 1  # half of the rows are at the edge
    actions = 4 * rng.integers(2, size=(200, 40))  # few took the action
    kernel = (-(np.square(offsets).sum(1) + actions) / 0.2).astype(np.float32)
    kernel[rng.random(kernel.shape) < 0.3] = -np.inf  # excluded
    found = _weights(_balanced(kernel, offsets)).astype(np.float64)
    for own, logs, along in zip(found, kernel.astype(np.float64), offsets.astype(np.float64), strict=True):

        def lowest(tilt: np.ndarray, logs: np.ndarray = logs, along: np.ndarray = along) -> tuple[float, np.ndarray]:
            moved = logs + tilt @ along
            height = logsumexp(moved) + RIDGE / 2 * tilt @ tilt
            return height, along @ np.exp(moved - logsumexp(moved)) + RIDGE * tilt

        tilt = minimize(lowest, np.zeros(4), jac=True, options={"gtol": 1e-8}).x
        exact = np.exp(logs + tilt @ along - logsumexp(logs + tilt @ along))
        assert total_variation(own, exact) < 5e-3
        assert np.linalg.norm(along @ own) < np.linalg.norm(along @ np.exp(logs - logsumexp(logs))) + 0.05


def test_jumps_are_balanced_where_episodes_terminate_alone() -> None:
    dataset, features = drifts(5, 0)
    candidates, drawn = find_candidates(dataset, features), np.zeros((len(dataset), 2, 1), np.float32)
    for terminal, same in ((np.zeros(len(dataset), bool), True), (dataset.terminal, False)):
        balanced, plain = (
            stitch(replace(candidates, place=place), drawn, terminal, np.random.default_rng(0)).arrival
            for place in (candidates.place, np.zeros_like(candidates.place))
        )
        assert np.array_equal(balanced, plain) == same


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (torch.zeros(4, 2), "do not fit 5 rows"),
        (torch.zeros(5, 0), "do not fit 5 rows"),
        (torch.zeros(5), "do not fit 5 rows"),
        (torch.tensor([[0.0], [1], [float("nan")], [2], [3]]), "NaN or infinity"),
    ],
)
def test_wrong_features(features: torch.Tensor, said: str) -> None:
    dataset, _ = line([0.0, 1.0, 2.0, 3.0, 4.0])
    with pytest.raises(VOCError, match=said):
        find_candidates(dataset, features)


def test_no_step_to_follow() -> None:
    dataset = episodes_of([np.zeros(1), np.zeros(1)], [False, False])
    with pytest.raises(VOCError, match="at least 2 rows"):
        find_candidates(dataset, torch.zeros(2, 1))
