"""Targets for chosen policies against the exact occupancies of a small decision process."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from chains import episodes_of, total_variation
from decisions import (
    END,
    LAST,
    A,
    Decisions,
    S,
    actions_of,
    choose,
    decisions,
    empirical,
    exact_shares,
    frequencies,
    logged,
)

from voc_rl.data import Episodes
from voc_rl.errors import VOCError
from voc_rl.occupancy import (
    CoupledTargets,
    OccupancyConfig,
    OccupancyTransformer,
    PolicyActions,
    PolicyTargets,
    PolicyTraining,
    StitchedTargets,
    find_candidates,
    stitch,
    taken_actions,
    train_policies,
)

GAMMA = 0.9


@cache
def world() -> tuple[Decisions, Episodes, np.ndarray, PolicyActions]:
    process = decisions()
    dataset, states = logged(process, 900_000)
    return process, dataset, states, actions_of(process, dataset, states, 2)


def completed(process: Decisions, policy: int, states: np.ndarray, targets: PolicyTargets, seed: int) -> np.ndarray:
    """States (B, M) of the targets, END included, with an exact target network: samples of mu(. | s, a)."""
    found = np.full(targets.row.shape, END)
    found[targets.row >= 0] = states[targets.row[targets.row >= 0]]
    ask = targets.bootstrap >= 0
    exact = process.occupancy(process.policies[policy], GAMMA)
    assert (targets.action[ask].sum(1) == 1).all()
    odds = exact[states[targets.bootstrap[ask]], targets.action[ask].argmax(1)]
    found[ask] = choose(odds, 1, np.random.default_rng(seed))[:, 0]
    return found


def distances(n: int, known: bool, policy: int, accept: np.ndarray | None = None) -> tuple[float, float]:
    """Largest total variation from the exact law, over states (and first actions), and largest error of END."""
    process, dataset, states, actions = world()
    if accept is not None:
        actions = PolicyActions(actions.drawn, accept, actions.residual)
    rows = np.flatnonzero(dataset.steps_left > 0)
    draw = CoupledTargets(dataset, actions, GAMMA, n).draw
    shape = len(rows)
    targets = draw(np.full(shape, policy), rows, np.full(shape, known), 1, np.random.default_rng(policy))
    found = completed(process, policy, states, targets, 10 + policy)
    at, taken = states[rows], taken_actions(dataset)[rows].argmax(1)
    if known:
        exact = process.occupancy(process.policies[policy], GAMMA)[:LAST]
        law = np.array([[frequencies(found[(at == s) & (taken == a)]) for a in range(A)] for s in range(LAST)])
    else:
        exact = process.state_occupancy(process.policies[policy], GAMMA)[:LAST]
        law = np.array([frequencies(found[at == s]) for s in range(LAST)])
    return float(total_variation(law, exact).max()), float(np.abs(law - exact)[..., END].max())


@pytest.mark.parametrize("policy", range(3))
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("n", [1, 8])
def test_coupled_targets_are_exact(n: int, known: bool, policy: int) -> None:
    """8 real steps at most, or 1: with an exact target network the law is mu_pi, for every state and first action."""
    distance, end = distances(n, known, policy)
    print(f"n {n}, known {known}, policy {policy}: total variation {distance:.4f}, END {end:.4f}")
    assert distance < 0.02
    assert end < 0.015


@pytest.mark.parametrize("policy", range(3))
@pytest.mark.parametrize("known", [True, False])
def test_uncorrected_targets_are_not(known: bool, policy: int) -> None:
    """The same real steps without rejection follow the behaviour: the bound above tells it."""
    accept = np.ones_like(world()[3].accept)
    distance, _ = distances(8, known, policy, accept)
    print(f"uncorrected, known {known}, policy {policy}: total variation {distance:.4f}")
    assert distance > 0.03


def test_coupling_keeps_the_policy() -> None:
    """Kept actions and residual ones together have the policy's odds, at every state."""
    process, dataset, states, actions = world()
    assert actions.accept is not None
    assert actions.residual is not None
    going = dataset.steps_left > 0
    taken, rng = taken_actions(dataset).argmax(1), np.random.default_rng(0)
    for policy, odds in enumerate(process.policies):
        kept = rng.random(len(states)) < actions.accept[policy]
        acted = np.where(kept, taken, actions.residual[policy, :, 0].argmax(1))
        for s in range(LAST):
            found = np.bincount(acted[going & (states == s)], minlength=A) / (going & (states == s)).sum()
            np.testing.assert_allclose(found, odds[s], atol=0.01)
        assert 0.4 < kept[going].mean() < 0.9  # both kinds occur


