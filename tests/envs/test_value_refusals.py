"""What the value wrappers refuse, and what they warn of."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from square import SIDE, SPEC, Square, square_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from worlds import one_sentence

from voc_rl import VOC, VecVOCValue, VOCValueVectorWrapper, VOCValueWrapper
from voc_rl.data import DataSpec
from voc_rl.envs import PixelObservation
from voc_rl.errors import VOCError


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
    assert "Dict" in (found := refusal(mixed, square_voc))
    assert "render_only=False" in found
    for made in (
        lambda: VOCValueVectorWrapper(SyncVectorEnv([Square] * 2), square_voc),  # type: ignore[list-item]
        lambda: VecVOCValue(DummyVecEnv([Square] * 2), square_voc),  # type: ignore[list-item]
    ):
        with pytest.raises(VOCError, match=r"float32 \(1,\)"):
            made()


@pytest.mark.parametrize("made", [VOCValueWrapper, VOCValueVectorWrapper, VecVOCValue])
def test_other_kinds_of_environments_are_refused(made: Any, square_voc: Path) -> None:
    kinds = {
        VOCValueWrapper: square_env(),
        VOCValueVectorWrapper: SyncVectorEnv([square_env]),
        VecVOCValue: DummyVecEnv([square_env]),
    }
    for right, env in kinds.items():
        if right is not made:
            with pytest.raises(VOCError, match="wraps one Gymnasium environment, VOCValueVectorWrapper") as caught:
                made(env, square_voc)
            assert one_sentence(str(caught.value))


def test_refused_words_and_discounts(square_voc: Path) -> None:
    env = square_env()
    assert "Unknown mode 'values'" in refusal(env, square_voc, mode="values")
    assert "Unknown observe" in refusal(env, square_voc, mode="observation", observe="all")
    assert "Unknown kind of features" in refusal(env, square_voc, mode="observation", observe="features", features="x")
    assert "Unknown estimator" in refusal(env, square_voc, estimator="guess")
    assert "call density_value" in refusal(env, square_voc, estimator="density")
    assert "mode 'shaping' needs gamma" in refusal(env, square_voc, mode="shaping")
    assert "gamma is 1.5" in refusal(env, square_voc, mode="shaping", gamma=1.5)
    assert "gamma is 1.0" in refusal(env, square_voc, gamma=1.0, estimator="sample")  # of values, not of an agent
    assert "head knows gamma 0.5 only" in refusal(env, square_voc, gamma=0.9)
    assert "larger ones, not for 0.2" in refusal(env, square_voc, gamma=0.2, estimator="sample")
    assert "futures is -1" in refusal(env, square_voc, futures=-1)
    for shown in ({"observe": "features_only"}, {"features": "codes"}):
        assert "they need mode='observation'" in refusal(env, square_voc, **shown)
    unseen = refusal(env, square_voc, mode="observation", features="codes")
    assert "features='codes' are not shown with observe='value'" in unseen
    assert "samples is 1" in refusal(env, square_voc, estimator="sample", samples=1)


def test_rewards_are_scaled_after_they_are_shaped_and_not_before(square_voc: Path) -> None:
    """Potentials are in reward units, and info's raw reward is one of the environment."""
    envs, shaping = DummyVecEnv([square_env] * 2), {"mode": "shaping", "gamma": 0.5}
    with pytest.raises(VOCError, match="VecNormalize scales the rewards before they are shaped; put it around") as no:
        VecVOCValue(VecNormalize(envs, norm_obs=False), square_voc, **shaping)  # type: ignore[arg-type]
    assert one_sentence(str(no.value))
    VecVOCValue(VecNormalize(envs, norm_obs=False), square_voc)
    VecVOCValue(VecNormalize(envs, norm_obs=False, norm_reward=False), square_voc, **shaping)  # type: ignore[arg-type]
    VecNormalize(VecVOCValue(envs, square_voc, **shaping), norm_obs=False)  # type: ignore[arg-type]


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
        with pytest.warns(UserWarning, match=f"trained with {name} .*, the environment has '{value}'") as caught:
            make()
        assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VOCValueWrapper(square_env(), square_voc)


def test_a_wrapper_may_say_how_frames_are_made(square_voc: Path) -> None:
    class Says(gym.Wrapper):
        data_spec = replace(SPEC, task="other")

    makers = (
        lambda: VOCValueWrapper(Says(square_env()), square_voc),
        lambda: VOCValueVectorWrapper(SyncVectorEnv([lambda: Says(square_env())] * 2), square_voc),  # type: ignore[list-item]
        lambda: VecVOCValue(DummyVecEnv([lambda: Says(square_env())] * 2), square_voc),
    )
    for make in makers:
        with pytest.warns(UserWarning, match="the environment has 'other'"):
            make()


def test_data_that_say_their_task_alone_are_compared_with_the_id_of_an_environment(square_voc: Path) -> None:
    """As README records episodes of one's own."""
    gym.register("voc_rl_test/Square-v0", Square)

    def made() -> gym.Env:
        env: Any = gym.make("voc_rl_test/Square-v0")
        del env.unwrapped.data_spec
        return PixelObservation(env, SIDE, 3)

    makers = (
        lambda voc: VOCValueWrapper(made(), voc),
        lambda voc: VOCValueVectorWrapper(SyncVectorEnv([made] * 2), voc),  # type: ignore[list-item]
        lambda voc: VecVOCValue(DummyVecEnv([made] * 2), voc),
    )
    own, other = VOC.load(square_voc), VOC.load(square_voc)
    own.spec, other.spec = (DataSpec(task=task, action_repeat=1) for task in ("voc_rl_test/Square-v0", "Pendulum-v1"))
    for make in makers:
        with pytest.warns(UserWarning, match="with task 'Pendulum-v1', the environment has 'voc_rl_test/Sq") as caught:
            make(other)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make(own)
    del gym.registry["voc_rl_test/Square-v0"]


def test_frames_of_unknown_making_warn(square_voc: Path) -> None:
    def silent() -> gym.Env:
        env: Any = square_env()
        del env.unwrapped.data_spec
        return env

    makers = (
        lambda voc: VOCValueWrapper(silent(), voc),
        lambda voc: VOCValueVectorWrapper(SyncVectorEnv([silent] * 2), voc),  # type: ignore[list-item]
        lambda voc: VecVOCValue(DummyVecEnv([silent] * 2), voc),
    )
    users = VOC.load(square_voc)
    users.spec = DataSpec(size=SIDE)  # of data that does not say either
    for make in makers:
        with pytest.warns(
            UserWarning, match=r"data_spec does not say; .* task 'square', render 'fast', camera -1"
        ) as caught:
            make(square_voc)
        assert len(caught) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            make(users)


def test_overlay_needs_pictures(square_voc: Path) -> None:
    env = square_env()
    env.unwrapped.render_mode = None
    assert "needs render_mode='rgb_array'" in refusal(env, square_voc, overlay=True)
