"""Minari's datasets: written by Minari itself and by us, alignment, the way there and back, refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SPEC, numbered_frames, toy_episode, toy_folder, write_v_d4rl
from worlds import refusal

from voc_rl.checkpoints import hold_folder
from voc_rl.data import Episodes, write_minari
from voc_rl.data.hdf5 import write_episode
from voc_rl.data.minari_data import open_minari
from voc_rl.errors import VOCError

minari = pytest.importorskip("minari")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Minari asks for authors
STEPS = (4, 1, 6)
PICTURE = Box(0, 255, (8, 8, 3), np.uint8)


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def buffers(picture: Any = None, action: Any = None) -> list[Any]:
    """Episodes i of some steps: observation t is filled with 40 i + t; the action taken there is (i, t) / 100, and
    its reward 100 i + t. The second is terminated."""
    made = []
    for i, steps in enumerate(STEPS):
        t = np.arange(steps)
        ended = t == steps - 1
        frames = numbered_frames(40 * i, steps + 1, 8, 8)
        made.append(
            minari.data_collector.EpisodeBuffer(
                observations=(picture or (lambda f: np.ascontiguousarray(f.transpose(0, 2, 3, 1))))(frames),
                actions=(action or (lambda a: a))(np.stack([t * 0 + i, t], 1).astype(np.float32) / 100),
                rewards=100.0 * i + t,
                terminations=ended & (i == 1),
                truncations=ended & (i != 1),
                infos={"x": np.arange(steps + 1)},
            )
        )
    return made


def by_minari(name: str = "toy/rings-v0", space: Any = PICTURE, action_space: Any = None, **made: Any) -> None:
    """A dataset as Minari's own function writes it."""
    action_space = action_space or Box(-1, 1, (2,), np.float32)
    jpeg = made.pop("jpeg", False)
    minari.create_dataset_from_buffers(
        name, buffers(**made), action_space=action_space, observation_space=space, jpeg_encoding=jpeg
    )


def large(frames: np.ndarray, side: int) -> np.ndarray:
    """Pictures (T, side, side, 3), each filled with the first number of a frame."""
    return np.broadcast_to(frames[:, :1, :1, :1], (len(frames), side, side, 3)).copy()


def check_alignment(dataset: Episodes, scale: float = 1.0) -> None:
    """Every row of every episode: an action belongs to the row that it led to."""
    assert (dataset.ends - dataset.starts).tolist() == [s + 1 for s in STEPS]
    for i, (start, steps) in enumerate(zip(dataset.starts, STEPS, strict=True)):
        t = np.arange(steps + 1)
        here = start + t
        np.testing.assert_array_equal(dataset.frames(here)[:, 1, 3, 5], 40 * i + t)
        led = np.maximum(t - 1, 0)
        action = np.where(t[:, None] > 0, np.stack([led * 0 + i, led], 1) / 100, 0) * scale
        np.testing.assert_allclose(dataset.action[here], action, atol=1e-6)
        np.testing.assert_array_equal(dataset.reward[here], np.where(t > 0, 100 * i + t - 1, 0))
        window = dataset.windows(np.array([start]), 1)
        assert window.reward[0, 0] == 100 * i
        assert window.next_obs[0, -1, 0, 0] == 40 * i + 1
    np.testing.assert_array_equal(np.flatnonzero(dataset.terminal), [6])


def test_what_minari_wrote() -> None:
    by_minari()
    dataset = open_minari("toy/rings-v0")
    check_alignment(dataset)
    assert dataset.state is None
    assert dataset.load_frames().observations(np.array([0])).shape == (1, 9, 8, 8)


def test_by_a_path(root: Path) -> None:
    by_minari()
    check_alignment(open_minari(str(root / "toy" / "rings-v0")))
    check_alignment(open_minari(str(root / "toy" / "rings-v0" / "data")))


def test_stacks_channels_first_keep_their_newest_frame() -> None:
    def stacked(frames: np.ndarray) -> np.ndarray:
        return np.concatenate([frames * 0, frames * 0 + 1, frames], 1).repeat(2, 2).repeat(2, 3)

    by_minari(space=Box(0, 255, (9, 16, 16), np.uint8), picture=stacked)
    check_alignment(open_minari("toy/rings-v0"))


