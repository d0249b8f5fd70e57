"""V-D4RL's 84 px shards and 64 px folders: alignment, malformed episodes, refusals, and the way there and back."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import numbered_frames, toy_episode, toy_folder

from voc_rl.benchmarks.layouts import write_64px, write_84px
from voc_rl.data import Episodes, load_dataset, write_vd4rl
from voc_rl.data.vd4rl import open_vd4rl
from voc_rl.data.vd4rl_npz import read_npz
from voc_rl.errors import VOCError

LENGTHS = (5, 2, 7)
WRITTEN = [toy_episode(i, n, i == 1, numbered_frames(40 * i, n, 8, 8)) for i, n in enumerate(LENGTHS)]


def check_alignment(dataset: Episodes) -> None:
    """Every row of every episode, the first, second and last included: frame, action, reward and end of row t."""
    assert (dataset.ends - dataset.starts).tolist() == list(LENGTHS)
    for i, (start, rows) in enumerate(zip(dataset.starts, LENGTHS, strict=True)):
        t = np.arange(rows)
        here = start + t
        np.testing.assert_array_equal(dataset.frames(here)[:, :, 3, 5], ((40 * i + t) % 256)[:, None].repeat(3, 1))
        np.testing.assert_array_equal(dataset.action[here], WRITTEN[i].action)
        np.testing.assert_array_equal(dataset.reward[here], np.where(t > 0, 100 * i + t, 0))
        window = dataset.windows(np.array([start]), 1)  # from the reset: the action taken there, the reward it led to
        np.testing.assert_array_equal(window.action[0, 0], WRITTEN[i].action[1])
        assert window.reward[0, 0] == 100 * i + 1
        assert window.next_obs[0, -1, 0, 0] == (40 * i + 1) % 256
    np.testing.assert_array_equal(dataset.terminal, np.arange(sum(LENGTHS)) == 6)


def test_shards_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Shards 9 and 10 as V-D4RL's splitting script names them; it may cut an episode in two."""
    whole = tmp_path / "whole.hdf5"
    write_84px(whole, WRITTEN)
    check_alignment(open_vd4rl(whole))
    with h5py.File(whole) as file:
        assert file["observation"].compression == "gzip"
        assert file["observation"].chunks is not None
        for number, rows in ((9, np.s_[:9]), (10, np.s_[9:])):
            with h5py.File(tmp_path / f"{number}.hdf5", "w") as part:
                for key in file:
                    part.create_dataset(key, data=file[key][rows], compression="gzip")
    whole.unlink()
    check_alignment(open_vd4rl(tmp_path))


def test_npz_folder(tmp_path: Path) -> None:
    for i, episode in enumerate(WRITTEN):
        write_64px(tmp_path / f"20220315T10000{i}-{'abc'[i]}-{LENGTHS[i]}.npz", episode)
    dataset = open_vd4rl(tmp_path)
    check_alignment(dataset)
    assert dataset.spec.size == 8
    assert dataset.reward.dtype == dataset.discount.dtype == np.float32
    part = dataset.subset([2, 0]).load_frames()
    np.testing.assert_array_equal(part.frames(np.arange(12))[:, 0, 0, 0], [*range(80, 87), *range(5)])
    check_alignment(open_vd4rl(tmp_path).load_frames())
    assert len(open_vd4rl(tmp_path / "20220315T100000-a-5.npz")) == 5


def test_older_npz_files_have_no_terminal_flag(tmp_path: Path) -> None:
    for i, episode in enumerate(WRITTEN):
        write_64px(tmp_path / f"{i}.npz", episode, is_terminal=None)
    check_alignment(open_vd4rl(tmp_path))


