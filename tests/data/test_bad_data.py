"""Bad input met at the border: one sentence that names the file, what was found and what is accepted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from small import SPEC, numbered_frames, toy_episode, toy_folder, write_v_d4rl
from worlds import refusal

from voc_rl.benchmarks.layouts import d4rl_arrays, write_64px, write_d4rl
from voc_rl.data import DataSpec, Episodes, write_episode
from voc_rl.data import hdf5 as hdf5_module
from voc_rl.data.spec import SPEC_ATTRIBUTE
from voc_rl.errors import VOCError


def refused(path: Path) -> str:
    """The one sentence with which opening ``path`` is refused."""
    with pytest.raises(VOCError) as caught:
        Episodes.open(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_missing(tmp_path: Path) -> None:
    path = tmp_path / "none.hdf5"
    assert refused(path) == f"{path} does not exist; an HDF5 file with observation, action, reward, ... is needed."


def test_no_file_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / ".hidden.hdf5").write_text("half-written")
    assert refused(tmp_path) == f"{tmp_path} holds zero episodes: no .hdf5 file is in it."


def test_other_formats_are_named_to_load_dataset(tmp_path: Path) -> None:
    write_64px(tmp_path / "64px" / "0.npz", toy_episode(0, 4))
    write_d4rl(tmp_path / "a.hdf5", d4rl_arrays((3,)))
    assert refused(tmp_path / "64px").endswith("no .hdf5 file is in it; voc_rl.data.load_dataset reads .npz files.")
    assert refused(tmp_path / "a.hdf5").endswith(
        "the keys of a V-D4RL 84 px file are needed; voc_rl.data.load_dataset reads D4RL's files."
    )
    assert refused(Path("minari:me/x-v0")) == (
        "minari:me/x-v0 does not exist; voc_rl.data.load_dataset opens FORMAT:PLACE, Episodes.open a path."
    )


def test_zero_rows(tmp_path: Path) -> None:
    path = tmp_path / "empty.hdf5"
    write_v_d4rl(
        path, (2,), observation=numbered_frames(0, 0), action=np.zeros((0, 2)), reward=np.zeros(0),
        discount=np.zeros(0), step_type=np.zeros(0),
    )  # fmt: skip
    assert "zero episodes; at least one is needed" in refused(path)


def test_an_empty_shard_among_full_ones_is_passed_over(tmp_path: Path) -> None:
    write_v_d4rl(tmp_path / "b.hdf5", (3,), first=9)
    write_v_d4rl(
        tmp_path / "a.hdf5", (2,), observation=numbered_frames(0, 0), action=np.zeros((0, 2)), reward=np.zeros(0),
        discount=np.zeros(0), step_type=np.zeros(0),
    )  # fmt: skip
    dataset = Episodes.open(tmp_path)
    np.testing.assert_array_equal(dataset.frames(np.arange(3))[:, 0, 0, 0], [9, 10, 11])
    np.testing.assert_array_equal(dataset.load_frames().frames(np.arange(3))[:, 0, 0, 0], [9, 10, 11])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_truncated(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.hdf5"
    write_episode(path, toy_episode(0, 30), SPEC)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    message = refused(path)
    assert message.startswith(f"{path} is not a whole HDF5 file")


def test_not_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "text.hdf5"
    path.write_text("reward 1 2 3")
    assert refused(path).startswith(f"{path} is not a whole HDF5 file")


@pytest.mark.parametrize("key", ["observation", "action", "reward", "discount", "step_type"])
def test_missing_key(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.hdf5"
    write_v_d4rl(path, (4,), **{key: None})
    assert refused(path) == f"{path} lacks {key}; the keys of a V-D4RL 84 px file are needed."


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_reward_names_file_and_row(tmp_path: Path, value: float) -> None:
    write_v_d4rl(tmp_path / "a.hdf5", (4,))
    reward = np.zeros(6)
    reward[[3, 5]] = value
    write_v_d4rl(tmp_path / "b.hdf5", (6,), reward=reward)
    message = refused(tmp_path)
    assert (
        message == f"{tmp_path / 'b.hdf5'}: reward holds NaN or infinity (first at row 3); finite numbers are needed."
    )


def test_a_reward_too_large_for_float32_is_not_made_infinite(tmp_path: Path) -> None:
    write_v_d4rl(tmp_path / "a.hdf5", (3,), reward=np.array([0, 1e300, 0]))
    assert "reward holds NaN or infinity (first at row 1)" in refused(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"observation": np.zeros((4, 2, 2, 3), np.uint8)},
            r"observation is uint8 \(4, 2, 2, 3\); uint8 \(N, 3, H, W\)",
        ),
        ({"observation": np.zeros((4, 3, 2, 2), np.float32)}, "observation is float32"),
        ({"observation": np.zeros((4, 12), np.uint8)}, r"observation is uint8 \(4, 12\)"),
        ({"reward": np.zeros((4, 1))}, r"reward has shape \(4, 1\); 4 rows and 1 axes are needed"),
        ({"reward": np.zeros(5)}, r"reward has shape \(5,\); 4 rows"),
        ({"action": np.zeros(4)}, r"action has shape \(4,\); 4 rows and 2 axes"),
        ({"reward": np.array([b"a", b"b", b"c", b"d"])}, "reward has dtype .S1; numbers are needed"),
        ({"step_type": np.array([0.0, 1, 3, 2])}, "step_type holds values other than 0"),
        ({"step_type": np.array([0.0, 1, 1.5, 2])}, r"step_type holds 1.5 \(row 2\); a whole number"),
        ({"step_type": np.array([0.0, 1, -1, 2])}, r"step_type holds -1.0 \(row 2\); a whole number"),
        ({"step_type": np.array([0.0, np.nan, 1, 2])}, r"step_type holds NaN or infinity \(first at row 1\)"),
        ({"step_type": np.array([1.0, 0, 1, 2])}, "rows before its first step type 0 belong to no episode"),
        ({"step_type": np.array([1.0, 1, 1, 2])}, "zero episodes"),
        ({"step_type": np.array([0.0, 2, 1, 2])}, "rows inside an episode have step type 2"),
        ({"policy_id": np.zeros((4, 2))}, r"policy_id has shape \(4, 2\)"),
    ],
)
def test_wrong_shapes_dtypes_and_steps(tmp_path: Path, changed: dict[str, np.ndarray], said: str) -> None:
    path = tmp_path / "a.hdf5"
    write_v_d4rl(path, (4,), **changed)
    with pytest.raises(VOCError, match=said) as caught:
        Episodes.open(path)
    assert str(path) in str(caught.value)


def test_a_group_where_an_array_is_needed(tmp_path: Path) -> None:
    for key in ("observation", "reward"):
        path = tmp_path / f"{key}.hdf5"
        write_v_d4rl(path, (4,), **{key: None})
        with h5py.File(path, "a") as file:
            file.create_group(key)
        assert "a group" in refused(path)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"task": "another"}, "task another"),
        ({"render": "faithful"}, "render profile faithful"),
        ({"camera": 3}, "camera 3"),
        ({"action_repeat": 8}, "action repeat 8"),
    ],
)
def test_mixed_folders(tmp_path: Path, changed: dict[str, Any], word: str) -> None:
    spec = replace(SPEC, camera=0)
    for name in ("a", "b"):
        write_episode(tmp_path / f"{name}.hdf5", toy_episode(9, 3), spec)
    write_episode(str(tmp_path / "z.hdf5"), toy_episode(9, 3), replace(spec, **changed))
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path / 'z.hdf5'} has {word}")
    assert "a.hdf5" in message


def test_mixed_frame_sizes_and_actions(tmp_path: Path) -> None:
    write_v_d4rl(tmp_path / "a.hdf5", (3,), size=2)
    write_v_d4rl(tmp_path / "b.hdf5", (3,), size=4)
    assert "frames of shape (3, 4, 4)" in refused(tmp_path)
    write_v_d4rl(tmp_path / "b.hdf5", (3,), action=np.zeros((3, 6)))
    assert "actions of size 6" in refused(tmp_path)


@pytest.mark.parametrize("name", ["state", "physics", "unclipped_action"])
def test_mixed_widths_of_what_every_file_has(tmp_path: Path, name: str) -> None:
    write_v_d4rl(tmp_path / "a.hdf5", (3,), **{name: np.zeros((3, 4))})
    write_v_d4rl(tmp_path / "b.hdf5", (3,), **{name: np.zeros((3, 5))})
    assert refused(tmp_path).startswith(f"{tmp_path / 'b.hdf5'} has {name} of size 5, but {tmp_path / 'a.hdf5'} has 4")
    write_v_d4rl(tmp_path / "c.hdf5", (3,))  # without it, it counts in none
    assert len(Episodes.open(tmp_path)) == 9


@pytest.mark.parametrize("name", ["episode_1", "episode_1.npz", "episode_1.HDF5"])
def test_an_episode_under_a_name_that_a_folder_would_not_show(tmp_path: Path, name: str) -> None:
    with pytest.raises(VOCError, match=rf"{name} does not end in \.hdf5"):
        write_episode(tmp_path / name, toy_episode(0, 3), SPEC)
    assert not list(tmp_path.iterdir())


def test_a_description_of_another_version(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    write_episode(path, toy_episode(0, 3), SPEC)
    for text in (json.dumps({"task": "toy", "colour": "red"}), "{half", "[1, 2]", "3"):
        with h5py.File(path, "a") as file:
            file.attrs[SPEC_ATTRIBUTE] = text
        assert SPEC_ATTRIBUTE in refused(path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"camera": "front"}, "camera of a DataSpec is 'front'; a whole number is needed."),
        ({"action_repeat": 2.0}, "action_repeat of a DataSpec is 2.0; a whole number is needed."),
        ({"size": (48, 64)}, "size of a DataSpec is (48, 64); a whole number is needed."),
        ({"camera": True}, "camera of a DataSpec is True; a whole number is needed."),
        ({"policy": None}, "policy of a DataSpec is None; a word is needed."),
    ],
)
def test_a_description_that_no_file_may_carry(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(VOCError) as caught:
        DataSpec(**changed)
    assert str(caught.value) == said


def test_a_description_in_numbers_of_numpy_is_written(tmp_path: Path) -> None:
    spec = replace(SPEC, action_repeat=np.int64(4), task=np.str_("toy"))
    write_episode(tmp_path / "a.hdf5", toy_episode(0, 3), spec)
    assert Episodes.open(tmp_path).spec == replace(SPEC, action_repeat=4)


def test_stack_below_one(tmp_path: Path) -> None:
    toy_folder(tmp_path, (3,))
    with pytest.raises(VOCError, match="stack is 0"):
        Episodes.open(tmp_path, stack=0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"frames": np.zeros((5, 2, 2, 3), np.uint8)}, "frames are uint8"),
        ({"frames": np.zeros((5, 3, 2, 2))}, "frames are float64"),
        ({"reward": np.zeros(4)}, r"reward has shape \(4,\); 5 rows"),
        ({"reward": np.array([0, 1, np.nan, 1, 1])}, "reward holds NaN or infinity .first at row 2"),
        ({"action": np.full((5, 2), np.inf)}, "action holds NaN"),
        ({"action": np.array([0, 1, 2, 1, 0])}, "5 rows and 2 axes are needed; discrete actions are stored one-hot"),
        ({"action": np.full((5, 2), 2.0)}, "action holds 2 .row 0.; -1 to 1 is needed .divide by the bounds"),
        ({"frames": [[1]]}, "frames are int64"),
        ({"step_type": np.array([0, 1, 1, 1, 1])}, "not one whole episode"),
        ({"step_type": np.array([0, 1, 2, 1, 2])}, "not one whole episode"),
        ({"step_type": np.array([1, 1, 1, 1, 2])}, "not one whole episode"),
    ],
)
def test_write_refuses_and_leaves_nothing(tmp_path: Path, changed: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(VOCError, match=said):
        write_episode(tmp_path / "a.hdf5", replace(toy_episode(0, 5), **changed), SPEC)  # type: ignore[arg-type]
    for spec in ("walker", None):
        said = refusal(write_episode, tmp_path / "a.hdf5", toy_episode(0, 5), spec)
        assert said == f"spec is {spec!r}; a DataSpec is needed, as DataSpec(task='walker')."
    assert list(tmp_path.iterdir()) == []


def test_lists_are_written_as_arrays_are(tmp_path: Path) -> None:
    episode = toy_episode(0, 5)
    lists = replace(episode, reward=episode.reward.tolist(), frames=list(episode.frames), step_type=[0, 1, 1, 1, 2])  # type: ignore[arg-type]
    write_episode(tmp_path / "lists.hdf5", lists, SPEC)
    found = Episodes.open(tmp_path / "lists.hdf5").whole(0)
    np.testing.assert_array_equal(found.reward, episode.reward)
    np.testing.assert_array_equal(found.frames, episode.frames)


def test_a_failure_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.hdf5"
    write_episode(path, toy_episode(1, 4), SPEC)
    before = path.read_bytes()
    create = h5py.File.create_dataset

    def full_disk(self: h5py.File, name: str, *args: object, **kwargs: object) -> object:
        if name == "reward":
            raise OSError(28, "No space left on device")
        return create(self, name, *args, **kwargs)

    monkeypatch.setattr(hdf5_module.h5py.File, "create_dataset", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_episode(path, toy_episode(0, 5), SPEC)
    with pytest.raises(OSError, match="No space left"):
        write_episode(tmp_path / "new.hdf5", toy_episode(0, 5), SPEC)
    assert [p.name for p in tmp_path.iterdir()] == ["a.hdf5"]
    assert path.read_bytes() == before


def test_gray_frames_are_told_how_they_become_three_channels(tmp_path: Path) -> None:
    gray = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    said = refusal(write_episode, tmp_path / "a.hdf5", toy_episode(0, 3, frames=gray), SPEC)
    assert "of gray ones (T, H, W): np.repeat(frames[:, None], 3, 1)" in said
    write_episode(tmp_path / "a.hdf5", toy_episode(0, 3, frames=np.repeat(gray[:, None], 3, 1)), SPEC)
    np.testing.assert_array_equal(Episodes.open(tmp_path).frames(np.arange(3)), np.stack([gray] * 3, 1))
