"""D4RL's files: next-action rows become previous-action rows, whichever of the optional arrays a file has."""

from __future__ import annotations

import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import refusal

from voc_rl import VOCConfig, evaluate_policy, train
from voc_rl.benchmarks.layouts import d4rl_arrays, write_d4rl
from voc_rl.data import DataSpec, Episodes, load_dataset, normalized_scores
from voc_rl.data.d4rl import open_d4rl
from voc_rl.errors import VOCError
from voc_rl.joint import JointTraining
from voc_rl.ope import EvaluationConfig

LENGTHS, TERMINATED = (5, 3, 7), (1,)


def check_alignment(dataset: Episodes, last_state: bool = True) -> None:
    """Every row of every episode: the state, the action that led to it, the reward on arrival, the end."""
    assert (dataset.ends - dataset.starts).tolist() == [n + 1 for n in LENGTHS]
    assert dataset.state is not None
    assert dataset.physics is not None
    for i, (start, steps) in enumerate(zip(dataset.starts, LENGTHS, strict=True)):
        t = np.arange(steps + 1)
        here, led = start + t, np.maximum(t - 1, 0)
        shown = np.minimum(t, steps if last_state else steps - 1)
        np.testing.assert_array_equal(dataset.state[here], (100.0 * i + shown)[:, None].repeat(17, 1))
        np.testing.assert_array_equal(dataset.physics[here, 0], 100 * i + np.minimum(t, steps - 1))
        np.testing.assert_array_equal(dataset.physics[here, 9], -dataset.physics[here, 0])
        action = np.where(t[:, None] > 0, np.stack([led * 0 + i, led], 1) / 1000, 0)
        np.testing.assert_array_equal(dataset.action[here], action.astype(np.float32))
        np.testing.assert_array_equal(dataset.reward[here], np.where(t > 0, 1000 * i + t - 1, 0))
        np.testing.assert_array_equal(dataset.discount[here], (t < steps) | (i not in TERMINATED))
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminal), [9])


def test_a_whole_file(tmp_path: Path) -> None:
    write_d4rl(tmp_path / "halfcheetah_medium-v2.hdf5", d4rl_arrays(LENGTHS, TERMINATED))
    dataset = open_d4rl(tmp_path / "halfcheetah_medium-v2.hdf5")
    check_alignment(dataset)
    assert dataset.spec == DataSpec(task="HalfCheetah-v5", action_repeat=1)  # of a time limit the file says nothing
    assert not dataset.has_frames
    with pytest.raises(
        VOCError, match=r"has states but no frames; voc_rl\.envs\.render_states draws those of HalfCheetah and Walker2d"
    ):
        dataset.observations(np.array([0]))


@pytest.mark.parametrize("missing", [("next_observations",), ("timeouts",), ("infos/action_log_probs",)])
def test_without_some_arrays(tmp_path: Path, missing: tuple[str, ...]) -> None:
    """Without timeouts, an episode ends where the next observation is not the next step's."""
    arrays = {key: array for key, array in d4rl_arrays(LENGTHS, TERMINATED).items() if key not in missing}
    write_d4rl(tmp_path / "a.hdf5", arrays)
    dataset = open_d4rl(tmp_path / "a.hdf5")
    check_alignment(dataset, last_state="next_observations" not in missing)
    assert dataset.spec.max_episode_steps == 0


def test_with_neither_timeouts_nor_next_observations(tmp_path: Path) -> None:
    """Then only the time limit says where an episode ends: after 4 steps here, or earlier by a termination."""
    arrays = d4rl_arrays((4, 2, 4, 4, 3), terminated=(1,))
    del arrays["timeouts"], arrays["next_observations"]
    write_d4rl(tmp_path / "a.hdf5", arrays)
    dataset = open_d4rl(tmp_path / "a.hdf5", max_episode_steps=4)
    assert (dataset.ends - dataset.starts - 1).tolist() == [4, 2, 4, 4, 3]
    np.testing.assert_array_equal(dataset.terminal[dataset.ends - 1], [False, True, False, False, False])
    assert dataset.spec.max_episode_steps == 4
    assert len(open_d4rl(tmp_path / "a.hdf5").starts) == 2  # 1000 steps: the termination alone


def test_a_termination_beside_a_timeout_is_a_termination(tmp_path: Path) -> None:
    arrays = d4rl_arrays(LENGTHS, TERMINATED)
    arrays["timeouts"] = arrays["timeouts"] | arrays["terminals"]
    write_d4rl(tmp_path / "a.hdf5", arrays)
    check_alignment(open_d4rl(tmp_path / "a.hdf5"))