def test_malformed_npz_episodes_are_counted_and_left_out(tmp_path: Path) -> None:
    write_64px(tmp_path / "0.npz", WRITTEN[0], image=np.zeros((4, 8, 8, 3), np.uint8))  # 500 frames, 501 flags
    write_64px(tmp_path / "1.npz", WRITTEN[1])
    (tmp_path / "2.npz").write_bytes((tmp_path / "1.npz").read_bytes()[:300])
    with pytest.warns(UserWarning, match=r"2 malformed episode\(s\) of 3 left out; the first: .*0.npz has arrays of"):
        dataset = open_vd4rl(tmp_path)
    np.testing.assert_array_equal(dataset.reward, [0, 101])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image": np.zeros((5, 3, 8, 8), np.uint8)}, "image is uint8"),
        ({"image": np.zeros((5, 8, 8, 3), np.float32)}, "image is float32"),
        ({"reward": np.array([0, np.nan, 0, 0, 0])}, "reward holds NaN"),
        ({"reward": None}, "lacks reward"),
        ({"action": np.full((5, 2), 3.0)}, r"action holds 3 \(row 0\); -1 to 1"),
        ({"discount": np.full(5, 1.5)}, "discount holds 1.5"),
        ({"is_first": np.array([1, 0, 1, 0, 0], bool)}, "is_first and is_last"),
        ({"is_last": np.array([0, 0, 0, 1, 0], bool)}, "is_first and is_last"),
        ({"is_terminal": np.ones(5, bool)}, "is_terminal is not true where discount is 0"),
        ({"reward": np.array([b"a"] * 5)}, r"reward has dtype \|S1"),
    ],
)
def test_a_wrong_npz_is_refused(tmp_path: Path, changed: dict[str, np.ndarray], said: str) -> None:
    write_64px(tmp_path / "a.npz", WRITTEN[0], **changed)
    with pytest.raises(VOCError, match=said):
        read_npz(tmp_path / "a.npz")
    with pytest.raises(VOCError, match="holds no whole episode"):
        open_vd4rl(tmp_path)


def test_no_pickle_is_read(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "harm",))

    write_64px(tmp_path / "a.npz", WRITTEN[0], reward=np.array([Harm()] * 5, dtype=object))
    with pytest.raises(VOCError, match="reward has dtype object"):
        read_npz(tmp_path / "a.npz")
    assert not (tmp_path / "harm").exists()


def test_a_declared_petabyte_is_refused(tmp_path: Path) -> None:
    """The header of an array is all that a file needs to claim any size."""
    write_64px(tmp_path / "a.npz", WRITTEN[0])
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**50, 8, 8, 3)})
    with zipfile.ZipFile(tmp_path / "a.npz") as old, zipfile.ZipFile(tmp_path / "b.npz", "w") as new:
        for name in old.namelist():
            new.writestr(name, header.getvalue() if name == "image.npy" else old.read(name))
    with pytest.raises(VOCError, match="image declares shape"):
        read_npz(tmp_path / "b.npz")
    write_84px(tmp_path / "c.hdf5", WRITTEN)
    with h5py.File(tmp_path / "c.hdf5", "a") as file:
        del file["observation"]
        file.create_dataset("observation", (2**40, 3, 84, 84), np.uint8, chunks=(1, 3, 84, 84))
    with pytest.raises(VOCError, match=r"declares 2[0-9]+ bytes of shape"):
        open_vd4rl(tmp_path / "c.hdf5")


def test_more_than_the_memory_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        write_64px(tmp_path / f"{i}.npz", WRITTEN[0])
    monkeypatch.setattr("voc_rl.data.border.machine_memory", lambda: 2 * 5 * 8 * 8 * 3 + 400)
    with pytest.raises(
        VOCError, match=r"Every frame of .* takes .* `voc-rl data convert --to voc` turns it into files"
    ):
        open_vd4rl(tmp_path)


def test_malformed_episodes_of_a_shard(tmp_path: Path) -> None:
    """A NaN, an action out of range, a row without its kind, rows of no episode: the others keep their rows."""
    episodes = [toy_episode(i, 4, frames=numbered_frames(40 * i, 4, 8, 8)) for i in range(6)]
    reward = np.concatenate([e.reward for e in episodes]).astype(np.float64)
    action = np.concatenate([e.action for e in episodes])
    step_type = np.tile([0.0, 1, 1, 2], 6)
    reward[5], action[10], step_type[14], step_type[17] = np.nan, -7, 1.5, 2
    write_84px(tmp_path / "a.hdf5", episodes, reward=reward, action=action, step_type=step_type)
    with pytest.warns(UserWarning, match=r"4 malformed episode\(s\) of 6 left out; the first, at row 4: reward holds"):
        dataset = open_vd4rl(tmp_path)
    np.testing.assert_array_equal(dataset.frames(np.arange(8))[:, 0, 0, 0], [0, 1, 2, 3, 200, 201, 202, 203])
    np.testing.assert_array_equal(dataset.reward, [0, 1, 2, 3, 0, 501, 502, 503])
    with pytest.raises(VOCError, match=r"reward holds NaN|action holds -7"):
        Episodes.open(tmp_path)  # ours would not be like that


def test_rows_of_no_episode_at_the_start(tmp_path: Path) -> None:
    write_84px(tmp_path / "a.hdf5", [replace(WRITTEN[0], step_type=np.array([1, 1, 1, 1, 2])), WRITTEN[1]])
    with pytest.warns(UserWarning, match="1 malformed"):
        np.testing.assert_array_equal(open_vd4rl(tmp_path).reward, [0, 101])
    write_84px(tmp_path / "a.hdf5", [replace(WRITTEN[0], reward=np.full(5, np.inf))])
    with pytest.raises(VOCError, match="holds no whole episode"):
        open_vd4rl(tmp_path)


