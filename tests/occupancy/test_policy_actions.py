"""What policies would do at the logged rows: rows and draws in their places, one pass where a policy offers it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from predicting import DrawsOnce, Predicts
from small import SPEC, toy_dataset, toy_episode
from worlds import refusal

from voc_rl.agents import NoisyPolicy
from voc_rl.agents.behaviour import Deterministic
from voc_rl.data import Episodes, write_episode
from voc_rl.errors import VOCError
from voc_rl.occupancy import policy_actions
from voc_rl.policy import observation_of


class Draws(Predicts):
    """Draw m is 3 m further: out of the range from the first on."""

    def draws(self, observation: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        return self._act(observation) + 3.0 * np.arange(count)[:, None, None]


def test_rows_and_draws_are_in_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = toy_dataset(tmp_path, (5, 6))
    monkeypatch.setattr(sys.modules["voc_rl.occupancy.policy_actions"], "ROWS_AT_ONCE", 4)
    place = dataset.observations(np.arange(11))[:, -3:].mean((1, 2, 3)) / 255
    assert len(np.unique(place)) == 11
    one_pass, passes = Draws(), Predicts()
    found = policy_actions([one_pass, passes], dataset, 3, np.random.default_rng(0))
    assert found.shape == (2, 11, 3, 2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0, :, 0, 0], place, rtol=1e-6)
    np.testing.assert_array_equal(found[0, :, 1:], 1.0)  # clipped
    assert one_pass.passes == 3  # of 4, 4 and 3 rows, whatever the number of draws
    np.testing.assert_allclose(found[1, :, :, 0], place[:, None].repeat(3, 1), rtol=1e-6)
    assert passes.passes == 9
    np.testing.assert_allclose(found[1, :4, :, 1], [[0.01, 0.02, 0.03]] * 4, rtol=1e-6)


def test_a_policy_of_single_draws_is_asked_for_each(tmp_path: Path) -> None:
    dataset, policy = toy_dataset(tmp_path, (5, 6)), DrawsOnce()
    found = policy_actions([policy], dataset, 3, np.random.default_rng(0))[0]
    again, rng = DrawsOnce(), np.random.default_rng(0)
    for m in range(3):
        expected = np.clip(again.draw(dataset.observations(np.arange(11)), rng), -1, 1)
        np.testing.assert_allclose(found[:, m], expected, rtol=1e-6)
    assert policy.passes == 3


def test_draws_of_another_number_are_refused(tmp_path: Path) -> None:
    class Fewer(Draws):
        def draws(self, observation: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
            return super().draws(observation, count, rng)[1:]

    with pytest.raises(VOCError, match=r"gave actions of shape \(2, 11, 2\); \(3, 11, 2\) is needed"):
        policy_actions([Fewer()], toy_dataset(tmp_path, (5, 6)), 3, np.random.default_rng(0))


class TorchNoise(Predicts):
    """Acts by PyTorch's global random numbers, as Stable-Baselines3's models do."""

    def _act(self, observation: np.ndarray) -> np.ndarray:
        return torch.rand(len(observation), 2).numpy()


def test_noise_of_predict_follows_the_seed_and_disturbs_nothing(tmp_path: Path) -> None:
    dataset, policy = toy_dataset(tmp_path, (5, 6)), TorchNoise()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = policy_actions([policy, DrawsOnce()], dataset, 3, np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    again = policy_actions([policy, DrawsOnce()], dataset, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(first, again)
    twice = policy_actions([policy, policy], dataset, 3, np.random.default_rng(1))
    assert len(np.unique([first[0], *twice])) == 3 * first[0].size  # other seeds, policies and draws: other noise
    # a policy that draws from the generator has the numbers that it has alone
    alone = policy_actions([DrawsOnce()], dataset, 3, np.random.default_rng(0))[0]
    np.testing.assert_array_equal(first[1], alone)


class Recurrent(Predicts):
    """Counts the steps of an episode."""

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        return self._act(observation), 1 if state is None else state + 1


class ActionsAlone(Predicts):
    def predict(self, observation: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        return self._act(observation)


def test_a_recurrent_policy_is_not_asked_row_by_row(tmp_path: Path) -> None:
    dataset = toy_dataset(tmp_path, (5, 6))
    for policy in (Recurrent(), Deterministic(Recurrent()), NoisyPolicy(Recurrent(), 0.1)):
        said = refusal(policy_actions, [policy], dataset, 3, np.random.default_rng(0))
        assert "recurrent policies cannot be asked row by row" in said
    assert Deterministic(Recurrent()).predict(dataset.observations(np.arange(2)), 4)[1] == 5  # it may act
    said = refusal(policy_actions, [ActionsAlone()], dataset, 3, np.random.default_rng(0))
    assert "has to return (actions, None)" in said


class Space:
    """A policy with a space alone, and gradients in its actions, as a network's."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.observation_space, self.weight = SimpleNamespace(shape=shape), torch.ones(2, requires_grad=True)

    def predict(self, observation: np.ndarray, deterministic: bool = False) -> tuple[torch.Tensor, None]:
        return torch.from_numpy(observation).flatten(1)[:, :1] * 0 + 0.5 * self.weight, None