def small() -> tuple[Episodes, PolicyActions]:
    """An episode of four rows cut by a time limit and one of three that terminates; the policy always acts 1."""
    actions = np.array([[0.0], [1], [-1], [1], [0], [1], [1]])
    dataset = episodes_of([np.zeros(4), np.zeros(3)], [False, True], actions)
    drawn = np.ones((1, 7, 2, 1), np.float32)
    accept = (taken_actions(dataset)[:, 0] == 1).astype(np.float32)[None]
    return dataset, PolicyActions(drawn, accept, drawn)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_time_limits_bootstrap_and_terminations_do_not(n: int, known: bool) -> None:
    dataset, actions = small()
    source = CoupledTargets(dataset, actions, GAMMA, n)

    def draw(row: int) -> PolicyTargets:
        one = np.array([row])
        return source.draw(np.zeros(1, int), one, np.array([known]), 20_000, np.random.default_rng(0))

    cut, ended = draw(3), draw(6)
    assert (cut.row == -1).all()
    assert (cut.bootstrap == 3).all()  # never the next episode, whether or not an action is said to be known
    assert (cut.action == 1).all()
    assert (ended.row == -1).all()
    assert (ended.bootstrap == -1).all()  # END
    before_cut, before_end = draw(2), draw(5)  # the logged action is the policy's
    assert set(before_cut.row.ravel()) == {3, -1}
    assert set(before_cut.bootstrap[before_cut.row < 0]) == {3}
    assert (before_cut.row == 3).mean() == pytest.approx(0.1, abs=0.01)
    assert set(before_end.row.ravel()) == {6, -1}
    assert (before_end.bootstrap == -1).all()
    assert (before_end.row == 6).mean() == pytest.approx(0.1, abs=0.01)
    away = draw(1)  # the action that was taken there is not the policy's, but a known one counts
    if known:
        assert (away.row == 2).mean() == pytest.approx(0.1, abs=0.01)
    else:
        assert (away.bootstrap == 1).all()


def test_one_step_without_densities() -> None:
    """A known action counts; an unknown one is the policy's own, in the target network from the first step on."""
    dataset, actions = small()
    source = CoupledTargets(dataset, PolicyActions(actions.drawn), GAMMA, 1)
    rows, known = np.array([0, 0]), np.array([True, False])
    targets = source.draw(np.zeros(2, int), rows, known, 20_000, np.random.default_rng(0))
    assert set(targets.row[0]) == {1, -1}
    assert set(targets.bootstrap[0]) == {1, -1}
    assert (targets.row[0] == 1).mean() == pytest.approx(0.1, abs=0.01)
    assert (targets.bootstrap[1] == 0).all()
    assert (targets.action[1] == 1).all()


def test_two_steps_of_a_policy_that_leaves() -> None:
    """From row 0 the policy goes on to row 1, and there the logged action is refused: bootstrap from row 1."""
    dataset, actions = small()
    draw = CoupledTargets(dataset, actions, GAMMA, 3).draw
    targets = draw(np.zeros(1, int), np.array([0]), np.array([True]), 20_000, np.random.default_rng(0))
    assert set(targets.row.ravel()) == {1, -1}
    assert (targets.bootstrap[targets.row < 0] == 1).all()


