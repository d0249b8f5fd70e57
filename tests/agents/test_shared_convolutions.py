"""Agents that see through the convolutions of another agent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small import SPEC, numbered_frames, toy_episode

from voc_rl.agents import AgentConfig, Cloning, OfflineAgent
from voc_rl.agents.views import seen_rows, view_of
from voc_rl.data import Episodes, write_episode
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig

CONFIG = AgentConfig(inputs="frames", width=8, noise=0.0, loop=LoopConfig(steps=20, batch_size=4))


@pytest.fixture
def dataset(tmp_path: Path) -> Episodes:
    for i in range(2):
        episode = toy_episode(i, 9, frames=numbered_frames(10 * i, 9, 24, 24))
        write_episode(tmp_path / f"episode_{i}.hdf5", episode, SPEC)
    return Episodes.open(tmp_path)


def test_they_stay_as_they_are_and_rows_are_seen_once(dataset: Episodes, tmp_path: Path) -> None:
    shape, rng = dataset.observation_shape, torch.Generator().manual_seed(0)
    first = OfflineAgent(shape, 2, CONFIG).learn(dataset, Cloning)
    before = {name: tensor.clone() for name, tensor in first.encoder.state_dict().items()}
    second = OfflineAgent(shape, 2, CONFIG, seed=1, encoder=first.encoder)
    actor = [parameter.clone() for parameter in second.actor.parameters()]
    second.learn(dataset, Cloning)
    for agent in (first, second):
        for name, tensor in agent.encoder.state_dict().items():
            assert torch.equal(tensor, before[name]), name
    assert all(not torch.equal(old, new) for old, new in zip(actor, second.actor.parameters(), strict=True))
    assert first.encoder.learns
    assert not second.encoder.learns

    rows = np.array([0, 3, 12])
    seen = second.encoder(torch.from_numpy(dataset.observations(rows)))
    own, others = (view_of(agent, dataset).encoded(rows, rng) for agent in (first, second))
    torch.testing.assert_close(others, seen, atol=0.02, rtol=0.02)
    assert own.requires_grad
    assert not others.requires_grad

    second.save(tmp_path / "agent")
    obs = dataset.observations(rows)
    loaded = OfflineAgent.load(tmp_path / "agent")
    np.testing.assert_array_equal(loaded.mode(obs), second.mode(obs))
    assert not loaded.encoder.learns  # it remembers


def test_what_they_see_can_be_given(dataset: Episodes) -> None:
    shape, encoder = dataset.observation_shape, OfflineAgent(dataset.observation_shape, 2, CONFIG).encoder
    seen = seen_rows(encoder, dataset, rows_at_once=5)
    expected = encoder(torch.from_numpy(dataset.observations(np.arange(18)))).detach()
    torch.testing.assert_close(seen, expected, atol=0.02, rtol=0.02)
    told, asked = (
        OfflineAgent(shape, 2, CONFIG, encoder=encoder).learn(dataset, Cloning, seen=given)
        for given in (seen_rows(encoder, dataset), None)
    )
    for own, other in zip(told.actor.parameters(), asked.actor.parameters(), strict=True):
        assert torch.equal(own, other)
    with pytest.raises(VOCError, match=r"`seen` of shape \(9, 50\) is for an agent of frozen convolutions"):
        OfflineAgent(shape, 2, CONFIG, encoder=encoder).learn(dataset, Cloning, seen=seen[:9])
    with pytest.raises(VOCError, match="for an agent of frozen convolutions"):
        OfflineAgent(shape, 2, CONFIG).learn(dataset, Cloning, seen=seen)


def test_frozen_inputs_refuse_them(dataset: Episodes) -> None:
    encoder = OfflineAgent(dataset.observation_shape, 2, CONFIG).encoder
    with pytest.raises(VOCError, match="inputs='tokens' does not see through convolutions; use inputs='frames'"):
        OfflineAgent(dataset.observation_shape, 2, AgentConfig(inputs="tokens"), None, encoder=encoder)
