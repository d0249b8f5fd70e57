"""The value wrapper: what it shows is what the VOC says, and Gymnasium's and Stable-Baselines3's checks pass."""

from __future__ import annotations

import pickle
import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from square import SIDE, SPEC, Square, square_env
from stable_baselines3.common import env_checker
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import one_sentence

import voc_rl
from voc_rl import VOC, VecVOCValue, VOCValueVectorWrapper, VOCValueWrapper
from voc_rl.envs import PixelObservation
from voc_rl.errors import VOCError
from voc_rl.plugin import feature_size, feature_vectors

RIGHT, STAY = np.ones(1, np.float32), -np.ones(1, np.float32)
MODES: list[dict[str, Any]] = [
    {},
    {"successor_features": True, "futures": 3, "samples": 10},
    {"estimator": "sample", "samples": 20, "gamma": 0.8},
    {"mode": "observation"},
    {"mode": "observation", "observe": "features"},
    {"mode": "observation", "observe": "features_only", "features": "tokens"},
    {"mode": "observation", "observe": "features_only", "features": "successor"},
    {"mode": "shaping", "gamma": 0.9},
]


@pytest.fixture(scope="module")
def voc(square_voc: Path) -> VOC:
    return VOC.load(square_voc)


@pytest.mark.parametrize("options", MODES)
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # both checkers advise against unbounded observations
def test_checkers_pass(options: dict[str, Any], ends: bool, square_voc: Path) -> None:
    check_env(VOCValueWrapper(square_env(ends=ends), square_voc, **options), skip_render_check=True)
    env_checker.check_env(VOCValueWrapper(square_env(ends=ends), square_voc, **options))


def test_info_holds_what_the_voc_says(voc: VOC, square_voc: Path) -> None:
    env = VOCValueWrapper(square_env(), square_voc, successor_features=True, futures=5, samples=30)
    plain = square_env()
    obs, info = env.reset(seed=4)
    seen = [(obs, info["voc"])]
    np.testing.assert_array_equal(obs, plain.reset(seed=4)[0])
    for action in (RIGHT, RIGHT, STAY, RIGHT):
        obs, reward, terminated, truncated, info = env.step(action)
        expected = plain.step(action)
        np.testing.assert_array_equal(obs, expected[0])
        assert (reward, terminated, truncated) == expected[1:4]
        seen.append((obs, info["voc"]))
    for obs, shown in seen:
        assert set(shown) == {"value", "stderr", "gamma", "successor_features", "futures"}
        estimate = voc.value(obs[None])
        assert (shown["value"], shown["stderr"]) == (estimate.mean[0], estimate.stderr[0])
        assert shown["gamma"] == voc.gamma
        np.testing.assert_array_equal(
            shown["successor_features"], voc.successor_features(obs[None], 30, common=True)[0]
        )
        np.testing.assert_array_equal(shown["futures"], voc.sample_futures(obs[None], 5, common=True)[0])
        assert shown["futures"].shape == (5, voc.quantizer.n_tokens)
    assert len({shown["value"] for _, shown in seen}) > 2


def test_sampled_values_at_a_larger_discount_are_a_function_of_the_frames(voc: VOC, square_voc: Path) -> None:
    options: dict[str, Any] = {"estimator": "sample", "gamma": 0.8, "samples": 40}
    one, other = (VOCValueWrapper(square_env(), square_voc, **options) for _ in range(2))
    obs, info = one.reset(seed=1)
    for _ in range(3):
        other.step(RIGHT) if other.get_wrapper_attr("steps") else other.reset(seed=9)
    again = other.reset(seed=1)[1]
    assert info["voc"] == again["voc"]  # whatever was asked before
    assert info["voc"]["gamma"] == 0.8
    expected = voc.value(obs[None], 0.8, "sample", 40, common=True)
    assert (info["voc"]["value"], info["voc"]["stderr"]) == (expected.mean[0], expected.stderr[0])


