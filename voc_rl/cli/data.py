"""The commands ``voc-rl data ...``: what a dataset holds, whether it is sound, and how to make it ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from voc_rl.data import Episodes


@dataclass(frozen=True)
class Info:
    """Show what a dataset holds: episodes, lengths, returns, arrays, and how it was made."""

    path: tyro.conf.Positional[str]
    """A path, or FORMAT:PLACE with voc, vd4rl, d4rl or minari."""
    sheet: Path | None = None
    """Also draw frames of some episodes into this PNG."""
    untrusted: bool = False
    """Read the files in a process of their own first."""

    def run(self) -> None:
        from voc_rl.data.checks import contact_sheet, format_summary, summary
        from voc_rl.data.registry import load_dataset

        dataset = load_dataset(self.path, untrusted=self.untrusted)
        table = {"dataset": self.path, **summary(dataset), **_scores(dataset)}
        if self.sheet is not None:
            contact_sheet(dataset, self.sheet)
            table["sheet"] = str(self.sheet)
        print(format_summary(table))


@dataclass(frozen=True)
class Validate:
    """Read every frame and number of a dataset in a process of its own; exit code 2 where something is wrong."""

    path: tyro.conf.Positional[str]
    """A path, or FORMAT:PLACE with voc, vd4rl, d4rl or minari."""
    timeout: float | None = None
    """Seconds; default: a minute, and one more for every megabyte."""

    def run(self) -> None:
        from voc_rl.data.checks import format_summary
        from voc_rl.data.trial import read_in_child

        trial = read_in_child(self.path, self.timeout)
        print(format_summary({"dataset": trial.spec, **trial.summary}))
        for remark in trial.remarks:
            print(f"remark: {remark}")
        print("valid: every frame and every number was read")


@dataclass(frozen=True)
class Convert:
    """Turn a dataset into ours (or V-D4RL's, Minari's); D4RL's states are drawn (for Minari, where they can be).

    A conversion to ours that was cut goes on; to another format it begins anew: draw D4RL's states into ours first.
    """

    path: tyro.conf.Positional[str]
    """A path, or FORMAT:PLACE with voc, vd4rl, d4rl or minari."""
    out: tyro.conf.Positional[str]
    """A new folder (voc), a new .hdf5 file (vd4rl), or a new name like namespace/name-v0 (minari)."""
    to: Literal["voc", "vd4rl", "minari"] = "voc"
    size: int = 84
    """Height and width of frames that are drawn from states."""
    task: str | None = None
    """HalfCheetah-v5 or Walker2d-v5, where a D4RL file's name does not say it."""
    untrusted: bool = False
    """Read the files in a process of their own first."""

    def run(self) -> None:
        from voc_rl.conversion import convert_dataset

        count, check = convert_dataset(
            self.path, self.out, self.to, size=self.size, task=self.task, untrusted=self.untrusted, progress=True
        )
        if check is not None:
            print(f"check: {check}")
        print(f"convert: {count} episodes: {self.out}")


def _scores(dataset: Episodes) -> dict[str, str]:
    from voc_rl.data.d4rl import REFERENCE_RETURNS, normalized_scores

    if dataset.spec.task not in REFERENCE_RETURNS:
        return {}
    scores = normalized_scores(dataset)
    return {"D4RL's score": f"{scores.min():.1f} to {scores.max():.1f}, mean {scores.mean():.1f}"}


@dataclass(frozen=True)
class Data:
    """Look at a dataset, check it, or convert it: D4RL's, V-D4RL's, Minari's or ours."""

    command: tyro.conf.OmitArgPrefixes[
        tyro.conf.OmitSubcommandPrefixes[
            Annotated[Info, tyro.conf.subcommand("info")]
            | Annotated[Convert, tyro.conf.subcommand("convert")]
            | Annotated[Validate, tyro.conf.subcommand("validate")]
        ]
    ]

    def run(self) -> None:
        self.command.run()
