"""Sending the curve to Weights & Biases (optional; metrics.jsonl is always written)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from voc_rl.errors import VOCError


def wandb_listener(mode: str, out: Path) -> Callable[[str, int, Mapping[str, float]], None]:
    """Start a run named after the folder ``out``, and return what logs a step to it.

    Raises:
        VOCError: wandb is not installed, or does not start.
    """
    try:
        import wandb
    except ImportError as error:
        raise VOCError("wandb is not installed; run: pip install 'voc_rl[wandb]'.") from error
    out.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(project="voc_rl", name=out.name, dir=str(out), mode=mode)  # type: ignore[arg-type]
    except wandb.errors.Error as error:
        raise VOCError(f"wandb did not start ({error}); log in, or use --wandb offline.") from error

    def listen(stage: str, step: int, numbers: Mapping[str, float]) -> None:
        run.log({f"{stage}/{name}": value for name, value in numbers.items()} | {f"{stage}/step": step})

    return listen
