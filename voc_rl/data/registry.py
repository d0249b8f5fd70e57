"""One function for every format: ``load_dataset("vd4rl:/data/walker_walk/expert/84px")``.

    voc:PATH            ours: an HDF5 file or a folder of them            voc_rl.data.hdf5
    vd4rl:PATH          V-D4RL: 84 px shards or a folder of 64 px npz     voc_rl.data.vd4rl
    d4rl:FILE.hdf5      D4RL: states without frames                       voc_rl.data.d4rl
    d4rl:NAME-v2        the same through the package d4rl
    minari:NAME-v0      Minari: by name, or a folder                      voc_rl.data.minari_data

A path without a word before it is looked at; what may be a shard of V-D4RL is read as ours, which leaves nothing out.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py

from voc_rl.data import minari_data, vd4rl, vd4rl_npz
from voc_rl.data.border import data_files, reading
from voc_rl.data.d4rl import open_d4rl
from voc_rl.data.episodes import Episodes
from voc_rl.data.hdf5 import SUFFIXES, Episode, hdf5_files
from voc_rl.data.malformed import with_steps
from voc_rl.data.minari_names import given_folder, minari_folder
from voc_rl.data.places import Places, places_of, split_place
from voc_rl.data.spec import SPEC_ATTRIBUTE, DataSpec
from voc_rl.data.trial import read_in_child
from voc_rl.errors import VOCError, check_choice


def _open_ours(location: str, stack: int, untrusted: bool) -> Episodes:
    hdf5_files(Path(location), untrusted)  # refuses links that leave the folder
    return Episodes.open(location, stack)


FORMATS: dict[str, Callable[[str, int, bool], Episodes]] = {
    "voc": _open_ours,
    "vd4rl": vd4rl.open_vd4rl,
    "d4rl": lambda location, stack, untrusted: open_d4rl(location, stack),
    "minari": minari_data.open_minari,
}


def load_dataset(spec: Places, *, untrusted: bool = False, stack: int = 3) -> Episodes:
    """Open a dataset of any format that is known.

    Args:
        spec: ``FORMAT:PLACE`` (module docstring), or a path, whose format is then found out by looking; or several of
            these, whose episodes then follow one another.
        untrusted: the files come from someone who may mean harm: they are read to the end in a process of their own
            first, because the HDF5 library may crash on them, and links that leave a folder are refused.
        stack: frames of an observation.

    Raises:
        VOCError: an unknown format, one whose library is not installed, nothing there, or files that are damaged,
            malformed or lie about their size, or several that do not fit each other.
    """
    places = places_of(spec)
    if untrusted:
        places = [read_in_child(str(place)).spec for place in places]
    return Episodes.join([open_as(*parse(place), stack, untrusted) for place in places])


def open_as(name: str, location: str, stack: int = 3, untrusted: bool = False) -> Episodes:
    """Open what is at a place in one of ``FORMATS``; ``untrusted``: refuse links that leave a folder.

    Raises:
        VOCError: as ``load_dataset``; where reading the same as V-D4RL's would do, with a word on that.
    """
    try:
        return FORMATS[name](location, stack, untrusted)
    except VOCError as error:
        if name == "voc" and _is_foreign(_first_file(Path(location))) and _is_vd4rl(location, stack, untrusted):
            raise VOCError(f"{str(error).rstrip('.')}; vd4rl:{location} leaves malformed episodes out.") from error
        raise


def stream_dataset(spec: str | Path) -> tuple[DataSpec, int, Iterator[Episode]]:
    """How the frames were made, how many episodes there are at most, and one after another, of which one is in memory.

    Those without a step are left out with a warning, and so are malformed ones of .npz files and of ``vd4rl:``, as by
    ``load_dataset``.

    Raises:
        VOCError: as ``load_dataset``, some of it while the episodes are read.
    """
    name, location = parse(spec)
    path = Path(location)
    if name == "minari":
        folder = minari_folder(location)
        count = minari_data.minari_count(folder)
        return minari_data.minari_spec(folder), count, minari_data.minari_episodes(folder)
    if name == "vd4rl" and path.is_dir() and (archives := vd4rl.vd4rl_files(path)[0]):
        return vd4rl_npz.npz_spec(archives), len(archives), vd4rl_npz.npz_episodes(archives, path)
    dataset = with_steps(open_as(name, location))
    count = len(dataset.starts)
    return dataset.spec, count, (dataset.whole(i) for i in range(count))


def parse(spec: str | Path) -> tuple[str, str]:
    """A format and a place; the format of a path alone is found out by looking.

    Raises:
        VOCError: an unknown format, or a path with nothing that is known.
    """
    word, location = split_place(spec)
    if not word:
        return _guess(Path(location)), location
    check_choice(word, FORMATS, "dataset format")
    if not location:
        raise VOCError(f"{spec!r} names no place; {word}:PATH is needed.")
    return word, location


def _guess(path: Path) -> str:
    if not path.exists():
        raise VOCError(
            f"{path} does not exist; a path, or FORMAT:PLACE with one of the formats {', '.join(sorted(FORMATS))}, is "
            "needed."
        )
    if given_folder(path) is not None:
        return "minari"
    first = _first_file(path)
    if first is None or first.suffix == ".npz":
        return "vd4rl"  # without files it says what is missing
    with reading(first, "HDF5", "a dataset that is known"), h5py.File(first, "r") as file:
        # V-D4RL's shards are read as ours: only who names them as such has their malformed episodes left out
        return "d4rl" if SPEC_ATTRIBUTE not in file.attrs and "observations" in list(file) else "voc"


def _is_vd4rl(location: str, stack: int, untrusted: bool) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            vd4rl.open_vd4rl(location, stack, untrusted)
        except VOCError:
            return False
    return True


def _first_file(path: Path) -> Path | None:
    """A file itself, or the first one of a folder."""
    return next(iter(data_files(path, (".npz", *SUFFIXES))), None) if path.is_dir() else path


def _is_foreign(path: Path | None) -> bool:
    """Whether there is an HDF5 file, and one that somebody else wrote."""
    if path is None or not h5py.is_hdf5(path):
        return False
    with reading(path, "HDF5", "a dataset that is known"), h5py.File(path, "r") as file:
        return SPEC_ATTRIBUTE not in file.attrs
