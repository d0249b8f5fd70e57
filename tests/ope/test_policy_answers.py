"""What is asked of an evaluator, and how it answers where it cannot: by a network that hardly learned."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from walks import GAMMA, Walk, walks

import voc_rl
from voc_rl.data import Episodes
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import OccupancyTraining, PolicyTraining
from voc_rl.ope import EvaluationConfig, PolicyEvaluator, StitchingConfig, evaluate_policy, state_features
from voc_rl.training import NetworkSize
from voc_rl.values import FQEConfig, RewardConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    return walks(tmp_path_factory.mktemp("walks"))


@pytest.fixture(scope="module")
def evaluator(data: Episodes) -> PolicyEvaluator:
    loop = LoopConfig(steps=20, batch_size=32)
    voc = voc_rl.VOCConfig(
        quantizer_config={"n_tokens": 2, "components": 8, "hidden": 64, "decoder_width": 8},
        quantizer_training=loop,
        network=NetworkSize(n_head=2, width=64, null_context=True, head_members=0),
        reward=RewardConfig(loop=loop),
    )
    training = PolicyTraining(occupancy=OccupancyTraining(loop=loop))
    config = EvaluationConfig(
        StitchingConfig(replicates=2), critic=FQEConfig(loop), training=training, voc=voc, density_rows=500
    )
    policies = {"right": Walk(1.0), "left": Walk(0.0), "either": Walk(0.7)}
    return PolicyEvaluator(data, policies, GAMMA, np.arange(0, len(data), 17), config)


def test_the_default_type_makes_no_difference(evaluator: PolicyEvaluator, data: Episodes) -> None:
    """Of critic, networks and head, made anew under either."""
    voc = replace(evaluator.config.voc, network=NetworkSize(null_context=True))
    loop = LoopConfig(steps=4, batch_size=16)
    training = PolicyTraining(occupancy=OccupancyTraining(loop=loop))
    config = replace(evaluator.config, critic=FQEConfig(loop), voc=voc, training=training, samples=4)
    known: dict[str, Any] = {"quantizer": evaluator.quantizer, "tokens": evaluator.tokens}

    def found() -> list[float]:
        own = PolicyEvaluator(data, {"right": Walk(1.0)}, GAMMA, np.arange(0, len(data), 101), config, **known)
        asked: tuple[Any, ...] = ("stitch", "corrected", "head", "sample", "mve", "density")
        return [own.estimate("right", estimator).value for estimator in asked]

    expected = found()
    torch.set_default_dtype(torch.float64)
    try:
        assert found() == expected
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_tokens_without_finite_features_are_refused(evaluator: PolicyEvaluator, data: Episodes) -> None:
    codes, features = evaluator.tokens
    for wrong in (None, torch.full_like(features, torch.nan)):
        said = worlds.refusal(
            PolicyEvaluator, data, {"right": Walk(1.0)}, quantizer=evaluator.quantizer, tokens=(codes, wrong)
        )
        assert said == "Tokens lack features, or these hold NaN or infinity; tokenise this dataset for finite ones."


def test_features_and_tokens_of_any_kind_are_read_and_checked_at_once(
    evaluator: PolicyEvaluator, data: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays, and tensors with gradients, as of a network of the user's own; ``corrected`` reads them twice."""
    known: dict[str, Any] = {"config": evaluator.config, "quantizer": evaluator.quantizer}
    codes, features = evaluator.tokens
    learned = features.float().requires_grad_()
    asked: list[dict[str, Any]] = [
        *({"tokens": own} for own in (evaluator.tokens, (codes.numpy(), features.numpy()), (codes, learned))),
        *({"features": own} for own in (features, features.numpy(), learned, features.double().numpy()[::-1][::-1])),
    ]
    values = [evaluate_policy(data, Walk(1.0), GAMMA, "corrected", **known, **own).value for own in asked]
    assert values == [values[0]] * len(asked)
    monkeypatch.setattr(PolicyEvaluator, "estimate", lambda *_, **__: pytest.fail("something is computed"))
    for wrong, said in (
        ({"features": features[:5]}, f"Features of shape (5, {features.shape[1]}) do not fit {len(data)} rows"),
        ({"features": features * np.nan}, "Features hold NaN or infinity"),
        ({"features": "state"}, "Features are str; a tensor or an array is needed."),
        ({"tokens": codes}, "tokens is Tensor; a pair is needed, as of tokenize(quantizer, dataset)."),
        ({"tokens": (codes.tolist(), features)}, "Codes are list; a tensor or an array is needed."),
        ({"tokens": (codes[:, :1], features)}, "2 tokens per row are needed"),
    ):
        assert said in worlds.refusal(evaluate_policy, data, Walk(1.0), GAMMA, **known, **wrong)


def test_one_policy_alone_needs_no_quantizer_beside_features(data: Episodes) -> None:
    config = EvaluationConfig(voc=voc_rl.VOCConfig(network=NetworkSize(head_members=0)))
    own = PolicyEvaluator(data, {"right": Walk(1.0)}, GAMMA, config=config, features=state_features(data))
    own.alone("right")
    assert not {"quantizer", "tokens"} & vars(own).keys()