def write_parts(
    folder: Path, numbers: tuple[int, ...], name: Callable[[int], str] = str, wrong: int | None = None, last: int = 2
) -> Path:
    """Six files of six rows, of which some are there: episodes of 10 rows, whose frames are filled with their row.

    Row ``wrong`` has a NaN; every episode's last row has step type ``last``, and a termination where that is 1.
    """
    t, kinds = np.arange(36), np.tile([0.0, *[1] * 8, last], 4)[:36]
    whole = {"observation": numbered_frames(0, 36), "action": np.zeros((36, 2)), "reward": np.where(kinds > 0, t, 0.0)}
    whole |= {"discount": np.where((last == 1) & (t % 10 == 9), 0.0, 1.0), "step_type": kinds}
    if wrong is not None:
        whole["reward"][wrong] = np.nan
    for number in numbers:
        arrays = {key: array[6 * number : 6 * number + 6] for key, array in whole.items()}
        write_84px(folder / f"{name(number)}.hdf5", [toy_episode(0, 6)], **arrays)
    return folder


@pytest.mark.parametrize("name", [lambda number: f"rows_{6 * number}", lambda number: f"at_{1200 + 7 * number**2}"])
def test_numbers_that_count_rows_or_seconds_miss_no_file(tmp_path: Path, name: Callable[[int], str]) -> None:
    folder = write_parts(tmp_path, (0, 1, 2, 3, 4), name)
    for dataset in (open_vd4rl(folder), Episodes.open(folder)):
        assert dataset.returns.tolist() == [45, 135, 225]


