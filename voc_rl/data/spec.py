"""How the frames of a dataset were made, as files carry it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral
from pathlib import Path
from typing import Any

from voc_rl.errors import VOCError

SPEC_ATTRIBUTE = "voc_rl_spec"
SPEC_NAMES = ("task", "render", "camera", "action_repeat", "backend", "mujoco")  # in which frames or rewards may differ


@dataclass(frozen=True)
class DataSpec:
    """How frames were made; empty words and zeros where a foreign file does not say.

    Raises:
        VOCError: a word in the place of a whole number, or the other way round.
    """

    task: str = ""
    size: int = 0
    action_repeat: int = 0
    render: str = ""
    camera: int = -1
    backend: str = ""
    mujoco: str = ""
    dm_control: str = ""
    max_episode_steps: int = 0
    policy: str = ""

    def __post_init__(self) -> None:
        for name, default in ((f.name, f.default) for f in fields(self)):
            value, is_word = getattr(self, name), isinstance(default, str)
            if not isinstance(value, str if is_word else Integral) or isinstance(value, bool):
                needed = "a word" if is_word else "a whole number"
                raise VOCError(f"{name} of a DataSpec is {value!r}; {needed} is needed.")
            object.__setattr__(self, name, str(value) if is_word else int(value))  # NumPy's own are not written

    def differences(self, other: DataSpec, names: Sequence[str] = SPEC_NAMES) -> list[tuple[str, Any, Any]]:
        """Names in which another spec differs, with both values, of those that both say."""
        unsaid = DataSpec()
        both = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [(name, a, b) for name, a, b in both if a != b and getattr(unsaid, name) not in (a, b)]


def parse_spec(text: Any, path: Path) -> DataSpec:
    """A ``DataSpec`` from the JSON that a file of ours carries.

    Raises:
        VOCError: something else than this version writes.
    """
    try:
        return DataSpec(**json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        raise VOCError(
            f"{path}: the attribute {SPEC_ATTRIBUTE} is not one that this version wrote ({str(error).rstrip('.')})."
        ) from error
