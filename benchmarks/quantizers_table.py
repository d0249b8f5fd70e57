"""The numbers of ``quantizers``: means over seeds, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FRAMES = "frames"  # the reference: no codes
BASE = "vqvae"  # whose training time is 1
ORDER = (BASE, "vqgan", "dino", "musik", FRAMES)
PROBED = ("position", "velocity", "reward")

Summary = dict[str, dict[str, dict[str, Any]]]

HEADER = (
    "| quantizer | tokens a stack (a frame) | bits a stack | codes used | perplexity (pooled) | PSNR "
    "| R² from codes: position | velocity | reward | R² from features: position, velocity, reward "
    "| training CPU-s (× vqvae) | tokens / s | stacks / s |\n"
    "|---|---|---:|---:|---|---:|---:|---:|---:|---|---|---:|---:|"
)
NOTES = """\
- R²: ridge regression on held-out episodes, averaged over the numbers of a part of the simulator's state; *from codes*:
  from the codes' vectors, what the VOC's reward head sees; *from features*: from the continuous features beside them.
  Few codes are few numbers to a linear probe (8 tokens of `vqvae`: 24; 27 of `dino`: 432); a network reads more off
  them.
- `frames`: no codes. Its features are the principal components of every frame, with the most that ridge regression
  reads off such components of raw frames; a network may see more, so it is a reference and no bound. Its PSNR is that
  of the mean training picture.
- Bits: tokens × log2(codebook size). Codes used: share of the codebook that occurs on held-out frames. Perplexity: of
  the codes at one token position, averaged over positions; pooled: of all positions together.
- PSNR: of the newest frame, over all decoded pixels. A static background makes it high for everybody.
- Speeds: of encoding, per CPU second of one thread."""


def summary(records: Sequence[Mapping[str, Any]]) -> Summary:
    """Task -> quantizer -> {"seeds", "mean": {number: ...}, "stderr": {number: ...}}, the latter of several seeds.

    ``train_ratio`` is a training's CPU seconds over those of ``vqvae`` with the same task and seed.
    """
    cells = {(r["cell"]["task"], r["cell"]["quantizer"], r["cell"]["seed"]): _flat(r["result"]) for r in records}
    for (task, _, seed), numbers in cells.items():
        base = cells.get((task, BASE, seed))
        if base is not None:
            numbers["train_ratio"] = numbers["train_cpu_seconds"] / base["train_cpu_seconds"]
    found: Summary = {}
    for task, name in sorted({(task, name) for task, name, _ in cells}, key=_place):
        own = {seed: numbers for (t, n, seed), numbers in cells.items() if (t, n) == (task, name)}
        mean, stderr = {}, {}
        for key in next(iter(own.values())):
            values = np.array([numbers[key] for numbers in own.values() if key in numbers])
            mean[key] = float(values.mean())
            if len(values) > 1:
                stderr[key] = float(values.std(ddof=1) / len(values) ** 0.5)
        found.setdefault(task, {})[name] = {"seeds": sorted(own), "mean": mean, "stderr": stderr}
    return found


def _place(key: tuple[str, str]) -> tuple[bool, str, int]:
    """Walker before Cheetah, as everywhere, and quantizers in their order."""
    return key[0] != "walker-walk", key[0], ORDER.index(key[1])


def _flat(result: Mapping[str, Any]) -> dict[str, float]:
    """{"psnr": 30.0, "codes": {"reward": 0.9}} -> {"psnr": 30.0, "codes.reward": 0.9}; nothing for None."""
    numbers = {}
    for key, value in result.items():
        if isinstance(value, Mapping):
            numbers.update({f"{key}.{name}": number for name, number in _flat(value).items()})
        elif value is not None:
            numbers[key] = float(value)
    return numbers


def psnr_notes(found: Summary) -> dict[str, str]:
    """Quantizer -> its PSNR on each task that has it, in words."""
    return {
        name: " / ".join(f"{rows[name]['mean']['psnr']:.1f}" for rows in found.values() if name in rows) + " dB"
        for name in ORDER
        if any(name in rows for rows in found.values())
    }


def table(found: Summary) -> str:
    """The summary as Markdown, a table per task, and how to read it."""
    parts = []
    for task, rows in found.items():
        lines = [_row(name, row["mean"], row["stderr"]) for name, row in rows.items()]
        parts.append("\n".join([f"**{task}**\n", HEADER, *lines]))
    return "\n\n".join([*parts, NOTES])


def _row(name: str, mean: Mapping[str, float], stderr: Mapping[str, float]) -> str:
    def cell(key: str, form: str) -> str:
        if key not in mean:
            return "–"
        error = f" ± {stderr[key]:.2f}" if key in stderr and form == ".2f" else ""
        return f"{mean[key]:{form}}{error}"

    frame = f" ({mean['n_tokens'] / mean['stack']:.3g})" if "n_tokens" in mean else ""
    pooled = f" ({mean['pooled_perplexity']:.0f} of {mean['codebook_size']:.0f})" if "pooled_perplexity" in mean else ""
    ratio = f" (× {mean['train_ratio']:.2g})" if "train_ratio" in mean and name != FRAMES else ""
    features = ", ".join(cell(f"features.{part}", ".2f") for part in PROBED) if mean["feature_inputs"] else "–"
    columns = [
        f"`{name}`", cell("n_tokens", ".0f") + frame, cell("bits", ".0f"), cell("use", ".0%"),
        cell("perplexity", ".0f") + pooled, cell("psnr", ".1f"), *(cell(f"codes.{part}", ".2f") for part in PROBED),
        features, cell("train_cpu_seconds", ".0f") + ratio, cell("tokens_per_second", ",.0f"),
        cell("stacks_per_second", ",.0f"),
    ]  # fmt: skip
    return "| " + " | ".join(columns) + " |"
