"""Offline agents: what they learn from, what they keep, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from actions import FEW, framed, quantizer, small_voc
from small import toy_dataset
from worlds import refusal

from voc_rl.agents.action_values import ActionValues
from voc_rl.agents.improvement import ImprovementConfig, weighted_clone
from voc_rl.agents.objectives import TD3BC, Cloning, advantage_weights, top_episodes
from voc_rl.agents.offline import AgentConfig, OfflineAgent
from voc_rl.errors import VOCError
from voc_rl.quantizers import save_quantizer, tokenize


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
    with pytest.raises(VOCError, match=r"draws is 4\.0; a whole number"):
        ImprovementConfig(draws=4.0)


def test_tokens_of_other_rows_are_refused(tmp_path):
    dataset = framed(tmp_path)
    part, own = dataset.subset([1]), quantizer(dataset.observation_shape)
    codes, features = tokenize(own, dataset)
    agent = OfflineAgent(dataset.observation_shape, 2, FEW, own)
    for data, tokens, said in (
        (part, (codes, features), "11 rows of codes do not fit 6 rows of data; tokenise this dataset"),
        (dataset, (codes[:6], features[:6]), "6 rows of codes do not fit 11 rows of data"),
        (dataset, (codes, features[:6]), "6 rows of features do not fit 11 rows of data"),
        (dataset, (features, codes), "Codes have dtype float16; whole numbers are needed"),
        (dataset, (codes, None), "Tokens lack features"),
        (dataset, (codes, features[:, 1:]), f"Features have shape (11, {features.shape[1] - 1})"),
    ):
        assert said in refusal(agent.learn, data, Cloning, tokens)


@pytest.mark.parametrize("inputs", ["features", "tokens"])
def test_arrays_are_tokens_too(tmp_path, inputs):
    dataset = framed(tmp_path)
    own = quantizer(dataset.observation_shape)
    codes, features = tokenize(own, dataset)
    arrays = (codes.numpy(), features.numpy() if inputs == "features" else None)  # code vectors need no features
    one, other = (
        OfflineAgent(dataset.observation_shape, 2, replace(FEW, inputs=inputs), own).learn(dataset, Cloning, tokens)
        for tokens in ((codes, features), arrays)
    )
    torch.testing.assert_close(other.networks.state_dict(), one.networks.state_dict(), rtol=0, atol=0)


def test_clones_of_one_hot_actions_are_refused(tmp_path):
    """No discrete environment would take what they answer; the Q of one-hot rows is as good as any."""
    dataset = framed(tmp_path)
    numbers = np.random.default_rng(0).integers(2, size=len(dataset))
    dataset.action[dataset.step_type > 0] = np.eye(2)[numbers[dataset.step_type > 0]]
    voc, said = (
        small_voc(dataset, 0.5),
        "one-hot rows of 2, discrete ones, which no continuous actor gives",
    )
    for objective in (Cloning, TD3BC):
        agent = OfflineAgent(dataset.observation_shape, 2, FEW, voc.quantizer)
        assert said in refusal(agent.learn, dataset, objective)
    tokens = tokenize(voc.quantizer, dataset)
    assert said in refusal(weighted_clone, voc, dataset, tokens, ImprovementConfig(agent=FEW))
    scores = ActionValues(voc)(*voc.context(dataset.observations(np.arange(3))), torch.eye(2).expand(3, 2, 2))
    assert scores.isfinite().all()
    dataset.action[1] = [0.5, 0.5]  # one that is none
    OfflineAgent(dataset.observation_shape, 2, FEW, voc.quantizer).learn(dataset, Cloning)


@pytest.mark.parametrize(("made", "said"), [
    (lambda: AgentConfig(noise=-1), "noise is -1; at least 0 is needed"),
    (lambda: AgentConfig(shift=-1), "shift is -1; at least 0 is needed"),
    (lambda: AgentConfig(width=64.5), "width is 64.5; a whole number above zero is needed"),
    (lambda: OfflineAgent((9, 24, 24), 2, FEW, quantizer(), seed=-1), "seed is -1"),
    (lambda: OfflineAgent((9, 24, 24), 0, FEW, quantizer()), "action_size is 0; a whole number above zero"),
    (lambda: OfflineAgent((9, 84, 84), 2, FEW, quantizer()),
     "The quantizer reads frames (9, 24, 24), the agent is to see (9, 84, 84); give a quantizer of these frames."),
    (lambda: OfflineAgent((9, 14, 15), 2, AgentConfig(inputs="frames")),
     "Frames (9, 14, 15) are too small for convolutions; sides of at least 15 are needed"),
])  # fmt: skip
def test_agents_that_cannot_be_made_are_refused(made, said):
    assert said in refusal(made)


def test_the_smallest_frames_and_any_arrays_of_them():
    agent = OfflineAgent((3, 15, 15), 2, AgentConfig(inputs="frames", width=16))
    obs = np.random.default_rng(0).integers(256, size=(3, 3, 15, 15), dtype=np.uint8)
    for view in (obs[::-1], obs[..., ::-1]):
        found = agent.predict(view, deterministic=True)[0]
        np.testing.assert_array_equal(found, agent.predict(view.copy(), deterministic=True)[0])


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


def test_an_agent_is_read_with_its_own_weights_and_quantizer_alone(tmp_path):
    """Whatever lies in its folder while another is saved over it, or a quantizer is trained there."""
    config = AgentConfig(inputs="tokens", width=16, loop=FEW.loop)
    one, two = (OfflineAgent((9, 24, 24), 2, config, quantizer(), seed=seed) for seed in (0, 1))
    with torch.no_grad():
        next(two.encoder.quantizer.parameters()).mul_(1.01)
    one.save(tmp_path / "one")
    two.save(tmp_path / "two")
    save_quantizer(two.encoder.quantizer, tmp_path / "one")
    for file, other in (("quantizer", None), ("agent", one)):
        if other is not None:
            save_quantizer(other.encoder.quantizer, tmp_path / "one")
            (tmp_path / "one" / "agent.safetensors").write_bytes((tmp_path / "two" / "agent.safetensors").read_bytes())
        said = refusal(OfflineAgent.load, tmp_path / "one")
        assert f"{file}.safetensors holds other weights than agent.json was written for" in said
    one.save(tmp_path / "one")
    again = OfflineAgent.load(tmp_path / "one")
    assert all(torch.equal(t, again.networks.state_dict()[k]) for k, t in one.networks.state_dict().items())


@pytest.mark.parametrize("inputs", ["tokens", "frames"])
def test_another_default_type_of_numbers_changes_nothing(tmp_path, inputs):
    dataset = framed(tmp_path)
    config, own, learned = AgentConfig(inputs=inputs, width=16, loop=FEW.loop, shift=1), quantizer(), []
    for kind in (torch.float32, torch.float64):
        torch.set_default_dtype(kind)
        try:
            learned.append(OfflineAgent((9, 24, 24), 2, config, own).learn(dataset, partial(TD3BC, n=2)))
            assert torch.get_default_dtype() == kind
        finally:
            torch.set_default_dtype(torch.float32)
    for one, other in zip(learned[0].actor.parameters(), learned[1].actor.parameters(), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_learning_leaves_the_quantizer_at_rest(tmp_path):
    agent, modes = OfflineAgent((9, 24, 24), 2, FEW, quantizer()), []

    def objective(agent, view):
        modes.extend((agent.actor.training, any(part.training for part in agent.encoder.quantizer.modules())))
        return Cloning(agent, view)

    agent.learn(framed(tmp_path), objective)
    assert modes == [True, False]
