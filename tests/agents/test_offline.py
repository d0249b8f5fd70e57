"""Offline agents: what they learn from, what they keep, and what they refuse."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from actions import FEW, framed, quantizer
from small import toy_dataset

from voc_rl.agents.improvement import ImprovementConfig
from voc_rl.agents.objectives import TD3BC, Cloning, advantage_weights, top_episodes
from voc_rl.agents.offline import AgentConfig, OfflineAgent
from voc_rl.errors import VOCError


def test_td3_bc_leaves_its_spread_the_least_and_its_mean_as_without(tmp_path, monkeypatch):
    dataset, agents = framed(tmp_path), []
    for _ in range(2):
        agent = OfflineAgent(dataset.observation_shape, 2, FEW, quantizer(dataset.observation_shape), seed=2)
        agents.append(agent.learn(dataset, partial(TD3BC, n=2)))
        monkeypatch.setattr("voc_rl.agents.networks.Actor.least_spread", lambda actor: None)
    (mean, spread), (same, untrained) = (agent.distribution(dataset.observations(np.arange(11))) for agent in agents)
    assert torch.equal(mean, same)
    np.testing.assert_allclose(spread, 0.05, rtol=1e-3)
    assert untrained.min() > 0.1  # what would be drawn from otherwise


def test_weights_pick_the_best_episodes_and_grow_with_the_advantage(tmp_path):
    dataset = toy_dataset(tmp_path, (5, 6, 4))
    assert set(dataset.episode[top_episodes(dataset, 0.34) > 0]) == {2}
    advantages = np.array([-1.0, 0.0, 1.0, 99.0])
    weights = advantage_weights(advantages, np.arange(3), 1.0)
    assert weights[:3] == pytest.approx(np.exp(np.array([-1, 0, 1]) / np.sqrt(2 / 3)))
    assert weights[3] == 20.0


def test_an_agent_that_learned_goes_on_with_the_scale_it_knows(tmp_path):
    dataset = framed(tmp_path)
    agent = OfflineAgent(dataset.observation_shape, 2, FEW, quantizer(dataset.observation_shape))
    agent.learn(dataset, Cloning)
    before = agent.encoder.mean.clone(), agent.encoder.std.clone()
    agent.learn(dataset.subset([1]), Cloning)
    assert torch.equal(agent.encoder.mean, before[0])
    assert torch.equal(agent.encoder.std, before[1])


@pytest.mark.parametrize(("objective", "said"), [
    (partial(TD3BC, n=0), "n is 0"), (partial(TD3BC, alpha=-1.0), "alpha is -1"),
    (partial(Cloning, weights=np.r_[-0.1, np.ones(10)]), "finite ones from 0 on"),
])  # fmt: skip
def test_objectives_that_make_no_sense_are_refused(tmp_path, objective, said):
    dataset = framed(tmp_path)
    agent = OfflineAgent(dataset.observation_shape, 2, FEW, quantizer(dataset.observation_shape))
    with pytest.raises(VOCError, match=said):
        agent.learn(dataset, objective)
    with pytest.raises(VOCError, match="temperature is -1"):
        ImprovementConfig(temperature=-1.0)


@pytest.mark.parametrize("objective", [Cloning, partial(TD3BC, n=2)])
@pytest.mark.parametrize("inputs", ["tokens", "frames"])
def test_saved_agents_act_as_before(tmp_path, objective, inputs):
    dataset = framed(tmp_path)
    config = AgentConfig(inputs=inputs, width=16, loop=FEW.loop, shift=1)
    agent = OfflineAgent(dataset.observation_shape, 2, config, quantizer(dataset.observation_shape))
    agent.learn(dataset, objective).save(tmp_path / "agent")
    again = OfflineAgent.load(tmp_path / "agent")
    obs = dataset.observations(np.arange(4))
    np.testing.assert_array_equal(agent.predict(obs, deterministic=True)[0], again.predict(obs, deterministic=True)[0])
