"""The planner against exact answers, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from actions import FEW, framed, quantizer, small_voc
from worlds import refusal

from voc_rl.agents import planner as planner_module
from voc_rl.agents.action_values import ActionValues
from voc_rl.agents.offline import OfflineAgent
from voc_rl.agents.planner import PlannerConfig, VOCPlanner
from voc_rl.errors import VOCError
from voc_rl.precision import autocast

GAMMA, STATES = 0.9, 3


def step_law(state: int, action: np.ndarray) -> np.ndarray:
    """P(next | state, action) (..., 3): the better, the nearer the action is to the state's own best one."""
    best = np.array([-0.4, 0.1, 0.5])[state]
    up = np.exp(-4 * (action - best) ** 2)
    stay = (1 - up) / 2
    return np.stack([stay, stay, up], -1)


def exact_q() -> tuple[np.ndarray, np.ndarray]:
    """Actions on a grid, and Q (3, G) if the uniform policy acts after them: V = (I - gamma P)^-1 P r."""
    grid, reward = np.linspace(-1, 1, 401), np.array([0.0, 0.3, 1.0])
    law = np.stack([step_law(s, grid) for s in range(STATES)])
    mean = law.mean(1)
    value = np.linalg.solve(np.eye(STATES) - GAMMA * mean, mean @ reward)
    return grid, law @ (reward + GAMMA * value)


def test_planner_picks_the_action_of_one_step_policy_improvement():
    grid, q = exact_q()
    prior = OfflineAgent((9, 24, 24), 1, FEW, quantizer())
    with torch.no_grad():  # uniform enough: mean 0, spread near its largest
        prior.actor.body[-1].weight.zero_()
        prior.actor.body[-1].bias.copy_(torch.tensor([0.0, 2.0]))

    def score(codes, features, actions):
        found = [np.interp(a[:, 0].numpy(), grid, q[int(s)]) for s, a in zip(codes[:, 0], actions, strict=True)]
        return torch.from_numpy(np.stack(found))

    planner = VOCPlanner(prior, score, PlannerConfig(candidates=128, rounds=4, temperature=0.1, support=0.1))
    codes = torch.arange(STATES)[:, None].expand(-1, 2)
    features = torch.zeros(STATES, prior.encoder.quantizer.feature_dim)
    action, _ = planner.plan(codes, features, prior.encoder.inputs(codes, features))
    np.testing.assert_allclose(action[:, 0], grid[q.argmax(1)], atol=0.03)


def test_planner_stays_on_the_support_of_the_prior():
    prior = OfflineAgent((9, 24, 24), 2, FEW, quantizer())

    def far(codes, features, actions):
        return actions.sum(-1)

    obs = np.zeros((4, 9, 24, 24), np.uint8)
    mean, std = (part.numpy() for part in prior.distribution(obs))
    bound = VOCPlanner(prior, far, PlannerConfig(support=100.0, floor=0.5))
    free = VOCPlanner(prior, far, PlannerConfig(support=0.0, floor=0.5))
    near, _ = bound.predict(obs, deterministic=True)
    beyond, _ = free.predict(obs, deterministic=True)
    assert np.sqrt(np.square((near - mean) / std).mean()) <= 0.5 + 1e-3
    assert np.sqrt(np.square((beyond - mean) / std).mean()) > 0.5
    assert bound.below_floor == 0.0
    assert free.below_floor > 0.5
    assert free.predict(obs[0])[0].shape == (2,)
    rng = np.random.default_rng(0)
    standard = (prior.draws(obs, 1000, rng) - mean) / std
    assert standard.shape == (1000, 4, 2)
    np.testing.assert_allclose(standard.mean(0), 0, atol=0.13)  # four standard errors
    np.testing.assert_allclose(standard.std(0), 1, atol=0.1)
    assert prior.draws(obs[0], 3, rng).shape == (3, 2)


@pytest.mark.parametrize("alike", [0.0, 0.3, -100.0])
def test_where_all_actions_score_alike_the_prior_decides(alike):
    """Whatever the score is: its rounding must not swallow the penalty."""
    prior = OfflineAgent((9, 24, 24), 2, FEW, quantizer())
    planner = VOCPlanner(prior, lambda codes, features, a: torch.full(a.shape[:2], alike), PlannerConfig(floor=0.0))
    obs = np.zeros((4, 9, 24, 24), np.uint8)
    mean, std = (part.numpy() for part in prior.distribution(obs))
    planned, _ = planner.predict(obs, deterministic=True)
    assert np.sqrt(np.square((planned - mean) / std).mean()) < 0.05


