"""Sending the curve to Weights & Biases (optional; metrics.jsonl is always written)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from voc_rl.checkpoints import read_json, write_json
from voc_rl.errors import VOCError
from voc_rl.runs import CURVES

KEPT = "wandb.json"


def wandb_listener(
    mode: str, out: Path, mark: str, settings: Mapping[str, Any], force: bool
) -> Callable[[str, int, Mapping[str, float]], None]:
    """Start a run of these ``settings``, and return what logs a step to it.

    It is named after the folder ``out``, in the project voc_rl, unless WANDB_NAME or WANDB_PROJECT say otherwise. A run
    of the same ``mark``, the fingerprint of what is trained, goes on where it was, but for ``force``.

    Raises:
        VOCError: wandb is not installed, or does not start.
    """
    try:
        import wandb
    except ImportError as error:
        raise VOCError("wandb is not installed; run: pip install 'voc_rl[wandb]'.") from error
    kept = read_json(out / KEPT, "note of the W&B run") if (out / KEPT).exists() else {}
    known = None if force or kept.get("mark") != mark else kept.get("id")
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "voc_rl"), name=os.environ.get("WANDB_NAME", out.name),
            config=dict(settings), dir=str(out), id=known, resume="allow", mode=mode,  # type: ignore[arg-type]
        )  # fmt: skip
    except wandb.errors.Error as error:
        raise VOCError(f"wandb did not start ({error}); log in, or use --wandb offline.") from error
    write_json(out / KEPT, {"id": run.id, "mark": mark})

    for stage in dict.fromkeys(name for names in CURVES.values() for name in names):
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def listen(stage: str, step: int, numbers: Mapping[str, float]) -> None:
        run.log({f"{stage}/{name}": value for name, value in numbers.items()} | {f"{stage}/step": step})

    return listen
