"""VOCs of actions: the chain that they learn from, their scores, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from actions import FEW, framed, small_config, small_voc
from small import toy_dataset
from worlds import refusal

from voc_rl.agents.action_values import ActionValues, RollOutScores, logged_chain, train_action_voc
from voc_rl.agents.improvement import ImprovementConfig, policy_voc, weighted_clone
from voc_rl.agents.objectives import Cloning
from voc_rl.agents.offline import OfflineAgent
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import OccupancyTraining, PolicyTraining
from voc_rl.quantizers import tokenize
from voc_rl.training import VOCConfig


def test_chain_of_the_behaviour_is_the_data_and_goes_on_behind_a_time_limit(tmp_path):
    dataset = toy_dataset(tmp_path, (4, 5), terminated=(1,))
    features = torch.arange(9.0)[:, None]
    chain = logged_chain(dataset, features)
    going = np.flatnonzero(dataset.steps_left > 0)
    assert chain.arrival[going, 0].tolist() == (going + 1).tolist()
    # the last row of episode 0 (feature 3) is as near to row 2 as to row 4
    assert set(chain.arrival[3]) == {3, 5}
    expected = dataset.reward[6] + 0.5 * (dataset.reward[7] + 0.5 * dataset.reward[8])
    assert chain.values(dataset.reward, 0.5)[5] == pytest.approx(expected)


def test_a_chain_takes_little_memory_and_looks_for_neighbours_of_cut_episodes_alone(tmp_path, monkeypatch):
    dataset = toy_dataset(tmp_path, (6, 4, 7), terminated=(1,))
    rng = np.random.default_rng(0)
    features = 1e4 + torch.from_numpy(rng.normal(size=(17, 3))).float()  # far from 0, where products lose differences
    pairs = []
    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", lambda a, b, *rest: pairs.append(len(a) * len(b)) or cdist(a, b, *rest))
    monkeypatch.setattr("voc_rl.agents.action_values.DISTANCES_AT_ONCE", 14)
    chain = logged_chain(dataset, features)
    going = np.flatnonzero(dataset.steps_left > 0)
    assert pairs == [14, 14]  # the ends of episodes 0 and 2, one after the other
    for last in (5, 16):
        exact = np.square(features[going].double() - features[last].double()).sum(1).argmin()
        assert (chain.arrival[last] == going[exact] + 1).all()
    codes = torch.from_numpy(rng.integers(3, size=(17, 6)))
    alike = (codes[5] == codes[going]).sum(1)
    found = np.searchsorted(going, logged_chain(dataset, codes).arrival[5] - 1)
    assert (alike[found] == alike.max()).all()


def test_luck_after_one_row_is_no_rule(tmp_path):
    """Where pictures repeat, all cut episodes went on behind one and the same row."""
    dataset = toy_dataset(tmp_path, (5,) * 20)
    cut, going = np.flatnonzero(dataset.steps_left == 0), np.flatnonzero(dataset.steps_left > 0)
    arrival = logged_chain(dataset, torch.zeros(100, 2)).arrival[cut]
    assert set(arrival.ravel()) <= set(going + 1)
    assert len(np.unique(arrival)) > 50  # 160 draws of 80 rows meet 69 of them on average


def test_a_voc_with_actions_scores_them_and_bad_input_is_refused_in_a_sentence(tmp_path):
    dataset = framed(tmp_path)
    voc, model = small_voc(dataset, 0.5), small_voc(dataset, 0.0)
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
    assert "samples is 0; a whole number above zero is needed" in refusal(ActionValues, voc, "sample", 0)
    assert "steps is 0; a whole number above zero is needed" in refusal(RollOutScores, model, 0.9, 0)
    assert "gamma is 1.5; a discount in [0, 1) is needed" in refusal(RollOutScores, model, 1.5)
    with pytest.raises(VOCError, match="data's actions have size 2; the agent's have 3"):
        OfflineAgent(dataset.observation_shape, 3, FEW, voc.quantizer).learn(dataset, Cloning)
    with pytest.raises(VOCError, match=r"have shape \(11, 1\); one per row, \(11,\)"):
        voc.fit_reward(dataset, lambda d: d.reward[:, None])
    with pytest.raises(VOCError, match="Rewards hold NaN or infinity"):
        voc.fit_reward(dataset, lambda d: np.where(d.step_type == 2, np.nan, d.reward))
    tall = voc.fit_reward(dataset, lambda episodes: np.full(len(episodes), 3.0))
    with pytest.raises(VOCError, match="has no value head; use estimator='sample'"):
        ActionValues(tall)
    np.testing.assert_allclose(ActionValues(tall, "sample", 4)(codes, features, actions), 3.0, atol=1e-2)
    with pytest.raises(VOCError, match="not indices of discrete ones"):
        dataset.action[3] = 4.0
        OfflineAgent(dataset.observation_shape, 2, FEW, voc.quantizer).learn(dataset, Cloning)
    voc.occupancy.config.__dict__["action_dim"] = 0
    with pytest.raises(VOCError, match="reads no actions"):
        weighted_clone(voc, dataset, tokenize(voc.quantizer, dataset), ImprovementConfig(trace=None))


def test_tokens_of_the_whole_are_not_those_of_a_part(tmp_path):
    dataset = framed(tmp_path)
    voc, part = small_voc(dataset, 0.5), dataset.subset([1])
    tokens, agent = tokenize(voc.quantizer, dataset), OfflineAgent(dataset.observation_shape, 2, FEW, voc.quantizer)
    for trace in (None, 0.95):
        config = ImprovementConfig(trace=trace, agent=FEW)
        assert "11 rows of codes do not fit 6 rows of data" in refusal(weighted_clone, voc, part, tokens, config)
    assert "11 rows of codes do not fit 6" in refusal(policy_voc, agent, part, tokens, voc)
    few = tuple(tensor[:6] for tensor in tokens)
    said = refusal(train_action_voc, dataset, quantizer=voc.quantizer, tokens=few)
    assert "6 rows of codes do not fit 11 rows of data; tokenise this dataset" in said


def test_arrays_are_tokens_too_and_those_without_features_are_refused(tmp_path):
    dataset = framed(tmp_path)
    voc, training = small_voc(dataset, 0.5), PolicyTraining(OccupancyTraining(gamma=0.5, loop=LoopConfig(2, 8)))
    config = ImprovementConfig(agent=FEW, training=training, voc=small_config(2))
    codes, features = tokenize(voc.quantizer, dataset)
    learned = features.float().requires_grad_()
    for own in (config, replace(config, trace=None)):
        one, *others = (
            weighted_clone(voc, dataset, tokens, own).networks.state_dict()
            for tokens in ((codes, features), (codes.numpy(), features.numpy()), (codes, learned))
        )
        for other in others:
            torch.testing.assert_close(other, one, rtol=0, atol=0)
    agent = OfflineAgent(dataset.observation_shape, 2, FEW, voc.quantizer)
    for ask in (
        lambda tokens: policy_voc(agent, dataset, tokens, voc, config),
        lambda tokens: train_action_voc(dataset, training, config.voc, quantizer=voc.quantizer, tokens=tokens),
    ):
        one, *others = (
            ask(tokens).occupancy.state_dict()
            for tokens in ((codes, features), (codes.numpy(), features.numpy()), (codes, learned))
        )
        for other in others:
            torch.testing.assert_close(other, one, rtol=0, atol=0)
        assert "Tokens lack" in refusal(ask, (codes, None))
    for own in (config, replace(config, trace=None)):
        assert "Tokens lack features" in refusal(weighted_clone, voc, dataset, (codes, None), own)
    unseen = replace(config.voc, network=replace(config.voc.network, features=False))
    assert (
        train_action_voc(
            dataset, training, unseen, quantizer=voc.quantizer, tokens=(codes, None)
        ).occupancy.config.feature_dim
        == 0
    )


def test_a_head_of_actions_has_a_spread(tmp_path):
    dataset = framed(tmp_path)
    voc = small_voc(dataset, 0.5, members=0)
    assert voc.value_head.members == 2
    obs = dataset.observations(np.arange(3))
    assert np.isfinite(voc.value(obs, estimator="head").stderr).all()
    several = PolicyTraining(occupancy=OccupancyTraining(gamma=0.5, gammas=(0.4, 0.6), loop=LoopConfig(2, 8)))
    ranged = train_action_voc(dataset, several, small_config(2), quantizer=voc.quantizer)
    assert ranged.value_head is None  # it learns values at one discount
    assert ActionValues(ranged, "sample", 4)(*voc.context(obs), torch.zeros(3, 4, 2)).isfinite().all()
    assert ActionValues(voc, caution=1.0)(*voc.context(obs), torch.zeros(3, 4, 2)).isfinite().all()


def test_a_policys_voc_is_of_its_seed(tmp_path, monkeypatch):
    dataset, asked = framed(tmp_path), []
    voc = small_voc(dataset, 0.5)
    agent = OfflineAgent(dataset.observation_shape, 2, FEW, voc.quantizer)

    def train(dataset, training, config, chain, **rest):
        asked.append((config.seed, chain.arrival))

    monkeypatch.setattr("voc_rl.agents.improvement.train_action_voc", train)
    tokens = voc.context(dataset.observations(np.arange(11)))
    for seed in (3, 4):
        policy_voc(agent, dataset, tokens, voc, ImprovementConfig(voc=VOCConfig(seed=7)), seed)
    assert [seed for seed, _ in asked] == [3, 4]
    assert (asked[0][1] != asked[1][1]).any()
