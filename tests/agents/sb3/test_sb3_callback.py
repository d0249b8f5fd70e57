"""What the callback logs of agents that learn, against numbers computed from the plan of the walk alone."""

from __future__ import annotations

import itertools
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from corridor import PLAN, STATES, Corridor, Event, Log, Walk, events, mean_of, plan_of, table_voc
from square import square_env
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.callbacks import CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor, VecNormalize
from worlds import one_sentence

from voc_rl import VOC
from voc_rl.agents.sb3 import VecVOCValue, VOCValueCallback
from voc_rl.agents.sb3.traces import calibration
from voc_rl.envs import VOCValueWrapper
from voc_rl.errors import VOCError

VALUES = np.random.default_rng(6).normal(size=STATES)
SMALL: dict[Any, dict[str, Any]] = {
    PPO: {"n_steps": 20, "batch_size": 20, "n_epochs": 1},
    SAC: {"buffer_size": 200, "learning_starts": 40, "batch_size": 4, "train_freq": 10},
}


def corridors(envs: int, plan: list[Walk] | None = None) -> VecEnv:
    return DummyVecEnv([lambda i=i: Corridor(plan or plan_of(i)) for i in range(envs)])


def learn(
    algorithm: Any, env: VecEnv, callback: VOCValueCallback, steps: int = 320, policy: str = "MlpPolicy", **kwargs: Any
) -> Log:
    model = algorithm(policy, env, policy_kwargs={"net_arch": [4], **kwargs}, seed=0, device="cpu", **SMALL[algorithm])
    model.set_logger(log := Log())
    model.learn(steps, callback)
    return log


def expected(envs: int, every: int, episodes: int, steps: int = 320) -> list[dict[str, float]]:
    """The records of a run, from the plan."""
    streams = [events(plan_of(i), VALUES) for i in range(envs)]
    rows, some, after = [], list[Event](), every
    ended: deque[Walk] = deque(maxlen=episodes)
    for step in range(envs, steps + 1, envs):
        now = [next(stream) for stream in streams]
        some += now
        ended.extend(event.ended for event in now if event.ended)
        if step >= after:
            after, residuals = step + every, np.array([event.residual for event in some])
            row = {
                "value": float(np.mean([event.value for event in some])),
                "td_residual": float(residuals.mean()),
                "td_residual_abs": float(np.abs(residuals).mean()),
            }
            walks = list(ended)
            if any(len(walk.known(VALUES, walks)[0]) for walk in walks):
                row |= mean_of(walks, VALUES)
            rows.append({name: number for name, number in row.items() if not np.isnan(number)})
            some.clear()
    return rows


def check_rows(found: list[dict[str, float]], rows: list[dict[str, float]]) -> None:
    assert len(found) == len(rows)
    for one, other in zip(found, rows, strict=True):
        assert one == pytest.approx(other, abs=1e-5)  # environments hand out float32 rewards


@pytest.mark.parametrize("envs", [1, 4])
@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_what_is_logged(algorithm: Any, envs: int) -> None:
    """Episodes of all kinds; PPO adds values to the rewards of time limits, which must not be seen."""
    callback = VOCValueCallback(table_voc(VALUES), every=40, episodes=6)
    found, rows = learn(algorithm, corridors(envs), callback).rows("voc/"), expected(envs, 40, 6)
    check_rows(found, rows)
    assert len(rows) == 8
    assert "gap_stderr" in rows[-1]
    kinds = {(walk.terminated, len(walk.known(VALUES, [walk])[0])) for walk in PLAN}
    assert kinds == {(True, 5), (False, 6), (True, 11), (True, 1)}


def test_records_come_at_the_first_step_that_is_late_enough() -> None:
    log = learn(PPO, corridors(4), VOCValueCallback(table_voc(VALUES), every=30, episodes=1), steps=160)
    check_rows(log.rows("voc/"), expected(4, 30, 1, 160))
    assert len(log.rows("voc/")) == 5  # after 32, 64, ..., 160 steps
    assert all("gap_stderr" not in row for row in log.rows("voc/"))  # one episode has no spread


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_shaped_rewards_are_replaced_by_the_raw_ones(algorithm: Any) -> None:
    voc = table_voc(VALUES)
    env = VecVOCValue(corridors(4), voc, mode="shaping", gamma=0.8)
    found = learn(algorithm, env, VOCValueCallback(voc, every=40, episodes=6)).rows("voc/")
    check_rows(found, expected(4, 40, 6))


