"""The planner and offline agents against exact answers, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from small import SPEC, numbered_frames, toy_dataset, toy_episode
from worlds import refusal

from voc_rl.agents.action_values import ActionValues, RollOutScores, logged_chain, train_action_voc
from voc_rl.agents.improvement import ImprovementConfig, policy_voc, weighted_clone
from voc_rl.agents.objectives import TD3BC, Cloning, advantage_weights, top_episodes
from voc_rl.agents.offline import AgentConfig, OfflineAgent
from voc_rl.agents.planner import PlannerConfig, VOCPlanner
from voc_rl.data import Episodes, write_episode
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import OccupancyTraining, PolicyTraining
from voc_rl.precision import autocast
from voc_rl.quantizers import build_quantizer
from voc_rl.training import NetworkSize, VOCConfig
from voc_rl.values import RewardConfig

GAMMA, STATES = 0.9, 3
FEW = AgentConfig(width=16, loop=LoopConfig(steps=3, batch_size=8, learning_rate=1e-3))


def quantizer(shape=(9, 24, 24)):
    found = build_quantizer("vqvae", shape, {"n_tokens": 2, "components": 4, "hidden": 16, "conv_width": 4})
    return found.eval()


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


def test_the_planner_draws_unless_it_is_told_not_to():
    prior = OfflineAgent((9, 24, 24), 2, FEW, quantizer())

    def flat(codes, features, actions):
        return torch.zeros(actions.shape[:2])

    obs, planners = np.zeros((4, 9, 24, 24), np.uint8), [VOCPlanner(prior, flat, seed=5) for _ in range(3)]
    mean, again = (planner.predict(obs, deterministic=True)[0] for planner in planners[:2])
    np.testing.assert_array_equal(mean, again)
    assert np.abs(planners[2].predict(obs)[0] - mean).min() > 0  # the same search, then a draw around its mean


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"candidates": 1}, "candidates is 1; at least 2"),
        ({"elites": 1.5}, "elites is 1.5; a share of the candidates"),
        ({"elites": 0.0}, "elites is 0.0; a share of the candidates"),
        ({"temperature": 0.0}, "temperature is 0.0"),
    ],
)
def test_searches_that_cannot_choose_are_refused(wrong, said):
    assert said in refusal(PlannerConfig, **wrong)


def test_all_candidates_may_be_elites():
    prior = OfflineAgent((9, 24, 24), 2, FEW, quantizer())
    planner = VOCPlanner(prior, lambda codes, features, actions: actions.sum(-1), PlannerConfig(2, elites=1.0))
    assert np.isfinite(planner.predict(np.zeros((3, 9, 24, 24), np.uint8))[0]).all()


def test_td3_bc_leaves_its_spread_the_least_and_its_mean_as_without(tmp_path, monkeypatch):
    dataset, agents = _frames(tmp_path), []
    for _ in range(2):
        agent = OfflineAgent(dataset.observation_shape, 2, FEW, quantizer(dataset.observation_shape), seed=2)
        agents.append(agent.learn(dataset, partial(TD3BC, n=2)))
        monkeypatch.setattr("voc_rl.agents.networks.Actor.least_spread", lambda actor: None)
    (mean, spread), (same, untrained) = (agent.distribution(dataset.observations(np.arange(11))) for agent in agents)
    assert torch.equal(mean, same)
    np.testing.assert_allclose(spread, 0.05, rtol=1e-3)
    assert untrained.min() > 0.1  # what would be drawn from otherwise


def test_a_prior_of_frames_proposes_and_the_scores_read_the_quantizer():
    prior = OfflineAgent((9, 24, 24), 2, replace(FEW, inputs="frames"))
    asked, own = [], quantizer()

    def score(codes, features, actions):
        asked.append((codes, features, actions))
        return torch.zeros(actions.shape[:2])

    obs = np.random.default_rng(0).integers(256, size=(3, 9, 24, 24), dtype=np.uint8)
    VOCPlanner(prior, score, PlannerConfig(candidates=400, rounds=1), quantizer=own).predict(obs, deterministic=True)
    ((codes, features, actions),) = asked
    with autocast(torch.device("cpu")):  # as frames are tokenized
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


def test_weights_pick_the_best_episodes_and_grow_with_the_advantage(tmp_path):
    dataset = toy_dataset(tmp_path, (5, 6, 4))
    assert set(dataset.episode[top_episodes(dataset, 0.34) > 0]) == {2}
    advantages = np.array([-1.0, 0.0, 1.0, 99.0])
    weights = advantage_weights(advantages, np.arange(3), 1.0)
    assert weights[:3] == pytest.approx(np.exp(np.array([-1, 0, 1]) / np.sqrt(2 / 3)))
    assert weights[3] == 20.0


def test_chain_of_the_behaviour_is_the_data_and_goes_on_behind_a_time_limit(tmp_path):
    dataset = toy_dataset(tmp_path, (4, 5), terminated=(1,))
    features = torch.arange(9.0)[:, None]
    chain = logged_chain(dataset, features)
    going = np.flatnonzero(dataset.steps_left > 0)
    assert chain.arrival[going, 0].tolist() == (going + 1).tolist()
    # the last row of episode 0 (feature 3) is nearest to row 2 or row 4; the first of them is taken
    assert chain.arrival[3, 0] in (3, 5)
    expected = dataset.reward[6] + 0.5 * (dataset.reward[7] + 0.5 * dataset.reward[8])
    assert chain.values(dataset.reward, 0.5)[5] == pytest.approx(expected)


@pytest.mark.parametrize("objective", [Cloning, partial(TD3BC, n=2)])
@pytest.mark.parametrize("inputs", ["tokens", "frames"])
def test_saved_agents_act_as_before(tmp_path, objective, inputs):
    dataset = _frames(tmp_path)
    config = AgentConfig(inputs=inputs, width=16, loop=FEW.loop, shift=1)
    agent = OfflineAgent(dataset.observation_shape, 2, config, quantizer(dataset.observation_shape))
    agent.learn(dataset, objective).save(tmp_path / "agent")
    again = OfflineAgent.load(tmp_path / "agent")
    obs = dataset.observations(np.arange(4))
    np.testing.assert_array_equal(agent.predict(obs, deterministic=True)[0], again.predict(obs, deterministic=True)[0])


def _frames(tmp_path):
    for i, rows in enumerate((5, 6)):
        write_episode(tmp_path / f"e{i}.hdf5", toy_episode(i, rows, frames=numbered_frames(40 * i, rows, 24, 24)), SPEC)
    return Episodes.open(tmp_path)


def _small_voc(dataset, gamma, members=2):
    config = VOCConfig(
        network=NetworkSize(n_layer=1, n_head=2, width=16, head_hidden=8, head_members=members),
        reward=RewardConfig(hidden=8, bins=5, loop=LoopConfig(steps=3, batch_size=8)),
    )
    training = PolicyTraining(
        occupancy=OccupancyTraining(gamma=gamma, loop=LoopConfig(steps=4, batch_size=8)), start_share=0.0
    )
    return train_action_voc(dataset, training, config, quantizer=quantizer(dataset.observation_shape))


def test_a_voc_with_actions_scores_them_and_bad_input_is_refused_in_a_sentence(tmp_path):
    dataset = _frames(tmp_path)
    voc, model = _small_voc(dataset, 0.5), _small_voc(dataset, 0.0)
    codes, features = voc.context(dataset.observations(np.arange(3)))
    actions = torch.zeros(3, 4, 2)
    for score in (ActionValues(voc), ActionValues(voc, "sample", 4), RollOutScores(model, 0.5, 3)):
        found = score(codes, features, actions)
        assert found.shape == (3, 4)
        # equal actions and common random numbers: equal scores
        np.testing.assert_allclose(found, found[:, :1].expand(-1, 4), atol=1e-2)
    with pytest.raises(VOCError, match="Actions have size 3, but this VOC reads actions of size 2"):
        ActionValues(voc)(codes, features, torch.zeros(3, 4, 3))
    with pytest.raises(VOCError, match="gamma 0, the next observation"):
        RollOutScores(voc, 0.5)
    with pytest.raises(VOCError, match="data's actions have size 2; the agent's have 3"):
        OfflineAgent(dataset.observation_shape, 3, FEW, voc.quantizer).learn(dataset, Cloning)
    with pytest.raises(VOCError, match=r"have shape \(11, 1\); one per row, \(11,\)"):
        voc.fit_reward(dataset, lambda d: d.reward[:, None], tokens=(codes, features))
    with pytest.raises(VOCError, match="Rewards hold NaN or infinity"):  # at a first row, where no reward arrives, too
        voc.fit_reward(dataset, lambda d: np.where(d.step_type == 0, np.nan, d.reward), tokens=(codes, features))
    tall = voc.fit_reward(dataset, lambda episodes: np.full(len(episodes), 3.0))
    with pytest.raises(VOCError, match="has no value head; use estimator='sample'"):
        ActionValues(tall)
    np.testing.assert_allclose(ActionValues(tall, "sample", 4)(codes, features, actions), 3.0, atol=1e-2)
    with pytest.raises(VOCError, match="not indices of discrete ones"):
        dataset.action[3] = 4.0
        OfflineAgent(dataset.observation_shape, 2, FEW, voc.quantizer).learn(dataset, Cloning)
    voc.occupancy.config.__dict__["action_dim"] = 0
    with pytest.raises(VOCError, match="reads no actions"):
        weighted_clone(voc, dataset, (codes, features), ImprovementConfig(trace=None))


def test_a_head_of_actions_has_a_spread(tmp_path):
    dataset = _frames(tmp_path)
    voc = _small_voc(dataset, 0.5, members=0)
    assert voc.value_head.members == 2
    obs = dataset.observations(np.arange(3))
    assert np.isfinite(voc.value(obs, estimator="head").stderr).all()
    assert ActionValues(voc, caution=1.0)(*voc.context(obs), torch.zeros(3, 4, 2)).isfinite().all()


def test_a_policys_voc_is_of_its_seed(tmp_path, monkeypatch):
    dataset, asked = _frames(tmp_path), []
    voc = _small_voc(dataset, 0.5)
    agent = OfflineAgent(dataset.observation_shape, 2, FEW, voc.quantizer)

    def train(dataset, training, config, chain, **rest):
        asked.append((config.seed, chain.arrival))

    monkeypatch.setattr("voc_rl.agents.improvement.train_action_voc", train)
    tokens = voc.context(dataset.observations(np.arange(11)))
    for seed in (3, 4):
        policy_voc(agent, dataset, tokens, voc, ImprovementConfig(voc=VOCConfig(seed=7)), seed)
    assert [seed for seed, _ in asked] == [3, 4]
    assert (asked[0][1] != asked[1][1]).any()
