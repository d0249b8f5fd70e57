"""A picture for videos: the frame, sampled futures beside it, and the value along the episode below."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from voc_rl.model import VOC
from voc_rl.plugin import pictures_of

SIDE = 256  # of the frame, in pixels; every size here is even, as video encoders want them
CURVE = 128
MARGIN = 40
FUTURES = 4
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont
BACKGROUND, INK, BAND, LINE = (255, 255, 255), (40, 40, 40), (204, 221, 238), (0, 90, 160)


def draw_overlay(frame: np.ndarray, curve: np.ndarray, voc: VOC, obs: np.ndarray, gamma: float) -> np.ndarray:
    """uint8 (SIDE + CURVE, 2 SIDE, 3).

    Args:
        frame: uint8 (H, W, 3), the present.
        curve: float (T, 3): value, low and high of every step of the episode so far.
        voc, obs: model and observation uint8 (3K, H, W) that futures are drawn from, at discount ``gamma``.
    """
    canvas = Image.new("RGB", (2 * SIDE, SIDE + CURVE), BACKGROUND)
    canvas.paste(_resized(frame, SIDE), (0, 0))
    half = SIDE // 2
    for i, picture in enumerate(_futures(voc, obs, gamma)):
        canvas.paste(_resized(picture, half), (SIDE + half * (i % 2), half * (i // 2)))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=12)
    _label(draw, (4, 4), f"step {len(curve) - 1}", font)
    _label(draw, (SIDE + 4, 4), f"sampled futures, discount {gamma:g}", font)
    _draw_curve(draw, curve, font)
    return np.asarray(canvas)


def _futures(voc: VOC, obs: np.ndarray, gamma: float) -> np.ndarray:
    """Newest frames of sampled futures, uint8 (FUTURES, H, W, 3), by common random numbers; black where it ended."""
    codes = voc.sample_futures(obs[None], FUTURES, gamma, common=True)[0]
    return pictures_of(voc, codes).transpose(0, 2, 3, 1)


def _resized(frame: np.ndarray, side: int) -> Image.Image:
    return ImageOps.pad(Image.fromarray(frame), (side, side), Image.Resampling.BICUBIC, BACKGROUND)


def _label(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, font: Font) -> None:
    draw.text(place, text, font=font, fill=BACKGROUND, stroke_width=2, stroke_fill=INK)


def _draw_curve(draw: ImageDraw.ImageDraw, curve: np.ndarray, font: Font) -> None:
    """Values with their intervals; the axis reaches from the lowest to the highest number of the episode so far."""
    top, bottom, left, right = SIDE + 22, SIDE + CURVE - 8, MARGIN, 2 * SIDE - 8
    low, high = float(curve.min()), float(curve.max())
    reach = max(high - low, 1e-3)
    x = left + (right - left) * np.arange(len(curve)) / max(len(curve) - 1, 1)
    y = bottom - (bottom - top) * (curve - low) / reach
    draw.text((4, SIDE + 4), f"value {curve[-1, 0]:.2f}", font=font, fill=LINE)
    draw.text((4, top - 4), f"{high:.1f}", font=font, fill=INK)
    draw.text((4, bottom - 12), f"{low:.1f}", font=font, fill=INK)
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=INK)
    if len(curve) > 1:
        band = [*zip(x, y[:, 1], strict=True), *zip(x[::-1], y[::-1, 2], strict=True)]
        draw.polygon([(float(a), float(b)) for a, b in band], fill=BAND)
        draw.line([(float(a), float(b)) for a, b in zip(x, y[:, 0], strict=True)], fill=LINE, width=2)
    draw.ellipse([x[-1] - 3, y[-1, 0] - 3, x[-1] + 3, y[-1, 0] + 3], fill=LINE)