def test_policies_are_shown_what_their_space_is(tmp_path: Path) -> None:
    dataset = toy_dataset(tmp_path, (4, 3))
    for shape in (dataset.observation_shape, dataset.state.shape[1:]):
        drawn = policy_actions([Space(shape)], dataset, 3, np.random.default_rng(0))
        np.testing.assert_array_equal(drawn, np.full((1, len(dataset), 3, 2), 0.5, np.float32))
    for shape, what in (((7,), "states"), ((3, 5, 5), "stacked frames")):
        for policy in (Space(shape), NoisyPolicy(Space(shape), 0.1), Deterministic(Space(shape))):
            said = refusal(policy_actions, [policy], dataset, 3, np.random.default_rng(0))
            assert f"was made for observations of shape {shape}, these data hold {what} of shape" in said


def test_an_object_around_an_agent_says_itself_what_it_sees(tmp_path: Path) -> None:
    dataset = toy_dataset(tmp_path, (4, 3))

    class Asks(Predicts):
        """Keeps an agent of what is no observation of the data, and shows it that."""

        policy = Space((7,))

    assert policy_actions([Asks()], dataset, 2, np.random.default_rng(0)).shape == (1, len(dataset), 2, 2)


def test_agents_of_other_scales_are_refused(tmp_path: Path) -> None:
    dataset = toy_dataset(tmp_path, (4, 3))
    agent: Any = Space(dataset.state.shape[1:])
    agent.action_space = SimpleNamespace(low=np.full(2, -1.0), high=np.full(2, 1.0))
    agent.get_vec_normalize_env = lambda: SimpleNamespace(norm_obs=False)
    assert policy_actions([agent], dataset, 2, np.random.default_rng(0)).shape == (1, len(dataset), 2, 2)
    for bound in (0.4, 2.0):  # .4 would be in [-1, 1], and be read as less than a half of what is meant
        agent.action_space = SimpleNamespace(low=np.full(2, -bound), high=np.full(2, bound))
        for ask in (
            lambda: policy_actions([agent], dataset, 2, np.random.default_rng(0)),
            lambda: NoisyPolicy(agent, 0.1),
        ):
            assert "give an object whose `predict` rescales them to that (agent.policy.scale_action" in refusal(ask)
    agent.action_space = SimpleNamespace(n=5)
    agent.get_vec_normalize_env = lambda: SimpleNamespace(norm_obs=True)
    assert "learned under VecNormalize" in refusal(policy_actions, [agent], dataset, 2, np.random.default_rng(0))


class Always:
    """Answers every row by the same numbers."""

    observation = "state"

    def __init__(self, *action: float) -> None:
        self.action = action

    def predict(self, observation: np.ndarray, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        return np.broadcast_to(np.array(self.action, np.float32), (*observation.shape[:-1], len(self.action))), None


def test_actions_of_another_scale_are_refused_whatever_is_around_the_policy(tmp_path: Path) -> None:
    """Clipped, they would be another policy's: it would be valued, or recorded, without a word."""
    dataset = toy_dataset(tmp_path, (5, 6))
    for wrong, words in ((1.5, "1.5"), (-2.0, "-2"), (np.nan, "nan")):
        policy = Always(0.5, wrong)
        for asked in (policy, Deterministic(policy), NoisyPolicy(policy, 0.1)):
            said = refusal(policy_actions, [asked], dataset, 3, np.random.default_rng(0))
            assert f"gave the action {words}; numbers from -1 to 1 are needed, so rescale them" in said
        said = refusal(NoisyPolicy(policy, 0.1).sample, np.zeros(3, np.float32), np.random.default_rng(0))
        assert f"gave the action {words}; numbers from -1 to 1 are needed" in said
    found = policy_actions([Always(1.0, -1.0)], dataset, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(found, np.broadcast_to([1.0, -1.0], found.shape))


def test_chances_of_discrete_actions_are_no_actions(tmp_path: Path) -> None:
    choices = np.eye(2, dtype=np.float32)[[0, 1, 1, 0]]
    episode = replace(toy_episode(0, 5), action=np.concatenate([np.zeros((1, 2), np.float32), choices]))
    write_episode(tmp_path / "0.hdf5", episode, SPEC)
    dataset = Episodes.open(tmp_path)
    for policy in (Always(0.5, 0.5), Always(1.0, 1.0), NoisyPolicy(Always(0.0, 1.0), 0.1)):
        said = refusal(policy_actions, [policy], dataset, 3, np.random.default_rng(0))
        assert "gave actions that are not one-hot, as the data's are, which are discrete; one choice a row" in said
    found = policy_actions([Always(0.0, 1.0)], dataset, 3, np.random.default_rng(0))
    np.testing.assert_array_equal(found, np.broadcast_to([0.0, 1.0], found.shape))


class Network(torch.nn.Module):
    """A network as it is made: in training mode, with dropout and statistics of batches in it."""

    observation = "state"

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(width, 2), torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5))
        self.layers[1].running_mean.fill_(0.3)
        self.layers[1].eval()

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        return torch.tanh(self.layers(torch.from_numpy(observation))).numpy(), state