def test_density_gives_no_number_where_few_rows_count(evaluator: PolicyEvaluator) -> None:
    few = replace(evaluator.config, density_rows=40)
    poor = PolicyEvaluator(
        evaluator.dataset, evaluator.policies, GAMMA, evaluator.starts, few, quantizer=evaluator.quantizer,
        tokens=evaluator.tokens,
    )  # fmt: skip
    poor.model = evaluator.model
    found = poor.estimate("right", "density")
    assert np.isnan([found.value, found.stderr, found.low, found.high, *found.start_values]).all()
    assert "no density estimate of right: fewer than 50 rows count (the effective sample size)" in found.warning
    assert evaluator.estimate("right", "density").diagnostics["effective_rows"] > 50


def test_one_policy_without_a_density_leaves_the_others_theirs(
    evaluator: PolicyEvaluator, data: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = evaluator.model
    monkeypatch.setattr(PolicyEvaluator, "model", model)
    whole = {name: evaluator.estimate(name, "density") for name in ("right", "either")}
    keys = {name: (name, evaluator.config.density_rows, GAMMA) for name in evaluator.policies}
    some, weights = model._weights[keys["right"]]
    thin = np.zeros_like(weights)
    thin[:, :40] = 1 / 40
    monkeypatch.setitem(model._weights, keys["left"], (some, thin))
    monkeypatch.setitem(model._weights, keys["right"], (some, np.concatenate([thin[:1], weights[1:]])))
    asked: dict[str, Any] = {
        "starts": evaluator.starts, "config": evaluator.config, "quantizer": evaluator.quantizer,
        "tokens": evaluator.tokens,
    }  # fmt: skip
    with pytest.warns(UserWarning, match="no density estimate of left"):
        found = evaluate_policy(data, evaluator.policies, GAMMA, "density", **asked)
    assert found[2].policy == "left"
    assert np.isnan(found[2].value)
    assert found[0].value > found[1].value
    by_name = {estimate.policy: estimate for estimate in found}
    assert by_name["either"].value == whole["either"].value
    # of a start alone fewer rows count than of the mean of all
    right = by_name["right"].start_values
    assert np.flatnonzero(np.isnan(right)).tolist() == [0]
    np.testing.assert_allclose(right[1:], whole["right"].start_values[1:])
    json.dumps([estimate.as_dict() for estimate in found], allow_nan=False)
    assert by_name["right"].as_dict()["start_values"][0] is None
    for key in keys.values():
        monkeypatch.setitem(model._weights, key, (some, thin))
    said = worlds.refusal(evaluate_policy, data, evaluator.policies, GAMMA, "density", **asked)
    assert "no density estimate of right, left, either: fewer than 50 rows" in said


def test_what_an_estimator_cannot_answer_is_refused_before_anything_is_trained(
    evaluator: PolicyEvaluator, data: Episodes
) -> None:
    bare = replace(evaluator.config, voc=replace(evaluator.config.voc, network=NetworkSize()))
    fresh, able = (PolicyEvaluator(data, {"right": Walk(1.0)}, GAMMA, config=c) for c in (bare, evaluator.config))
    assert "needs a network with null_context" in worlds.refusal(fresh.estimate, "right", "density")
    for estimator, gamma, said in (
        ("sample", 0.5, "and larger ones, not for 0.5; estimator='stitch' does"),
        ("mve", 0.5, "and larger ones, not for 0.5; estimator='stitch' does"),
        ("density", 0.97, "only, not for 0.97; estimator='stitch' does"),
        ("mve", 0.99999, "hops on average, and some over 1000"),
        ("sample", 0.99999, "hops on average, and some over 1000"),
    ):
        assert said in worlds.refusal(able.estimate, "right", estimator, gamma=gamma)
    for one in (fresh, able):
        assert not {"quantizer", "tokens", "critic", "model"} & vars(one).keys()


def test_names_are_text(evaluator: PolicyEvaluator, data: Episodes) -> None:
    known: dict[str, Any] = {"config": evaluator.config, "quantizer": evaluator.quantizer, "tokens": evaluator.tokens}
    right, left = Walk(1.0), Walk(0.0)
    several, same = (
        evaluate_policy(data, {a: right, b: left}, GAMMA, **known) for a, b in ((20000, 60000), ("20000", "60000"))
    )
    assert [(e.policy, e.value) for e in several] == [(e.policy, e.value) for e in same]
    assert {e.policy for e in several} == {"20000", "60000"}
    numbered = PolicyEvaluator(data, {1: right, 2: left}, GAMMA, **known)  # type: ignore[dict-item]
    assert numbered.estimate(1).value == numbered.alone(1).estimate("1").value  # type: ignore[arg-type]
    right.name = 7  # type: ignore[attr-defined]
    assert evaluate_policy(data, right, GAMMA, **known).policy == "7"
    said = worlds.refusal(PolicyEvaluator, data, {1: right, "1": left}, GAMMA, **known)
    assert "[1, '1'] have the same names as text" in said


def test_answers_to_different_questions_are_not_compared(evaluator: PolicyEvaluator, data: Episodes) -> None:
    left, reward = evaluator.estimate("left"), data.reward + 1.0
    given: dict[str, Any] = {"starts": evaluator.starts, "config": evaluator.config}
    alike = PolicyEvaluator(
        data, evaluator.policies, GAMMA, quantizer=evaluator.quantizer, tokens=evaluator.tokens, **given
    )
    for other in (
        evaluator.estimate("right", "corrected"), evaluator.estimate("right", gamma=0.9),
        evaluator.estimate("right", reward=reward), alike.estimate("right"),
    ):  # fmt: skip
        assert "The values of left and right answer different questions" in worlds.refusal(left.difference, other)
    same = evaluator.estimate("right", reward=data.reward.astype(np.float64), level=0.5)
    assert left.difference(same).value == left.value - same.value
