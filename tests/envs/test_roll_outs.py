"""Roll-outs from stored simulator states against stepping by hand."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import one_sentence, outlive

from voc_rl.agents import NoisyPolicy, load_policy
from voc_rl.envs.dmcontrol import DMControlEnv
from voc_rl.envs.roll_outs import roll_outs
from voc_rl.errors import VOCError


class Steady:
    """Always the same action."""

    observation = "state"

    def predict(self, observation: np.ndarray, state: Any = None, **_: Any) -> tuple[np.ndarray, Any]:
        return self.draw(observation, np.random.default_rng(0)), state

    def draw(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.full(6, 0.3, np.float32)


def test_roll_outs_equal_stepping_by_hand() -> None:
    env = DMControlEnv("walker-walk", 2)
    _, info = env.reset(seed=3)
    physics = [info["physics"]]
    for _ in range(4):
        physics.append(env.step(np.zeros(6, np.float32))[4]["physics"])
    found = roll_outs("walker-walk", np.stack(physics), [Steady()], 5, 2, 0)[0]
    assert found.reward.shape == (5, 2, 5)
    assert found.state.shape == (5, 2, 5, 24)
    for i in (0, 4):
        env.reset(seed=0, options={"physics": physics[i]})
        for k in range(5):
            state, reward, _, _, _ = env.step(np.full(6, 0.3, np.float32))
            np.testing.assert_array_equal(found.reward[i, :, k], np.float32(reward))
            np.testing.assert_array_equal(found.state[i, 0, k], state)


def test_processes_and_other_policies_change_nothing() -> None:
    env = DMControlEnv("cheetah-run", 2)
    physics = np.stack([env.reset(seed=s)[1]["physics"] for s in range(2)])
    noisy = NoisyPolicy(load_policy("cheetah-run/step_60000"), 0.2)
    one = roll_outs("cheetah-run", physics, [noisy, noisy], 4, 2, 7)
    two = roll_outs("cheetah-run", physics, [noisy, noisy], 4, 2, 7, processes=2)
    alone = roll_outs("cheetah-run", physics, [noisy], 4, 2, 7)
    np.testing.assert_array_equal(one[0].reward, two[0].reward)
    np.testing.assert_array_equal(one[0].reward, alone[0].reward)
    assert not np.array_equal(one[0].reward, one[1].reward)  # other places, other noise
    assert not np.array_equal(one[0].reward[:, 0], one[0].reward[:, 1])


class Waits(Steady):
    """Says that it is asked, and then takes long."""

    def __init__(self, asked: Path) -> None:
        self.asked = asked

    def draw(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        self.asked.touch()
        time.sleep(300)
        return super().draw(observation, rng)


class Counts(Steady):
    """Leaves a file whenever it is followed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def draw(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        time.sleep(0.2)
        (self.folder / str(rng.integers(2**60))).touch()
        return super().draw(observation, rng)


class Fails(Steady):
    def draw(self, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        raise ZeroDivisionError("no action")


def test_an_error_is_answered_when_it_happens_and_the_rest_left(tmp_path: Path) -> None:
    """Of 13 policies only those are followed that were begun by then."""
    physics = DMControlEnv("walker-walk", 2).reset(seed=0)[1]["physics"]
    count = Counts(tmp_path)
    with pytest.raises(ZeroDivisionError, match="no action"):
        roll_outs("walker-walk", physics[None], [count, Fails(), *[count] * 12], 1, 1, 0, processes=2)
    assert len(list(tmp_path.iterdir())) < 10


def wait_for_ever(asked: Path) -> None:
    physics = DMControlEnv("walker-walk", 2).reset(seed=0)[1]["physics"]
    roll_outs("walker-walk", physics[None], [Waits(asked)] * 2, 2, 1, 0, processes=2)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script, asked = tmp_path / "script.py", tmp_path / "asked"
    script.write_text(
        f"import sys, pathlib; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]\n"
        "from test_roll_outs import wait_for_ever\n"
        "if __name__ == '__main__': wait_for_ever(pathlib.Path(sys.argv[1]))\n"
    )
    assert outlive([sys.executable, str(script), str(asked)], asked.exists) == []


@pytest.mark.parametrize("task", ["reacher-easy", "point_mass-hard", "swimmer-swimmer6"])
def test_tasks_that_change_their_model_are_refused(task: str) -> None:
    with pytest.raises(VOCError, match=f"{task} draws its target, gains or terrain anew in every episode") as caught:
        roll_outs(task, np.zeros((1, 1)), [Steady()], 2, 1, 0)
    assert one_sentence(str(caught.value))


def test_pixel_policies_are_refused() -> None:
    policy = Steady()
    policy.observation = "pixels"
    with pytest.raises(VOCError, match="follow policies of the flat state"):
        roll_outs("walker-walk", np.zeros((1, 1)), [policy], 2, 1, 0)
