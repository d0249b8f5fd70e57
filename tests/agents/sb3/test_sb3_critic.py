"""TD3 beside a VOC's Q: gradients and Q values against what they should be, and actions that only Q can teach."""

from __future__ import annotations

import json
import math
import shutil
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from critics import GAMMA, TINY, agent, observations
from gymnasium.wrappers import DiscretizeAction, RescaleAction
from square import SIDE, Square, square_env
from stable_baselines3 import TD3
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from worlds import CELLS, one_sentence, picture

from voc_rl import VOC, VOCValueWrapper
from voc_rl.agents import ActionValues
from voc_rl.agents.sb3 import (
    VecVOCValue,
    VOCCritic,
    evaluate_policy_value,
    fill_replay_buffer,
    train_offline,
)
from voc_rl.data import Episodes
from voc_rl.envs import PixelObservation
from voc_rl.errors import VOCError
from voc_rl.plugin import codes_as_vectors
from voc_rl.quantizers import tokenize

CODES: Any = {"mode": "observation", "observe": "features_only", "features": "codes"}


@pytest.fixture
def logged(square_actions: Path) -> Path:
    return square_actions / "data"


@pytest.fixture
def voc(square_actions: Path) -> Path:
    return square_actions / "voc"


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def exact_q() -> np.ndarray:
    """Q (CELLS, 2) of staying and of going right, uniform actions afterwards."""
    right = np.roll(np.eye(CELLS), 1, 1)
    paid = (np.arange(CELLS) == CELLS - 2).astype(float)  # for going right from there
    value = np.linalg.solve(np.eye(CELLS) - GAMMA * (right + np.eye(CELLS)) / 2, paid / 2)
    return np.stack([GAMMA * value, paid + GAMMA * right @ value], 1)


def test_q_voc_is_the_q_of_the_data_in_reward_units(voc: Path) -> None:
    obs = np.concatenate([picture(np.full(3, cell), SIDE).reshape(1, 9, SIDE, SIDE) for cell in range(CELLS)])
    model = agent(voc)
    found = [model.q_voc(obs, np.full((CELLS, 1), a, np.float32))[:, 0] for a in (-0.6, 0.6)]
    np.testing.assert_allclose(torch.stack(found, 1), exact_q(), atol=0.2)


def test_no_weight_is_td3_number_for_number(voc: Path) -> None:
    plain = agent(voc, kind=TD3, gamma=GAMMA).learn(40)
    ours = agent(voc, voc_weight=0.0).learn(40)
    assert ours.gamma == GAMMA
    found = weights(ours)
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, found[name]), name
    other = agent(voc, voc_weight=1.0).learn(40)
    assert not torch.equal(weights(other)["critic.qf0.0.weight"], found["critic.qf0.0.weight"])


@pytest.mark.parametrize("weight", [0.5, 3.0])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_step_descends_td3_s_loss_plus_the_weighted_distance(
    weight: float, n_steps: int, voc: Path, logged: Path
) -> None:
    """Against the loss as it is written down, with plain gradient descent, which sees its scale."""
    policy = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {}}
    model = agent(
        voc, voc_weight=weight, n_steps=n_steps, policy=policy, policy_delay=1000, target_policy_noise=0.0,
        learning_rate=0.1,
    )  # fmt: skip
    fill_replay_buffer(model, Episodes.open(logged), say=None)
    batches: list[Any] = []
    sample = model.replay_buffer.sample
    model.replay_buffer.sample = lambda *asked: batches.append(sample(*asked)) or batches[-1]
    before = weights(model)
    train_offline(model, None, 1, progress=False)
    after = weights(model)
    model.policy.load_state_dict(before)
    model.policy.zero_grad()
    (batch,) = batches
    discounts = GAMMA if n_steps == 1 else batch.discounts
    with torch.no_grad():
        later = torch.cat(model.critic_target(batch.next_observations, model.actor_target(batch.next_observations)), 1)
        y = batch.rewards + (1 - batch.dones) * discounts * later.amin(1, keepdim=True)
        loaded = VOC.load(voc)
        drawn = ActionValues(loaded)(*loaded.context(batch.observations), batch.actions[:, None]) / (1 - GAMMA)
    loss: Any = sum(
        F.mse_loss(q, y) + weight * F.mse_loss(q, drawn) for q in model.critic(batch.observations, batch.actions)
    )
    loss.backward()
    for name, parameter in model.critic.named_parameters():
        assert parameter.grad is not None
        stepped = before[f"critic.{name}"] - 0.1 * parameter.grad / (1 + weight)
        torch.testing.assert_close(after[f"critic.{name}"], stepped, atol=1e-6, rtol=1e-4)
        assert not torch.equal(stepped, before[f"critic.{name}"])


