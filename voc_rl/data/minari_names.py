"""Where Minari's datasets lie: by their names, or in a folder that is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from voc_rl.errors import VOCError


def minari_folder(name: str) -> Path:
    """Where a dataset lies: the folder with its ``metadata.json``.

    Raises:
        VOCError: a name that is none, no such dataset here, or minari is not installed.
    """
    import_minari()
    if (given := given_folder(Path(name))) is not None:
        return given
    folder = named_folder(name)[1] / "data"
    if not (folder / "metadata.json").is_file():
        raise VOCError(f"There is no Minari dataset {name} in {folder.parent}; `minari download {name}` gets one.")
    return folder


def given_folder(path: Path) -> Path | None:
    """The folder with ``metadata.json`` of a dataset that is given by a path; None where no Minari dataset is."""
    return next((folder for folder in (path, path / "data") if (folder / "metadata.json").is_file()), None)


def named_folder(name: str) -> tuple[str | None, Path]:
    """The namespace of a dataset's name, and where such a dataset lies or would.

    Raises:
        VOCError: a name that is none, or a folder for Minari's datasets that cannot be used.
    """
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage.datasets_root_dir import get_dataset_path

    try:
        namespace = parse_dataset_id(name)[0]
    except (TypeError, ValueError) as error:  # TypeError: without a version
        raise VOCError(f"{name!r} is no name of a Minari dataset; namespace/name-v0 or a folder is needed.") from error
    try:
        return namespace, get_dataset_path(name)
    except OSError as error:  # it is made where there is none
        raise VOCError(
            f"Minari's folder cannot be used ({error.filename}: {error.strerror}); set MINARI_DATASETS_PATH to "
            "one that can."
        ) from error


def import_minari() -> Any:
    """The package minari.

    Raises:
        VOCError: it is not installed.
    """
    try:
        import minari
    except ImportError as error:
        raise VOCError("Minari's datasets need minari; run: pip install 'voc_rl[minari]'.") from error
    return minari
