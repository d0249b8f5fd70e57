"""Shaped rewards, exactly: optimal policies stay, and what is added telescopes, however episodes end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv
from tables import Table, TableVOC, optimal_q, random_table

from voc_rl import VecVOCValue, VOCValueVectorWrapper, VOCValueWrapper

STATES, ACTIONS, TERMINAL, GAMMA = 6, 3, (5,), 0.8
P, R = random_table(STATES, ACTIONS, seed=1, terminal=TERMINAL)
PHI = np.append(np.random.default_rng(2).normal(scale=5.0, size=STATES - 1), 30.0)


def table(limit: int = 10**9) -> Table:
    return Table(P, R, TERMINAL, limit)


def test_optimal_policy_is_unchanged() -> None:
    """The shaped rewards of every transition, read off the wrapper, give the same greedy actions and Q - Phi."""
    env = VOCValueWrapper(table(), TableVOC(PHI), mode="shaping", gamma=GAMMA)  # type: ignore[arg-type]
    shaped = np.full_like(R, np.nan)
    rng = np.random.default_rng(0)
    state = env.reset(seed=0)[1]["state"]
    for _ in range(6000):
        action = int(rng.integers(ACTIONS))
        _, reward, terminated, _, info = env.step(action)
        assert info["voc"]["raw_reward"] == R[state, action, info["state"]]
        assert info["voc"]["value"] == PHI[info["state"]]
        shaped[state, action, info["state"]] = reward
        state = env.reset()[1]["state"] if terminated else info["state"]
    possible = P[:-1] > 0
    assert np.isfinite(shaped[:-1][possible]).all()  # every transition was seen
    shaped = np.nan_to_num(shaped)
    Q, shaped_q = optimal_q(P, R, GAMMA, TERMINAL)[:-1], optimal_q(P, shaped, GAMMA, TERMINAL)[:-1]
    np.testing.assert_allclose(shaped_q, Q - PHI[:-1, None], atol=1e-9)
    assert (shaped_q.argmax(1) == Q.argmax(1)).all()
    # what the test would catch: a potential that is not zero after the termination changes what is best
    naive = R + GAMMA * PHI - PHI[:, None, None]
    assert (optimal_q(P, naive, GAMMA, TERMINAL)[:-1].argmax(1) != Q.argmax(1)).any()


class Sums:
    """Of one environment: the discounted sum of what shaping added, held against gamma^T Phi(s_T) - Phi(s_0)."""

    def __init__(self) -> None:
        self.checked = {"terminated": 0, "truncated": 0}

    def start(self, phi: float) -> None:
        self.first, self.total, self.steps = phi, 0.0, 0

    def step(self, added: float) -> None:
        self.total += GAMMA**self.steps * added
        self.steps += 1

    def end(self, phi: float, terminated: bool) -> None:
        last = 0.0 if terminated else GAMMA**self.steps * phi
        assert self.total == pytest.approx(last - self.first, abs=1e-5)
        self.checked["terminated" if terminated else "truncated"] += 1


def test_added_rewards_telescope() -> None:
    env = VOCValueWrapper(table(limit=4), TableVOC(PHI), mode="shaping", gamma=GAMMA)  # type: ignore[arg-type]
    rng, sums = np.random.default_rng(0), Sums()
    for episode in range(40):
        sums.start(PHI[env.reset(seed=0 if episode == 0 else None)[1]["state"]])
        over = False
        while not over:
            _, reward, terminated, truncated, info = env.step(int(rng.integers(ACTIONS)))
            sums.step(reward - info["voc"]["raw_reward"])
            over = terminated or truncated
        sums.end(PHI[info["state"]], terminated)
    assert min(sums.checked.values()) > 5


def test_a_step_that_only_resets_is_no_transition() -> None:
    inner: Any = gym.wrappers.Autoreset(table(limit=4))
    env = VOCValueWrapper(inner, TableVOC(PHI), mode="shaping", gamma=GAMMA)  # type: ignore[arg-type]
    rng, sums = np.random.default_rng(0), Sums()
    sums.start(PHI[env.reset(seed=0)[1]["state"]])
    resets = False
    for _ in range(150):
        _, reward, terminated, truncated, info = env.step(int(rng.integers(ACTIONS)))
        if resets:
            assert reward == info["voc"]["raw_reward"] == 0
            sums.start(PHI[info["state"]])
        else:
            sums.step(float(reward) - info["voc"]["raw_reward"])
        resets = terminated or truncated
        if resets:
            sums.end(PHI[info["state"]], terminated)
    assert min(sums.checked.values()) > 5
    env.step(0), env.reset(seed=1)  # a reset that was asked for is followed by a transition
    assert env.step(0)[1] != 0


def test_an_agent_may_not_discount() -> None:
    env = VOCValueWrapper(table(), TableVOC(PHI), mode="shaping", gamma=1.0)  # type: ignore[arg-type]
    phi = PHI[env.reset(seed=2)[1]["state"]]
    _, reward, terminated, _, info = env.step(1)
    assert not terminated
    assert reward == pytest.approx(info["voc"]["raw_reward"] + PHI[info["state"]] - phi, abs=1e-9)


def test_the_raw_reward_of_nested_potentials_is_the_environments() -> None:
    """What is twice shaped keeps the reward of the table, in all three wrappers; ends among the steps."""
    voc: Any = TableVOC(PHI)

    def once() -> Any:
        return VOCValueWrapper(table(limit=3), voc, mode="shaping", gamma=GAMMA)

    def many(inner: list[Callable[[], Any]]) -> Any:
        return SyncVectorEnv(inner, autoreset_mode=AutoresetMode.SAME_STEP)

    twice = VOCValueWrapper(once(), voc, mode="shaping", gamma=GAMMA)
    vectors = [
        VOCValueVectorWrapper(many([once]), voc, mode="shaping", gamma=GAMMA),
        VOCValueVectorWrapper(
            VOCValueVectorWrapper(many([lambda: table(limit=3)]), voc, mode="shaping", gamma=GAMMA),
            voc, mode="shaping", gamma=GAMMA,
        ),
    ]  # fmt: skip
    sb3 = VecVOCValue(DummyVecEnv([once]), voc, mode="shaping", gamma=GAMMA)
    sb3.seed(5)
    plain = table(limit=3)
    for env in (plain, twice, *vectors):
        env.reset(seed=5)
    sb3.reset()
    ends = 0
    for _ in range(12):
        _, paid, terminated, truncated, _ = plain.step(2)
        _, reward, _, _, info = twice.step(2)
        stepped = [env.step(np.array([2])) for env in vectors]
        _, rewards, _, infos = sb3.step(np.array([2]))
        shown = [info, infos[0]]
        assert [one["voc"]["raw_reward"] for one in shown] == [paid, paid]
        assert [one[4]["voc"]["raw_reward"].tolist() for one in stepped] == [[paid], [paid]]
        assert [rewards[0], *(one[1][0] for one in stepped)] == pytest.approx([reward] * 3, abs=1e-5)
        if terminated or truncated:
            ends += 1
            plain.reset(), twice.reset()
    assert ends >= 4


@pytest.mark.parametrize("made", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_added_rewards_telescope_in_vector_environments(mode: AutoresetMode, made: Callable[..., Any]) -> None:
    voc = TableVOC(PHI)
    inner = made([lambda: table(limit=7)] * 3, autoreset_mode=mode)
    env = VOCValueVectorWrapper(inner, voc, mode="shaping", gamma=GAMMA)  # type: ignore[arg-type]
    rng, sums = np.random.default_rng(0), [Sums() for _ in range(3)]
    obs, _ = env.reset(seed=0)
    for i in range(3):
        sums[i].start(PHI[obs[i, 0, 0, 0]])
    resetting = np.zeros(3, bool)
    for _ in range(150):
        calls = len(voc.asked)
        obs, rewards, terminations, truncations, infos = env.step(rng.integers(ACTIONS, size=3))
        assert len(voc.asked) == calls + 1  # one question for all of them
        done = terminations | truncations
        states = obs[:, 0, 0, 0]
        np.testing.assert_array_equal(infos["voc"]["value"], PHI[states])
        for i in range(3):
            added = rewards[i] - infos["voc"]["raw_reward"][i]
            if resetting[i]:
                assert added == rewards[i] == 0  # the step that only resets is no transition
                sums[i].start(PHI[states[i]])
                continue
            sums[i].step(added)
            if done[i]:
                last = infos["final_obs"][i][0, 0, 0] if mode == AutoresetMode.SAME_STEP else states[i]
                sums[i].end(PHI[last], bool(terminations[i]))
                if mode == AutoresetMode.SAME_STEP:
                    assert infos["final_info"]["voc"]["value"][i] == PHI[last]
                    assert infos["final_info"]["voc"]["_value"].tolist() == done.tolist()
                    sums[i].start(PHI[states[i]])
        resetting = done & (mode == AutoresetMode.NEXT_STEP)
        if mode == AutoresetMode.DISABLED and done.any():
            obs, infos = env.reset(options={"reset_mask": done.copy()})
            assert infos["_voc"].tolist() == done.tolist()
            for i in np.flatnonzero(done):
                sums[i].start(PHI[obs[i, 0, 0, 0]])
    env.close()
    for kind in ("terminated", "truncated"):
        assert sum(one.checked[kind] for one in sums) > 5


@pytest.mark.parametrize("n", [1, 4])
def test_added_rewards_telescope_in_sb3(n: int) -> None:
    voc = TableVOC(PHI)
    inner = DummyVecEnv([lambda: table(limit=7)] * n)
    env = VecVOCValue(inner, voc, mode="shaping", gamma=GAMMA)  # type: ignore[arg-type]
    env.seed(0)
    rng, sums = np.random.default_rng(0), [Sums() for _ in range(n)]
    obs = env.reset()
    assert [info["voc"]["value"] for info in env.reset_infos] == PHI[obs[:, 0, 0, 0]].tolist()
    for i in range(n):
        sums[i].start(PHI[obs[i, 0, 0, 0]])
    for _ in range(200):
        calls = len(voc.asked)
        obs, rewards, dones, infos = env.step(rng.integers(ACTIONS, size=n))
        assert len(voc.asked) == calls + 1
        assert voc.asked[-1] == n + dones.sum()
        for i, info in enumerate(infos):
            assert info["voc"]["value"] == PHI[obs[i, 0, 0, 0]]
            sums[i].step(rewards[i] - info["voc"]["raw_reward"])
            if dones[i]:
                last = PHI[info["terminal_observation"][0, 0, 0]]
                assert info["terminal_voc"]["value"] == last
                sums[i].end(last, not info["TimeLimit.truncated"])
                sums[i].start(PHI[obs[i, 0, 0, 0]])
    for kind in ("terminated", "truncated"):
        assert sum(one.checked[kind] for one in sums) > 5


def test_a_potential_is_read_once_per_state() -> None:
    voc = TableVOC(PHI)
    env = VOCValueWrapper(table(), voc, mode="shaping", gamma=GAMMA)  # type: ignore[arg-type]
    voc.asked.clear()
    env.reset(seed=3)
    steps = 0
    while not env.step(0)[2]:
        steps += 1
    assert len(voc.asked) == steps + 2  # the reset, and one per step: Phi(s') is the next step's Phi(s)


def test_the_raw_environment_is_left_alone_in_other_modes() -> None:
    one, other = table(limit=5), VOCValueWrapper(table(limit=5), TableVOC(PHI))  # type: ignore[arg-type]
    one.reset(seed=7)
    other.reset(seed=7)
    for _ in range(5):
        plain, seen = one.step(1), other.step(1)
        np.testing.assert_array_equal(plain[0], seen[0])
        assert plain[1:4] == seen[1:4]
        assert "raw_reward" not in seen[4]["voc"]
        if plain[2]:
            break
