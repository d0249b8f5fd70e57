"""Values of the states that an agent visits beside what it really gets there, against a plan and by hand."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from corridor import GAMMA, PLAN, STATES, Corridor, Walk, mean_of, plan_of, table_voc
from gymnasium.vector import SyncVectorEnv
from square import SIDE, Square, square_env
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from worlds import CELLS, one_sentence, picture

from voc_rl import VOC
from voc_rl.agents import NoisyPolicy
from voc_rl.agents.sb3 import PolicyValue, VecVOCValue, VOCFeaturesExtractor, evaluate_policy_value
from voc_rl.envs import PixelObservation, VOCValueWrapper
from voc_rl.errors import VOCError

VALUES = np.random.default_rng(6).normal(size=STATES)


class Scripted:
    """Stands for an agent: one action for all, and a note of how it was asked."""

    def __init__(self, action: float = 0.0, env: VecEnv | None = None) -> None:
        self.action, self.env = action, env
        self.asked: list[tuple[Any, list[bool], bool]] = []

    def get_env(self) -> VecEnv | None:
        return self.env

    def predict(self, obs: Any, state: Any, episode_start: np.ndarray, deterministic: bool) -> Any:
        self.asked.append((state, episode_start.tolist(), deterministic))
        return np.full((len(episode_start), 1), self.action, np.float32), len(self.asked)


def evaluate(model: Any, *args: Any, **kwargs: Any) -> PolicyValue:
    return evaluate_policy_value(model, *args, **kwargs)


def corridors(plans: list[list[Walk]]) -> VecEnv:
    return DummyVecEnv([lambda plan=plan: Corridor(plan) for plan in plans])


def check(found: PolicyValue, walks: list[Walk]) -> None:
    numbers = asdict(found)
    assert {name: numbers[name] for name in mean_of(walks, VALUES)} == pytest.approx(mean_of(walks, VALUES), abs=1e-5)
    assert found.states == sum(len(walk.known(VALUES, walks)[0]) for walk in walks)
    assert found.episodes == sum(len(walk.known(VALUES, walks)[0]) > 0 for walk in walks)
    assert found.episode_return == pytest.approx(np.mean([sum(walk.rewards) for walk in walks]), abs=1e-5)
    assert found.gamma == GAMMA


@pytest.mark.parametrize("episodes", [2, 5, 7])
def test_one_environment(episodes: int) -> None:
    found = evaluate(Scripted(), table_voc(VALUES), corridors([PLAN]), episodes)
    check(found, (2 * PLAN)[:episodes])


@pytest.mark.parametrize(("episodes", "quota"), [(4, (1, 1, 1, 1)), (6, (1, 1, 2, 2)), (3, (0, 1, 1, 1))])
def test_four_environments_share_the_episodes(episodes: int, quota: tuple[int, ...]) -> None:
    """Plans of very different lengths: whoever is faster gives no more than its share."""
    plans = [plan_of(i) for i in (0, 1, 4, 2)]
    found = evaluate(Scripted(), table_voc(VALUES), corridors(plans), episodes)
    check(found, [walk for plan, count in zip(plans, quota, strict=True) for walk in plan[:count]])


def test_shaped_rewards_are_replaced_by_the_raw_ones() -> None:
    voc = table_voc(VALUES)
    env = VecVOCValue(corridors([plan_of(i) for i in range(4)]), voc, mode="shaping", gamma=0.8)
    check(evaluate(Scripted(), voc, env, 8), [walk for i in range(4) for walk in plan_of(i)[:2]])


@pytest.mark.parametrize("scaled", [False, True])
def test_scaled_rewards_are_read_as_they_were(scaled: bool) -> None:
    env = VecNormalize(corridors([plan_of(i) for i in range(4)]), norm_obs=False, norm_reward=scaled)
    check(evaluate(Scripted(), table_voc(VALUES), env, 8), [walk for i in range(4) for walk in plan_of(i)[:2]])


def test_a_plain_environment_is_as_good_as_a_vector_of_one() -> None:
    check(evaluate(Scripted(), table_voc(VALUES), Corridor(PLAN), 5), PLAN)


def test_frames_whose_channels_come_last_are_turned_round(square_voc: Path) -> None:
    """As Stable-Baselines3 does for the agent's own environment."""

    def last() -> gym.Env:
        space = gym.spaces.Box(0, 255, (SIDE, SIDE, 9), np.uint8)
        return gym.wrappers.TransformObservation(square_env(), lambda o: o.transpose(1, 2, 0), space)

    found = evaluate(Scripted(1.0), square_voc, make_vec_env(last, 2, seed=3), 4)
    assert found == evaluate(Scripted(1.0), square_voc, make_vec_env(square_env, 2, seed=3), 4)
    assert evaluate(Scripted(1.0), square_voc, last(), 2).episode_return == 3.0


