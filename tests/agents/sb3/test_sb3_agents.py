"""Agents of Stable-Baselines3 with a VOC's features: they learn, and are saved and loaded without or with the VOC."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import DiscretizeAction, TransformObservation
from square import SIDE, Square, square_env
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.save_util import load_from_zip_file
from worlds import CELLS, one_sentence

from voc_rl import VOC, VOCValueWrapper
from voc_rl.agents import policy_of
from voc_rl.agents.sb3 import VOCFeaturesExtractor
from voc_rl.envs import PixelObservation
from voc_rl.errors import VOCError
from voc_rl.model_files import weights_mark
from voc_rl.plugin import open_voc

SMALL: dict[type[BaseAlgorithm], dict[str, Any]] = {
    PPO: {"n_steps": 8, "batch_size": 8, "n_epochs": 2},
    SAC: {"buffer_size": 100, "learning_starts": 8, "batch_size": 8, "gradient_steps": 2},
    TD3: {"buffer_size": 100, "learning_starts": 8, "batch_size": 8, "gradient_steps": 4, "policy_delay": 1},
    DQN: {"buffer_size": 100, "learning_starts": 8, "batch_size": 8, "gradient_steps": 2, "target_update_interval": 8},
}


def square_actions(algorithm: type[BaseAlgorithm]) -> Callable[[], gym.Env]:
    return (lambda: DiscretizeAction(square_env(), bins=3)) if algorithm is DQN else square_env


def agent(algorithm: type[BaseAlgorithm], voc: Path, envs: int = 1, **changed: Any) -> Any:
    policy = {
        "features_extractor_class": VOCFeaturesExtractor,
        "features_extractor_kwargs": {"voc": str(voc), **changed},
        "net_arch": [16],
    }
    env = make_vec_env(square_actions(algorithm), envs, seed=0)
    return algorithm(
        "CnnPolicy", env, policy_kwargs=policy, learning_rate=3e-3, seed=0, device="cpu", **SMALL[algorithm]
    )


def real_observations() -> np.ndarray:
    """uint8 (12, 9, 36, 36): two episodes of a walk that now and then stays."""
    env, rng, seen = square_env(limit=5), np.random.default_rng(0), []
    for seed in (0, 1):
        seen.append(env.reset(seed=seed)[0])
        seen += [env.step(rng.uniform(-0.3, 1, 1).astype(np.float32))[0] for _ in range(5)]
    return np.array(seen)


def answers(model: Any, obs: np.ndarray) -> np.ndarray:
    """Deterministic actions, one row per observation; for DQN, whose actions hardly differ, its values beside them."""
    actions = model.predict(obs, deterministic=True)[0]
    if not isinstance(model, DQN):
        return actions
    with torch.no_grad():
        return np.column_stack([actions, model.q_net(torch.from_numpy(obs)).numpy()])


def extractors(model: Any) -> dict[str, VOCFeaturesExtractor]:
    found = model.policy.named_modules()
    return {name: part for name, part in found if isinstance(part, VOCFeaturesExtractor)}


def fingerprints(folder: Path) -> list[str]:
    """Of the files of a run folder, and of the VOC that the process shares."""
    voc = open_voc(folder)
    files = [sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())]
    return files + [weights_mark(part) for part in (voc.quantizer, voc.occupancy, voc.reward_head, voc.value_head)]


def saved_policy(path: Path) -> dict[str, torch.Tensor]:
    with zipfile.ZipFile(path) as archive, archive.open("policy.pth") as file:
        return torch.load(file, weights_only=True)


@pytest.mark.parametrize("envs", [1, 4])
@pytest.mark.parametrize("algorithm", list(SMALL))
def test_a_saved_agent_acts_the_same_and_holds_no_voc(
    algorithm: type[BaseAlgorithm], envs: int, square_voc: Path, tmp_path: Path
) -> None:
    before, obs = fingerprints(square_voc), real_observations()
    model = agent(algorithm, square_voc, envs)
    untrained = answers(model, obs)
    model.learn(40)
    found = answers(model, obs)
    assert len(np.unique(found, axis=0)) > 3
    assert not np.array_equal(found, untrained)  # a file without what was learned would fail below
    path = tmp_path / "agent.zip"
    model.save(path)
    np.testing.assert_array_equal(answers(algorithm.load(path, device="cpu"), obs), found)

    kept = load_from_zip_file(path, device="cpu")[0]
    assert kept["policy_kwargs"]["features_extractor_kwargs"] == {"voc": str(square_voc)}
    names = list(saved_policy(path))
    assert names
    assert not [name for name in names if "features_extractor" in name and not name.endswith(".voc_mark")]
    assert len(extractors(model)) >= 1
    # what Stable-Baselines3 keeps of the last step are whole frames
    model.save(path, exclude=["_last_obs", "_last_original_obs"])
    assert path.stat().st_size < sum(file.stat().st_size for file in square_voc.glob("*.safetensors"))
    assert fingerprints(square_voc) == before


# where the copies are, and how many of them have weights of their own
COPIES: dict[type[BaseAlgorithm], tuple[set[str], int]] = {
    PPO: ({"features_extractor"}, 1),
    SAC: ({"actor.features_extractor", "critic.features_extractor", "critic_target.features_extractor"}, 3),
    TD3: (
        {f"{part}{target}.features_extractor" for part in ("actor", "critic") for target in ("", "_target")},
        4,
    ),
}


@pytest.mark.parametrize("algorithm", list(COPIES))
def test_a_fine_tuned_voc_learns_and_is_saved(algorithm: type[BaseAlgorithm], square_voc: Path, tmp_path: Path) -> None:
    before, obs = fingerprints(square_voc), real_observations()
    start = weights_mark(VOC.load(square_voc).occupancy)
    model = agent(algorithm, square_voc, frozen=False)
    names, different = COPIES[algorithm]
    assert set(extractors(model)) == names
    # PPO initialises what it finds orthogonally; the VOC has to be spared
    assert {weights_mark(part.trained) for part in extractors(model).values()} == {start}
    untrained = answers(model, obs)
    model.learn(40)
    marks = {name: weights_mark(part.trained) for name, part in extractors(model).items()}
    assert start not in marks.values()
    assert len(set(marks.values())) == different
    assert len({weights_mark(part.voc.quantizer) for part in extractors(model).values()}) == 1
    found = answers(model, obs)
    assert not np.array_equal(found, untrained)

    path = tmp_path / "agent.zip"
    model.save(path)
    saved = saved_policy(path)
    for name in names:
        for weight, tensor in extractors(model)[name].trained.state_dict().items():
            assert torch.equal(saved[f"{name}.trained.{weight}"], tensor)
    again = algorithm.load(path, device="cpu")
    assert {name: weights_mark(part.trained) for name, part in extractors(again).items()} == marks
    np.testing.assert_array_equal(answers(again, obs), found)
    assert fingerprints(square_voc) == before


def test_fine_tuned_tokens_move_the_encoder_only(square_voc: Path) -> None:
    model = agent(PPO, square_voc, features="tokens", frozen=False)
    model.learn(40)
    start, (tuned,) = VOC.load(square_voc), extractors(model).values()
    assert weights_mark(tuned.voc.quantizer.encoder) != weights_mark(start.quantizer.encoder)
    for name in ("trunk", "upsample", "to_pixels"):
        assert weights_mark(getattr(tuned.voc.quantizer, name)) == weights_mark(getattr(start.quantizer, name))
    assert weights_mark(tuned.voc.occupancy) == weights_mark(start.occupancy)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_training_leaves_the_voc_in_evaluation_mode(
    algorithm: type[BaseAlgorithm], frozen: bool, square_voc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[tuple[bool, bool]] = []
    asked = VOCFeaturesExtractor.forward

    def note(self: VOCFeaturesExtractor, observations: torch.Tensor) -> torch.Tensor:
        parts = [*self.voc.quantizer.modules(), *self.voc.occupancy.modules()]
        modes.append((self.training, any(part.training for part in parts)))
        return asked(self, observations)

    monkeypatch.setattr(VOCFeaturesExtractor, "forward", note)
    agent(algorithm, square_voc, frozen=frozen).learn(24)
    assert set(modes) == {(True, False), (False, False)}  # in training and in acting


@pytest.mark.parametrize("algorithm", list(SMALL))
def test_a_voc_that_was_trained_anew_does_not_change_an_agent(
    algorithm: type[BaseAlgorithm], square_voc: Path, tmp_path: Path
) -> None:
    """Refused, unless what changed is saved with the agent, or not what its features come from."""
    folder, obs, path = tmp_path / "voc", real_observations(), tmp_path / "agent.zip"
    for changed, kwargs, refused in (
        ("occupancy", {}, True),
        ("occupancy", {"features": "tokens"}, False),
        ("occupancy", {"frozen": False}, False),
        ("quantizer", {"features": "tokens"}, True),
        ("quantizer", {"frozen": False}, True),
        ("quantizer", {"features": "tokens", "frozen": False}, False),
    ):
        voc = VOC.load(square_voc)
        voc.save(folder)
        model = agent(algorithm, folder, **kwargs)
        model.save(path)
        with torch.no_grad():
            next(getattr(voc, changed).parameters()).add_(0.5)
        voc.save(folder)
        if refused:
            with pytest.raises(VOCError, match="learned on another VOC than") as refusal:
                algorithm.load(path, device="cpu")
            assert one_sentence(str(refusal.value))
        else:
            np.testing.assert_array_equal(answers(algorithm.load(path, device="cpu"), obs), answers(model, obs))
    before_marks = {name: part for name, part in saved_policy(path).items() if not name.endswith("voc_mark")}
    model.policy.load_state_dict(before_marks)


def test_only_an_agent_of_the_flat_state_is_read_without_stable_baselines3(square_voc: Path, tmp_path: Path) -> None:
    """A dictionary's parts have no weights: by its tensors that agent is an actor of a state."""
    eyes = {"features_extractor_class": VOCFeaturesExtractor, "features_extractor_kwargs": {"voc": str(square_voc)}}
    coded = VOCValueWrapper(square_env(), square_voc, "observation", observe="features_only", features="codes")
    parts = TransformObservation(Square(), lambda o: {"a": o}, gym.spaces.Dict({"a": Square().observation_space}))

    def saved(policy: str, env: gym.Env, **kwargs: Any) -> SAC:
        model = SAC(policy, env, policy_kwargs={"net_arch": [8, 8], **kwargs}, buffer_size=10, seed=0, device="cpu")
        model.save(tmp_path / "agent.zip")
        return model

    for policy, env, kwargs in (
        ("CnnPolicy", square_env(), eyes), ("MlpPolicy", coded, eyes), ("MultiInputPolicy", parts, {}),
    ):  # fmt: skip
        saved(policy, env, **kwargs)
        with pytest.raises(VOCError, match=r"of the flat state.*; load it with Stable-Baselines3") as refusal:
            policy_of(str(tmp_path / "agent.zip"))
        assert one_sentence(str(refusal.value))
    model, states = saved("MlpPolicy", Square()), np.arange(5, dtype=np.float32)[:, None]
    found = policy_of(str(tmp_path / "agent.zip")).predict(states, deterministic=True)[0]
    np.testing.assert_allclose(found, model.predict(states, deterministic=True)[0], atol=1e-6)