def test_older_columns_and_numbers_as_flags(tmp_path: Path) -> None:
    arrays = d4rl_arrays(LENGTHS, TERMINATED)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for key, array in arrays.items():
            flat = key in ("rewards", "terminals")
            file[key] = array.astype(np.float64)[:, None] if flat else array.astype(np.float64)
    check_alignment(open_d4rl(tmp_path / "a.hdf5"))


def test_whole_numbers_before_fractions(tmp_path: Path) -> None:
    arrays = d4rl_arrays((2,))
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        for key, array in arrays.items():
            file[key] = array.astype(np.int64) if key == "observations" else array + 0.5 * (key == "next_observations")
    with pytest.warns(UserWarning, match="does not follow"):
        dataset = open_d4rl(tmp_path / "a.hdf5")
    np.testing.assert_array_equal(dataset.state[:, 0], [0, 1.5, 1, 2.5])


def test_a_jump_that_no_flag_explains_ends_an_episode(tmp_path: Path) -> None:
    arrays = d4rl_arrays(LENGTHS, TERMINATED)
    arrays["timeouts"][4] = False
    write_d4rl(tmp_path / "a.hdf5", arrays)
    with pytest.warns(UserWarning, match=r"1 step\(s\) that the next one does not follow"):
        check_alignment(open_d4rl(tmp_path / "a.hdf5"))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    write_d4rl(tmp_path / "a.hdf5", d4rl_arrays(LENGTHS))
    said = f"{tmp_path} is a folder; one HDF5 file of D4RL is needed, as d4rl:FILE.hdf5."
    assert refusal(load_dataset, tmp_path) == refusal(load_dataset, f"d4rl:{tmp_path}") == said


@pytest.mark.parametrize("quantizer", ["vqvae", "musik", "dino", "vqgan", "joint"])
def test_states_alone_are_not_trained_on(tmp_path: Path, quantizer: str) -> None:
    """By the one reason, whichever way they come: they have no frames."""
    write_d4rl(tmp_path / "a.hdf5", d4rl_arrays(LENGTHS))
    states = load_dataset(tmp_path / "a.hdf5")
    config = VOCConfig(joint=JointTraining()) if quantizer == "joint" else VOCConfig(quantizer=quantizer)
    asked = EvaluationConfig(voc=config)
    for call in (partial(train, states, config), partial(evaluate_policy, states, object(), config=asked)):
        assert (
            "has states but no frames; voc_rl.envs.render_states draws those of HalfCheetah and Walker2d."
            in refusal(call)
        )


def test_next_observations_of_more_digits_are_no_jumps(tmp_path: Path) -> None:
    states = np.random.default_rng(0).normal(size=(16, 17))
    arrays = {key: array for key, array in d4rl_arrays((15,)).items() if key not in ("timeouts", "next_observations")}
    write_d4rl(tmp_path / "a.hdf5", {**arrays, "observations": states[:-1]})
    following = states[1:].copy()
    following[7] += 1  # the one jump
    for dtype in (np.float64, np.float32):
        with h5py.File(tmp_path / "a.hdf5", "a") as file:
            file.pop("next_observations", None)
            file["next_observations"] = following.astype(dtype)
        dataset = open_d4rl(tmp_path / "a.hdf5")
        assert (dataset.ends - dataset.starts - 1).tolist() == [8, 7]
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["next_observations"][:] += 1
    with pytest.warns(UserWarning, match="14 of 15 steps are not followed by the next one and end episodes"):
        open_d4rl(tmp_path / "a.hdf5")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rewards", np.full(15, np.nan), "rewards is float32 or holds NaN"),
        ("rewards", np.zeros(14), r"observations has shape \(15, 17\); 14 steps"),
        ("terminals", None, "lacks terminals"),
        ("actions", np.full((15, 2), 1.5), "action holds 1.5"),
        ("actions", np.zeros(15), r"actions has shape \(15,\); 15 steps and 2 axes"),
        ("next_observations", np.zeros((15, 16)), "unlike observations"),
        ("observations", np.zeros((15, 0)), "observations has shape"),
        ("infos/qpos", np.full((15, 9), np.inf), "infos/qpos is float32 or holds NaN"),
    ],
)
def test_wrong_arrays(tmp_path: Path, key: str, value: np.ndarray | None, said: str) -> None:
    arrays = d4rl_arrays(LENGTHS, TERMINATED)
    arrays.pop(key)
    write_d4rl(tmp_path / "a.hdf5", arrays if value is None else {**arrays, key: value})
    with pytest.raises(VOCError, match=said):
        open_d4rl(tmp_path / "a.hdf5")


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(VOCError, match=r"does not exist; an HDF5 file of D4RL"):
        open_d4rl(tmp_path / "none.hdf5")
    (tmp_path / "a.hdf5").write_text("rewards 1 2 3")
    with pytest.raises(VOCError, match="is not a whole HDF5 file"):
        open_d4rl(tmp_path / "a.hdf5")
    write_d4rl(tmp_path / "b.hdf5", d4rl_arrays((3,)))
    with h5py.File(tmp_path / "b.hdf5", "a") as file:
        file["infos/elsewhere"] = 1
        del file["infos"]
        file["infos"] = h5py.ExternalLink("/etc/secret.hdf5", "infos")
    with pytest.raises(VOCError, match=r"infos is a link to /etc/secret\.hdf5"):
        open_d4rl(tmp_path / "b.hdf5")


