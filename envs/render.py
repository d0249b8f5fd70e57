"""Frames of a dm_control physics: a fast profile for training, and dm_control's own picture."""

from __future__ import annotations

import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from voc_rl.envs.gl import check_screen
from voc_rl.errors import VOCError, check_choice, check_positive

if TYPE_CHECKING:
    from dm_control.mujoco.engine import Camera

PROFILES = ("fast", "faithful")
_drawing_process: int | None = None  # the process whose OpenGL is in use


class FrameRenderer:
    """Square RGB frames of one physics through one of its cameras.

    ``fast`` draws without shadows, reflections and multisampling, on which a software driver spends nine
    tenths of its time. ``faithful`` is ``physics.render(size, size, camera_id=camera)``, bit for bit.

    Both draw in the physics' own GL context, where tasks that change a height field upload it again. ``fast``
    therefore asks for a context without multisampling and shadow map by changing the model's visual quality:
    make the renderer before anything is drawn.

    Args:
        physics: ``dm_control.mujoco.Physics``.
        size: height and width of a frame, in pixels.
        camera: index of a camera of the model; -1 is the free camera.
        profile: ``"fast"`` or ``"faithful"``.

    Raises:
        VOCError: an unknown profile, a camera that the model does not have, a size below 1, or a process that
            was forked from one that had drawn before.
    """

    def __init__(self, physics: Any, size: int, camera: int, profile: str) -> None:
        check_choice(profile, PROFILES, "render profile")
        check_positive(size, "size")
        if not -1 <= camera < physics.model.ncam:
            raise VOCError(f"camera is {camera}; this task has the cameras -1 to {physics.model.ncam - 1}.")
        check_not_forked()
        self.profile, self.size, self.camera = profile, size, camera
        self._physics = physics
        self._camera: Camera | None = None
        visual = physics.model.vis
        visual.global_.offwidth = max(visual.global_.offwidth, size)
        visual.global_.offheight = max(visual.global_.offheight, size)
        if profile == "fast":
            visual.quality.offsamples = 0
            visual.quality.shadowsize = 0

    @property
    def making(self) -> dict[str, Any]:
        """How frames are made, by names of ``DataSpec``: size, render, camera, backend, versions of the simulator."""
        own = {"size": self.size, "render": self.profile, "camera": self.camera, "backend": backend()}
        return {**own, **simulator_versions()}

    def render(self) -> np.ndarray:
        """The present frame, uint8 (size, size, 3).

        Raises:
            VOCError: a forked process, or a backend without the screen that it needs.
        """
        if _drawing_process is None:
            check_screen()
        note_drawing()
        if self.profile == "faithful":
            return self._physics.render(self.size, self.size, camera_id=self.camera).copy()
        if self._camera is None:
            self._camera = self._fast_camera()
        return self._camera.render().copy()  # the camera returns an upside-down view of its one buffer

    def _fast_camera(self) -> Camera:
        from dm_control.mujoco.engine import Camera
        from mujoco import mjtRndFlag

        camera = Camera(self._physics, self.size, self.size, camera_id=self.camera)
        for flag in (mjtRndFlag.mjRND_SHADOW, mjtRndFlag.mjRND_REFLECTION):
            camera.scene.flags[flag] = 0
        return camera


def note_drawing() -> None:
    """Remember that this process draws: OpenGL hangs in what is forked from it from now on."""
    global _drawing_process
    check_not_forked()
    _drawing_process = os.getpid()


def check_not_forked() -> None:
    """Refuse to draw where OpenGL would hang.

    Raises:
        VOCError: this process was forked from one that had drawn.
    """
    if _drawing_process not in (None, os.getpid()):
        raise VOCError(
            "This process was forked from one that has drawn frames, where OpenGL hangs; start it with "
            "multiprocessing's 'spawn' (AsyncVectorEnv(..., context='spawn'))."
        )


def backend() -> str:
    """The OpenGL backend that dm_control draws with: ``egl``, ``osmesa``, ``glfw`` or ``none``."""
    from dm_control import _render

    return str(_render.BACKEND or "none")


def simulator_versions() -> dict[str, str]:
    """Versions of what makes the frames: ``mujoco`` and ``dm_control``."""
    return {"mujoco": version("mujoco"), "dm_control": version("dm-control")}