def test_returns_that_a_monitor_logs_are_not_of_shaped_rewards_without_a_word() -> None:
    voc, shaping = table_voc(VALUES), {"mode": "shaping", "gamma": 0.8}
    vector: Any = VecVOCValue(corridors(1), voc, **shaping)  # type: ignore[arg-type]
    for env in (VOCValueWrapper(Corridor(PLAN), voc, **shaping), VecMonitor(vector)):  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match=r"are of shaped rewards.*VOCValueWrapper\(Monitor\(env\)") as caught:
            learn(PPO, env, VOCValueCallback(voc), steps=20)  # Stable-Baselines3 puts a Monitor around the first
        assert len(caught) == 1
    inside: Any = VOCValueWrapper(Monitor(Corridor(PLAN)), voc, **shaping)  # type: ignore[arg-type]
    plain: Any = VOCValueWrapper(Corridor(PLAN), voc)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for env in (inside, plain, VecVOCValue(VecMonitor(corridors(1)), voc, **shaping)):  # type: ignore[arg-type]
            learn(PPO, env, VOCValueCallback(voc), steps=20)


def test_frames_beside_values_are_read() -> None:
    class ValueAlone(BaseFeaturesExtractor):
        def __init__(self, space: gym.Space[Any]) -> None:
            super().__init__(space, 1)

        def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
            return observations["value"]

    voc = table_voc(VALUES)
    env = VecVOCValue(corridors(4), voc, mode="observation", observe="value")
    callback = VOCValueCallback(voc, every=40, episodes=6)
    log = learn(PPO, env, callback, policy="MultiInputPolicy", features_extractor_class=ValueAlone)
    check_rows(log.rows("voc/"), expected(4, 40, 6))


def test_residuals_of_exact_values_are_zero() -> None:
    """A chain to a terminal state, also where learning goes on in the middle of an episode."""
    plan = [Walk(start, STATES - 1 - start, True) for start in (0, 4, 7)]
    exact = np.append(plan[0].known(VALUES, plan)[1], 123.0)  # what a terminal state is said to be worth is not used
    callback = VOCValueCallback(table_voc(exact), every=40)
    model = PPO("MlpPolicy", corridors(1, plan), device="cpu", **SMALL[PPO])
    model.set_logger(log := Log())
    for _ in range(2):
        model.learn(80, callback, reset_num_timesteps=False)
    assert len(log.rows("voc/")) == 4
    for row in log.rows("voc/"):
        assert row["td_residual_abs"] < 1e-6
        assert abs(row["gap"]) < 1e-6
        assert row["predicted"] == pytest.approx(row["realised"], abs=1e-6)
        assert abs(row["predicted"]) > 0.01


def test_one_question_per_step() -> None:
    voc = table_voc(VALUES)
    learn(PPO, corridors(4), VOCValueCallback(voc), steps=80)
    assert len(voc.asked) == 1 + 20
    assert sum(voc.asked) == 4 + 80 + sum(next_ended(4, 20))


def next_ended(envs: int, steps: int) -> list[int]:
    """By step, how many environments ended an episode."""
    streams = [events(plan_of(i), VALUES) for i in range(envs)]
    return [sum(next(stream).ended is not None for stream in streams) for _ in range(steps)]


def test_a_run_folder_and_real_frames(square_voc: Path) -> None:
    """The values of a real VOC's head, asked again one by one."""
    seen: list[np.ndarray] = []

    class Kept(gym.ObservationWrapper):
        def observation(self, observation: np.ndarray) -> np.ndarray:
            seen.append(observation)
            return observation

    env = DummyVecEnv([lambda: Kept(square_env(limit=50))])
    log = learn(SAC, env, VOCValueCallback(str(square_voc), every=20), steps=40)
    voc = VOC.load(square_voc)
    alone = [float(voc.value(obs[None]).mean[0]) for obs in seen]
    values = [row["value"] for row in log.rows("voc/")]
    np.testing.assert_allclose(values, [np.mean(alone[1:21]), np.mean(alone[21:41])], atol=1e-4)


def test_what_cannot_be_read_is_refused(square_voc: Path) -> None:
    blind = VecVOCValue(make_vec_env(square_env), square_voc, mode="observation", observe="features_only")  # type: ignore[arg-type]
    for env, voc, words in (
        (blind, square_voc, "a value wrapper has to show features='codes'"),
        (corridors(1), square_voc, "uint8 (3, 4, 4)"),
    ):
        with pytest.raises(VOCError) as refusal:
            learn(PPO, env, VOCValueCallback(voc), steps=20)
        assert words in str(refusal.value)
        assert one_sentence(str(refusal.value))
    for changed in ({"every": 0}, {"episodes": 0}):
        with pytest.raises(VOCError, match=f"{next(iter(changed))} is 0; a number above zero"):
            VOCValueCallback(table_voc(VALUES), **changed)
    with pytest.raises(VOCError, match="holds no VOC"):
        VOCValueCallback(square_voc / "nothing")


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_rewards_that_are_scaled_are_read_as_they_were(scaled: bool, inside: bool) -> None:
    env: Any = VecNormalize(corridors(4), norm_obs=False, norm_reward=scaled)
    env = VecVOCValue(env, table_voc(VALUES)) if inside else env
    log = learn(PPO, env, VOCValueCallback(table_voc(VALUES), every=40, episodes=6))
    check_rows(log.rows("voc/"), expected(4, 40, 6))


