"""Starting from a trained network: the same answers at first, better ones after a few steps, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from chains import total_variation
from decisions import LAST, UNIFORM, A, S, chains_of, decisions, logged
from occupancy_table import all_logits
from torch import Tensor
from worlds import refusal

from voc_rl.loop import LoopConfig
from voc_rl.occupancy import (
    Condition,
    OccupancyConfig,
    OccupancyTraining,
    OccupancyTransformer,
    PolicyTraining,
    start_from,
    train_occupancy,
    train_policies,
)

TOKENS, FEATURES, ACTIONS, POLICIES, GAMMA = 3, 4, 2, 3, 0.9
PLAIN = OccupancyConfig(7, TOKENS, FEATURES, n_layer=2, n_head=2, width=16)
WHOLE = replace(PLAIN, action_dim=ACTIONS, policies=POLICIES, null_context=True)


def network(config: OccupancyConfig, seed: int) -> OccupancyTransformer:
    """Weights large enough for contexts to matter."""
    torch.manual_seed(seed)
    model = OccupancyTransformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def logits(model: OccupancyTransformer, condition: Condition) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(7, (6, TOKENS), generator=generator)
    futures = torch.randint(7, (6, 2, TOKENS), generator=generator)
    prefix = model.prefix(codes, torch.randn(6, FEATURES, generator=generator), condition=condition)
    return all_logits(model, prefix, futures)


def asked(policy: int) -> Condition:
    actions = torch.randn(6, ACTIONS, generator=torch.Generator().manual_seed(1))
    return Condition(action=actions, shown=torch.arange(6) % 2 == 0, policy=torch.full((6,), policy))


def test_every_policy_and_action_has_the_answers_of_the_network_that_was_started_from() -> None:
    trained = network(PLAIN, 1)
    expected = logits(trained, Condition())
    torch.manual_seed(2)
    model = OccupancyTransformer(WHOLE)
    assert (logits(model, asked(0)) - expected).abs().max() > 0.1
    start_from(model, trained)
    for policy in range(POLICIES):
        assert torch.equal(logits(model, asked(policy)), expected)
    logits(model, asked(1)).square().sum().backward()
    assert model.policies.weight.grad is not None
    assert (model.policies.weight.grad.abs().amax(1) > 0).tolist() == [False, True, False]
    assert model.actions[-1].weight.grad.abs().max() > 0  # it can learn what actions do


def test_inputs_that_both_have_are_taken_over() -> None:
    trained = network(WHOLE, 1)
    model = network(WHOLE, 2)
    start_from(model, trained)
    for policy in range(POLICIES):
        assert torch.equal(logits(model, asked(policy)), logits(trained, asked(policy)))
    assert not torch.equal(logits(model, asked(0)), logits(model, asked(1)))


def test_data_of_another_spread_do_not_change_what_was_started_from() -> None:
    trained, model = network(PLAIN, 1), network(PLAIN, 2)
    process = decisions()
    dataset, states = logged(process, 50)
    codes, features = torch.from_numpy(states)[:, None].expand(-1, TOKENS) % 7, torch.randn(len(states), FEATURES)
    trained.fit_features(features)
    start_from(model, trained)
    training = OccupancyTraining(gamma=GAMMA, feature_dropout=0.0, loop=LoopConfig(steps=1, learning_rate=1e-12))
    for own, kept in ((model, True), (network(PLAIN, 2), False)):
        found, _ = train_occupancy(own, None, dataset, codes, 5 + 3 * features, training)
        assert torch.equal(found.feature_mean, trained.feature_mean) == kept


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        (PLAIN, replace(PLAIN, width=8), "width 16 cannot start from one with width 8"),
        (
            PLAIN,
            replace(PLAIN, codebook_size=9, n_layer=1),
            "with codebook_size 7, n_layer 2 cannot start from one with codebook_size 9, n_layer 1; train",
        ),
        (PLAIN, replace(PLAIN, n_head=4), "n_head 2 cannot"),
        (replace(PLAIN, gammas=(0.5, 0.9)), PLAIN, "gammas (0.5, 0.9) cannot start from one with gammas None"),
        (PLAIN, WHOLE, "action_dim 0, policies 0, null_context False cannot"),
        (WHOLE, replace(PLAIN, policies=2), "policies 3 cannot start from one with policies 2"),
    ],
)
def test_other_sizes_are_refused(own: OccupancyConfig, other: OccupancyConfig, message: str) -> None:
    model = network(own, 0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert message in refusal(start_from, model, network(other, 1))
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_few_steps_go_further_from_the_behaviour_than_from_nothing() -> None:
    """Total variation from the exact futures of three policies half way to the behaviour: 20 steps after its model, and
    20 steps alone."""
    process = decisions()
    process = replace(process, policies=(process.policies + UNIFORM) / 2)
    dataset, states = logged(process, 20_000)
    codes, chains = torch.from_numpy(states)[:, None], chains_of(process, dataset, states, 4)
    plain = OccupancyConfig(S, 1, n_layer=2, n_head=2, width=32)

    def fresh(config: OccupancyConfig) -> OccupancyTransformer:
        torch.manual_seed(0)
        return OccupancyTransformer(config)

    def training(steps: int, rate: float) -> OccupancyTraining:
        loop = LoopConfig(steps=steps, batch_size=256, learning_rate=rate)
        return OccupancyTraining(gamma=GAMMA, futures=4, loop=loop)

    behaviour, _ = train_occupancy(fresh(plain), None, dataset, codes, None, training(200, 1e-2))

    def distance(steps: int, rate: float = 5e-3, warm: bool = True) -> float:
        """The largest over states, mean over policies."""
        model = fresh(replace(plain, action_dim=A, policies=3))
        if warm:
            start_from(model, behaviour)
        settings = PolicyTraining(training(steps, rate), action_share=0.2, start_share=0.0)
        model, _ = train_policies(model, None, dataset, codes, None, chains, settings)
        return far(model)

    @torch.no_grad()
    def far(model: OccupancyTransformer) -> float:
        found = []
        for i, policy in enumerate(process.policies):
            asked = Condition(policy=torch.full((LAST,), i)) if model.config.policies else None
            law = model.logits(model.prefix(torch.arange(LAST)[:, None], condition=asked).last).softmax(-1)
            found.append(total_variation(law.double().numpy(), process.state_occupancy(policy, GAMMA)[:LAST]).max())
        return float(np.mean(found))

    own, nothing, warm, scratch = far(behaviour), distance(1, 1e-9), distance(20), distance(20, warm=False)
    print(f"behaviour {own:.3f}, no step {nothing:.3f}, 20 steps {warm:.3f}, from scratch {scratch:.3f}")
    assert nothing == pytest.approx(own, abs=1e-4)  # the slow average starts there too
    assert warm < 0.9 * own
    assert warm < 0.7 * scratch
