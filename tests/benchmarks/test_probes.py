"""Linear probes against regressions whose answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small import toy_dataset
from worlds import one_sentence, write_world

from voc_rl.benchmarks import probes
from voc_rl.benchmarks.demo import POLICIES
from voc_rl.benchmarks.probes import PENALTIES, POSITIONS, Ridge, probe, probe_targets, probed_rows, r_squared
from voc_rl.data import Episodes
from voc_rl.envs.gl import import_suite
from voc_rl.errors import VOCError


def inputs(rows: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, size)) * np.arange(1, size + 1) + 3


def test_ridge_is_the_solution_of_its_equations() -> None:
    x, y = inputs(50, 4), np.random.default_rng(1).normal(size=(50, 2))
    x = np.column_stack([x, np.full(50, 7.0)])  # a constant input changes nothing
    new = np.column_stack([inputs(9, 4, seed=2), np.full(9, 5.0)])
    least = np.linalg.lstsq(np.column_stack([x[:, :4], np.ones(50)]), y, rcond=None)[0]
    np.testing.assert_allclose(Ridge(x).predict(y, 1e-12, new), new[:, :4] @ least[:4] + least[4], atol=1e-8)
    z, znew = ((a[:, :4] - x[:, :4].mean(0)) / x[:, :4].std(0) for a in (x, new))
    for penalty in (0.1, 10.0):  # (Z'Z/N + penalty I) w = Z'(y - mean)/N
        weights = np.linalg.solve(z.T @ z / 50 + penalty * np.eye(4), z.T @ (y - y.mean(0)) / 50)
        np.testing.assert_allclose(Ridge(x).predict(y, penalty, new), y.mean(0) + znew @ weights)


def test_ridge_with_more_inputs_than_rows_is_finite() -> None:
    x, y = inputs(20, 60), np.random.default_rng(1).normal(size=(20, 1))
    np.testing.assert_allclose(Ridge(x).predict(y, 1e-9, x), y, atol=1e-4)


def test_r_squared_is_the_mean_over_what_varies() -> None:
    truth = np.array([[0.0, 0.0, 5.0], [2.0, 20.0, 5.0]])
    assert r_squared(truth, truth) == 1
    assert r_squared(truth, np.array([[1.0, 0.0, 4.0], [1.0, 20.0, 9.0]])) == pytest.approx(0.5)  # 0 and 1; not 5.0
    assert r_squared(truth, np.array([[4.0, 0.0, 5.0], [2.0, 20.0, 5.0]])) == pytest.approx((1 - 8 + 1) / 2)
    assert r_squared(truth[:, 2:], truth[:, 2:]) is None


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 1.0), (0.5, 0.8), (1.0, 0.5), (3.0, 0.1)])
def test_r_squared_of_a_linear_target_with_noise(noise: float, expected: float) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(6, 3))
    weights /= np.linalg.norm(weights, axis=0)  # the target's own variance is 1
    x = rng.normal(size=(8000, 6))
    y = x @ weights + noise * rng.normal(size=(8000, 3))
    found = probe(x[:4000], {"y": y[:4000]}, np.arange(4000) // 100, x[4000:], {"y": y[4000:]})
    assert found["y"] == pytest.approx(expected, abs=0.02)


def test_penalties_are_chosen_on_other_episodes() -> None:
    """Inputs that say nothing but which episode it is: fitted row by row they look perfect, and mislead."""
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(40), 25)
    x = rng.normal(size=(40, 24))[episode] + 0.01 * rng.normal(size=(1000, 24))
    y = rng.normal(size=(40, 1))[episode]
    train, test = episode < 30, episode >= 30
    loose = r_squared(y[test], Ridge(x[train]).predict(y[train], PENALTIES[0], x[test]))
    assert loose is not None
    assert loose < -1
    found = probe(x[train], {"y": y[train], "x": x[train]}, episode[train], x[test], {"y": y[test], "x": x[test]})
    assert found["y"] is not None
    assert -0.5 < found["y"] < 0.2
    assert found["x"] == pytest.approx(1, abs=1e-3)  # each target has its own penalty


def test_a_target_that_never_varies_has_no_score() -> None:
    x = inputs(40, 3)
    found = probe(x, {"y": np.ones((40, 1))}, np.arange(40) // 10, x, {"y": np.ones((40, 1))})
    assert found == {"y": None}


def test_targets_are_the_parts_of_the_state_after_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "POSITIONS", {"toy": 2})
    dataset = toy_dataset(tmp_path, (4, 3))  # state (t, -t, episode), reward 100 episode + t
    assert probed_rows(dataset).tolist() == [1, 2, 3, 5, 6]
    targets = probe_targets(dataset, "toy")
    assert targets["position"].tolist() == [[1, -1], [2, -2], [3, -3], [1, -1], [2, -2]]
    assert targets["velocity"].tolist() == [[0], [0], [0], [1], [1]]
    assert targets["reward"].tolist() == [[1], [2], [3], [101], [102]]


@pytest.mark.parametrize("task", POLICIES)
def test_what_follows_the_positions_are_the_velocities(task: str) -> None:
    suite = import_suite()  # with a backend that the tests after this one can draw with

    domain, name = task.split("-")
    env = suite.load(domain, name, task_kwargs={"random": 1})
    env.reset()
    for _ in range(5):
        step = env.step(np.full(env.action_spec().shape, 0.5))
    state = np.concatenate([np.ravel(part) for part in step.observation.values()])  # as DMControlEnv does
    np.testing.assert_array_equal(state[POSITIONS[task] :], env.physics.velocity())
    assert len(state) > POSITIONS[task]


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = inputs(9, 2)
    with pytest.raises(VOCError, match="at least two episodes") as caught:
        probe(x, {"y": x}, np.zeros(9, int), x, {"y": x})
    assert one_sentence(str(caught.value))
    write_world(tmp_path, episodes=2, rows=5)
    with pytest.raises(VOCError, match="no simulator states") as caught:
        probe_targets(Episodes.open(tmp_path), "walker-walk")
    assert one_sentence(str(caught.value))
