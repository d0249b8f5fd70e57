"""Fitted Q evaluation on a tabular process whose values are known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decisions import LAST, UNIFORM, S, actions_of, decisions, logged
from walks import CELLS, GAMMA, Walk, exact, walks
from worlds import refusal

from voc_rl.loop import LoopConfig
from voc_rl.occupancy import policy_actions
from voc_rl.values import FQEConfig, fitted_q, members_of
from voc_rl.values.fitted_q import MEMBERS, QNetwork

fitted_q_module = sys.modules["voc_rl.values.fitted_q"]  # in the package, its name is the function's


def test_fitted_q_finds_the_values_of_policies_that_did_not_make_the_data() -> None:
    process = decisions()
    data, states = logged(process, 6000)
    config = FQEConfig(LoopConfig(steps=1500, batch_size=256, learning_rate=2e-3), width=64, noise=0.02, ema=0.98)
    actions = actions_of(process, states, 4)
    found = fitted_q(data, np.eye(S)[states], actions, 0.9, config, 0, *members_of(data, 0, data.reward))
    truth = np.stack([process.values(policy, 0.9)[:LAST] for policy in process.policies])
    behaviour = process.values(UNIFORM, 0.9)[:LAST]
    for policy in range(3):
        own = np.array([found.value[policy, (states == s) & (data.steps_left > 0)].mean() for s in range(LAST)])
        assert np.abs(own - truth[policy]).mean() < 0.06 * np.ptp(truth)
        if policy != 1:
            assert np.abs(behaviour - truth[policy]).mean() > 0.12 * np.ptp(truth)


def test_each_policys_output_is_that_of_its_own_action() -> None:
    network = QNetwork(state=3, action=2, policies=4, outputs=MEMBERS, width=8)
    rng = torch.Generator().manual_seed(0)
    state, actions = torch.randn(5, 3, generator=rng), torch.randn(4, 5, 2, generator=rng)
    found = network.of_policies(state, actions)
    assert found.shape == (5, 4, MEMBERS)
    for policy in range(4):
        torch.testing.assert_close(found[:, policy], network(state, actions[policy])[:, policy])


def test_an_offset_of_rewards_is_one_of_values(tmp_path: Path) -> None:
    """Without ends, a constant c more on every step is c / (1 - gamma) more of every value, however large c is."""
    data, policies = walks(tmp_path), [Walk(1.0), Walk(0.0)]
    assert not data.terminal.any()
    place = data.state[:, 0].astype(int)  # type: ignore[index]
    actions = policy_actions(policies, data, 4, np.random.default_rng(0))
    config = FQEConfig(LoopConfig(steps=400, batch_size=128, learning_rate=3e-3), width=64)
    for offset in (0.0, 100.0):
        reward = (data.reward + offset)[:, None].astype(np.float32)
        found = fitted_q(data, np.eye(CELLS)[place], actions, GAMMA, config, 0, reward).value[..., 0]
        for values, policy in zip(found, policies, strict=True):
            truth = exact(data, policy.right, np.arange(len(data)))
            error = values - offset / (1 - GAMMA) - truth
            assert np.sqrt(np.square(error).mean()) < 0.06 * np.ptp(truth)


def test_the_unit_of_rewards_does_not_matter() -> None:
    process = decisions()
    data, states = logged(process, 300)
    config = FQEConfig(LoopConfig(steps=40, batch_size=32, learning_rate=2e-3), width=16)
    actions = actions_of(process, states, 2)
    reward, weights = members_of(data, 0, data.reward)
    found = [
        fitted_q(data, np.eye(S)[states], actions, 0.9, config, 0, (unit * reward).astype(np.float32), weights).value
        / unit
        for unit in (1.0, 1024.0, 2.0**-10)
    ]
    assert data.terminal.any()
    assert not found[0][:, data.terminal].any()  # which is not the mean's value
    np.testing.assert_array_equal(found[1], found[0])  # powers of two: the same bits
    np.testing.assert_array_equal(found[2], found[0])
    assert np.ptp(found[0]) > 0.01


def test_the_unit_of_features_does_not_matter() -> None:
    process = decisions()
    data, states = logged(process, 300)
    config = FQEConfig(LoopConfig(steps=40, batch_size=32, learning_rate=2e-3), width=16)
    actions, reward = actions_of(process, states, 2), data.reward[:, None]
    features = np.concatenate([np.eye(S)[states], np.full((len(data), 1), 7.0)], 1)  # and one that is always the same
    found = [fitted_q(data, unit * features, actions, 0.9, config, 0, reward).value for unit in (1.0, 1024.0, 2.0**-40)]
    np.testing.assert_array_equal(found[1], found[0])  # powers of two: the same bits
    np.testing.assert_array_equal(found[2], found[0])
    nothing = [fitted_q(data, unit * features[:, S:], actions, 0.9, config, 0, reward).value for unit in (1.0, 2.0)]
    assert np.isfinite(nothing[0]).all()
    np.testing.assert_array_equal(nothing[1], nothing[0])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"width": 0}, "width is 0; a whole number above zero"), ({"width": 64.0}, "width is 64.0; a whole number"),
     ({"noise": -1.0}, "noise is -1.0; at least 0"), ({"ema": 1.0}, "ema is 1.0; a number from 0 to below 1")],
)  # fmt: skip
def test_settings_that_would_learn_nothing_are_refused(wrong: dict[str, Any], said: str) -> None:
    assert said in refusal(FQEConfig, **wrong)


def test_rewards_that_are_all_zero_have_values() -> None:
    process = decisions()
    data, states = logged(process, 300)
    config = FQEConfig(LoopConfig(steps=2, batch_size=32), width=16)
    actions = actions_of(process, states, 2)
    nothing = np.zeros((len(data), 1), np.float32)
    found = fitted_q(data, np.eye(S)[states], actions, 0.5, config, 0, nothing)
    assert np.isfinite(found.value).all()
