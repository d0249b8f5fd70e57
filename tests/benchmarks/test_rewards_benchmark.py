"""Many rewards from one model: what they read off a state, and their scores. A whole run: test_ope.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from voc_rl.benchmarks.ope_data import discounted_mean
from voc_rl.benchmarks.reward_functions import REWARDS, tolerance
from voc_rl.benchmarks.rewards_table import results_of, table
from voc_rl.envs.dmcontrol import DMControlEnv


def test_tolerance_by_hand() -> None:
    x = np.array([-3.0, 0.0, 1.0, 1.5, 2.0, 2.5, 9.0])
    np.testing.assert_allclose(tolerance(x, 1.0, 2.0, 1.0), [0, 0, 1, 1, 1, 0.5, 0])
    np.testing.assert_allclose(tolerance(x, 1.0, np.inf, 0.0), [0, 0, 1, 1, 1, 1, 1])


def test_rewards_read_what_the_simulator_says() -> None:
    """Upright, height, pitch and speeds of the flat state against the simulator's own, after a fall."""
    rng = np.random.default_rng(0)
    for task in REWARDS:
        env = DMControlEnv(task, 2, max_episode_steps=100)
        env.reset(seed=1)
        for _ in range(30):
            state, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape))
        physics = env.physics
        named = physics.named.data
        if task == "walker-walk":
            upright, height = physics.torso_upright(), physics.torso_height()
            speed = float(named.qvel["rootx"].item())
            standing = (3 * np.clip(1 - max(1.2 - height, 0) / 0.6, 0, 1) + (1 + upright) / 2) / 4
            expected = {
                "stand": standing,
                "walk": standing * (5 * np.clip(1 - max(1 - speed, 0) / 0.5, 0, 1) + 1) / 6,
                "run": standing * (5 * np.clip(1 - max(8 - speed, 0) / 8, 0, 1) + 1) / 6,
                "backward": standing * np.clip(1 - max(1 + speed, 0), 0, 1),
                "fallen": float(height < 0.7),
            }
        else:
            speed, pitch = float(named.qvel["rootx"].item()), float(named.qpos["rooty"].item())
            expected = {
                "run": np.clip(speed / 10, 0, 1),
                "backward": np.clip(1 - max(speed + 2, 0) / 2, 0, 1),
                "speed 2": np.clip(1 - max(1.5 - speed, speed - 2.5, 0), 0, 1),
                "speed 5": np.clip(1 - max(4 - speed, speed - 6, 0) / 2, 0, 1),
                "overturned": float(np.cos(pitch) < 0),
            }
        assert set(expected) == set(REWARDS[task])
        for name, function in REWARDS[task].items():
            assert float(function(np.asarray(state))) == pytest.approx(float(expected[name]), abs=1e-5), name
        env.close()


def test_discounted_mean_of_a_constant_is_the_constant() -> None:
    np.testing.assert_allclose(discounted_mean(np.full((2, 3, 7), 0.4), 0.9), 0.4)
    np.testing.assert_allclose(discounted_mean(np.array([1.0, 0.0]), 0.5), 2 / 3)


def test_scores_of_estimates_by_hand() -> None:
    true = {"logged a": 0.2, "logged b": 0.4, "mixed c": 0.9}
    estimates = {
        "voc": {"stand": {"logged a": 0.3, "logged b": 0.4, "mixed c": 0.7}},
        "voc_density": {"stand": {"logged a": 0.2, "logged b": 0.4, "mixed c": None}},
    }
    record = {
        "cell": {"task": "walker-walk", "method": "voc", "part": "test", "seed": 0},
        "result": {"estimates": estimates}, "cpu_seconds": 3.0, "hardware": "2 CPUs",
    }  # fmt: skip
    found = results_of([record], {"walker-walk": {"stand": true}}, "smoke", 0.9)
    assert found["hardware"] == "2 CPUs"
    methods = found["tasks"]["walker-walk"]["rewards"]["stand"]["methods"]
    assert methods["voc"]["mae"] == pytest.approx(0.1)
    assert methods["voc_density"] == {
        "seeds": 1, "answered": pytest.approx(2 / 3), "mae": 0, "bias": 0, "spearman": pytest.approx(1), "regret@1": 0,
    }  # fmt: skip
    assert methods["median"]["mae"] == pytest.approx((0.1 + 0.1 + 0.6) / 3)
    assert methods["median"]["regret@1"] == pytest.approx((0.7 + 0.5 + 0) / 3 / 0.7, abs=0.06)  # one of the three
    assert "0.000 (1.00) 67% answered" in table(found)
    assert "% answered: share of the policies that got a number" in table(found)
    del record["result"]["estimates"]["voc_density"]  # type: ignore[attr-defined]
    assert "% answered" not in table(results_of([record], {"walker-walk": {"stand": true}}, "smoke", 0.9))


def test_development_policies_alone_have_a_table_and_seconds_are_averaged() -> None:
    true = {"walker-walk": {"stand": {"development a": 0.2, "development b": 0.4, "logged c": 0.3}}}

    def record(seed: int, seconds: float) -> dict[str, Any]:
        cell = {"task": "walker-walk", "method": "sf_td", "part": "development", "seed": seed}
        estimates = {"sf_td": {"stand": {"development a": 0.3, "development b": 0.6}}}
        return {"cell": cell, "result": {"estimates": estimates}, "cpu_seconds": seconds, "hardware": "2 CPUs"}

    found = results_of([record(0, 100.0), record(1, 300.0)], true, "smoke", 0.9)
    assert found["development"]["walker-walk"]["cpu_seconds"] == {"sf_td": 200.0}
    text = table(found)
    assert "**walker-walk**, γ = 0.9, 2 development policies: MAE of J (Spearman)" in text
    assert "| 0.150 (1.00) | 200 |" in text