def some_episodes(rng: np.random.Generator, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns whose errors are shared by an episode, of episodes of random length; the gap's mean is 1."""
    found = []
    for _ in range(count):
        states = int(rng.integers(5, 16))
        predicted = rng.normal(size=states)
        found.append((predicted, predicted + 1 + rng.normal() + 0.3 * rng.normal(size=states)))
    return found


def test_stderr_of_equal_episodes_is_that_of_their_means() -> None:
    rng = np.random.default_rng(0)
    episodes = [(rng.normal(size=9), rng.normal(size=9) + rng.normal()) for _ in range(7)]
    found = calibration(episodes)
    for name, columns in (
        ("predicted", [p for p, _ in episodes]),
        ("realised", [r for _, r in episodes]),
        ("gap", [r - p for p, r in episodes]),
    ):
        means = np.mean(columns, axis=1)
        assert getattr(found, name) == pytest.approx(means.mean())
        assert getattr(found, f"{name}_stderr") == pytest.approx(means.std(ddof=1) / 7**0.5)
    assert (found.states, found.episodes) == (63, 7)
    assert np.isnan(calibration(episodes[:1]).gap_stderr)


def test_stderr_is_the_spread_of_the_mean() -> None:
    """Over 2000 repetitions; the naive error, of states as independent, is a third of it."""
    rng = np.random.default_rng(1)
    runs = [some_episodes(rng, 40) for _ in range(2000)]
    found = [calibration(episodes) for episodes in runs]
    spread = np.std([one.gap for one in found])
    assert np.sqrt(np.mean([one.gap_stderr**2 for one in found])) == pytest.approx(spread, rel=0.06)
    assert np.mean([one.gap for one in found]) == pytest.approx(1.0, abs=0.02)
    gaps = np.concatenate([r - p for p, r in runs[0]])
    assert gaps.std() / len(gaps) ** 0.5 < 0.4 * spread


def test_no_known_state_is_refused() -> None:
    nothing = (np.zeros(0), np.zeros(0))
    with pytest.raises(VOCError) as refusal:
        calibration([nothing, nothing])
    assert one_sentence(str(refusal.value))
    found = calibration([nothing, (np.array([1.0]), np.array([3.0])), nothing])
    assert (found.gap, found.states, found.episodes) == (2.0, 1, 1)


@pytest.mark.parametrize(
    "inside",
    [lambda own: EveryNTimesteps(10, own), lambda own: EveryNTimesteps(10, CallbackList([own]))],
)
def test_a_place_that_misses_steps_is_refused(inside: Any) -> None:
    own = VOCValueCallback(table_voc(VALUES))
    with pytest.raises(VOCError, match="has to see every step, and EveryNTimesteps calls it now and then") as caught:
        learn(PPO, corridors(1), inside(own), steps=20)
    assert one_sentence(str(caught.value))
    learn(PPO, corridors(1), CallbackList([VOCValueCallback(table_voc(VALUES))]), steps=20)


@pytest.mark.parametrize("before", [0, 7])
def test_another_agents_episodes_do_not_count(before: int) -> None:
    """A callback that is used again: what it says of a second agent, new or loaded, a fresh one says too."""
    own, fresh = (VOCValueCallback(table_voc(VALUES), every=20) for _ in range(2))
    learn(PPO, corridors(1), own, steps=33)  # more than is recorded, in the middle of an episode
    seen = []
    for callback in (own, fresh):
        model = PPO("MlpPolicy", corridors(1), policy_kwargs={"net_arch": [4]}, seed=0, device="cpu", **SMALL[PPO])
        model.set_logger(log := Log())
        model.num_timesteps = before
        model.learn(60, callback, reset_num_timesteps=before == 0)
        seen.append({name: value for name, value in log.seen if name.startswith("voc/")})
    assert seen[0] == seen[1]
    assert "voc/realised" in seen[0]


def test_a_place_in_an_evaluation_is_refused() -> None:
    """Before anything is learned: of the first, Stable-Baselines3 never says that training starts."""
    for place, listed in itertools.product(("callback_on_new_best", "callback_after_eval"), (False, True)):
        inside = VOCValueCallback(table_voc(VALUES))
        own: Any = {place: CallbackList([inside]) if listed else inside}
        with pytest.raises(VOCError, match="EvalCallback calls it now and then"):
            learn(PPO, corridors(1), EvalCallback(corridors(1), eval_freq=10, verbose=0, **own), steps=20)
