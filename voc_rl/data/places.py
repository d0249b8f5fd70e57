"""Where a dataset lies: one place, or several whose episodes follow one another."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from voc_rl.data.minari_names import given_folder, minari_folder
from voc_rl.errors import VOCError

Places = str | Path | Sequence[str | Path]


def places_of(asked: Places) -> list[str | Path]:
    """Every place that is asked for, in the order of the rows.

    Raises:
        VOCError: none, what is no path, or a file twice, by whatever names: its episodes would be trained on and held
            out; among several a Minari dataset that is not here.
    """
    places = list(asked) if isinstance(asked, Iterable) and not isinstance(asked, str) else [asked]
    for place in places:
        if not isinstance(place, str | Path):
            raise VOCError(f"A dataset's place is {place!r}; the path of a file or folder is needed.")
    if not places:
        raise VOCError("Zero files or folders were asked for; at least one is needed.")
    if len(places) > 1:
        found = [_files(place) for place in places]
        for number, (place, files) in enumerate(zip(places, found, strict=True)):
            for other, others in zip(places[:number], found, strict=False):
                if files & others:
                    raise VOCError(f"{place} was asked for twice, before as {other}; once is needed.")
    return places


def split_place(place: str | Path) -> tuple[str, str]:
    """``FORMAT:PLACE`` as these two; what exists as it is spelled, or has no colon, is a place alone, its format ""."""
    word, colon, location = str(place).partition(":")
    if not word or not colon or Path(place).exists():
        return "", str(place)
    return word, os.path.expanduser(location)  # shells do so at the beginning of a word alone


def _files(place: str | Path) -> set[Path]:
    """What a place stands for, with links followed: a file or a name itself, or the files of a folder."""
    word, location = split_place(place)
    path = minari_folder(location) if word == "minari" else given_folder(Path(location)) or Path(location)
    inside = {file.resolve() for file in path.iterdir() if file.is_file()} if path.is_dir() else set()
    return inside or {path.resolve()}