def test_states_alone_have_no_frames(tmp_path: Path) -> None:
    by_minari(space=Box(-9, 999, (3,), np.float64), picture=lambda f: f[:, :, 0, 0].astype(np.float64))
    dataset = open_minari("toy/rings-v0")
    assert not dataset.has_frames
    np.testing.assert_array_equal(dataset.state[:3, 0], [0, 1, 2])
    with pytest.raises(VOCError, match="has states but no frames, and no simulator states to draw them from"):
        dataset.observations(np.array([0]))
    with pytest.raises(VOCError, match="the episode has states but no frames, and no simulator states"):
        write_episode(tmp_path / "a.hdf5", dataset.whole(0), dataset.spec)


def test_other_bounds_are_rescaled() -> None:
    by_minari(action_space=Box(-2, 2, (2,), np.float32))
    with pytest.warns(UserWarning, match=r"actions are rescaled from -2\.\.2 to \[-1, 1\]; policies .* have to answer"):
        check_alignment(open_minari("toy/rings-v0"), scale=0.5)


def test_more_than_the_memory_holds_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what frames take here, not on disk, before any but the first episode is decoded."""
    side, rows = 128, sum(STEPS) + len(STEPS)
    by_minari(space=Box(0, 255, (side, side, 3), np.uint8), jpeg=True, picture=lambda f: large(f, side))
    frames = 3 * side * side * rows
    assert (root / "toy" / "rings-v0" / "data" / "main_data.hdf5").stat().st_size < frames - 1
    monkeypatch.setattr("voc_rl.data.border.machine_memory", lambda: frames + 100 * rows)
    assert len(open_minari("toy/rings-v0")) == rows
    monkeypatch.setattr("voc_rl.data.border.machine_memory", lambda: frames - 1)
    monkeypatch.setattr(Episodes, "from_episodes", lambda *asked: pytest.fail("they are read"))
    said = refusal(open_minari, "toy/rings-v0")
    assert said.endswith("`voc-rl data convert --to voc` turns it into files that are read frame by frame.")


def test_jpeg_is_read_though_it_lost_something() -> None:
    by_minari(space=Box(0, 255, (32, 32, 3), np.uint8), jpeg=True, picture=lambda f: large(f, 32))
    dataset = open_minari("toy/rings-v0")
    assert np.abs(dataset.frames(np.arange(5))[:, 0, 0, 0].astype(int) - np.arange(5)).max() <= 2


def same(one: Episodes, other: Episodes) -> None:
    """Bit for bit the same rows, ours included."""
    for name in (
        "action", "reward", "discount", "step_type", "terminal", "starts", "ends",
        "state", "physics", "log_prob", "unclipped_action", "policy_id",
    ):  # fmt: skip
        expected, found = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(expected, found, err_msg=name)
        assert expected.dtype == found.dtype, name
    rows = np.arange(len(one))
    np.testing.assert_array_equal(one.frames(rows), other.frames(rows))
    assert one.spec == other.spec


def test_there_and_back(tmp_path: Path, root: Path) -> None:
    rng = np.random.default_rng(0)
    for i, rows in enumerate((7, 2, 9)):  # 40 pixels and noise: what JPEG would change
        frames = rng.integers(256, size=(rows, 3, 40, 40), dtype=np.uint8)
        write_episode(tmp_path / "ours" / f"{i}.hdf5", toy_episode(i, rows, i == 2, frames), SPEC)
    ours = Episodes.open(tmp_path / "ours")
    assert write_minari("toy/ours-v0", ours) == root / "toy" / "ours-v0" / "data"
    theirs = open_minari("toy/ours-v0")
    same(ours, theirs)
    for i in range(3):
        write_episode(tmp_path / "again" / f"{i}.hdf5", theirs.whole(i), theirs.spec)
    same(ours, Episodes.open(tmp_path / "again"))
    read = minari.load_dataset("toy/ours-v0")  # Minari's own reader
    assert (read.total_episodes, read.total_steps) == (3, 15)
    last = list(read.iterate_episodes())[2]
    np.testing.assert_array_equal(last.observations.transpose(0, 3, 1, 2), ours.frames(np.arange(9, 18)))
    np.testing.assert_array_equal(last.actions, ours.action[10:18])
    assert last.terminations.tolist() == [False] * 7 + [True]
    with pytest.raises(VOCError, match=r"toy/ours-v0 in .* already"):
        write_minari("toy/ours-v0", ours)


def test_states_there_and_back() -> None:
    by_minari(space=Box(-9, 999, (3,), np.float64), picture=lambda f: f[:, :, 0, 0].astype(np.float64))
    states = open_minari("toy/rings-v0")
    write_minari("toy/states-v0", states)
    again = open_minari("toy/states-v0")
    np.testing.assert_array_equal(again.state, states.state)
    np.testing.assert_array_equal(again.action, states.action)


def test_an_episode_without_a_step_is_left_out(tmp_path: Path) -> None:
    write_v_d4rl(tmp_path / "a.hdf5", (3, 1, 2), step_type=np.array([0, 1, 2, 0, 0, 2]))
    with pytest.warns(UserWarning, match=r"1 malformed episode\(s\) of 3 left out; the first, at row 3: a single row"):
        write_minari("toy/short-v0", Episodes.open(tmp_path))
    np.testing.assert_array_equal(open_minari("toy/short-v0").frames(np.arange(5))[:, 0, 0, 0], [0, 1, 2, 4, 5])


def test_a_failure_leaves_nothing(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Episodes.open(toy_folder(tmp_path / "ours", (7, 2)))

    def broken(self: Episodes, episode: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Episodes, "whole", broken)
        said = refusal(write_minari, "toy/half-v0", ours)
    assert said == f"{root / 'toy' / 'half-v0'} cannot be written (No space left on device); run again once it can."
    assert [p.name for p in root.rglob("*") if p.name != "toy"] == ["namespace_metadata.json"]
    killed = root / "toy" / ".half-v0.part" / "data"
    killed.mkdir(parents=True)
    (killed / "main_data.hdf5").write_text("half")
    with hold_folder(killed.parent, "folder"):
        assert ".half-v0.part is in use by another run" in refusal(write_minari, "toy/half-v0", ours)
    assert len(open_minari(str(write_minari("toy/half-v0", ours)))) == 9
    assert sorted(p.name for p in (root / "toy").iterdir()) == ["half-v0", "namespace_metadata.json"]


@given(lengths=st.lists(st.integers(2, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_any_episodes_come_back(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = [toy_episode(i, n, bool(rng.random() < 0.5)) for i, n in enumerate(lengths)]
    ours = Episodes.from_episodes(made, SPEC, Path("memory"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        write_minari("any-v0", ours)
        same(ours, open_minari("any-v0"))


def edited(root: Path, **changed: Any) -> None:
    path = root / "toy" / "rings-v0" / "data" / "metadata.json"
    metadata = {**json.loads(path.read_text()), **changed}
    path.write_text(json.dumps({key: value for key, value in metadata.items() if value is not None}))


def test_no_environment_of_the_files_choice_is_made(root: Path) -> None:
    """Without spaces Minari makes the environment that the file names: any module's any function."""
    by_minari()
    harm = root / "harm"
    spec = {"id": "x-v0", "entry_point": "pathlib:Path.touch", "kwargs": {"self": str(harm)}}
    edited(root, observation_space=None, env_spec=json.dumps(spec))
    assert "lacks observation_space" in refusal(open_minari, "toy/rings-v0")
    assert not harm.exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"total_episodes": 2}, "holds 3 groups, but metadata.json says 2"),
        ({"total_episodes": 10**12}, "the dataset is not whole"),
        ({"data_format": "arrow"}, "data_format is 'arrow'"),
        ({"observation_space": '{"type": "Sphere"}'}, "is not a whole Minari file"),
    ],
)
def test_wrong_metadata(root: Path, changed: dict[str, Any], said: str) -> None:
    by_minari()
    edited(root, **changed)
    with pytest.raises(VOCError, match=said):
        open_minari("toy/rings-v0")


