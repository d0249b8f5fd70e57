"""Collecting: rows against a replay, the same data however it was collected, and folders kept apart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest

from voc_rl.agents import NoisyPolicy, StickyMixture, load_policy
from voc_rl.checkpoints import hold_folder
from voc_rl.data import Episodes
from voc_rl.envs import collect, make_env
from voc_rl.errors import VOCError

POLICY = NoisyPolicy(load_policy("walker-walk/step_60000"), sigma=0.3, epsilon=0.1)
SHORT = {"max_episode_steps": 10, "size": 32, "progress": False}


class PixelPolicy:
    """Acts by the brightness of the stack it is shown."""

    observation = "pixels"

    def start_episode(self, rng: np.random.Generator) -> None:
        self.seen: list[tuple[int, ...]] = []

    def sample(self, observation: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, int]:
        self.seen.append(observation.shape)
        return np.full(6, observation.mean() / 128 - 1 + rng.normal(), np.float32), 0.5, 3


class Failing(PixelPolicy):
    def sample(self, observation, rng):
        raise ZeroDivisionError("no action")


class Dying(PixelPolicy):
    def sample(self, observation, rng):
        os._exit(9)


def same(one: Path, other: Path) -> None:
    a, b = Episodes.open(one), Episodes.open(other)
    assert a.spec == b.spec
    np.testing.assert_array_equal(a.starts, b.starts)
    rows = np.arange(len(a))
    np.testing.assert_array_equal(a.frames(rows), b.frames(rows))
    for name in ("action", "reward", "discount", "step_type", "state", "physics", "log_prob", "policy_id"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.fixture(scope="module")
def collected(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("collected") / "data"
    assert collect(out, "walker-walk", POLICY, 4, seed=7, **SHORT) == 4
    return out


def test_rows_agree_with_a_replay_of_every_episode(collected):
    data = Episodes.open(collected)
    assert data.ends.tolist() == [11, 22, 33, 44]  # 10 steps are 11 rows
    assert data.step_type[:11].tolist() == [0, *[1] * 9, 2]
    env = make_env("walker-walk", size=32)
    for start, end in zip(data.starts, data.ends, strict=True):
        assert not data.action[start].any()
        assert data.reward[start] == 0
        assert data.discount[start] == 1
        stack = np.repeat(data.frames(np.array([start])), 3, 0)
        observation, info = env.reset(options={"physics": data.physics[start], "frames": stack})
        np.testing.assert_array_equal(env.render().transpose(2, 0, 1), data.frames(np.array(start)))
        for row in range(start, end):
            np.testing.assert_array_equal(observation[-3:], data.frames(np.array(row)))
            np.testing.assert_array_equal(observation, data.observations(np.array([row]))[0])
            np.testing.assert_array_equal(info["physics"], data.physics[row])
            np.testing.assert_array_equal(info["state"], data.state[row])
            if row + 1 < end:
                log_prob = POLICY.log_prob(data.state[row], data.unclipped_action[row + 1])
                assert data.log_prob[row + 1] == pytest.approx(log_prob, rel=1e-6)
                observation, reward, _, _, info = env.step(data.action[row + 1])
                assert np.float32(reward) == data.reward[row + 1]
    assert (np.abs(data.action) <= 1).all()
    assert (np.abs(data.unclipped_action) > 1).any()
    env.close()


def test_settings_are_stored_with_the_frames(collected):
    spec = Episodes.open(collected).spec
    assert (spec.task, spec.size, spec.action_repeat, spec.render, spec.camera) == (
        "walker-walk",
        32,
        2,
        "fast",
        0,
    )
    assert spec.max_episode_steps == 10
    assert spec.policy == "NoisyPolicy(GaussianActor(walker-walk/step_60000), sigma=0.3, epsilon=0.1)"
    assert all((spec.backend, spec.mujoco, spec.dm_control))


def test_a_longer_collection_keeps_what_is_there(collected, tmp_path):
    out = tmp_path / "data"
    assert collect(out, "walker-walk", POLICY, 2, seed=7, **SHORT) == 2
    before = (out / "episode_000001.hdf5").stat().st_mtime_ns
    for name in (".episode_000002.hdf5.abc.part", ".collect.json.abc.part"):
        (out / name).write_bytes(b"cut")
    assert collect(out, "walker-walk", POLICY, 4, seed=7, **SHORT) == 2
    assert (out / "episode_000001.hdf5").stat().st_mtime_ns == before
    assert collect(out, "walker-walk", POLICY, 4, seed=7, **SHORT) == 0
    assert sorted(path.name for path in out.iterdir())[:2] == [".lock", "collect.json"]  # what was cut is gone
    same(out, collected)
    with hold_folder(out, "folder for episodes"):  # as another process would
        assert collect(out, "walker-walk", POLICY, 4, seed=7, **SHORT) == 0
        with pytest.raises(VOCError, match="in use"):
            collect(out, "walker-walk", POLICY, 5, seed=7, **SHORT)
        with pytest.raises(VOCError, match="other settings"):
            collect(out, "walker-walk", POLICY, 4, seed=8, **SHORT)


def collect_long(out: Path, processes: int = 1) -> int:
    return collect(
        out, "walker-walk", POLICY, 5, 7, max_episode_steps=120, size=32, processes=processes, progress=False
    )


def test_killed_with_two_processes_it_resumes_to_the_same_data(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys, pathlib; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_collection import collect_long\n"
        "if __name__ == '__main__': collect_long(pathlib.Path(sys.argv[1]), processes=2)\n"
    )
    cut = tmp_path / "cut"
    process = subprocess.Popen([sys.executable, str(script), str(cut)])
    workers = wait_for_first_episode(process, cut)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(workers, timeout=20)[1] == []  # none outlives a killed parent
    whole = len(list(cut.glob("episode_*.hdf5")))
    assert 1 <= whole < 5
    assert collect_long(cut) == 5 - whole
    assert collect_long(tmp_path / "uncut") == 5
    same(cut, tmp_path / "uncut")


def wait_for_first_episode(process: subprocess.Popen[bytes], out: Path) -> list[psutil.Process]:
    deadline = time.monotonic() + 120
    while not list(out.glob("episode_*.hdf5")):
        assert process.poll() is None, "the collection ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return psutil.Process(process.pid).children(recursive=True)


def test_other_settings_are_refused_by_name(collected):
    with pytest.raises(VOCError, match=r"seed was 7 and is 8; size was 32 and is 40\)"):
        collect(collected, "walker-walk", POLICY, 4, seed=8, **{**SHORT, "size": 40})
    with pytest.raises(VOCError, match="policy was 'NoisyPolicy"):
        collect(collected, "walker-walk", load_policy("walker-walk/step_0"), 4, seed=7, **SHORT)


def test_episodes_without_settings_are_left_alone(collected, tmp_path):
    (tmp_path / "episode_000000.hdf5").write_bytes((collected / "episode_000000.hdf5").read_bytes())
    with pytest.raises(VOCError, match=r"no collect\.json"):
        collect(tmp_path, "walker-walk", POLICY, 4, seed=7, **SHORT)


def test_force_begins_anew_with_other_settings(tmp_path):
    assert collect(tmp_path, "walker-walk", POLICY, 3, seed=7, **SHORT) == 3
    assert collect(tmp_path, "walker-walk", POLICY, 2, seed=8, force=True, **SHORT) == 2
    assert sorted(path.name for path in tmp_path.glob("*.hdf5")) == ["episode_000000.hdf5", "episode_000001.hdf5"]
    collect(tmp_path / "fresh", "walker-walk", POLICY, 2, seed=8, **SHORT)
    same(tmp_path, tmp_path / "fresh")


def test_force_costs_nothing_where_the_collection_is_refused(tmp_path):
    collect(tmp_path, "walker-walk", POLICY, 1, seed=7, **SHORT)
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    held = PixelPolicy()
    held.function = lambda: None  # does not pickle
    stray = tmp_path / "other.hdf5"
    for change, message in (
        ({"episodes": 0}, "episodes is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"processes": 0}, "processes is 0"),
        ({"task": "walker-fly"}, "Unknown task"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"policy": held, "processes": 2}, "does not pickle"),
        ({}, r"also holds other\.hdf5, which no collection wrote"),
        ({}, "in use"),
    ):
        arguments = {"task": "walker-walk", "policy": POLICY, "episodes": 1, "seed": 8, **SHORT, **change}
        with ExitStack() as stack:
            if message == "in use":
                stack.enter_context(hold_folder(tmp_path, "folder for episodes"))
            if "other" in message:
                stray.write_bytes(b"")
                stack.callback(stray.unlink)
            with pytest.raises(VOCError, match=message):
                collect(tmp_path, force=True, **arguments)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept, message


def test_pixel_policies_see_the_stack(tmp_path):
    policy = PixelPolicy()
    collect(tmp_path, "walker-walk", policy, 1, seed=0, **SHORT)
    assert policy.seen == [(9, 32, 32)] * 10
    data = Episodes.open(tmp_path)
    assert data.policy_id.tolist() == [0, *[3] * 10]
    assert data.spec.policy == "test_collection.PixelPolicy"


class Wrapped:
    """Says nothing of itself."""

    observation = "state"

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full((*observation.shape[:-1], 6), 0.5, np.float32), None


class Function:
    """Says of itself which function it holds."""

    observation = "state"

    def __init__(self):
        self.predict = lambda *given, **known: (np.full(6, 0.5, np.float32), None)

    def __repr__(self):
        return f"Function({self.predict!r})"


def test_policies_are_known_again_by_what_they_say_and_not_by_their_places(tmp_path):
    for wrapped, name in (
        (Wrapped, "test_collection.Wrapped"),
        (Function, "Function(<function Function.__init__.<locals>.<lambda>>)"),
    ):
        one, other = (StickyMixture([NoisyPolicy(wrapped(), 0.2)]) for _ in range(2))
        assert repr(one) != repr(other)
        out = tmp_path / wrapped.__name__
        assert collect(out, "walker-walk", one, 1, seed=7, **SHORT) == 1
        assert collect(out, "walker-walk", other, 2, seed=7, **SHORT) == 1
        said = f"StickyMixture([NoisyPolicy({name}, sigma=0.2, epsilon=0)], switch=0.02)"
        assert Episodes.open(out).spec.policy == said


def test_members_of_a_mixture_are_told_apart(tmp_path):
    members = [load_policy("walker-walk/step_0"), load_policy("walker-walk/step_350000")]
    collect(tmp_path, "walker-walk", StickyMixture(members, switch=0.5), 1, seed=0, **SHORT)
    data = Episodes.open(tmp_path)
    assert set(data.policy_id[1:].tolist()) == {0, 1}
    for row in range(10):
        density = members[data.policy_id[row + 1]].log_prob(data.state[row], data.unclipped_action[row + 1])
        assert data.log_prob[row + 1] == pytest.approx(density, rel=1e-5, abs=1e-5)


def test_an_error_of_the_policy_says_where_it_happened(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        collect(tmp_path, "walker-walk", Failing(), 2, seed=0, **SHORT)
    assert caught.value.__notes__ == [f"while collecting episode 0 of walker-walk into {tmp_path}"]
    assert not list(tmp_path.glob("*.hdf5"))
    assert collect(tmp_path, "walker-walk", POLICY, 1, seed=0, **SHORT)  # the folder holds nothing of that policy


def test_a_policy_that_does_not_pickle_is_refused_for_workers(tmp_path):
    policy = PixelPolicy()
    policy.function = lambda: None
    with pytest.raises(VOCError, match="does not pickle"):
        collect(tmp_path, "walker-walk", policy, 2, seed=0, processes=2, **SHORT)


def test_a_worker_that_dies_stops_the_collection(tmp_path):
    with pytest.raises(VOCError, match="ended early"):
        collect(tmp_path, "walker-walk", Dying(), 2, seed=0, processes=2, **SHORT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 0}, "episodes is 0"),
        ({"processes": 0}, "processes is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"task": "walker-run-fast"}, "Unknown task"),
        ({"task": "lqr-lqr_2_1", "max_episode_steps": None}, "max_episode_steps is needed"),
        ({"policy": "walker-walk/step_0"}, "'walker-walk/step_0' cannot collect"),
        ({"policy": object()}, "cannot collect"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, change, message):
    arguments = {"task": "walker-walk", "policy": POLICY, "episodes": 1, "seed": 0, **SHORT, **change}
    with pytest.raises(VOCError, match=message):
        collect(tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()