def test_frames_made_in_another_way_are_remarked_on(square_voc: Path) -> None:
    env = make_vec_env(lambda: square_env(12), 1)
    env.envs[0].unwrapped.data_spec = replace(VOC.load(square_voc).spec, task="another", action_repeat=3)
    with pytest.warns(UserWarning, match="was trained with task 'square', the environment has 'another'"):
        evaluate(Scripted(1.0), square_voc, env, 2)


def test_the_agent_is_asked_as_predict_wants_it() -> None:
    model = Scripted()
    evaluate(model, table_voc(VALUES), corridors([PLAN]), 2, deterministic=False)
    lengths = [walk.steps for walk in PLAN[:2]]
    starts = [[t in (0, lengths[0])] for t in range(sum(lengths))]
    assert model.asked == [(t or None, start, False) for t, start in enumerate(starts)]


def worth(cell: int, steps: int) -> float:
    """Discounted return of going right for so many steps."""
    return sum(GAMMA ** (k - 1) for k in range(1, steps + 1) if (cell + k) % CELLS == CELLS - 1)


def test_the_square_by_hand(square_voc: Path) -> None:
    """An agent that always goes right: returns by counting, values of frames that are drawn here."""
    limit, known = 12, 6  # gamma 0.5 needs seven steps: t = 0..5
    env = make_vec_env(lambda: square_env(limit), 1, seed=3)
    first = make_vec_env(lambda: square_env(limit), 1, seed=3)
    cells = []
    for _ in range(5):  # resets draw the start columns, and nothing else draws
        first.reset()
        cells.append(first.envs[0].unwrapped.cell)
    found = evaluate(Scripted(1.0), square_voc, env, 5)
    voc = VOC.load(square_voc)
    realised = [worth(cell + t, limit - t) / (1 - 0.5 ** (limit - t)) for cell in cells for t in range(known)]
    assert found.realised == pytest.approx(np.mean(realised), abs=1e-6)
    paths = [np.maximum(np.arange(t - 2, t + 1), 0) + cell for cell in cells for t in range(known)]
    frames = np.stack([picture(path % CELLS, SIDE).reshape(9, SIDE, SIDE) for path in paths])
    assert found.predicted == pytest.approx(np.mean([voc.value(one[None]).mean for one in frames]), abs=1e-5)
    assert found.gap == pytest.approx(found.realised - found.predicted)
    assert (found.episode_return, found.states, found.episodes) == (3.0, 5 * known, 5)
    assert len(set(cells)) > 1

    ends = make_vec_env(lambda: square_env(limit, ends=True), 2, seed=3)
    found = evaluate(Scripted(1.0), square_voc, ends, 8)
    assert found.episode_return == 1.0  # the last column ends it
    assert 8 <= found.states <= 8 * (CELLS - 1)
    still = evaluate(Scripted(-1.0), square_voc, env, 2, estimator="sample")
    assert (still.realised, still.episode_return) == (0.0, 0.0)
    assert still.predicted > 0.1  # the data's policy walks on
    assert still.gap == -still.predicted