@pytest.mark.parametrize("kind", ["context", "tokens", "successor"])
def test_observations_hold_values_and_features(kind: Any, voc: VOC, square_voc: Path) -> None:
    def first(observe: str) -> tuple[Any, gym.Space[Any]]:
        env = VOCValueWrapper(square_env(), square_voc, "observation", observe=observe, features=kind)  # type: ignore[arg-type]
        obs, _ = env.reset(seed=2)
        assert env.observation_space.contains(obs)
        return obs, env.observation_space

    pixels = square_env().reset(seed=2)[0]
    with torch.no_grad():
        expected = feature_vectors(voc, pixels[None], kind).numpy()[0]
    value, _ = first("value")
    both, space = first("features")
    alone, _ = first("features_only")
    assert set(value) == {"pixels", "value"}
    assert set(both) == {"pixels", "features"}
    np.testing.assert_array_equal(value["pixels"], pixels)
    np.testing.assert_array_equal(value["value"], voc.value(pixels[None]).mean.astype(np.float32))
    np.testing.assert_array_equal(both["features"], expected)
    np.testing.assert_array_equal(alone, expected)
    assert expected.shape == (feature_size(voc, kind),)
    assert space["features"].dtype == np.float32  # type: ignore[index]


def test_shaping_adds_the_potential_at_the_agents_discount(voc: VOC, square_voc: Path) -> None:
    env = VOCValueWrapper(square_env(limit=4, ends=True), square_voc, "shaping", gamma=0.99)
    obs, _ = env.reset(seed=0)
    over, ends = False, []
    for action in [RIGHT, RIGHT, STAY, RIGHT, STAY] * 4:
        before = voc.value(obs[None]).mean[0]
        obs, reward, terminated, truncated, info = env.step(action)
        after = 0.0 if terminated else voc.value(obs[None]).mean[0]
        assert reward == pytest.approx(info["voc"]["raw_reward"] + 0.99 * after - before, abs=1e-9)
        assert info["voc"]["gamma"] == voc.gamma  # the potential is at the VOC's own discount
        over = terminated or truncated
        if over:
            ends.append(terminated)
            obs, _ = env.reset()
    assert set(ends) == {True, False}


# --- specs, pickles, processes


def test_spec_round_trip(square_voc: Path) -> None:
    gym.register("voc_rl_test/Square-v0", "square:square_env")
    try:
        made = gym.make("voc_rl_test/Square-v0", limit=7)
        env = VOCValueWrapper(made, square_voc, "observation", observe="features_only", futures=2)
        spec = env.spec
        assert spec is not None
        for again in (gym.make(spec), gym.make(EnvSpec.from_json(spec.to_json()))):
            assert again.spec == spec
            assert again.observation_space == env.observation_space
            one, two = env.reset(seed=3), again.reset(seed=3)
            np.testing.assert_array_equal(one[0], two[0])
            np.testing.assert_array_equal(one[1]["voc"]["futures"], two[1]["voc"]["futures"])
        kwargs = spec.additional_wrappers[-1].kwargs
        assert kwargs is not None
        assert kwargs["voc"] == str(square_voc)  # a path, not the weights
    finally:
        del gym.registry["voc_rl_test/Square-v0"]


def test_pickles_hold_the_path(square_voc: Path, voc: VOC) -> None:
    env = VOCValueWrapper(square_env(), square_voc)
    path, weights = pickle.dumps(env), (square_voc / "voc.safetensors").stat().st_size
    assert len(path) < weights / 2
    assert len(pickle.dumps(VOCValueWrapper(square_env(), voc))) > weights
    again = pickle.loads(path)
    assert again.reset(seed=5)[1]["voc"] == env.reset(seed=5)[1]["voc"]


# --- vectors: the same numbers as n single environments


def square_wrapped(folder: Path, **options: Any) -> VOCValueWrapper:
    return VOCValueWrapper(square_env(limit=5, ends=True), folder, **options)


