"""Targets for chosen policies against the exact occupancies of a small decision process."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from chains import episodes_of, total_variation
from decisions import END, LAST, A, Decisions, S, decisions, empirical, exact_shares, frequencies, logged

from voc_rl.data import Episodes, taken_actions
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig
from voc_rl.occupancy import (
    OccupancyConfig,
    OccupancyTraining,
    OccupancyTransformer,
    PolicyTraining,
    StitchedChain,
    find_candidates,
    stitch,
    train_policies,
)
from voc_rl.occupancy.stitching import draw_along

GAMMA = 0.9


def test_some_contexts_leave_the_action_to_the_policy() -> None:
    """Values of policies are asked without an action: a network that always saw one never learned them."""
    with pytest.raises(VOCError, match=r"^action_share is 1\.0; a number from 0 to below 1 is needed\.$"):
        PolicyTraining(action_share=1.0)
    with pytest.raises(VOCError, match=r"^start_share is -0\.1; a share between 0 and 1 is needed\.$"):
        PolicyTraining(start_share=-0.1)
    assert PolicyTraining(action_share=0.0, start_share=1.0).start_share == 1.0


@pytest.mark.parametrize(
    ("chains", "policies", "said"),
    [
        (2, 0, "There are chains of 2 policies, but the network was built for 1; give one chain for each"),
        (2, 3, "There are chains of 2 policies, but the network was built for 3; give"),
    ],
)
def test_chains_that_do_not_fit_the_network_are_refused(chains: int, policies: int, said: str) -> None:
    dataset = episodes_of([np.zeros(4)], [False])
    chain = StitchedChain(np.array([[1], [2], [3], [3]]), np.zeros((4, 1), np.float32), dataset.terminal)
    network = OccupancyTransformer(OccupancyConfig(2, 1, n_layer=1, n_head=1, width=8, policies=policies))
    training = PolicyTraining(OccupancyTraining(loop=LoopConfig(steps=2, batch_size=4)))
    with pytest.raises(VOCError, match=said):
        train_policies(network, None, dataset, torch.zeros(4, 1, dtype=torch.int64), None, [chain] * chains, training)


@cache
def stitched() -> tuple[Decisions, Episodes, np.ndarray, np.ndarray]:
    """The process, its data, their states, and where the chains of the policies arrive (P, N, draws)."""
    process = decisions()
    dataset, states = logged(process, 1500)
    features = torch.from_numpy(np.eye(S, dtype=np.float32)[states])
    candidates = find_candidates(dataset, features, count=600)  # all rows of a state, and others
    chains = [
        stitch(candidates, drawn, dataset.terminal, np.random.default_rng(0), bandwidth=1e-3)
        for drawn in exact_shares(process, states)
    ]
    return process, dataset, states, np.stack([chain.arrival for chain in chains])


@pytest.mark.parametrize("known", [True, False])
def test_stitched_targets_follow_the_empirical_process(known: bool) -> None:
    """Frames that name the state and actions that are logged everywhere: the law of the empirical process."""
    process, dataset, states, arrival = stitched()
    own = empirical(process, dataset, states)
    rows = np.flatnonzero(dataset.steps_left > 0)
    at, taken = states[rows], taken_actions(dataset)[rows].argmax(1)
    for policy, odds in enumerate(process.policies):
        who, logged_first = np.full(len(rows), policy), np.full(len(rows), known)
        rng = np.random.default_rng(policy)
        targets = draw_along(arrival, dataset.terminal, who, rows, logged_first, 500, GAMMA, rng)
        found = np.where(targets >= 0, states[targets], END)
        exact = own.occupancy(odds, GAMMA)[:LAST]
        if known:
            law = np.array([[frequencies(found[(at == s) & (taken == a)]) for a in range(A)] for s in range(LAST)])
        else:
            exact = np.einsum("sa,sat->st", odds[:LAST], exact)
            law = np.array([frequencies(found[at == s]) for s in range(LAST)])
        distance = total_variation(law, exact).max()
        print(f"stitched, known {known}, policy {policy}: total variation {distance:.4f}")
        assert distance < 0.02
        assert np.abs(law - exact)[..., END].max() < 0.02
        other = own.state_occupancy(process.policies[(policy + 1) % 3], GAMMA)[:LAST]
        assert total_variation(law if not known else law.mean(1), other).max() > 0.1


def test_stitched_targets_at_ends() -> None:
    """A terminal row has END alone; the last row before a time limit goes on by the policy, in no next episode."""
    _, dataset, _, arrival = stitched()
    last = dataset.ends - 1
    nobody, rng = np.zeros(len(last), int), np.random.default_rng(0)
    targets = draw_along(arrival, dataset.terminal, nobody, last, nobody > 0, 400, GAMMA, rng)
    ended = dataset.terminal[last]
    assert 0.2 < ended.mean() < 0.8
    assert (targets[ended] == -1).all()
    real = targets[~ended]
    assert (dataset.step_type[real[real >= 0]] > 0).all()  # rows that were arrived at