def test_the_halves_around_a_missing_shard_are_no_episode(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_dataset(write_parts(tmp_path / "whole", (0, 1, 2, 3, 4))).returns.tolist() == [45, 135, 225]
    for missing, there, left in ((2, (0, 1, 3, 4), [0, 20]), (1, (0, 2, 3, 4), [20]), (0, (1, 2, 3, 4), [10, 20])):
        folder = write_parts(tmp_path / f"without_{missing}", there)
        with pytest.warns(UserWarning, match=r"malformed episode\(s\) of \d left out"):
            dataset = open_vd4rl(folder)
        if missing:
            with pytest.raises(VOCError, match=rf"{missing + 1}\.hdf5 begins inside an episode, and {missing - 1}\."):
                Episodes.open(folder)  # ours would not be like that
        assert dataset.frames(dataset.starts)[:, 0, 0, 0].tolist() == left, missing


def test_the_half_before_a_gap_is_none_where_the_next_file_begins_an_episode(tmp_path: Path) -> None:
    """Row 29, the last one of an episode, is in the missing file; file 5 begins with row 30."""
    folder = write_parts(tmp_path / "cut", (0, 1, 2, 3, 5))
    with (
        pytest.warns(
            UserWarning, match=r"1 malformed episode\(s\) of 4 left out; the first, at row 20: no last step, a"
        ),
        pytest.warns(UserWarning, match=r"1 episode\(s\) without a last step are taken as cut"),  # the last one
    ):
        assert open_vd4rl(folder).returns.tolist() == [45, 135, sum(range(31, 36))]
    # an episode that terminated before the gap is whole, whatever its step type
    folder = write_parts(tmp_path / "whole", (0, 1, 2, 3, 4, 5), lambda n: str(n if n < 5 else 6), last=1)
    with pytest.warns(UserWarning, match=r"1 episode\(s\) without a last step are taken as cut"):
        assert open_vd4rl(folder).returns.tolist() == [45, 135, 225, sum(range(31, 36))]


@pytest.mark.parametrize("wrong", [26, 21])
def test_no_part_of_an_episode_is_left_where_the_other_file_has_it_malformed(tmp_path: Path, wrong: int) -> None:
    """Rows 20 to 23 are in one file, 24 to 29 in the next."""
    with pytest.warns(UserWarning, match=r"malformed episode\(s\) of \d left out"):
        dataset = open_vd4rl(write_parts(tmp_path, (0, 1, 2, 3, 4), wrong=wrong))
    assert dataset.frames(dataset.starts)[:, 0, 0, 0].tolist() == [0, 10]


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(VOCError, match="does not exist; a folder of V-D4RL"):
        open_vd4rl(tmp_path / "none")
    with pytest.raises(VOCError, match="zero episodes"):
        open_vd4rl(tmp_path)
    write_84px(tmp_path / "84px" / "a.hdf5", WRITTEN)
    with pytest.raises(VOCError, match="holds the folders 84px; name one"):
        open_vd4rl(tmp_path)
    write_64px(tmp_path / "84px" / "a.npz", WRITTEN[0])
    with pytest.raises(VOCError, match="two datasets, open one"):
        open_vd4rl(tmp_path / "84px")


def test_nothing_outside_the_file_is_read(tmp_path: Path) -> None:
    write_84px(tmp_path / "secret.hdf5", WRITTEN)
    folder = tmp_path / "data"
    write_84px(folder / "a.hdf5", WRITTEN)
    with h5py.File(folder / "a.hdf5", "a") as file:
        del file["reward"]
        file["reward"] = h5py.ExternalLink("../secret.hdf5", "reward")
    with pytest.raises(VOCError, match=r"reward is a link to \.\./secret.hdf5"):
        open_vd4rl(folder)
    with h5py.File(folder / "a.hdf5", "a") as file:
        del file["reward"]
        file.create_dataset("reward", (14,), np.float64, external=[(str(tmp_path / "secret.hdf5"), 0, 112)])
    with pytest.raises(VOCError, match="reward is kept in another file"):
        open_vd4rl(folder)
    layout = h5py.VirtualLayout((14,), np.float64)
    layout[:] = h5py.VirtualSource(tmp_path / "secret.hdf5", "reward", (14,))
    with h5py.File(folder / "a.hdf5", "a") as file:
        del file["reward"]
        file.create_virtual_dataset("reward", layout)
    with pytest.raises(VOCError, match="reward is kept in another file"):
        open_vd4rl(folder)
    (folder / "a.hdf5").unlink()
    (folder / "b.hdf5").symlink_to(tmp_path / "secret.hdf5")
    check_alignment(open_vd4rl(folder))  # one's own links are fine: caches are made of them
    with pytest.raises(VOCError, match=r"is a link to .*secret.hdf5, outside"):
        open_vd4rl(folder, untrusted=True)


def same(one: Episodes, other: Episodes, *names: str) -> None:
    """Bit for bit the same frames, actions, rewards and ends."""
    for name in ("action", "reward", "discount", "step_type", "starts", "ends", "terminal", *names):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    rows = np.arange(len(one))
    np.testing.assert_array_equal(one.frames(rows), other.frames(rows))


def test_there_and_back(tmp_path: Path) -> None:
    ours = Episodes.open(toy_folder(tmp_path / "ours", (7, 2, 9), terminated=(2,)))
    write_vd4rl(tmp_path / "theirs" / "data.hdf5", ours)
    with h5py.File(tmp_path / "theirs" / "data.hdf5") as file:
        assert sorted(file) == ["action", "discount", "observation", "reward", "step_type"]
        for key in ("step_type", "reward", "discount"):
            assert file[key].dtype == np.float64  # as in V-D4RL's own files
        assert file["action"].dtype == np.float32
    theirs = open_vd4rl(tmp_path / "theirs")
    same(ours, theirs)
    from voc_rl.data import write_episode

    for episode in range(3):
        write_episode(tmp_path / "again" / f"{episode}.hdf5", theirs.whole(episode), theirs.spec)
    same(ours, Episodes.open(tmp_path / "again"))


@given(lengths=st.lists(st.integers(2, 6), min_size=1, max_size=5), cut=st.integers(0, 30), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_any_split_into_shards_is_the_same_data(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], cut: int, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    rng = np.random.default_rng(seed)
    ends = rng.random(len(lengths)) < 0.5
    episodes = [toy_episode(i, n, bool(ends[i])) for i, n in enumerate(lengths)]
    write_84px(folder / "one" / "all.hdf5", episodes)
    one = open_vd4rl(folder / "one")
    cut = min(cut, sum(lengths) - 1)
    for number, rows in ((9, np.s_[:cut]), (10, np.s_[cut:])):
        joined = {name: np.concatenate([getattr(e, name) for e in episodes])[rows] for name in ("action", "reward")}
        whole = {name: np.concatenate([getattr(e, name) for e in episodes])[rows] for name in ("discount", "step_type")}
        if len(joined["reward"]):
            frames = np.concatenate([e.frames for e in episodes])[rows]
            write_84px(folder / "two" / f"{number}.hdf5", episodes, observation=frames, **joined, **whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(one, open_vd4rl(folder / "two"))
    np.testing.assert_array_equal(one.reward, np.concatenate([e.reward for e in episodes]))
    np.testing.assert_array_equal(one.terminal[one.ends - 1], ends)
