"""Values and intervals of chains through the rows of a small decision process, against exact ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from chains import episodes_of
from decisions import A, Decisions, S, choose, decisions, logged
from worlds import refusal

from voc_rl.data import Episodes
from voc_rl.occupancy import StitchedChain
from voc_rl.ope.chains import PolicyChains, StitchingConfig, checked_starts
from voc_rl.ope.estimate import PolicyEstimate, covers, format_estimates, warning_of
from voc_rl.values import FittedQ

GAMMA = 0.8
MANY = StitchingConfig(draws=4, replicates=8)  # as where there are many rows


class Chooses:
    """Acts by the probabilities (S, A) of its state."""

    observation = "state"

    def __init__(self, odds: np.ndarray) -> None:
        self.odds = odds

    def draws(self, observation: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        return np.eye(A)[choose(self.odds[observation[:, 0].astype(int)], count, rng).T]

    def predict(self, observation: np.ndarray, *args: Any, **kwargs: Any) -> tuple[np.ndarray, Any]:
        raise AssertionError("it has draws")


def chains_through(
    process: Decisions,
    dataset: Episodes,
    states: np.ndarray,
    seed: int = 0,
    starts: np.ndarray | None = None,
    config: StitchingConfig = MANY,
) -> PolicyChains:
    """Of the best policy, through rows whose features name their states."""
    dataset.state = states[:, None].astype(np.float32)
    features = torch.from_numpy(np.eye(S, dtype=np.float32)[states])
    policies = {"best": Chooses(process.policies[0])}
    starts = dataset.starts if starts is None else starts
    return PolicyChains(dataset, policies, starts, config, seed, lambda: features)


def test_intervals_hold_the_exact_values_and_are_no_wider_than_told() -> None:
    process, inside, errors, stderrs = decisions(), [], [], []
    V = process.values(process.policies[0], GAMMA)
    for seed in range(20):
        dataset, states = logged(process, 240, seed)
        chains, reward = chains_through(process, dataset, states, seed), process.reward[states]
        found = chains.values("best", reward, GAMMA)[dataset.starts].mean()
        error = chains.error("best", reward, GAMMA)
        low, high = error.interval(found, 0.9)
        truth = V[states[dataset.starts]].mean()
        inside.append(low < truth < high)
        errors.append(found - truth)
        stderrs.append(error.stderr)
    ratio = np.sqrt(np.square(stderrs).mean() / np.square(errors).mean())
    print(f"coverage {np.mean(inside):.2f}, standard error {ratio:.2f} times the error")
    assert np.mean(inside) >= 0.85
    assert 1.0 < ratio < 3.0


def test_a_policys_numbers_do_not_depend_on_its_name_nor_on_who_is_beside_it() -> None:
    process = decisions()
    dataset, states = logged(process, 120)
    dataset.state, features = states[:, None].astype(np.float32), torch.from_numpy(np.eye(S, dtype=np.float32)[states])
    reward, odds, found = process.reward[states], process.policies, []
    for policies in (
        {"a": Chooses(odds[0])}, {"z": Chooses(odds[1]), "a": Chooses(odds[0])}, {"b": Chooses(odds[0])},
    ):  # fmt: skip
        chains = PolicyChains(dataset, policies, dataset.starts, MANY, 0, lambda: features)
        name = list(policies)[-1]
        found.append((chains.values(name, reward, GAMMA), chains.error(name, reward, GAMMA).stderr))
    for values, stderr in found[1:]:
        np.testing.assert_array_equal(found[0][0], values)
        assert found[0][1] == stderr > 0


def test_small_data_get_more_draws_and_replicates() -> None:
    """At 10,000 rows and more what there was before, and at every size about the same number of draws in all."""
    assert [StitchingConfig().counts(rows) for rows in (100_000, 10_000, 2_500, 400)] == [
        (4, 8), (4, 8), (16, 16), (32, 16),
    ]  # fmt: skip
    assert StitchingConfig(draws=3, replicates=2).counts(400) == (3, 2)


def test_the_noise_of_the_seed_is_small_against_the_interval() -> None:
    process = decisions()
    dataset, states = logged(process, 120)
    found, stderrs = [], []
    for seed in range(5):
        chains = chains_through(process, dataset, states, seed, config=StitchingConfig())
        reward = process.reward[states]
        found.append(chains.values("best", reward, GAMMA)[dataset.starts].mean())
        stderrs.append(chains.error("best", reward, GAMMA).stderr)
    print(f"{np.std(found, ddof=1):.4f} by the seed, standard errors {np.round(stderrs, 4)}")
    assert np.std(found, ddof=1) < 0.3 * np.mean(stderrs)  # .2 here, about .6 with four draws
    assert max(stderrs) < 1.6 * min(stderrs)


def test_the_parts_of_an_error_are_those_of_the_chains() -> None:
    """The values of the starts through all episodes and through each sample of them, and what a critic moved."""
    chains = chains_through(decisions(), *logged(decisions(), 60))
    reward, critic = np.zeros(len(chains.dataset)), FittedQ(np.zeros(1), np.zeros(1))
    whole = np.full(len(chains.dataset), 5.0)
    resampled = [np.array([1.0, 2.0, 6.0]), np.array([1.0, 2.0, 7.0])]
    chains._values["best", hash(reward.tobytes()), GAMMA, None] = (whole, resampled[0])
    chains._values["best", hash(reward.tobytes()), GAMMA, critic] = (whole + 2.0, resampled[1])
    for asked, value, moved, through in ((None, 5.0, 0.0, resampled[0]), (critic, 7.0, 2.0, resampled[1])):
        found = chains.error("best", reward, GAMMA, asked)
        assert (found.chained, found.moved, found.episodes) == (value, moved, 10)
        assert found.resampled is through


def test_samples_are_drawn_of_the_episodes_that_have_a_step() -> None:
    """Two of twelve: each sample has one or both of them."""
    rewards = [np.zeros(1)] * 10 + [np.arange(6.0)] * 2
    dataset = episodes_of(rewards, [False] * 12, np.zeros((22, A)))
    chains = chains_through(decisions(), dataset, np.zeros(22, int))
    shares = [mask[10:].mean() for mask in chains._masks]
    assert set(shares) == {0.5, 1.0}
    assert not any(mask[:10].any() for mask in chains._masks)


def test_starts_of_any_whole_type_are_rows() -> None:
    dataset, _ = logged(decisions(), 60)
    for kind in (np.uint8, np.int32, np.uint32, np.uint64):
        assert checked_starts(dataset, np.array([0, 3, 7], kind)).dtype == np.int64


def test_only_the_last_values_are_kept() -> None:
    chains = chains_through(decisions(), *logged(decisions(), 60))
    rewards = [np.full(len(chains.dataset), float(i)) for i in range(4)]
    kept = [ref(chains.values("best", reward, GAMMA)) for reward in rewards]
    assert [values() is not None for values in kept] == [False, False, True, True]
    assert chains.values("best", rewards[2], GAMMA) is kept[2]()
    np.testing.assert_allclose(chains.values("best", rewards[1], 0.0)[chains.dataset.steps_left > 0], 1.0)
    assert [values() is not None for values in kept[2:]] == [False, True]


def test_one_episode_has_no_interval_and_few_have_a_warning() -> None:
    process = decisions()
    dataset, states = logged(process, 60)
    long = int(np.argmax(dataset.steps_left))
    one = slice(long, long + int(dataset.steps_left[long]) + 1)
    single = episodes_of(
        [dataset.reward[one], np.zeros(1)], [False, False], np.concatenate([dataset.action[one], np.zeros((1, A))])
    )  # the second has no step
    chains = chains_through(process, single, np.append(states[one], 0))
    assert chains.episodes == 1
    assert np.isnan(chains.error("best", single.reward, GAMMA).stderr)
    assert np.isfinite(chains.values("best", single.reward, GAMMA)).all()
    far, near = {"match_distance": 2.5}, {"match_distance": 0.1}
    assert "there is no interval" in warning_of("best", near, 1)
    assert "Intervals from 19 episodes may be too narrow" in warning_of("best", near, 19)
    assert warning_of("best", near, 20) == ""
    assert warning_of("best", far, 20).startswith("The data hardly support best")
    said = warning_of("best", near, 1)
    estimate = PolicyEstimate(
        "best", 1.0, chains.error("best", single.reward, GAMMA), 0.9, GAMMA, "stitch", covers(), np.ones(2),
        {"match_distance": 0.1, "value_at_starts": 1.0, "value_elsewhere": 1.0}, said, (),
    )  # fmt: skip
    assert format_estimates([estimate, replace(estimate, policy="worst")]).count(said) == 1
    said = format_estimates([estimate])
    assert said.count("Intervals cover the mean of these starts over which episodes were logged") == 1
    assert "and the noise of the policy; not a reward that the frames do not show." in said
    assert "critic" not in said
    kept = estimate.as_dict()
    assert (kept["value"], kept["stderr"], kept["low"], kept["start_values"]) == (1.0, None, None, [1.0, 1.0])


def test_how_often_resampled_chains_follow_excluded_episodes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    process = decisions()
    dataset, states = logged(process, 240)
    chains, reward = chains_through(process, dataset, states), process.reward[states]
    assert chains.diagnostics("best", reward, GAMMA)["excluded_followed"] == 0.0
    monkeypatch.setattr("voc_rl.ope.chains.find_candidates", few_candidates)
    chains = chains_through(process, dataset, states)
    told = chains.diagnostics("best", reward, GAMMA)["excluded_followed"]
    assert told == pytest.approx(np.mean([~mask[chains.candidates.row].any(1) for mask in chains._masks]))
    assert 0.05 < told < 0.37  # two candidates of any two episodes, where a share of .37 is left out


def few_candidates(dataset: Episodes, features: torch.Tensor) -> Any:
    from voc_rl.occupancy import find_candidates

    return find_candidates(dataset, features, count=2)


def test_jumps_are_looked_at_where_they_are_made() -> None:
    """Rows 0, 1, 2 and a termination, after which there is no jump; the others weigh as their rewards do."""
    dataset = episodes_of([np.array([0.0, 1, 1, 1])] * 100, [True] * 100, np.zeros((400, A)))
    chains = chains_through(decisions(), dataset, np.arange(400) % 4)
    arrival = np.minimum(np.arange(400) + 1, 399)[:, None]
    distance = np.tile(np.array([3.0, 1, 1, 100], np.float32), 100)[:, None]
    chains._chains["best", 0] = StitchedChain(arrival, distance, dataset.terminal)
    chains.actions[:] = 0.0
    chains.actions[:, ::4, :, 0] = 1.0  # what nobody did at a first row
    for gamma, first in ((0.0, 1.0), (0.5, 4 / 7)):  # (1 - gamma) gamma^k over the three rows
        found = chains.diagnostics("best", dataset.reward, gamma)
        assert found["match_distance"] == pytest.approx(3 * first + 1 - first, abs=0.06)
        assert found["action_distance"] == pytest.approx(first, abs=0.03)
        assert ("hardly support best" in warning_of("best", found, 100)) == (first > 0.5)


class First:
    """Takes one action at the common first frame, whose state is 0, and none elsewhere."""

    observation = "state"

    def __init__(self, action: float) -> None:
        self.action = action

    def draws(self, observation: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        return np.tile(np.where(observation == 0.0, self.action, 0.0), (count, 1, 1))

    def predict(self, observation: np.ndarray, *args: Any, **kwargs: Any) -> tuple[np.ndarray, Any]:
        raise AssertionError("it has draws")


def test_episodes_sorted_by_behaviour_with_one_first_frame() -> None:
    """300 episodes from one frame; the last 150 began with the action after which every step pays 1."""
    action = np.repeat([-1.0, 1.0], 150)
    taken = np.zeros((300, 31, 1))  # so many rows that topk takes the first of equals
    taken[:, 1, 0] = action
    dataset = episodes_of([np.r_[0.0, np.full(30, pays)] for pays in action > 0], [False] * 300, taken.reshape(-1, 1))
    side = np.where(np.arange(31) > 0, action[:, None], 0.0).reshape(-1, 1)
    dataset.state = side.astype(np.float32)
    noise = 0.3 * np.random.default_rng(0).normal(size=(300 * 31, 7)) * (side != 0)
    features = torch.from_numpy(np.concatenate([2 * side, noise], 1).astype(np.float32))
    policies = {"pays": First(1.0), "not": First(-1.0)}
    config = StitchingConfig(draws=2, replicates=2)
    chains = PolicyChains(dataset, policies, dataset.starts, config, 0, lambda: features)
    for name, truth in (("pays", 10.0), ("not", 0.0)):
        assert chains.values(name, dataset.reward, 0.9)[dataset.starts].mean() == pytest.approx(truth, abs=0.05)
        assert chains.diagnostics(name, dataset.reward, 0.9)["action_distance"] == 0.0


def test_starts_whose_futures_are_all_over_are_still_supported() -> None:
    dataset = episodes_of([np.array([0.0, 1.0])] * 30, [True] * 30, np.eye(A)[np.arange(60) % A])
    chains = chains_through(decisions(), dataset, np.arange(60) % 2, starts=np.array([0, 1]))
    found = chains.diagnostics("best", dataset.reward, 0.999)
    assert np.isfinite(list(found.values())).all()
    assert found["rows_used"] == 1.0
    np.testing.assert_allclose(found["match_distance"], chains.whole("best").distance[0].mean())


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"bandwidth": 0.0}, "bandwidth is 0"), ({"bandwidth": -0.2}, "bandwidth is -0.2"),
     ({"action_weight": -1.0}, "action_weight is -1"), ({"replicates": 1}, "replicates is 1; at least 2"),
     ({"replicates": 8.5}, "replicates is 8.5; a whole number"), ({"draws": 4.0}, "draws is 4.0; a whole number")],
)  # fmt: skip
def test_settings_that_would_give_wrong_numbers_are_refused(wrong: dict[str, Any], said: str) -> None:
    assert said in refusal(StitchingConfig, **wrong)


def test_what_was_logged_from_the_starts_is_told_beside_the_values() -> None:
    """1 + .8 + .64, or twice as much, of a hundred terminated episodes; nothing where a time limit cut all of them."""
    for ends in (True, False):
        rewards = [np.array([0.0, 1, 1, 1]) * (1 + i % 2) for i in range(100)]
        dataset = episodes_of(rewards, [ends] * 100, np.zeros((400, A)))
        chains = chains_through(decisions(), dataset, np.arange(400) % 4)
        found = chains.diagnostics("best", dataset.reward, GAMMA)
        assert found.get("logged") == (pytest.approx(3.66) if ends else None)
        assert found.get("logged_stderr") == (pytest.approx(1.22 / np.sqrt(99)) if ends else None)
        twice = chains.diagnostics("best", 2 * dataset.reward, GAMMA)
        assert twice.get("logged") == (pytest.approx(7.32) if ends else None)
        error = chains.error("best", dataset.reward, GAMMA)
        estimate = PolicyEstimate("best", 1.0, error, 0.9, GAMMA, "stitch", covers(), np.ones(1), found, "", ())
        said = "Logged from these starts, by whatever policies acted: 3.660 (standard error 0.123)."
        assert (said in format_estimates([estimate])) == ends
    starts = np.array([0, 1, 2])  # of one episode
    found = chains_through(decisions(), episodes_of(rewards, [True] * 100, np.zeros((400, A))), np.arange(400) % 4,
                           starts=starts).diagnostics("best", dataset.reward, GAMMA)  # fmt: skip
    assert "logged" in found
    assert "logged_stderr" not in found