def test_the_planner_draws_unless_it_is_told_not_to(monkeypatch):
    monkeypatch.setattr("voc_rl.precision.has_bfloat16", lambda: False)  # whose products depend on the batch
    prior = OfflineAgent((9, 24, 24), 2, FEW, quantizer())

    def score(codes, features, actions):
        return -(actions - features[:, None, :2].float().tanh()).square().sum(-1)

    obs = np.random.default_rng(0).integers(256, size=(4, 9, 24, 24), dtype=np.uint8)
    planner = VOCPlanner(prior, score, seed=5)
    mean = planner.predict(obs, deterministic=True)[0]
    drawn = planner.predict(obs)[0]
    assert np.abs(drawn - mean).min() > 0
    assert np.abs(planner.predict(obs)[0] - drawn).min() > 0
    np.testing.assert_array_equal(planner.predict(obs, deterministic=True)[0], mean)
    single = [planner.predict(one, deterministic=True)[0] for one in obs[::-1]]
    np.testing.assert_allclose(single, mean[::-1], atol=1e-5)
    np.testing.assert_allclose(planner.predict(obs[::-1], deterministic=True)[0], mean[::-1], atol=1e-5)
    other = VOCPlanner(prior, score, seed=6).predict(obs, deterministic=True)[0]
    assert np.abs(other - mean).max() > 1e-3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"candidates": 1}, "candidates is 1; at least 2"),
        ({"elites": 1.5}, "elites is 1.5; a share of the candidates"),
        ({"elites": 0.0}, "elites is 0.0; a share of the candidates"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"candidates": 64.5}, "candidates is 64.5; a whole number above zero is needed"),
        ({"rounds": 1.5}, "rounds is 1.5; a whole number above zero is needed"),
        ({"support": -1}, "support is -1; at least 0 is needed"),
        ({"floor": -1}, "floor is -1; at least 0 is needed"),
    ],
)
def test_searches_that_cannot_choose_are_refused(wrong, said):
    assert said in refusal(PlannerConfig, **wrong)


def test_all_candidates_may_be_elites():
    prior = OfflineAgent((9, 24, 24), 2, FEW, quantizer())
    planner = VOCPlanner(prior, lambda codes, features, actions: actions.sum(-1), PlannerConfig(2, elites=1.0))
    assert np.isfinite(planner.predict(np.zeros((3, 9, 24, 24), np.uint8))[0]).all()


def test_a_prior_of_frames_proposes_and_the_scores_read_the_quantizer():
    prior = OfflineAgent((9, 24, 24), 2, replace(FEW, inputs="frames"))
    asked, own = [], quantizer()

    def score(codes, features, actions):
        asked.append((codes, features, actions))
        return torch.zeros(actions.shape[:2])

    obs = np.random.default_rng(0).integers(256, size=(3, 9, 24, 24), dtype=np.uint8)
    VOCPlanner(prior, score, PlannerConfig(candidates=400, rounds=1), quantizer=own).predict(obs, deterministic=True)
    ((codes, features, actions),) = asked
    with autocast(own):  # as frames are tokenized
        expected_codes, expected = own.codes_and_features(torch.from_numpy(obs))
    assert torch.equal(codes, expected_codes)
    torch.testing.assert_close(features, expected.half())
    mean, std = prior.distribution(obs)
    noise = (actions - mean[:, None]) / std[:, None]
    inside = ((mean.abs() + 3 * std) < 1)[:, None].expand_as(noise)  # where no action was cut
    assert inside.any()
    assert noise[inside].mean().abs() < 0.2
    with pytest.raises(VOCError, match="This prior sees frames; give the planner the quantizer of its scores"):
        VOCPlanner(prior, score)


def test_frames_go_where_each_network_is(monkeypatch):
    prior = OfflineAgent((9, 24, 24), 2, replace(FEW, inputs="frames"))
    elsewhere, read = quantizer().to("meta"), []

    def seen(asked, frames):
        read.append((asked, frames.device.type))
        return torch.zeros(len(frames), 2, dtype=torch.int64), torch.zeros(len(frames), asked.feature_dim)

    monkeypatch.setattr(planner_module, "seen_as_stored", seen)
    planner = VOCPlanner(prior, lambda codes, features, actions: actions.sum(-1), quantizer=elsewhere)
    assert planner.predict(np.zeros((3, 9, 24, 24), np.uint8))[0].shape == (3, 2)
    assert read == [(elsewhere, "meta")]


def test_codes_are_those_of_the_voc_that_is_asked(tmp_path):
    """A clone that sees through another quantizer proposes; the VOC reads codes of its own."""
    dataset = framed(tmp_path)
    voc, other = small_voc(dataset, 0.5), quantizer(dataset.observation_shape)
    obs = dataset.observations(np.arange(6))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    asked = []
    score = ActionValues(voc)
    prior = OfflineAgent(dataset.observation_shape, 2, FEW, other)
    planner = VOCPlanner(prior, score, PlannerConfig(candidates=8, rounds=1))
    planner.score = lambda codes, features, actions: asked.append((codes, features)) or score(codes, features, actions)
    planner.predict(obs, deterministic=True)
    codes, features = voc.context(obs)
    assert torch.equal(asked[0][0], codes)
    torch.testing.assert_close(asked[0][1], features)
    assert not torch.equal(codes, other.encode(torch.from_numpy(obs)))
    own = OfflineAgent(dataset.observation_shape, 2, FEW, voc.quantizer)
    assert VOCPlanner(own, score).quantizer is own.encoder.quantizer  # frames are read once
    with pytest.raises(VOCError, match="another than that of the scores' VOC"):
        VOCPlanner(own, score, quantizer=other)
