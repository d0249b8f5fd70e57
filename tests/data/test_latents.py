"""The paper's latent files: what is written is read, rows belong to frames, and stacks to episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from small import toy_dataset, write_v_d4rl
from worlds import one_sentence, refusal

from voc_rl import Episodes
from voc_rl.data import read_latents, stack_latents, write_latents
from voc_rl.errors import VOCError

LENGTHS = (4, 2, 5)
ROWS = sum(LENGTHS)
CODES = 10 * np.arange(ROWS)[:, None] + np.arange(25) % 3  # row r holds 10 r, 10 r + 1, 10 r + 2, 10 r, ...


def latent_file(path: Path, codes: Any = CODES, key: str = "vae_latents") -> Path:
    """A V-D4RL shard with one more array, as the paper's scripts write it."""
    write_v_d4rl(path, LENGTHS)
    with h5py.File(path, "a") as file:
        file.create_dataset(key, data=codes)
    return path


def test_codes_are_read_with_the_rest(tmp_path: Path) -> None:
    for key in ("vae_latents", "dino_latents"):
        dataset = Episodes.open(latent_file(tmp_path / f"{key}.hdf5", key=key))
        found = read_latents(dataset, key, 200)
        np.testing.assert_array_equal(found, CODES)
        assert found.dtype == np.int64


def test_rows_of_folders_and_subsets(tmp_path: Path) -> None:
    latent_file(tmp_path / "1.hdf5")
    latent_file(tmp_path / "2.hdf5", CODES + 5)
    dataset = Episodes.open(tmp_path)
    np.testing.assert_array_equal(read_latents(dataset, "vae_latents", 200), np.concatenate([CODES, CODES + 5]))
    part = dataset.subset([5, 0])
    np.testing.assert_array_equal(read_latents(part, "vae_latents", 200), np.concatenate([CODES[6:] + 5, CODES[:4]]))


def test_codes_of_other_rows_than_those_that_were_opened_are_refused(tmp_path: Path) -> None:
    """By their number, which may be the same over all files, and by their actions, where each number is the same."""
    paths = [latent_file(tmp_path / "a" / f"{i}.hdf5", CODES + i) for i in range(2)]
    dataset = Episodes.open(tmp_path / "a")
    part = dataset.subset([4, 1])
    longer = toy_dataset(tmp_path / "toy", (7, 2, 4))
    write_latents(paths[0], longer, np.zeros((13, 25), int), "vae_latents")
    write_latents(paths[1], longer.subset([0, 1]), np.zeros((9, 25), int), "vae_latents")
    for opened in (dataset, part):
        assert "hold other rows than when they were opened; open" in refusal(read_latents, opened, "vae_latents", 200)
    for i, path in enumerate(paths):
        write_v_d4rl(path, LENGTHS)  # as it was
        write_latents(path, Episodes.open(path), CODES + i, "vae_latents")  # and now has its codes
    np.testing.assert_array_equal(read_latents(dataset, "vae_latents", 200), np.concatenate([CODES, CODES + 1]))
    write_latents(paths[1], toy_dataset(tmp_path / "as_long", LENGTHS), CODES, "vae_latents")
    np.testing.assert_array_equal(read_latents(dataset.subset([0]), "vae_latents", 200), CODES[:4])  # of another file
    assert "hold other rows than when they were opened" in refusal(read_latents, dataset, "vae_latents", 200)