def test_scores(tmp_path: Path) -> None:
    write_d4rl(tmp_path / "walker2d_medium.hdf5", d4rl_arrays((2, 3)))
    dataset = open_d4rl(tmp_path / "walker2d_medium.hdf5")
    returns = np.array([0 + 1, 1000 + 1001 + 1002])
    np.testing.assert_allclose(normalized_scores(dataset), 100 * (returns - 1.629008) / (4592.3 - 1.629008))
    np.testing.assert_allclose(normalized_scores(dataset, (1, 3003)), [0, 100])
    write_d4rl(tmp_path / "pen.hdf5", d4rl_arrays((2, 3)))
    with pytest.raises(VOCError, match="No reference returns are known for task ''"):
        normalized_scores(open_d4rl(tmp_path / "pen.hdf5"))
    with pytest.raises(VOCError, match="are both 3"):
        normalized_scores(dataset, (3, 3))


# --- through the package d4rl


def test_a_working_package(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = d4rl_arrays(LENGTHS, TERMINATED)
    env = types.SimpleNamespace(get_dataset=lambda: {**arrays, "metadata/algorithm": b"SAC"})
    monkeypatch.setitem(sys.modules, "d4rl", types.ModuleType("d4rl"))
    gym = types.ModuleType("gym")
    gym.make = {"halfcheetah-medium-v2": env}.__getitem__  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gym", gym)
    dataset = open_d4rl("halfcheetah-medium-v2")
    check_alignment(dataset)
    assert dataset.spec.task == "HalfCheetah-v5"
    with pytest.raises(VOCError, match=r"d4rl has no dataset for pen-human-v1 .*d4rl:FILE\.hdf5"):
        open_d4rl("pen-human-v1")


@pytest.mark.parametrize("body", ["raise SystemExit('MuJoCo 2.1 is missing')", "raise ImportError", "import nothing_"])
def test_a_package_that_ends_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    (tmp_path / "d4rl.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "d4rl", raising=False)
    with pytest.raises(VOCError, match=r"does not import here .*d4rl:FILE\.hdf5 instead of d4rl:walker2d-expert-v2"):
        open_d4rl("walker2d-expert-v2")


def test_nothing_else_imports_it() -> None:
    code = "import sys, voc_rl, voc_rl.data, voc_rl.envs; assert 'd4rl' not in sys.modules and 'gym' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    keep=st.sets(st.sampled_from(["timeouts", "next_observations"]), min_size=1),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_any_episodes(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], keep: set[str], seed: int) -> None:
    """Whatever the lengths and ends are: rewards in their order, one reset row for each episode, the right ends."""
    rng = np.random.default_rng(seed)
    terminated = [i for i in range(len(lengths)) if rng.random() < 0.5]
    arrays = d4rl_arrays(lengths, terminated)
    for key in {"timeouts", "next_observations"} - keep:
        del arrays[key]
    path = tmp_path_factory.mktemp("any") / "a.hdf5"
    write_d4rl(path, arrays)
    dataset = open_d4rl(path)
    assert (dataset.ends - dataset.starts - 1).tolist() == lengths
    np.testing.assert_array_equal(np.delete(dataset.reward, dataset.starts), arrays["rewards"])
    np.testing.assert_array_equal(np.delete(dataset.action, dataset.starts, 0), arrays["actions"].astype(np.float32))
    assert (dataset.reward[dataset.starts] == 0).all()
    assert np.flatnonzero(dataset.terminal[dataset.ends - 1]).tolist() == terminated