def test_an_agent_with_an_environment_of_its_own(square_voc: Path) -> None:
    policy = {
        "features_extractor_class": VOCFeaturesExtractor,
        "features_extractor_kwargs": {"voc": square_voc},
        "net_arch": [8],
    }
    env = make_vec_env(square_env, 4, seed=0)
    model = PPO("CnnPolicy", env, n_steps=8, batch_size=8, policy_kwargs=policy, seed=0, device="cpu")
    with_own = evaluate_policy_value(model, square_voc, n_eval_episodes=8)
    again = evaluate_policy_value(model, square_voc, make_vec_env(square_env, 4, seed=0), n_eval_episodes=8)
    assert with_own == again
    assert with_own.gap == pytest.approx(with_own.realised - with_own.predicted)
    assert (with_own.states, with_own.episodes) == (8 * 6, 8)
    model.learn(16)
    evaluate_policy_value(model, square_voc, n_eval_episodes=4)
    seen = model._last_obs  # a later learn() goes on from where the environment stands now
    np.testing.assert_array_equal(seen[:, -3:], [np.moveaxis(inner.render(), 2, 0) for inner in env.envs])
    model.learn(16, reset_num_timesteps=False)


def test_the_agents_own_environment_as_it_was_given() -> None:
    """A later learn() goes on from where that environment stands, which another vector of it has played."""
    env = Corridor(PLAN)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, policy_kwargs={"net_arch": [4]}, seed=0, device="cpu")
    model.learn(8)
    evaluate_policy_value(model, table_voc(VALUES), env, 2)
    np.testing.assert_array_equal(model._last_obs, env._frame()[None])  # type: ignore[arg-type]
    assert model._last_episode_starts.all()
    model.learn(8, reset_num_timesteps=False)
    before = model._last_obs
    evaluate_policy_value(model, table_voc(VALUES), Corridor(PLAN), 2)  # another one is not the agent's
    assert model._last_obs is before


class Notes(Scripted):
    """An agent that says what it looks at, and keeps what it was shown."""

    def __init__(self, space: gym.Space[Any] | None, kind: str | None = None) -> None:
        super().__init__(1.0)
        self.shown: list[Any] = []
        if space is not None:
            self.observation_space = space
        if kind is not None:
            self.observation = kind

    def predict(self, obs: Any, *rest: Any) -> Any:
        self.shown.append(obs)
        return super().predict(obs, *rest)


def test_an_agent_sees_the_part_of_a_dict_that_it_was_made_for(square_voc: Path) -> None:
    def both() -> gym.Env:
        return PixelObservation(Square(), SIDE, 3, render_only=False)

    state, pixels, whole = Square().observation_space, square_env().observation_space, both().observation_space
    expected = evaluate(Scripted(1.0), square_voc, make_vec_env(square_env, 2, seed=3), 4)
    for agent, shape in (
        (Notes(state), (2, 1)), (Notes(None, "state"), (2, 1)), (Notes(pixels), (2, 9, SIDE, SIDE)),
        (Notes(whole), None),
    ):  # fmt: skip
        assert evaluate(agent, square_voc, make_vec_env(both, 2, seed=3), 4) == expected
        assert all(isinstance(obs, dict) if shape is None else obs.shape == shape for obs in agent.shown)
    for agent in (Notes(state), Notes(None, "state")):
        with pytest.raises(
            VOCError, match=r"the environment shows Box.*; PixelObservation\(env, render_only=False\)"
        ) as no:
            evaluate(agent, square_voc, square_env(), 2)
        assert one_sentence(str(no.value))