def test_stacks_stay_in_their_episode_with_the_oldest_frame_first(tmp_path: Path) -> None:
    dataset = Episodes.open(latent_file(tmp_path / "a.hdf5"))
    stacked = stack_latents(dataset, CODES)
    starts = np.repeat([0, 4, 6], LENGTHS)
    expected = [np.concatenate([CODES[max(r - back, start)] for back in (2, 1, 0)]) for r, start in enumerate(starts)]
    np.testing.assert_array_equal(stacked, expected)
    np.testing.assert_array_equal(stack_latents(dataset, torch.from_numpy(CODES)), expected)
    frames = dataset.observations(np.arange(ROWS))[:, ::3, 0, 0]  # the frame of row r is filled with r
    np.testing.assert_array_equal(stacked[:, ::25] // 10, frames)


@pytest.mark.parametrize("at_once", [3, 1024])
def test_written_files_have_the_papers_keys(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voc_rl.data.frames._AT_ONCE", at_once * 12)  # bytes, of which a frame has 12
    dataset = toy_dataset(tmp_path / "toy", LENGTHS, terminated=(1,))
    codes = np.tile(CODES, 8)[:, :196].astype(np.int16)  # as of tokenize
    write_latents(tmp_path / "out.hdf5", dataset, torch.from_numpy(codes), "dino_latents")
    with h5py.File(tmp_path / "out.hdf5") as file:
        assert set(file) == {"action", "discount", "observation", "reward", "step_type", "dino_latents"}
        assert file["dino_latents"].dtype == np.int64
        assert file["step_type"].dtype == np.float64
    again = Episodes.open(tmp_path / "out.hdf5")
    np.testing.assert_array_equal(read_latents(again, "dino_latents", 8192), codes)
    rows = np.arange(ROWS)
    np.testing.assert_array_equal(again.frames(rows), dataset.frames(rows))
    for name in ("action", "reward", "discount", "step_type", "starts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(dataset, name))
    assert again.terminal.sum() == 1


@pytest.mark.parametrize(("codes", "words"), [
    (CODES[:-1], "has shape (10, 25); one row of codes for each of 11 frames"),
    (CODES[:, 0], "has shape (11,)"),
    (CODES.astype(float), "has dtype float64"),
    (CODES + 50, "lies in 50..152; 0..149 is the codebook"),
    (CODES - 1, "lies in -1..101"),
])  # fmt: skip
def test_codes_that_do_not_fit_are_refused(codes: Any, words: str, tmp_path: Path) -> None:
    dataset = Episodes.open(latent_file(tmp_path / "a.hdf5", codes))
    with pytest.raises(VOCError) as caught:
        read_latents(dataset, "vae_latents", 150)
    assert words in str(caught.value)
    assert one_sentence(str(caught.value))


def test_other_refusals(tmp_path: Path) -> None:
    latent_file(tmp_path / "both/1.hdf5")
    latent_file(tmp_path / "both/2.hdf5", CODES[:, :2])
    dataset = Episodes.open(tmp_path / "both")
    plain = Episodes.open(tmp_path / "both/1.hdf5")
    held = Episodes.from_episodes([plain.whole(0)], plain.spec, tmp_path)  # as of a folder of .npz files
    out = tmp_path / "out.hdf5"
    for call, words in (
        (lambda: read_latents(dataset, "vae_latents", 200), "has 2 and 25 codes per frame"),
        (lambda: read_latents(plain, "dino_latents", 200), "has no dino_latents"),
        (lambda: read_latents(held, "vae_latents", 200), "is held in memory and has no latent files; an HDF5 file"),
        (lambda: read_latents(plain, "latents", 200), "accepted: dino_latents, vae_latents"),
        (lambda: stack_latents(plain, CODES[:5]), "Latents have shape (5, 25)"),
        (lambda: write_latents(out, plain, CODES[:5], "vae_latents"), "Latents are int64 (5, 25)"),
        (lambda: write_latents(out, plain, CODES / 2, "vae_latents"), "Latents are float64 (11, 25)"),
        (
            lambda: write_latents(out, plain, stack_latents(plain, CODES), "vae_latents"),
            "75 codes a row; vae_latents has 25",
        ),
        (lambda: write_latents(out, plain, CODES, "dino_latents"), "25 codes a row; dino_latents has 196, those of a"),
        (lambda: write_latents(out, plain, CODES, "codes"), "Unknown latent key"),
    ):
        with pytest.raises(VOCError) as caught:
            call()
        assert words in str(caught.value)
        assert one_sentence(str(caught.value))
    assert not out.exists()
