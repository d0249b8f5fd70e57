"""TD3 beside a VOC's Q that stays near the logged actions: its actor's loss, and what it keeps the actor from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from critics import GAMMA, agent, observations

from voc_rl import VOC
from voc_rl.agents import ActionValues
from voc_rl.agents.sb3 import VOCCritic, fill_replay_buffer, train_offline
from voc_rl.data import Episodes
from voc_rl.errors import VOCError


@pytest.mark.parametrize("alpha", [0.0, 2.5])
@pytest.mark.parametrize("weight", [0.0, 1.0, math.inf])
def test_near_the_data_the_actor_descends_the_loss_of_td3_bc(alpha: float, weight: float, square_actions: Path) -> None:
    """Against the loss of Fujimoto and Gu (2021) as it is written down, with the critic as it is after its own step."""
    voc, logged = square_actions / "voc", square_actions / "data"
    policy = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    model = agent(voc, voc_weight=weight, bc_alpha=alpha, policy=policy, policy_delay=1, learning_rate=0.1)
    fill_replay_buffer(model, Episodes.open(logged), say=None)
    batches: list[Any] = []
    sample = model.replay_buffer.sample
    model.replay_buffer.sample = lambda *asked: batches.append(sample(*asked)) or batches[-1]
    before = {name: parameter.detach().clone() for name, parameter in model.actor.named_parameters()}
    train_offline(model, None, 1, progress=False)
    after = {name: parameter.detach().clone() for name, parameter in model.actor.named_parameters()}
    (batch,) = batches
    with torch.no_grad():
        for name, parameter in model.actor.named_parameters():
            parameter.copy_(before[name])
    taken = model.actor(batch.observations)
    if math.isinf(weight):
        loaded = VOC.load(voc)
        q = ActionValues(loaded)(*loaded.context(batch.observations), taken[:, None]) / (1 - GAMMA)
    else:
        q = model.critic(batch.observations, taken)[0]
    loss = -alpha * q.mean() / q.detach().abs().mean() + ((taken - batch.actions) ** 2).mean()
    for (name, parameter), slope in zip(
        model.actor.named_parameters(), torch.autograd.grad(loss, list(model.actor.parameters())), strict=True
    ):
        torch.testing.assert_close(after[name], parameter - 0.1 * slope, atol=1e-6, rtol=1e-4)
        assert slope.abs().max() > 0


def test_near_the_data_the_actor_stays_where_q_is_wrong(square_actions: Path, tmp_path: Path) -> None:
    """Of an action that nobody logged any Q is a guess: here one that pays going left, which the data never did."""
    voc, dataset = square_actions / "voc", Episodes.open(square_actions / "data")
    rows = np.flatnonzero(dataset.steps_left > 0)
    found = {}
    for alpha in (None, 0.05):
        model = agent(voc, voc_weight=math.inf, bc_alpha=alpha, batch_size=32, learning_rate=1e-2)
        fill_replay_buffer(model, dataset, say=None)
        model.replay_buffer.actions[: len(rows)] = 0.5
        model._q_voc.score = lambda codes, features, actions: -actions[:, 0]
        train_offline(model, None, 100, progress=False)
        found[alpha] = float(model.predict(observations(dataset), deterministic=True)[0].mean())
        model.save(tmp_path / "agent.zip")
        assert VOCCritic.load(tmp_path / "agent.zip", device="cpu").bc_alpha == alpha
        model.bc_alpha = math.nan
        with pytest.raises(VOCError, match="bc_alpha is nan"):
            model.train(1, 8)
    assert found[None] < -0.9
    assert found[0.05] == pytest.approx(0.5, abs=0.1)
    model.bc_alpha = None
    train_offline(model, None, 100, progress=False)
    assert model.predict(observations(dataset), deterministic=True)[0].mean() < -0.9  # let go