@pytest.mark.parametrize("options", MODES)
def test_vector_wrapper_equals_single_wrappers(options: dict[str, Any], square_voc: Path) -> None:
    envs: Any = SyncVectorEnv([lambda: square_env(5, True)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    together = VOCValueVectorWrapper(envs, square_voc, **options)
    apart = SyncVectorEnv([lambda: square_wrapped(square_voc, **options)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    assert together.observation_space == apart.observation_space
    rng, finals = np.random.default_rng(0), 0
    close(together.reset(seed=3), apart.reset(seed=3))
    for _ in range(25):
        actions = rng.uniform(-0.5, 1, (3, 1)).astype(np.float32)
        one, two = together.step(actions), apart.step(actions)
        two[4]["voc"].pop("raw_reward", None), two[4]["voc"].pop("_raw_reward", None)  # a reset has none
        raw = one[4]["voc"].pop("raw_reward", None), one[4]["voc"].pop("_raw_reward", None)
        assert (raw[0] is None) == (options.get("mode") != "shaping")
        if "final_info" in two[4]:
            finals += 1
            two[4]["final_info"]["voc"].pop("raw_reward", None), two[4]["final_info"]["voc"].pop("_raw_reward", None)
        close(one, two)
    assert finals > 5


def close(one: Any, two: Any) -> None:
    """Equal but for float32 ties of another batch size."""
    if isinstance(one, dict):
        assert set(one) == set(two), (sorted(one), sorted(two))
        for name in one:
            close(one[name], two[name])
    elif isinstance(one, tuple | list) or (isinstance(one, np.ndarray) and one.dtype.kind == "O"):
        for a, b in zip(one, two, strict=True):
            close(a, b)
    elif one is None:
        assert two is None
    else:
        np.testing.assert_allclose(np.asarray(one, float), np.asarray(two, float), atol=0.02)


@pytest.mark.parametrize("context", ["spawn", "fork"])
def test_single_wrappers_in_processes_of_their_own(context: str, square_voc: Path) -> None:
    apart = AsyncVectorEnv([lambda: square_wrapped(square_voc)] * 2, context=context)
    here = square_wrapped(square_voc)
    try:
        _, infos = apart.reset(seed=6)
        assert infos["voc"]["value"][0] == pytest.approx(here.reset(seed=6)[1]["voc"]["value"], abs=1e-3)
        infos = apart.step(np.ones((2, 1), np.float32))[4]
        assert infos["voc"]["value"][0] == pytest.approx(here.step(RIGHT)[4]["voc"]["value"], abs=1e-3)
    finally:
        apart.close()


@pytest.mark.parametrize("options", MODES)
def test_sb3_wrapper_equals_single_wrappers(options: dict[str, Any], square_voc: Path) -> None:
    together = VecVOCValue(DummyVecEnv([lambda: square_env(5, True)] * 3), square_voc, **options)
    apart = DummyVecEnv([lambda: square_wrapped(square_voc, **options)] * 3)
    assert together.observation_space == apart.observation_space
    for env in (together, apart):
        env.seed(3)
    close(together.reset(), apart.reset())
    close(together.reset_infos, apart.reset_infos)
    rng, ends = np.random.default_rng(0), 0
    for _ in range(25):
        actions = rng.uniform(-0.5, 1, (3, 1)).astype(np.float32)
        one, two = together.step(actions), apart.step(actions)
        close(one[:3], two[:3])
        for i, done in enumerate(one[2]):
            # a single wrapper's info is of the observation before the reset
            own = one[3][i].pop("terminal_voc") if done else one[3][i]["voc"]
            two[3][i]["voc"].pop("raw_reward", None), own.pop("raw_reward", None)
            close(own, two[3][i]["voc"])
            if done:
                ends += 1
                close(one[3][i]["terminal_observation"], two[3][i]["terminal_observation"])
    assert ends > 5


# --- pictures


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


# --- cost


def test_a_step_costs_one_question_and_little_time(square_voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = VOC.context
    monkeypatch.setattr(VOC, "context", lambda self, obs: asked.append(len(obs)) or whole(self, obs))
    env: Any = SyncVectorEnv([lambda: square_env()] * 8)
    together = VOCValueVectorWrapper(env, square_voc, "observation", observe="features", futures=2)
    together.reset(seed=0)
    asked.clear()
    together.step(np.ones((8, 1), np.float32))
    assert asked == [8]
    one = VOCValueWrapper(square_env(limit=10**6), square_voc)
    one.reset(seed=0)
    asked.clear()
    times = []
    for _ in range(50):
        start = time.thread_time()  # of this thread alone: other work on the machine does not count
        one.step(RIGHT)
        times.append(time.thread_time() - start)
    assert asked == [1] * 50
    assert np.median(times) < 0.01


# --- refusals and warnings


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(VOCError) as caught:
        VOCValueWrapper(*arguments, **options)
    assert one_sentence(str(caught.value)), str(caught.value)
    return str(caught.value)


def test_refused_observations(square_voc: Path) -> None:
    found = refusal(Square(), square_voc)
    assert "float32 (1,)" in found
    assert "PixelObservation(env, size=36, stack=3)" in found
    assert "uint8 (6, 36, 36)" in refusal(PixelObservation(Square(), SIDE, 2), square_voc)
    assert "uint8 (9, 24, 24)" in refusal(PixelObservation(Square(), 24, 3), square_voc)
    last = gym.wrappers.TransformObservation(
        square_env(), lambda o: o.transpose(1, 2, 0), gym.spaces.Box(0, 255, (SIDE, SIDE, 9), np.uint8)
    )
    assert "put the channels first" in refusal(last, square_voc)
    mixed = gym.wrappers.TransformObservation(
        square_env(), lambda o: {"a": o}, gym.spaces.Dict({"a": square_env().observation_space})
    )
    assert "Dict" in refusal(mixed, square_voc)
    for made in (
        lambda: VOCValueVectorWrapper(SyncVectorEnv([Square] * 2), square_voc),  # type: ignore[list-item]
        lambda: VecVOCValue(DummyVecEnv([Square] * 2), square_voc),  # type: ignore[list-item]
    ):
        with pytest.raises(VOCError, match=r"float32 \(1,\)"):
            made()


def test_refused_words_and_discounts(square_voc: Path) -> None:
    env = square_env()
    assert "Unknown mode 'values'" in refusal(env, square_voc, mode="values")
    assert "Unknown observe" in refusal(env, square_voc, mode="observation", observe="all")
    assert "Unknown kind of features" in refusal(env, square_voc, mode="observation", observe="features", features="x")
    assert "Unknown estimator" in refusal(env, square_voc, estimator="density")
    assert "mode 'shaping' needs gamma" in refusal(env, square_voc, mode="shaping")
    assert "gamma is 1.5" in refusal(env, square_voc, mode="shaping", gamma=1.5)
    assert "head knows gamma 0.5 only" in refusal(env, square_voc, gamma=0.9)
    assert "larger ones, not for 0.2" in refusal(env, square_voc, gamma=0.2, estimator="sample")
    assert "futures is -1" in refusal(env, square_voc, futures=-1)
    assert "samples is 1" in refusal(env, square_voc, estimator="sample", samples=1)


def test_refused_folders(square_voc: Path, tmp_path: Path) -> None:
    assert f"{tmp_path / 'nothing'} holds no VOC" in refusal(square_env(), tmp_path / "nothing")
    assert "voc is int" in refusal(square_env(), 3)
    damaged = shutil.copytree(square_voc, tmp_path / "damaged")
    weights = damaged / "voc.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "not a whole safetensors file" in refusal(square_env(), damaged)
    (damaged / "voc.json").write_text("{")
    assert "is not valid JSON" in refusal(square_env(), damaged)


def test_a_folder_is_loaded_once_and_again_when_it_changed(square_voc: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(square_voc, tmp_path / "voc")
    one, two = VOCValueWrapper(square_env(), folder), VOCValueWrapper(square_env(), str(folder))
    assert one.voc is two.voc
    VOC.load(folder).save(folder)
    assert VOCValueWrapper(square_env(), folder).voc is not one.voc


@pytest.mark.parametrize(("name", "value"), [("task", "other"), ("render", "faithful"), ("mujoco", "2.1")])
def test_other_frames_warn(name: str, value: str, square_voc: Path) -> None:
    spec = replace(SPEC, **{name: value})
    makers = (
        lambda: VOCValueWrapper(square_env(spec=spec), square_voc),
        lambda: VOCValueVectorWrapper(SyncVectorEnv([lambda: square_env(spec=spec)] * 2), square_voc),  # type: ignore[list-item]
        lambda: VecVOCValue(DummyVecEnv([lambda: square_env(spec=spec)] * 2), square_voc),
    )
    for make in makers:
        with pytest.warns(UserWarning, match=f"trained with {name} .*, this data has '{value}'") as caught:
            make()
        assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VOCValueWrapper(square_env(), square_voc)


def test_overlay_needs_pictures(square_voc: Path) -> None:
    env = square_env()
    env.unwrapped.render_mode = None
    assert "needs render_mode='rgb_array'" in refusal(env, square_voc, overlay=True)


def test_public_names() -> None:
    assert voc_rl.VOCValueWrapper is VOCValueWrapper
