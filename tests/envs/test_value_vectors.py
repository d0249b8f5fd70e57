"""Value wrappers of many environments show what single ones show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from square import VALUE_MODES, square_env
from stable_baselines3.common.vec_env import DummyVecEnv

from voc_rl import VecVOCValue, VOCValueVectorWrapper, VOCValueWrapper

RIGHT = np.ones(1, np.float32)


def square_wrapped(folder: Path, **options: Any) -> VOCValueWrapper:
    return VOCValueWrapper(square_env(limit=5, ends=True), folder, **options)


@pytest.mark.parametrize("options", VALUE_MODES)
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


FORKED = """
import json, multiprocessing, signal, sys
import torch
from gymnasium.vector import AsyncVectorEnv
from square import square_env
from voc_rl import VOCValueWrapper

signal.alarm(60)  # ends this process, and each worker that waits for ever

def make():
    signal.alarm(60)
    return VOCValueWrapper(square_env(), sys.argv[1])

def values(made):
    envs = AsyncVectorEnv([made] * 2, context="fork")
    found = envs.reset(seed=6)[1]["voc"]["value"].tolist()
    envs.close()
    return found

inherited = make()
torch.ones(1000, 1000) @ torch.ones(1000, 1000)  # with both threads
with multiprocessing.get_context("fork").Pool(1) as users:
    print(json.dumps([values(make), values(lambda: inherited), users.apply(torch.get_num_threads)]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_forked_workers_do_not_wait_for_their_parents_threads(square_voc: Path) -> None:
    here = str(Path(__file__).parents[1])
    found = subprocess.run(
        [sys.executable, "-c", FORKED, str(square_voc)], capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": here},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-2000:]
    alone = [square_wrapped(square_voc).reset(seed=seed)[1]["voc"]["value"] for seed in (6, 7)]
    made, inherited, threads = json.loads(found.stdout)
    assert made == pytest.approx(alone, abs=1e-3)
    assert inherited == pytest.approx(alone, abs=1e-3)
    assert threads == 2  # of a fork that reads nothing


@pytest.mark.parametrize("options", VALUE_MODES)
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