def test_an_agent_of_the_state_learns_from_what_a_voc_of_frames_pays(square_voc: Path) -> None:
    """As docs/wrappers_and_agents.md shows; its log holds the returns that the environment pays."""
    inner = Square()
    both = PixelObservation(Monitor(inner), SIDE, 3, render_only=False)
    shaped = VOCValueWrapper(both, square_voc, mode="shaping", gamma=0.9)
    env: Any = gym.wrappers.TransformObservation(shaped, lambda seen: seen["state"], inner.observation_space)
    model = PPO("MlpPolicy", env, n_steps=24, batch_size=24, n_epochs=1, seed=0, device="cpu").learn(24)
    assert model.ep_info_buffer is not None
    assert {float(ended["r"]) for ended in model.ep_info_buffer} <= {0.0, 1.0, 2.0, 3.0}
    assert len(np.unique(model.rollout_buffer.rewards)) > 3
    found = evaluate(model, square_voc, PixelObservation(inner, SIDE, 3, render_only=False), 2)
    assert found.episodes == 2


def test_an_agent_on_normalised_observations_is_not_changed(square_voc: Path) -> None:
    inner = VecVOCValue(make_vec_env(square_env, 2, seed=0), square_voc, mode="observation")
    env = VecNormalize(inner, norm_reward=False, norm_obs_keys=["value"])
    model = SAC("MultiInputPolicy", env, buffer_size=64, learning_starts=100, seed=0, device="cpu").learn(6)
    before = env.obs_rms["value"].count  # type: ignore[index]
    evaluate_policy_value(model, square_voc, n_eval_episodes=2)
    assert env.training
    assert env.obs_rms["value"].count == before + 2  # type: ignore[index]  # the reset that it goes on from
    assert model.replay_buffer is not None
    place, fresh = model.replay_buffer.pos, env.get_original_obs()
    model.learn(2, reset_num_timesteps=False)
    for key, shown in fresh.items():  # type: ignore[union-attr]
        np.testing.assert_array_equal(model.replay_buffer.observations[key][place].reshape(shown.shape), shown)  # type: ignore[index]


class Right:
    """A policy that has no environment."""

    observation = "pixels"

    def predict(self, obs: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
        return np.ones((len(obs), 1), np.float32), None


def test_a_policy_without_an_environment(square_voc: Path) -> None:
    expected = evaluate(Scripted(1.0), square_voc, make_vec_env(square_env, 2, seed=3), 4)
    for policy in (Right(), NoisyPolicy(Right(), 0.2)):
        assert evaluate_policy_value(policy, square_voc, make_vec_env(square_env, 2, seed=3), 4) == expected


def test_what_cannot_be_evaluated_is_refused(square_voc: Path) -> None:
    voc = table_voc(VALUES)
    short = [Walk(0, 3, False)]
    blind = VecVOCValue(make_vec_env(square_env), square_voc, mode="observation", observe="features_only")
    for model, asked, env, words in (
        (Scripted(), voc, None, "pass env"),
        (Right(), voc, None, "has no environment; pass env, one with the VOC's frames"),
        (Scripted(), voc, corridors([short]), "whose time limit is further away than the horizon"),
        (Scripted(env=corridors([short])), voc, None, "whose time limit is further away than the horizon"),
        (Scripted(env=blind), square_voc, None, "a value wrapper has to show features='codes'"),
        (Scripted(), square_voc, DummyVecEnv([lambda: gym.make("Pendulum-v1")]), "float32 (3,)"),
        (Scripted(), square_voc / "nothing", corridors([PLAN]), "holds no VOC"),
        (Scripted(), voc, SyncVectorEnv([lambda: Corridor(PLAN)]), "env is a SyncVectorEnv; one Gymnasium environment"),
        (lambda obs: obs, voc, corridors([PLAN]), "is no policy; an agent, or an object with its `predict`"),
    ):
        with pytest.raises(VOCError) as refusal:
            evaluate(model, asked, env, 2)
        assert words in str(refusal.value)
        assert one_sentence(str(refusal.value))
    with pytest.raises(VOCError, match="n_eval_episodes is 0"):
        evaluate(Scripted(), voc, corridors([PLAN]), 0)