class Around:
    """An object that keeps a network."""

    observation = "state"

    def __init__(self, network: Network) -> None:
        self.network = network

    def predict(self, observation: np.ndarray, deterministic: bool = False) -> tuple[np.ndarray, Any]:
        return self.network.predict(observation)


class AroundDraws(Around):
    def draws(self, observation: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        return np.stack([self.predict(observation)[0]] * count)


class AroundDraw(Around):
    def draw(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.predict(observation)[0]


@pytest.mark.parametrize("kind", [lambda own: own, Around, AroundDraws, AroundDraw, Deterministic])
def test_networks_act_in_eval_mode_and_are_left_as_they_were(tmp_path: Path, kind: Any) -> None:
    dataset, network = toy_dataset(tmp_path, (5, 6)), Network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    assert modes == [True, True, True, False, True]
    found = policy_actions([kind(network)], dataset, 3, np.random.default_rng(0))
    assert [module.training for module in network.modules()] == modes
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with torch.no_grad():
        expected = network.eval().predict(dataset.state)[0]
    np.testing.assert_allclose(found[0], expected[:, None].repeat(3, 1), rtol=1e-5)


class ThreeFrames(Predicts):
    """Knows stacks of three frames alone."""

    def predict(self, observation: np.ndarray, *args: Any, **kwargs: Any) -> tuple[np.ndarray, Any]:
        return torch.nn.Conv2d(9, 2, 2)(torch.from_numpy(observation).float()).flatten(1).numpy(), None


class ObservationAlone(Predicts):
    def predict(self, observation: np.ndarray) -> Any:  # type: ignore[override]
        return self._act(observation), None


class DrawsWithoutNumbers(Predicts):
    def draws(self, observation: np.ndarray) -> np.ndarray:
        return self._act(observation)


def test_a_policy_that_fails_is_refused_in_one_sentence(tmp_path: Path) -> None:
    dataset = toy_dataset(tmp_path, (5, 6), stack=2)
    usual = "predict(observation, state=None, episode_start=None, deterministic=False) is needed."
    for policy, reason, needed in (
        (
            ThreeFrames(),
            "RuntimeError: Given groups=1, weight of size [2, 9, 2, 2], expected input[11, 6, 2, 2]",
            usual,
        ),
        (ObservationAlone(), "TypeError: ObservationAlone.predict() got an unexpected keyword", usual),
        (DrawsWithoutNumbers(), "TypeError: ", "draws(observation, count, rng) is needed."),
    ):
        for given in (policy, *([] if needed != usual else [Deterministic(policy), NoisyPolicy(policy, 0.1)])):
            said = refusal(policy_actions, [given], dataset, 3, np.random.default_rng(0))
            assert f"could not act on uint8 (11, 6, 2, 2), stack 2 ({reason}" in said
            assert said.endswith(needed)
    with pytest.raises(VOCError) as caught:
        policy_actions([ThreeFrames()], dataset, 3, np.random.default_rng(0))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_refusals_name_a_policy_in_one_line(tmp_path: Path) -> None:
    dataset, network = toy_dataset(tmp_path, (5, 6)), Network(width=4)
    said = refusal(policy_actions, [network], dataset, 3, np.random.default_rng(0))
    assert said.startswith("Network could not act on float32 (11, 3) (RuntimeError: ")
    noisy = NoisyPolicy(network, 0.1)
    noisy.observation_space = SimpleNamespace(shape=(4,))
    said = refusal(policy_actions, [noisy], dataset, 3, np.random.default_rng(0))
    assert said.startswith("NoisyPolicy was made for observations of shape (4,)")


def test_what_a_policy_observes_has_to_be_said() -> None:
    policy: Any = SimpleNamespace(predict=lambda observation: None)
    assert "has no attribute `observation`; give it one, 'state' or 'pixels'." in refusal(observation_of, policy)
    policy.observation = "frames"
    assert "says that it observes 'frames'" in refusal(observation_of, policy)
    space = gym.spaces.Dict({"place": gym.spaces.Box(-1, 1, (2,)), "goal": gym.spaces.Box(-1, 1, (2,))})
    agent: Any = SimpleNamespace(predict=lambda observation: None, observation_space=space)
    said = refusal(observation_of, agent)
    assert "observes several things (goal, place), and Dict observations are not supported" in said
    assert "gymnasium.wrappers.FlattenObservation" in said
    agent.observation = "state"
    assert observation_of(agent) == "state"