def test_an_infinite_weight_copies_q_and_the_actor_climbs_it(voc: Path, logged: Path, tmp_path: Path) -> None:
    dataset = Episodes.open(logged)
    model = agent(voc, voc_weight=math.inf, batch_size=32, learning_rate=1e-2)
    train_offline(model, dataset, 120, progress=False, say=None)
    obs, rng = torch.from_numpy(observations(dataset)), np.random.default_rng(0)
    actions = torch.from_numpy(rng.uniform(-1, 1, (len(obs), 1)).astype(np.float32))
    exact = model.q_voc(obs, actions)
    with torch.no_grad():
        copied = torch.cat(model.critic(obs, actions), 1).mean(1, keepdim=True)
    assert (copied - exact).abs().mean() < 0.2 * exact.std()
    # the gradient that the actor follows, against differences of Q_voc (few rows: in float32)
    few = actions[:8].clone().requires_grad_()
    model.critic.q1_forward(obs[:8], few).sum().backward()
    step = 1e-2
    slope = (model.q_voc(obs[:8], few.detach() + step) - model.q_voc(obs[:8], few.detach() - step)) / (2 * step)
    torch.testing.assert_close(few.grad, slope, atol=0.02, rtol=0.02)
    assert few.grad.abs().max() > 0.1
    # only Q says that going right pays
    env = PixelObservation(Square(12), SIDE, 3)
    assert evaluate_policy(model, DummyVecEnv([lambda: env]), 4, warn=False) == (12 // CELLS, 0.0)
    model.save(tmp_path / "agent.zip")
    again = VOCCritic.load(tmp_path / "agent.zip", device="cpu")
    assert (again.voc_weight, again.gamma) == (math.inf, GAMMA)
    np.testing.assert_array_equal(again.predict(obs.numpy())[0], model.predict(obs.numpy())[0])
    assert torch.equal(again.critic.q1_forward(obs, actions), model.critic.q1_forward(obs, actions))


def test_a_saved_agent_goes_on_and_holds_no_voc(voc: Path, tmp_path: Path) -> None:
    model = agent(voc, voc_weight=2.0).learn(24)
    model.save(tmp_path / "agent.zip")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        kept = json.loads(archive.read("data"))
        assert kept["voc"] == str(voc)
        assert not [name for name in kept if "q_voc" in name]
        assert not [name for name in archive.namelist() if "voc" in name]
    moved = tmp_path / "moved"
    VOC.load(voc).save(moved)
    again = VOCCritic.load(tmp_path / "agent.zip", env=square_env(), device="cpu", voc=str(moved))
    assert (again.voc, again.voc_weight, again.gamma) == (str(moved), 2.0, GAMMA)
    found = weights(model)
    for name, tensor in weights(again).items():
        assert torch.equal(tensor, found[name]), name
    again.learn(16, reset_num_timesteps=False)
    assert again.num_timesteps == 40
    assert not torch.equal(weights(again)["critic.qf0.0.weight"], found["critic.qf0.0.weight"])


@pytest.mark.parametrize("weight", [1.0, math.inf])
def test_codes_teach_what_frames_teach(weight: float, voc: Path, logged: Path) -> None:
    """Offline, then in the environment: the same weights but for the rounding of batches of another size."""
    dataset = Episodes.open(logged)
    coded = VOCValueWrapper(square_env(), voc, **CODES)
    trained = []
    for env, policy in ((square_env(), "CnnPolicy"), (coded, "MlpPolicy")):
        model = agent(voc, env, voc_weight=weight, policy_class=policy)
        train_offline(model, dataset, 10, progress=False, say=None)
        trained.append(model.learn(20))
    frames, codes = trained
    obs = observations(dataset)
    loaded = VOC.load(voc)
    np.testing.assert_array_equal(
        codes.replay_buffer.observations[:200, 0],
        codes_as_vectors(*loaded.context(frames.replay_buffer.observations[:200, 0])).numpy(),
    )
    assert codes.replay_buffer.pos == frames.replay_buffer.pos
    actions = np.linspace(-1, 1, len(obs), dtype=np.float32)[:, None]
    rows = codes_as_vectors(*loaded.context(obs))
    torch.testing.assert_close(codes.q_voc(rows, actions), frames.q_voc(obs, actions), atol=1e-5, rtol=1e-5)
    found = weights(codes)
    for name, tensor in weights(frames).items():
        torch.testing.assert_close(tensor, found[name], atol=2e-3, rtol=1e-3)
    np.testing.assert_allclose(codes.predict(rows.numpy())[0], frames.predict(obs)[0], atol=0.01)
    seen = (
        evaluate_policy_value(codes, loaded, n_eval_episodes=2),
        evaluate_policy_value(frames, loaded, n_eval_episodes=2),
    )
    assert seen[0].predicted == pytest.approx(seen[1].predicted, abs=0.02)
    assert seen[0].realised == seen[1].realised


def test_codes_need_no_extractor_to_be_filled_in(voc: Path, logged: Path) -> None:
    coded, dataset = VOCValueWrapper(square_env(), voc, **CODES), Episodes.open(logged)
    model = VOCCritic("MlpPolicy", coded, voc=voc, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", **TINY)
    train_offline(model, dataset, 2, progress=False, say=None)
    rows = np.flatnonzero(dataset.steps_left > 0)
    assert model.replay_buffer is not None
    codes, features = tokenize(VOC.load(voc).quantizer, dataset)
    np.testing.assert_array_equal(
        model.replay_buffer.observations[: len(rows), 0], codes_as_vectors(codes, features).numpy()[rows]
    )


def test_a_moved_voc_is_named_for_the_critic_and_for_the_eyes(voc: Path, tmp_path: Path) -> None:
    here, obs = shutil.copytree(voc, tmp_path / "here"), square_env().reset(seed=0)[0]
    model = agent(here)
    model.save(tmp_path / "agent.zip")
    moved = str(here.rename(tmp_path / "moved"))
    with pytest.raises(VOCError, match="here holds no VOC"):
        VOCCritic.load(tmp_path / "agent.zip", voc=moved, device="cpu")
    policy = {**model.policy_kwargs, "features_extractor_kwargs": {"voc": moved, "features": "tokens"}}
    again = VOCCritic.load(tmp_path / "agent.zip", voc=moved, custom_objects={"policy_kwargs": policy}, device="cpu")
    assert again.voc == moved
    np.testing.assert_array_equal(again.predict(obs)[0], model.predict(obs)[0])
    assert torch.equal(again.q_voc(obs[None], np.ones((1, 1))), model.q_voc(obs[None], np.ones((1, 1))))


class NeverPlayed(gym.Wrapper):
    """The square, of which no step is taken before a refusal."""

    def reset(self, **options: Any) -> Any:
        raise AssertionError("played")


def never_played() -> gym.Env:
    return NeverPlayed(square_env())


class Other(gym.Wrapper):
    """The square with another space of actions."""

    def __init__(self, env: gym.Env, space: gym.Space) -> None:
        super().__init__(env)
        self.action_space = space


def test_bad_input_is_refused_in_a_sentence(voc: Path, square_voc: Path, logged: Path, tmp_path: Path) -> None:
    others = VOC.load(voc)
    with torch.no_grad():
        next(others.quantizer.parameters()).mul_(1.01)
    others.save(tmp_path / "others")
    headless = VOC(others.quantizer, others.occupancy, others.reward_head, None, others.gamma, others.spec)
    headless.save(tmp_path / "headless")
    foreign = VOCValueWrapper(square_env(), tmp_path / "others", **CODES)
    vectors = VecVOCValue(DummyVecEnv([square_env]), tmp_path / "others", **CODES)
    own = VecVOCValue(DummyVecEnv([square_env]), voc, **CODES)
    two = Other(square_env(), gym.spaces.Box(-1.0, 1.0, (2,), np.float32))
    wide = RescaleAction(square_env(), np.float32(-2), np.float32(2))
    small = PixelObservation(Square(), 24, 3)
    shaped = VOCValueWrapper(square_env(), square_voc, mode="shaping", gamma=GAMMA)
    saved, dataset = tmp_path / "agent.zip", Episodes.open(logged)
    agent(voc, own, policy_class="MlpPolicy").save(saved)
    reads = "this VOC reads Box(-1.0, 1.0, (1,), float32)"
    cases: list[tuple[Any, str]] = [
        (lambda: agent(voc, DiscretizeAction(square_env(), bins=3)), f"actions are Discrete(3); {reads}"),
        (lambda: agent(voc, two), f"(2,), float32); {reads}"),
        (lambda: agent(voc, wide), reads),
        (lambda: agent(voc, small), f"PixelObservation(env, size={SIDE}, stack=3) makes them"),
        (lambda: agent(square_voc), "reads no actions; train one with voc_rl.agents.train_action_voc"),
        (
            lambda: agent(tmp_path / "headless", eyes=voc),
            "train one with voc_rl.agents.train_action_voc at one discount",
        ),
        (lambda: agent(voc, gamma=0.9), "gamma is 0.9, the VOC's 0.5"),
        (lambda: agent(voc, voc_weight=-1.0), "voc_weight is -1.0"),
        (lambda: agent(voc, voc_weight=math.nan), "voc_weight is nan"),
        (lambda: agent(voc, bc_alpha=-1.0), "bc_alpha is -1.0"),
        (lambda: agent(voc, bc_alpha=math.inf), "bc_alpha is inf"),
        (lambda: agent(tmp_path, eyes=voc), "holds no VOC"),
        (lambda: agent(None, eyes=voc), "voc is NoneType"),
        (lambda: agent(VOC.load(voc), eyes=voc), "the path of its run folder is needed"),  # type: ignore[arg-type]
        (lambda: agent(voc, VecNormalize(DummyVecEnv([never_played]), norm_obs=False)).learn(12), "scales the rewards"),
        (lambda: agent(voc, shaped).learn(12), "shapes the rewards"),
        (lambda: VOCCritic("CnnPolicy", None, voc=voc), "env is None"),  # type: ignore[arg-type]
        (lambda: agent(voc, foreign, policy_class="MlpPolicy"), "codes of another VOC's quantizer"),
        (lambda: agent(voc, vectors, policy_class="MlpPolicy"), "codes of another VOC's quantizer"),
        (lambda: agent(voc, VecNormalize(own, norm_reward=False), policy_class="MlpPolicy"), "scales the codes"),
        (lambda: VOCCritic.load(saved).set_env(foreign), "codes of another VOC's quantizer"),
        (lambda: VOCCritic.load(saved, voc=str(tmp_path / "others")), "learned with another VOC than"),
        (
            lambda: fill_replay_buffer(agent(voc, foreign, TD3, policy_class="MlpPolicy"), dataset, None),
            "codes of another VOC's quantizer",
        ),
    ]
    for make, words in cases:
        with pytest.raises(VOCError) as refusal:
            make()
        assert words in str(refusal.value)
        assert one_sentence(str(refusal.value))