def test_some_contexts_leave_the_action_to_the_policy() -> None:
    """Values of policies are asked without an action: a network that always saw one never learned them."""
    with pytest.raises(VOCError, match=r"^action_share is 1\.0; a number from 0 to below 1 is needed\.$"):
        PolicyTraining(action_share=1.0)
    with pytest.raises(VOCError, match=r"^start_share is -0\.1; a share between 0 and 1 is needed\.$"):
        PolicyTraining(start_share=-0.1)
    assert PolicyTraining(action_share=0.0, start_share=1.0).start_share == 1.0


@pytest.mark.parametrize(("action_dim", "action_share"), [(0, 0.5), (1, 0.0)])
def test_actions_that_nobody_is_told_are_refused(action_dim: int, action_share: float) -> None:
    dataset, actions = small()
    network = OccupancyTransformer(OccupancyConfig(2, 1, n_layer=1, n_head=1, width=8, action_dim=action_dim))
    source = CoupledTargets(dataset, PolicyActions(actions.drawn), GAMMA, 1)
    codes, training = torch.zeros(len(dataset), 1, dtype=torch.int64), PolicyTraining(action_share=action_share)
    with pytest.raises(VOCError, match=r"give it action input .* or use StitchedTargets"):
        train_policies(network, None, dataset, codes, None, source, training)


@pytest.mark.parametrize(("accept", "residual"), [(False, True), (True, False)])
def test_more_steps_need_densities(accept: bool, residual: bool) -> None:
    dataset, actions = small()
    blind = PolicyActions(actions.drawn, actions.accept if accept else None, actions.residual if residual else None)
    CoupledTargets(dataset, blind, GAMMA, 1)
    with pytest.raises(VOCError, match=r"density .* use StitchedTargets, or CoupledTargets with n=1, which"):
        CoupledTargets(dataset, blind, GAMMA, 2)
    with pytest.raises(VOCError, match="n is 0"):
        CoupledTargets(dataset, actions, GAMMA, 0)


@cache
def stitched() -> tuple[Decisions, Episodes, np.ndarray, StitchedTargets]:
    process = decisions()
    dataset, states = logged(process, 1500)
    features = torch.from_numpy(np.eye(S, dtype=np.float32)[states])
    candidates = find_candidates(dataset, features, count=600)  # all rows of a state, and others
    chains = [
        stitch(candidates, drawn, dataset.terminal, np.random.default_rng(0), bandwidth=1e-3)
        for drawn in exact_shares(process, states)
    ]
    return process, dataset, states, StitchedTargets(dataset, chains, GAMMA)


@pytest.mark.parametrize("known", [True, False])
def test_stitched_targets_follow_the_empirical_process(known: bool) -> None:
    """Frames that name the state and actions that are logged everywhere: the law of the empirical process."""
    process, dataset, states, source = stitched()
    own = empirical(process, dataset, states)
    rows = np.flatnonzero(dataset.steps_left > 0)
    at, taken = states[rows], taken_actions(dataset)[rows].argmax(1)
    for policy, odds in enumerate(process.policies):
        arguments = (np.full(len(rows), policy), rows, np.full(len(rows), known), 500, np.random.default_rng(policy))
        targets = source.draw(*arguments)
        assert (targets.bootstrap == -1).all()
        found = completed(process, policy, states, targets, 0)
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
    _, dataset, _, source = stitched()
    last = dataset.ends - 1
    for known in (True, False):
        targets = source.draw(np.zeros(len(last), int), last, np.full(len(last), known), 400, np.random.default_rng(0))
        ended = dataset.terminal[last]
        assert 0.2 < ended.mean() < 0.8
        assert (targets.row[ended] == -1).all()
        real = targets.row[~ended]
        assert (dataset.step_type[real[real >= 0]] > 0).all()  # rows that were arrived at