def test_wrong_arrays(root: Path) -> None:
    by_minari()
    path = root / "toy" / "rings-v0" / "data" / "main_data.hdf5"
    whole = path.read_bytes()
    for key, value, said in (
        ("rewards", np.array([0, np.nan, 0, 0]), "episode 0: reward holds NaN"),
        ("rewards", np.zeros(3), r"episode 0: 3 rewards, actions \(4, 2\)"),
        ("observations", np.zeros((4, 8, 8, 3), np.uint8), "4 observations for 4 steps; 5 are needed"),
        ("observations", np.zeros((5, 8, 8, 4), np.uint8), r"pictures are \(8, 8, 4\)"),
        ("truncations", np.array([True, False, False, True]), "a step before the last one"),
        ("actions", np.full((4, 2), 7.0), "action holds 7"),
    ):
        with h5py.File(path, "a") as file:
            del file["episode_0"][key]
            file["episode_0"][key] = value
        with pytest.raises(VOCError, match=said):
            open_minari("toy/rings-v0")
        path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        del file["episode_1"]["rewards"]
        file["episode_1"]["rewards"] = h5py.ExternalLink("/etc/secret.hdf5", "rewards")
    with pytest.raises(VOCError, match="rewards is a link to /etc/secret"):
        open_minari("toy/rings-v0")
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        for i in range(10):  # a tree of ten to the power of its depth, in one kilobyte
            file["episode_0"][f"again_{i}"] = file["episode_0"]
    with pytest.raises(VOCError, match="has another name too"):
        open_minari("toy/rings-v0")
    path.write_bytes(whole[:500])
    with pytest.raises(VOCError, match=r"main_data\.hdf5 is not a whole HDF5 file"):
        open_minari("toy/rings-v0")


