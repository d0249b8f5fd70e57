"""Turn a dataset of any format into ours, V-D4RL's or Minari's; D4RL's states are drawn on the way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from voc_rl.checkpoints import check_writable, read_json
from voc_rl.configs import fingerprint
from voc_rl.data import DataSpec, Episode, Episodes, load_dataset, write_minari, write_vd4rl
from voc_rl.data.border import file_stamp
from voc_rl.data.convert import SETTINGS, write_folder
from voc_rl.data.malformed import with_steps
from voc_rl.data.minari_data import check_new_minari
from voc_rl.data.places import Places, places_of
from voc_rl.data.registry import parse, stream_dataset
from voc_rl.data.trial import read_in_child, source_files
from voc_rl.distributed import agreed, ranks
from voc_rl.errors import VOCError, check_choice
from voc_rl.progress import progress_bar

if TYPE_CHECKING:
    from voc_rl.envs.states import StateCheck

TARGETS = ("minari", "vd4rl", "voc")
SIZE = 84  # height and width of drawn frames where none is asked


def open_with_frames(source: Places, folder: Path | None = None, stack: int = 3) -> Episodes:
    """Open a dataset of any format to train on its frames. D4RL's states are drawn into ``folder`` first, once.

    Of several places, the second one's are drawn into the folder beside it that ends in ``_1``, and so on.

    Args:
        source: as in ``load_dataset``. folder: for what is drawn; a drawing that was cut goes on. Of several processes
            (``voc_rl.distributed``), all of which have to call this, the first one draws. stack: frames of an
            observation.

    Raises:
        VOCError: what ``load_dataset`` and ``convert_dataset`` refuse, states without a ``folder``, or a ``folder``
            that was drawn from something else.
    """
    return Episodes.join(
        [
            _open_place(place, folder.with_name(f"{folder.name}_{number}") if folder and number else folder, stack)
            for number, place in enumerate(places_of(source))
        ]
    )


def _open_place(source: str | Path, folder: Path | None, stack: int) -> Episodes:
    name, place = parse(source)
    if name != "d4rl":
        return load_dataset(f"{name}:{place}", stack=stack)
    if folder is None:
        raise VOCError(f"{source} holds states, whose pictures are drawn into a folder; --out is needed.")
    _draw_once(f"d4rl:{place}", folder)
    drawn, source_now = read_json(folder / SETTINGS, "settings of a conversion"), _made_from(f"d4rl:{place}")
    if drawn.get("source") != source_now["source"]:
        raise VOCError(f"{folder} was drawn from {drawn.get('source')}, not from d4rl:{place}; choose another --out.")
    if drawn.get("files") != source_now["files"]:
        raise VOCError(
            f"{folder} was drawn from d4rl:{place} before that file changed; delete it, or choose another --out."
        )
    return Episodes.open(folder, stack)


def _made_from(spec: str) -> dict[str, str]:
    """What says whether a conversion is still of the same data: the place, and a hash of its files' names, sizes and
    times of change."""
    word, _, place = spec.partition(":")
    files = source_files(spec)
    source = f"{word}:{Path(place).resolve()}" if Path(place).exists() else spec
    return {"source": source, "files": fingerprint([(str(file), *file_stamp(file)) for file in files])}


def _draw_once(spec: str, folder: Path) -> None:
    """Draw states into ``folder`` unless it is there. Of several processes the first one does, and says after every
    episode that it is still drawing: as a whole that may take longer than the others wait for a word."""
    if ranks().first:
        if not folder.exists():
            _, check = _to_ours(spec, str(folder), SIZE, None, progress=True, after_episode=lambda: agreed(True))
            if check is not None:
                tqdm.write(f"check: {check}", file=sys.stderr)  # beside the progress
        agreed(False)
    else:
        while agreed(False):  # the first one's answer
            pass


def convert_dataset(
    source: str,
    out: str,
    to: str = "voc",
    *,
    size: int = SIZE,
    task: str | None = None,
    untrusted: bool = False,
    progress: bool = False,
) -> tuple[int, StateCheck | None]:
    """Convert a dataset, episode by episode where ``to`` is ``"voc"``; such a conversion goes on after a cut.

    Args:
        source: as in ``load_dataset``. out: a new folder (voc), a new .hdf5 file (vd4rl), or a new name like
            namespace/name-v0 (minari). to: the format of ``out``.
        size: height and width of frames drawn from states; to Minari, those that cannot be drawn go as states. task:
            HalfCheetah-v5 or Walker2d-v5; None is what the name of a D4RL file says. untrusted: as in ``load_dataset``.

    Returns:
        The number of episodes, and how well the simulator agrees with the states that were drawn by this call (None
        where it compared none).

    Raises:
        VOCError: an ``out`` that is taken, no name of a Minari dataset or in no place that can be written, which is
            looked at first; what ``load_dataset`` and ``render_states`` refuse.
    """
    check_choice(to, TARGETS, "format to convert to")
    if to == "minari":  # asked before hours of drawing, of which nothing would be kept
        check_new_minari(out)
    elif to == "vd4rl":
        check_writable(Path(out))
        if Path(out).exists():
            raise VOCError(f"{out} exists already; choose another file.")
    spec = read_in_child(source).spec if untrusted else ":".join(parse(source))
    if to == "voc":
        return _to_ours(spec, out, size, task, progress)
    dataset, check = with_steps(load_dataset(spec)), None
    if spec.startswith("d4rl:"):
        from voc_rl.envs.states import MODELS, render_states

        drawable = dataset.physics is not None and dataset.spec.task in MODELS
        if drawable or task or to != "minari":  # which takes states too
            dataset, check = render_states(dataset, size, task, progress)
    if to == "minari":
        write_minari(out, dataset, progress)
    else:
        write_vd4rl(out, dataset, progress=progress)
    return len(dataset.starts), check if check and check.steps else None


def _to_ours(
    spec: str,
    out: str,
    size: int,
    task: str | None,
    progress: bool,
    after_episode: Callable[[], object] = lambda: None,
) -> tuple[int, StateCheck | None]:
    settings = {**_made_from(spec), "size": size, "task": task}
    if not spec.startswith("d4rl:"):

        def streamed(first: int) -> Iterator[tuple[Episode, DataSpec]]:
            described, count, stream = stream_dataset(spec)
            left = islice(stream, first, None)
            shown = progress_bar(left, desc="convert", unit="episode", total=count, initial=first, show=progress)
            return ((episode, described) for episode in shown)

        return write_folder(out, streamed, settings), None

    from voc_rl.envs.states import MODELS, StateCheck, rendered_episodes

    states, check = load_dataset(spec), StateCheck()
    if states.physics is None:
        raise VOCError(f"{states.paths[0]} has {states.without_frames}.")
    if not (task or states.spec.task):  # training has no option for it
        raise VOCError(
            f"{states.paths[0]} does not say its task; `voc-rl data convert {spec} FOLDER --task TASK`, with one of "
            f"{', '.join(MODELS)} (no other can be drawn), turns it into a folder that does."
        )

    def drawn(first: int) -> Iterator[tuple[Episode, DataSpec]]:
        if first == len(states.starts):
            return
        left = states.subset(range(first, len(states.starts)))
        for made in rendered_episodes(left, size, task, progress, check):
            after_episode()
            yield made

    count = write_folder(out, drawn, settings)
    return count, check if check.steps else None
