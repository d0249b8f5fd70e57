"""Which OpenGL draws the frames: chosen once, before MuJoCo and dm_control read ``MUJOCO_GL``."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from voc_rl.errors import VOCError

BACKENDS = ("egl", "osmesa")
_PROBE = "from mujoco.{} import GLContext; context = GLContext(8, 8); context.make_current(); context.free()"
_DRAWS_NOTHING = ("off", "disable", "disabled", "false", "0")
_INSTALL = {"egl": "apt-get install libegl1 libgl1-mesa-dri", "osmesa": "apt-get install libosmesa6"}


def import_suite() -> ModuleType:
    """``dm_control.suite``, imported with a backend that can draw without a screen.

    Raises:
        VOCError: no headless OpenGL library is installed, or not the one that ``MUJOCO_GL`` names, or no dm_control.
    """
    if find_spec("dm_control") is None:
        raise VOCError(
            "dm_control is not installed, which this package does not bring on Python 3.13 (its labmaze has no wheels "
            "there, and the suite does without it); `pip install --no-deps dm-control` installs it."
        )
    prepare_gl()
    chosen = os.environ.get("MUJOCO_GL", "")
    if chosen.lower() in _DRAWS_NOTHING:
        raise VOCError(f"MUJOCO_GL={chosen} keeps MuJoCo from drawing frames; unset it, or set egl.")
    try:
        return import_module("dm_control.suite")
    except (AttributeError, ImportError, RuntimeError) as error:  # what a missing library ends in
        if not chosen or isinstance(error, ModuleNotFoundError):
            raise
        install = f"`{_INSTALL[chosen]}` installs it, or " if chosen in _INSTALL else ""
        raise VOCError(
            f"MuJoCo cannot draw with MUJOCO_GL={chosen} here ({error}); {install}unset it to have what works chosen."
        ) from error


@contextmanager
def quiet_models() -> Iterator[None]:
    """Without MuJoCo's warnings about deprecated words in other people's model files."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def prepare_gl() -> None:
    """Set ``MUJOCO_GL`` to the first backend that works here, unless the user has set it.

    Only Linux needs a choice; elsewhere MuJoCo finds the system's own OpenGL. The choice is left in
    ``os.environ``, so that child processes need not test again.

    Raises:
        VOCError: neither EGL nor OSMesa can make a context.
    """
    _import_triton_first()
    if sys.platform != "linux" or os.environ.get("MUJOCO_GL") or "dm_control._render" in sys.modules:
        return
    for backend in BACKENDS:
        if _works(backend):
            os.environ["MUJOCO_GL"] = backend
            return
    raise VOCError(
        f"MuJoCo cannot draw frames here: neither EGL nor OSMesa is installed; `{_INSTALL['egl']}` installs EGL "
        f"(`{_INSTALL['osmesa']}` OSMesa)."
    )


def check_screen() -> None:
    """Refuse to draw with a backend that needs a screen where there is none: the process would end in the driver.

    That happens where ``MUJOCO_GL`` says glfw, or dm_control was imported before this package and chose it.

    Raises:
        VOCError: GLFW without a display.
    """
    chosen = getattr(sys.modules.get("dm_control._render"), "BACKEND", None)
    if sys.platform == "linux" and chosen == "glfw" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        if os.environ.get("MUJOCO_GL") == "glfw":
            raise VOCError("MUJOCO_GL=glfw draws on a screen, and there is none (no DISPLAY); unset it, or set egl.")
        raise VOCError(
            "dm_control was imported before voc_rl.envs and draws with GLFW, which needs a screen; import voc_rl.envs "
            "first, or set MUJOCO_GL=egl."
        )


def _import_triton_first() -> None:
    """Mesa's software drivers and triton both hold LLVM: triton imported after a context ends the process."""
    if "triton" not in sys.modules and find_spec("triton") is not None:
        try:
            import_module("triton")
        except Exception:  # a broken triton is for those who use it to report
            return


def _works(backend: str) -> bool:
    """Whether a real context can be made; in a process of its own, because a broken driver may end it."""
    environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE.format(backend)], env=environment, capture_output=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0
