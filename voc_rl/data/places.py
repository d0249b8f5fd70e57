"""Where a dataset lies: one place, or several whose episodes follow one another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from voc_rl.errors import VOCError

Places = str | Path | Sequence[str | Path]


def places_of(asked: Places) -> list[str | Path]:
    """Every place that is asked for, in the order of the rows.

    Raises:
        VOCError: none, or one twice, whose episodes would be trained on and held out.
    """
    places = [asked] if isinstance(asked, str | Path) else list(asked)
    if not places:
        raise VOCError("Zero files or folders were asked for; at least one is needed.")
    for number, place in enumerate(places):
        if Path(place) in map(Path, places[:number]):
            raise VOCError(f"{place} was asked for twice; once is needed.")
    return places