def test_discrete_actions_become_one_hot() -> None:
    space = Discrete(7, start=2)
    by_minari(action_space=space, action=lambda a: np.int64(np.rint(100 * a[:, 1]) + 2))
    dataset = open_minari("toy/rings-v0")
    for start, steps in zip(dataset.starts, STEPS, strict=True):
        taken = dataset.action[start + 1 : start + 1 + steps]
        np.testing.assert_array_equal(taken, np.eye(7)[np.arange(steps)])
        assert not dataset.action[start].any()
    by_minari("toy/others-v0", action_space=Discrete(3), action=lambda a: np.int64(np.rint(100 * a[:, 1])))
    assert "actions [0 1 2 3] are not all in Discrete(3)" in refusal(open_minari, "toy/others-v0")
    by_minari("toy/many-v0", action_space=MultiDiscrete([5, 9]), action=lambda a: np.int64(np.rint(100 * a)))
    assert "actions are MultiDiscrete(2,); a flat Box" in refusal(open_minari, "toy/many-v0")


def test_links_that_leave_an_untrusted_folder(root: Path) -> None:
    by_minari()
    file = root / "toy" / "rings-v0" / "data" / "main_data.hdf5"
    file.rename(root / "elsewhere.hdf5")
    file.symlink_to(root / "elsewhere.hdf5")
    check_alignment(open_minari("toy/rings-v0"))
    assert "main_data.hdf5 is a link to" in refusal(open_minari, "toy/rings-v0", untrusted=True)


def test_names(root: Path) -> None:
    with pytest.raises(VOCError, match=r"There is no Minari dataset no/such-v0 in .*; `minari download no/such-v0`"):
        open_minari("no/such-v0")
    some = Episodes.from_episodes([toy_episode(0, 3)], SPEC, Path("memory"))
    for name in ("../../etc-v0", "a b", "", "toy/rings"):
        assert "is no name of a Minari dataset" in refusal(open_minari, name)
        assert "is no name of a Minari dataset" in refusal(write_minari, name, some)


def test_without_minari(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    assert refusal(open_minari, "toy/rings-v0").endswith("need minari; run: pip install 'voc_rl[minari]'.")


def test_a_folder_for_datasets_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "datasets"))
    some = Episodes.from_episodes([toy_episode(0, 3)], SPEC, Path("memory"))
    for call in (lambda: open_minari("toy/rings-v0"), lambda: write_minari("toy/rings-v0", some)):
        assert "set MINARI_DATASETS_PATH to one that can" in refusal(call)