class Turned(gym.ActionWrapper):
    """Left is right wherever the column's number is even: nobody gets round without seeing where the square is."""

    def action(self, action: np.ndarray) -> np.ndarray:
        square: Any = self.unwrapped
        return action if square.cell % 2 else -action


def blind_return(right: float, limit: int) -> float:
    """Exact mean return in ``Turned`` of going right with one probability everywhere."""
    go = np.array([1 - right if cell % 2 == 0 else right for cell in range(CELLS)])
    where, total = np.array([1.0] * (CELLS - 1) + [0.0]) / (CELLS - 1), 0.0
    for _ in range(limit):
        total += where[CELLS - 2] * go[CELLS - 2]
        where = where * (1 - go) + np.roll(where * go, 1)
    return total


def test_ppo_learns_what_only_the_features_tell(square_voc: Path) -> None:
    limit = 12
    best, blind = limit // CELLS, max(blind_return(right, limit) for right in np.linspace(0, 1, 101))
    assert blind < 0.6 * best
    env = make_vec_env(lambda: PixelObservation(Turned(Square(limit)), SIDE, 3), 4, seed=0)
    policy = {
        "features_extractor_class": VOCFeaturesExtractor,
        "features_extractor_kwargs": {"voc": square_voc},
        "net_arch": [32],
    }
    model = PPO(
        "CnnPolicy", env, n_steps=64, batch_size=64, n_epochs=8, learning_rate=3e-3, gamma=0.8, policy_kwargs=policy,
        seed=0, device="cpu",
    )  # fmt: skip
    before, _ = evaluate_policy(model, env, 12)
    model.learn(2048)
    after, spread = evaluate_policy(model, env, 12)
    assert before < 0.6 * best
    assert (after, spread) == (best, 0.0)  # from every column, the most that the steps allow
