"""Policies on a ring of columns whose values linear algebra knows: from pixels to intervals, by every estimator."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from chains import values
from walks import CELLS, GAMMA, QUANTIZED, Walk, exact, moves, pay, walks

import voc_rl
from voc_rl.data import Episodes
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig
from voc_rl.model_files import weights_mark
from voc_rl.occupancy import OccupancyTraining, PolicyTraining
from voc_rl.ope import EvaluationConfig, PolicyEvaluator, StitchingConfig, evaluate_policy
from voc_rl.precision import device_of
from voc_rl.quantizers import save_quantizer
from voc_rl.training import NetworkSize
from voc_rl.values import FQEConfig, RewardConfig

GOES = {"right": 1.0, "left": 0.0, "either": 0.7}  # policies by how often they go right


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    return walks(tmp_path_factory.mktemp("walks"))


@pytest.fixture(scope="module")
def evaluator(data: Episodes) -> PolicyEvaluator:
    loop = LoopConfig(steps=1000, batch_size=64, learning_rate=3e-3)  # with 600 some seeds take left for either
    training = PolicyTraining(occupancy=OccupancyTraining(feature_noise=0.05, loop=loop))
    voc = replace(
        QUANTIZED, network=NetworkSize(n_head=2, width=64, null_context=True),
        reward=RewardConfig(hidden=32, bins=21, loop=LoopConfig(steps=200, batch_size=128, learning_rate=3e-3)),
    )  # fmt: skip
    critic = FQEConfig(LoopConfig(steps=400, batch_size=128, learning_rate=3e-3), width=64)
    stitching = StitchingConfig(draws=8)
    config = EvaluationConfig(stitching, critic=critic, training=training, voc=voc, samples=200, density_rows=700)
    policies = {name: Walk(right) for name, right in GOES.items()}
    starts = np.flatnonzero(np.arange(len(data)) % 17 == 0)
    return PolicyEvaluator(data, policies, GAMMA, starts, config)


@pytest.mark.parametrize(
    ("estimator", "close"),
    [("stitch", 0.08), ("corrected", 0.08), ("head", 0.1), ("sample", 0.15), ("mve", 0.15), ("density", 0.2)],
)
def test_values_are_those_of_linear_algebra(
    evaluator: PolicyEvaluator, data: Episodes, estimator: Any, close: float
) -> None:
    spread = np.ptp(values(moves(1.0), pay(), GAMMA))
    for name, right in GOES.items():
        truth = exact(data, right, evaluator.starts)
        found = evaluator.estimate(name, estimator)
        assert abs(found.value - truth.mean()) < close * spread
        # state by state, where policies differ: the behaviour's values are wrong for right and left
        errors = np.abs(found.start_values - truth).mean()
        if right in (0.0, 1.0):
            assert errors < 0.6 * np.abs(exact(data, 0.5, evaluator.starts) - truth).mean()
        assert found.low < found.value < found.high
        assert found.warning == ""
        assert ("critic" in found.covers) == (estimator in ("corrected", "head"))
        assert ("network" in found.covers) == (estimator not in ("stitch", "corrected"))
        assert ("sampling" in found.covers) == (estimator in ("sample", "mve", "density"))


@pytest.mark.parametrize("estimator", ["stitch", "corrected", "head", "sample", "density"])
def test_differences_are_those_of_linear_algebra(evaluator: PolicyEvaluator, data: Episodes, estimator: Any) -> None:
    """Of policies far apart and near."""
    spread = np.ptp(values(moves(1.0), pay(), GAMMA))
    found = {name: evaluator.estimate(name, estimator) for name in evaluator.policies}
    truth = {name: exact(data, right, evaluator.starts).mean() for name, right in GOES.items()}
    for one, other in (("right", "left"), ("right", "either"), ("either", "left")):
        told = found[one].difference(found[other])
        assert (told.policy, told.than) == (one, other)
        assert told.value == found[one].value - found[other].value
        assert abs(told.value - (truth[one] - truth[other])) < 0.2 * spread
        assert told.low <= truth[one] - truth[other] <= told.high
        assert told.stderr == pytest.approx(found[other].difference(found[one]).stderr)


def test_another_reward_needs_no_new_model(evaluator: PolicyEvaluator, data: Episodes) -> None:
    assert data.state is not None
    other = (np.arange(CELLS) == 3).astype(float)
    reward = other[data.state[:, 0].astype(int)]
    spread = np.ptp(values(moves(1.0), other, GAMMA))
    model = evaluator.model
    for estimator in ("stitch", "sample"):
        found = evaluator.estimate("left", estimator, reward)  # type: ignore[arg-type]
        assert abs(found.value - exact(data, 0.0, evaluator.starts, other).mean()) < 0.1 * spread
    assert evaluator.model is model
    with pytest.raises(VOCError, match="the data's reward at gamma"):
        evaluator.estimate("left", "head", reward)


def test_a_critic_is_fitted_to_another_reward_and_discount(evaluator: PolicyEvaluator, data: Episodes) -> None:
    assert data.state is not None
    own, later = evaluator.estimate("left", "corrected").value, 0.9
    place, other = data.state[:, 0].astype(int), (np.arange(CELLS) == 3).astype(float)
    others, fitted = other[place].astype(np.float32), []
    for reward, paid, gamma in ((others, other, GAMMA), (None, pay(), later), (others, other, later)):
        critic = evaluator.critic_of(data.reward if reward is None else reward, gamma)
        for policy, (name, right) in enumerate((("right", 1.0), ("left", 0.0))):
            known = values(moves(right), paid, gamma)
            truth, spread = known[place[evaluator.starts]], np.ptp(known)
            found = evaluator.estimate(name, "corrected", reward, gamma=gamma)
            assert abs(found.value - truth.mean()) < 0.1 * spread
            assert np.abs(critic.value[policy].mean(1)[evaluator.starts] - truth).mean() < 0.2 * spread
        assert critic is evaluator.critic_of(data.reward if reward is None else reward, gamma)
        fitted.append(weakref.ref(critic))
        del critic
    gc.collect()
    assert [kept() is not None for kept in fitted] == [False, False, True]  # each takes as much memory as all values
    assert evaluator.alone("left").critic_of(others, later) is fitted[2]()
    assert evaluator.estimate("left", "corrected").value == own
    assert evaluator.critic_of(data.reward, GAMMA) is evaluator.critic


def test_another_discount_needs_no_new_model(evaluator: PolicyEvaluator, data: Episodes) -> None:
    assert data.state is not None
    later = 0.9
    known = values(moves(0.0), pay(), later)
    truth, spread = known[data.state[evaluator.starts, 0].astype(int)].mean(), np.ptp(values(moves(1.0), pay(), later))
    own = evaluator.estimate("left", "stitch").value
    for estimator in ("stitch", "sample", "mve"):
        found = evaluator.estimate("left", estimator, gamma=later)  # type: ignore[arg-type]
        assert found.gamma == later
        assert abs(found.value - truth) < 0.25 * spread < 0.5 * abs(own - truth)
    with pytest.raises(VOCError, match="the data's reward at gamma"):
        evaluator.estimate("left", "head", gamma=later)
    for estimator, gamma in (("density", later), ("sample", 0.5), ("mve", 0.5)):
        with pytest.raises(VOCError, match="This network answers for gamma"):
            evaluator.estimate("left", estimator, gamma=gamma)  # type: ignore[arg-type]


@pytest.mark.slow
def test_one_network_for_a_range_of_discounts(evaluator: PolicyEvaluator, data: Episodes) -> None:
    """At both ends and between: the exact values there, which those of the other discounts are not."""
    assert data.state is not None
    loop = LoopConfig(steps=1000, batch_size=128, learning_rate=3e-3)
    occupancy = replace(evaluator.config.training.occupancy, gamma=GAMMA, gammas=(0.5, 0.9), futures=4, loop=loop)
    config = replace(evaluator.config, training=replace(evaluator.config.training, occupancy=occupancy))
    policies = {"left": Walk(0.0), "right": Walk(1.0)}
    known: dict[str, Any] = {"quantizer": evaluator.quantizer, "tokens": evaluator.tokens}
    several = PolicyEvaluator(data, policies, GAMMA, evaluator.starts, config, **known)
    start = data.state[evaluator.starts, 0].astype(int)
    for name, policy in policies.items():
        exact_at = {gamma: values(moves(policy.right), pay(), gamma) for gamma in (0.5, GAMMA, 0.9)}
        for gamma, V in exact_at.items():
            found = several.estimate(name, "sample", gamma=gamma)
            by_column = np.array([found.start_values[start == c].mean() for c in range(CELLS)])
            error = {other: np.abs(by_column - U).max() / np.ptp(V) for other, U in exact_at.items()}
            print(name, gamma, error)
            assert abs(found.value - V[start].mean()) < 0.15 * np.ptp(V)
            assert error.pop(gamma) < 0.3 < 0.5 < min(error.values())
    model = several.model
    assert several.estimate("left", "sample", gamma=0.95).gamma == 0.95
    assert several.model is model
    with pytest.raises(VOCError, match=r"answers for gamma 0\.5 to 0\.9 and larger ones, not for 0\.4; est.*'stitch'"):
        several.estimate("left", "sample", gamma=0.4)
    with pytest.raises(VOCError, match=r"answers for gamma 0\.5 to 0\.9 only, not for 0\.95"):
        several.estimate("left", "density", gamma=0.95)
    with pytest.raises(VOCError, match="has no value head"):
        several.estimate("left", "head")
    with pytest.raises(VOCError, match=r"gamma 0\.95 is outside gammas"):
        PolicyEvaluator(data, {"left": Walk(0.0)}, 0.95, config=config)


def test_sampled_futures_need_no_critic_and_no_head(
    evaluator: PolicyEvaluator, data: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a critic was fitted")

    monkeypatch.setattr("voc_rl.ope.evaluator.fitted_q", unwanted)
    loop = LoopConfig(steps=20, batch_size=32)
    config = replace(evaluator.config, training=PolicyTraining(occupancy=OccupancyTraining(loop=loop)), samples=8)
    rest: dict[str, Any] = {"quantizer": evaluator.quantizer, "tokens": evaluator.tokens}
    for estimator in ("sample", "density", "mve", "stitch"):
        found = evaluate_policy(data, Walk(1.0), GAMMA, estimator, config=config, **rest)  # type: ignore[arg-type]
        assert np.isfinite([found.value, found.low, found.high]).all()
    with pytest.raises(AssertionError, match="a critic was fitted"):
        evaluate_policy(data, Walk(1.0), GAMMA, "head", config=config, **rest)
    bare = replace(config, voc=replace(config.voc, network=replace(config.voc.network, head_members=0)))
    without = PolicyEvaluator(data, {"right": Walk(1.0)}, GAMMA, config=bare, **rest)
    assert without.model.head is None
    with pytest.raises(VOCError, match="has no value head"):
        without.estimate("right", "head")


def test_each_policy_alone_from_a_behaviour_model(evaluator: PolicyEvaluator, data: Episodes) -> None:
    """150 steps each, of a network alone in what it learns; all that is no network is shared."""
    loop = LoopConfig(steps=300, batch_size=64, learning_rate=3e-3)
    occupancy = replace(evaluator.config.training.occupancy, loop=loop)
    voc = replace(evaluator.config.voc, network=NetworkSize(head_members=0), occupancy=occupancy)
    known: dict[str, Any] = {"quantizer": evaluator.quantizer, "tokens": evaluator.tokens}
    trained = voc_rl.train(data, voc, **known)
    few = replace(evaluator.config.training, occupancy=replace(occupancy, loop=replace(loop, steps=150)))
    config = replace(evaluator.config, stitching=StitchingConfig(replicates=2), voc=voc, training=few)
    policies = {"right": Walk(1.0), "left": Walk(0.0)}

    several = PolicyEvaluator(data, policies, GAMMA, evaluator.starts, config, behaviour=trained.occupancy, **known)
    for name, policy in policies.items():
        own = several.alone(name)
        assert own.estimate(name, "stitch").value == several.estimate(name, "stitch").value
        assert (own.model.names, own.model.network.config.policies) == ([name], 1)
        truth, other = (exact(data, right, evaluator.starts) for right in (policy.right, 0.5))
        found = own.estimate(name, "sample", reward_head=trained.reward_head)
        errors = [np.abs(values - truth).mean() / np.ptp(truth) for values in (found.start_values, other)]
        print(f"{name}: error {errors[0]:.3f} of max V - min V, of the behaviour's values {errors[1]:.3f}")
        assert errors[0] < 0.6 * errors[1]
    assert "model" not in vars(several)
    assert evaluator.alone("left").critic is evaluator.critic


def test_several_policies_are_ranked(evaluator: PolicyEvaluator, data: Episodes) -> None:
    assert data.state is not None
    starts = np.flatnonzero(data.state[:, 0] == 4)[:20]  # from here right pays sooner than left
    ranked = evaluate_policy(
        data, evaluator.policies, GAMMA, starts=starts, quantizer=evaluator.quantizer, tokens=evaluator.tokens,
        config=replace(evaluator.config, stitching=StitchingConfig(replicates=2)),
    )  # fmt: skip
    truth = {name: exact(data, policy.right, starts).mean() for name, policy in evaluator.policies.items()}
    assert [estimate.policy for estimate in ranked] == sorted(truth, key=lambda name: -truth[name])


def test_what_does_not_fit_is_refused(evaluator: PolicyEvaluator, data: Episodes) -> None:
    class Wide(Walk):
        def draw(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            return np.zeros((len(observation), 2), np.float32)

    class Blind(Walk):
        observation = "sound"

    for policies, starts, message in (
        ({}, None, "at least one is needed"),
        ({"wide": Wide(1.0)}, None, "gave actions of shape"),
        ({"blind": Blind(1.0)}, None, "has to be 'state' or 'pixels'"),
        ({"none": object()}, None, "is no policy"),
        ({"right": Walk(1.0)}, np.array([len(data)]), "starts have to be rows"),
    ):
        with pytest.raises(VOCError, match=message):
            PolicyEvaluator(data, policies, GAMMA, starts, evaluator.config)
    with pytest.raises(VOCError, match="one per row"):
        evaluator.estimate("right", "stitch", np.zeros(3))
    with pytest.raises(VOCError, match="NaN"):
        evaluator.fit_reward(np.full(len(data), np.nan))
    with pytest.raises(VOCError, match="without the quantizer"):
        PolicyEvaluator(data, {"right": Walk(1.0)}, GAMMA, config=evaluator.config, tokens=evaluator.tokens)
    few = tuple(part[1:] for part in evaluator.tokens)
    with pytest.raises(VOCError, match=f"{len(data) - 1} rows of codes do not fit {len(data)} rows of data"):
        PolicyEvaluator(data, {"right": Walk(1.0)}, GAMMA, quantizer=evaluator.quantizer, tokens=few)
    with pytest.raises(VOCError, match="Unknown policy"):
        evaluator.estimate("up")
    assert "Unknown policy" in worlds.refusal(evaluator.alone, "up")
    known: dict[str, Any] = {"config": evaluator.config, "behaviour": evaluator.model.network}  # of three policies
    said = worlds.refusal(PolicyEvaluator, data, {"right": Walk(1.0)}, GAMMA, **known)
    assert "without the quantizer whose codes" in said
    said = worlds.refusal(PolicyEvaluator, data, {"wide": Wide(1.0)}, GAMMA, quantizer=evaluator.quantizer, **known)
    assert "policies 1 cannot start from one with policies 3" in said


def test_numbers_that_mean_nothing_are_refused(evaluator: PolicyEvaluator, data: Episodes) -> None:
    for level in (90, 1.0, 0.0, -1, float("nan")):
        assert f"level is {level!r}; a confidence" in worlds.refusal(evaluator.estimate, "right", level=level)
        assert f"level is {level!r}; a confidence" in worlds.refusal(evaluate_policy, data, Walk(1.0), level=level)
    for level in ("0.9", None):
        assert f"level is {level!r}; a confidence" in worlds.refusal(evaluate_policy, data, Walk(1.0), level=level)
    said = worlds.refusal(evaluate_policy, data, Walk(1.0), reward_fn=data.reward)
    assert "reward_fn is ndarray; a function is needed" in said
    assert "samples is 1; at least 2" in worlds.refusal(EvaluationConfig, samples=1)
    assert "samples is 8.0; at least 2" in worlds.refusal(EvaluationConfig, samples=8.0)
    for rows in (0, 500.0):
        assert f"density_rows is {rows}; a whole number" in worlds.refusal(EvaluationConfig, density_rows=rows)
    for starts in (np.arange(len(data)) < 5, np.array([0.0, 1.0]), np.array([]), np.array([-1]), np.array([[0]])):
        said = worlds.refusal(PolicyEvaluator, data, {"right": Walk(1.0)}, GAMMA, starts)
        assert f"whole numbers from 0 to {len(data) - 1}" in said
    last = np.flatnonzero(data.steps_left == 0)
    data.terminal[last] = True
    try:
        said = worlds.refusal(PolicyEvaluator, data, {"right": Walk(1.0)}, GAMMA, last)
    finally:
        data.terminal[last] = False
    assert "Every start is a termination" in said


def test_the_quantizer_that_was_given_stays_where_it_is(
    evaluator: PolicyEvaluator, data: Episodes, tmp_path: Path
) -> None:
    own, policies = evaluator.quantizer, {"right": Walk(1.0)}
    kept = PolicyEvaluator(data, policies, GAMMA, quantizer=own, tokens=evaluator.tokens)
    assert kept.quantizer is own
    save_quantizer(own, tmp_path)
    for place in (tmp_path, str(tmp_path)):
        read = PolicyEvaluator(data, policies, GAMMA, quantizer=place, tokens=evaluator.tokens).quantizer
        assert weights_mark(read) == weights_mark(own)
    said = worlds.refusal(evaluate_policy, data, Walk(1.0), quantizer=3)
    assert said == "quantizer is int; a quantizer, a VOC or the folder of one is needed."
    said = worlds.refusal(evaluate_policy, "pend", Walk(1.0))
    assert said.startswith("The dataset is str; Episodes are needed: voc_rl.Episodes.open(path), or")
    meta = torch.device("meta")
    moved = PolicyEvaluator(data, policies, GAMMA, quantizer=own, tokens=evaluator.tokens, device=meta)
    assert (device_of(moved.quantizer), moved.device) == (meta, meta)
    assert device_of(own).type == "cpu"
    there = PolicyEvaluator(data, policies, GAMMA, quantizer=moved.quantizer, tokens=evaluator.tokens)
    assert there.quantizer is moved.quantizer
    assert there.device == meta
