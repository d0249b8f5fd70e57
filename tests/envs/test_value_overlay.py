"""The value wrapper's pictures."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from square import SIDE, square_env

from voc_rl import VOC, VOCValueWrapper

RIGHT, STAY = np.ones(1, np.float32), -np.ones(1, np.float32)


@pytest.fixture(scope="module")
def voc(square_voc: Path) -> VOC:
    return VOC.load(square_voc)


def test_overlay_shows_frame_futures_and_curve(voc: VOC, square_voc: Path) -> None:
    env = VOCValueWrapper(square_env(), square_voc, overlay=True)
    env.reset(seed=0)
    first = np.asarray(env.render(), int)
    for action in (RIGHT, STAY, RIGHT):
        obs = env.step(action)[0]
    picture = np.asarray(env.render(), int)
    assert picture.shape == (384, 512, 3)
    frame = np.asarray(env.unwrapped.render(), int)
    assert np.abs(picture[20:250:8, 4:250:8] - frame[(np.arange(20, 250, 8) * SIDE) // 256][
        :, (np.arange(4, 250, 8) * SIDE) // 256
    ]).mean() < 8  # fmt: skip
    codes = voc.sample_futures(obs[None], 4, common=True)[0]
    futures = voc.quantizer.decode(codes).numpy()[:, -3:].transpose(0, 2, 3, 1).astype(int)
    for i, future in enumerate(futures):
        top, left = 128 * (i // 2), 256 + 128 * (i % 2)
        rows = np.arange(30, 124, 6)
        shown = picture[top + rows][:, left + rows]
        assert np.abs(shown - future[rows * SIDE // 128][:, rows * SIDE // 128]).mean() < 12
    line = (picture[256:] == (0, 90, 160)).all(2)
    assert line[:, 45:].sum() > 200  # the curve is drawn across
    assert (first[256:] == (0, 90, 160)).all(2)[:, 60:500].sum() == 0  # one value is a dot


def test_the_curve_begins_anew_where_a_step_only_resets(square_voc: Path) -> None:
    env = VOCValueWrapper(gym.wrappers.Autoreset(square_env(limit=2)), square_voc, overlay=True)
    env.reset(seed=0)
    drawn = []
    for action in (RIGHT, RIGHT, RIGHT):
        env.step(action)
        drawn.append(int((np.asarray(env.render())[256:] == (0, 90, 160)).all(2)[:, 60:500].sum()))
    assert drawn[0] > 200
    assert drawn[1] > 200
    assert drawn[2] == 0  # one value is a dot


def test_a_video_is_recorded(square_voc: Path, tmp_path: Path) -> None:
    import imageio.v3 as iio

    env: gym.Env = VOCValueWrapper(square_env(limit=6), square_voc, overlay=True)
    env = gym.wrappers.RecordVideo(env, str(tmp_path / "videos"), episode_trigger=lambda i: True)
    env.reset(seed=0)
    for _ in range(6):
        env.step(RIGHT)
    env.close()
    frames = iio.imread(next(tmp_path.glob("videos/*.mp4")), plugin="FFMPEG")
    assert frames.shape == (7, 384, 512, 3)
    assert frames[:, 256:].std() > 10
