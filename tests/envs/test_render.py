"""Render profiles against dm_control's own picture; OpenGL chosen once and safely."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from voc_rl.envs import DMControlEnv, PixelObservation, gl, render
from voc_rl.errors import VOCError


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("task", ["walker-walk", "cheetah-run"])
def test_faithful_is_dm_controls_render_and_fast_is_close(task):
    fast, faithful = DMControlEnv(task), DMControlEnv(task, render="faithful")
    for env in (fast, faithful):
        env.reset(seed=2)
        env.step(np.ones(6, np.float32))
    picture = faithful.render()
    np.testing.assert_array_equal(picture, faithful.physics.render(84, 84, camera_id=0))
    quick = fast.render()
    assert quick.shape == picture.shape == (84, 84, 3)
    assert quick.dtype == picture.dtype == np.uint8
    assert quick.std() > 20  # not black
    assert np.abs(quick.astype(int) - picture).mean() < 12
    fast.close(), faithful.close()


def test_dm_control_imported_first_without_a_screen_is_one_sentence():
    code = """
import dm_control.suite
from voc_rl.envs import make_env
from voc_rl.errors import VOCError
try:
    make_env("walker-walk", size=32).reset(seed=0)
except VOCError as error:
    print(error)
"""
    headless = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=headless)
    assert found.returncode == 0, found.stderr
    assert "import voc_rl.envs first, or set MUJOCO_GL=egl" in found.stdout


def test_a_missing_dm_control_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "find_spec", lambda name: None if name == "dm_control" else find_spec(name))
    with pytest.raises(VOCError, match=r"dm_control is not installed.*`pip install --no-deps dm-control` installs it"):
        DMControlEnv("walker-walk")


def test_frames_are_copies_that_later_steps_leave_alone():
    env = DMControlEnv("walker-walk")
    env.reset(seed=0)
    frame = env.render()
    kept = frame.copy()
    env.step(np.ones(6, np.float32))
    assert not np.array_equal(env.render(), kept)
    np.testing.assert_array_equal(frame, kept)
    env.close()


def test_camera_and_size_are_taken_and_reported():
    env = DMControlEnv("quadruped-walk", size=500)  # larger than the model's own buffer is high
    env.reset(seed=0)
    assert env.render().shape == (500, 500, 3)
    assert env.rendering["camera"] == 2
    assert env.rendering["render"] == "fast"
    assert env.rendering["backend"] in ("egl", "osmesa", "glfw")
    assert {"mujoco", "dm_control", "size"} <= set(env.rendering)
    env.close()


def test_drawing_in_a_forked_process_is_refused(monkeypatch):
    monkeypatch.setattr(render, "_drawing_process", os.getpid() + 1)
    gymnasiums = gym.make("InvertedPendulum-v5", render_mode="rgb_array")
    for make in (lambda: DMControlEnv("walker-walk"), lambda: PixelObservation(gymnasiums)):
        with pytest.raises(VOCError, match="context='spawn'"):
            make()


def test_gymnasiums_tasks_say_that_they_draw(monkeypatch):
    """Before the first frame a fork may draw, after it none."""
    monkeypatch.setattr(render, "_drawing_process", None)
    env = PixelObservation(gym.make("InvertedPendulum-v5", render_mode="rgb_array"), size=16)
    assert render._drawing_process is None
    env.reset(seed=0)
    assert render._drawing_process == os.getpid()
    env.close()


def test_the_first_backend_that_works_is_chosen(monkeypatch):
    monkeypatch.delitem(sys.modules, "dm_control._render", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(gl, "_works", lambda backend: backend == "osmesa")
    gl.prepare_gl()
    assert os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    gl.prepare_gl()
    assert os.environ["MUJOCO_GL"] == "glfw"  # the user's choice stays


def test_without_headless_opengl_the_error_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "dm_control._render", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.setattr(gl, "_works", lambda backend: False)
    with pytest.raises(VOCError, match="apt-get install libegl1 libgl1-mesa-dri") as caught:
        gl.prepare_gl()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("chosen", "error", "said"),
    [
        ("off", None, r"^MUJOCO_GL=off keeps MuJoCo from drawing frames; unset it, or set egl\.$"),
        (
            "egl",
            AttributeError("no eglQueryString"),
            r"MUJOCO_GL=egl here \(no eglQ.*apt-get install libegl1.*unset it",
        ),
        ("nonsense", RuntimeError("must be one of"), r"MUJOCO_GL=nonsense here \(must be one of\); unset it"),
    ],
)
def test_a_choice_that_cannot_draw_is_named(monkeypatch, chosen, error, said):
    def failing(name):
        raise error

    monkeypatch.setenv("MUJOCO_GL", chosen)
    monkeypatch.setattr(gl, "import_module", failing)
    monkeypatch.setattr(gl, "_import_triton_first", lambda: None)
    with pytest.raises(VOCError, match=said):
        gl.import_suite()


def test_a_screen_that_is_asked_for_by_name_is_missed_by_name(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setitem(sys.modules, "dm_control._render", SimpleNamespace(BACKEND="glfw"))
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(VOCError, match=r"^MUJOCO_GL=glfw draws on a screen, and there is none"):
        gl.check_screen()
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(VOCError, match=r"import voc_rl\.envs first"):
        gl.check_screen()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a choice of backends")
def test_a_backend_is_tried_in_a_process_of_its_own():
    assert gl._works(os.environ["MUJOCO_GL"] if os.environ.get("MUJOCO_GL") in gl.BACKENDS else "egl")
    assert not gl._works("nonsense")


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_triton_and_torch_can_be_used_after_a_frame_was_drawn():
    code = (
        "from voc_rl.envs import DMControlEnv\n"
        "env = DMControlEnv('walker-walk'); env.reset(seed=0); env.render()\n"
        "import triton, torch._dynamo; print('alive', env.render().mean() > 1)"
    )
    result = python(code)
    assert result.stdout.strip() == "alive True", result.stderr[-2000:]


def test_imports_are_light():
    code = (
        "import sys, voc_rl.envs\n"
        "from voc_rl.agents import NoisyPolicy, load_policy; load_policy('walker-walk/step_0')\n"
        "heavy = ('mujoco', 'dm_control', 'OpenGL', 'torch', 'triton')\n"
        "print([name for name in heavy if name in sys.modules])\n"
        "from voc_rl.envs import collect\n"
        "print('torch' in sys.modules)"
    )
    result = python(code)
    assert result.stdout.split("\n")[:2] == ["[]", "False"], result.stderr[-2000:]
