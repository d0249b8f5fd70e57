"""When an estimate says not to believe it: few episodes, actions that nobody tried, chains that meet one reward."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from walks import GAMMA, QUANTIZED, Walk, walks

from voc_rl.data import Episodes
from voc_rl.ope import EvaluationConfig, PolicyEvaluator, StitchingConfig, evaluate_policy
from voc_rl.values import FittedQ
from voc_rl.values.fitted_q import MEMBERS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    return walks(tmp_path_factory.mktemp("walks"))


@pytest.fixture(scope="module")
def evaluator(data: Episodes) -> PolicyEvaluator:
    """Of chains alone: no network is trained but the quantizer."""
    config = EvaluationConfig(StitchingConfig(replicates=2), voc=QUANTIZED)
    return PolicyEvaluator(data, {"right": Walk(1.0)}, GAMMA, config=config)


def test_few_episodes_are_warned_of_once(evaluator: PolicyEvaluator, data: Episodes) -> None:
    few = data.subset(np.arange(5))
    tokens = (evaluator.tokens[0][: len(few)], evaluator.tokens[1][: len(few)])
    policies = {"right": Walk(1.0), "left": Walk(0.0)}
    with pytest.warns(UserWarning, match="Intervals from 5 episodes may be too narrow") as caught:
        evaluate_policy(few, policies, GAMMA, config=evaluator.config, quantizer=evaluator.quantizer, tokens=tokens)
    assert len([w for w in caught if "too narrow" in str(w.message)]) == 1


def test_a_policy_far_from_the_data_is_flagged(evaluator: PolicyEvaluator, data: Episodes) -> None:
    class Still(Walk):
        def draw(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return np.zeros((*observation.shape[:-1], 1), np.float32)  # between the actions that were logged

    with pytest.warns(UserWarning, match="hardly support"):
        found = evaluate_policy(
            data, Still(0.0), GAMMA, quantizer=evaluator.quantizer, tokens=evaluator.tokens,
            config=replace(evaluator.config, stitching=StitchingConfig(replicates=2, action_weight=4.0)),
        )  # fmt: skip
    assert found.diagnostics["action_distance"] == pytest.approx(1.0)


def test_a_chain_that_meets_nothing_else_is_flagged(evaluator: PolicyEvaluator, data: Episodes) -> None:
    """Its interval has no width: resampled episodes hold the same rewards wherever the policy goes."""
    near = np.flatnonzero(data.state[:, 0] == 4)[:5]
    reward = np.where(np.arange(len(data)) < 0, 1.0, 2.0)
    given: dict[str, Any] = {"config": evaluator.config, "quantizer": evaluator.quantizer, "tokens": evaluator.tokens}
    own = PolicyEvaluator(data, {"right": Walk(1.0)}, GAMMA, near, **given)
    assert own.estimate("right", reward=reward).warning == ""  # constant everywhere: there is nothing else to meet
    reward[data.starts] = 0.0  # first rows, which nothing leads to
    assert own.estimate("right", reward=reward).warning == ""
    far = np.flatnonzero(data.state[:, 0] == 2)  # to the left
    reward[np.setdiff1d(far, data.starts)] = 3.0
    found = own.estimate("right", reward=reward, gamma=0.0)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)
    assert "does not say what other rewards or ends it would meet" in found.warning


def test_ends_that_chains_may_miss_and_a_critic_that_moves_much_are_warned_of(
    evaluator: PolicyEvaluator, data: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending = data.subset(np.arange(40))
    ending.terminal[ending.steps_left == 0] = True
    given: dict[str, Any] = {"quantizer": evaluator.quantizer, "tokens": evaluator.tokens}
    own = PolicyEvaluator(ending, {"right": Walk(1.0)}, GAMMA, config=evaluator.config, **given)
    chained = own.estimate("right")
    assert "chains of jumps may miss ends" in chained.warning
    for more, said in ((0.01, False), (0.2, True)):  # at every jump
        critic = FittedQ(np.full((1, len(data), MEMBERS), more), np.zeros((1, len(data), MEMBERS)))
        monkeypatch.setattr(PolicyEvaluator, "critic_of", lambda self, reward, gamma, critic=critic: critic)
        corrected = own.estimate("right", "corrected")
        assert corrected.value > chained.value
        assert "miss ends" not in corrected.warning
        assert ("The chain of right alone gives" in corrected.warning) == said


def test_intervals_wider_than_values_are_warned_of(evaluator: PolicyEvaluator, data: Episodes) -> None:
    """A reward of 40 at one row of many: whether its episode is among the resampled ones decides all."""
    reward = np.zeros(len(data))
    reward[data.starts[7] + 20] = 40.0
    found = evaluator.estimate("right", reward=reward)
    assert found.high - found.low > 2 * found.value
    assert "is wider than the values of these data are large" in found.warning
    assert "wider" not in evaluator.estimate("right").warning
