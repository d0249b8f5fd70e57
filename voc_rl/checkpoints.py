"""Files that are whole or absent, and loading that never runs code.

Everything is written beside its final name and moved there in one step, so a killed process leaves no
half-written file under a final name. Tensors are stored as safetensors; a training state (optimiser,
generators) as a torch file that is only ever read with ``weights_only=True``.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from voc_rl.errors import VOCError, few, reason_of

if TYPE_CHECKING:
    from torch import Tensor

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that becomes ``path`` when the block ends well, and vanishes otherwise.

    Raises:
        VOCError: a folder in its place, one that cannot be written, or a full disk.
    """
    path = Path(path)
    if os.path.isdir(path):  # which never raises
        raise VOCError(f"{path} is a folder; the name of a file is needed.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise VOCError(f"{path} cannot be written ({error.strerror}); choose a folder with write access.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        with writing(path, "nothing of it is kept, run again once it can"):
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
            _sync_names(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_names(folder: Path) -> None:
    """Put the new name of a file on the disk: a later record of it must not outlive it where the power fails."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems, as those on a network, refuse this for folders
            os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(path: Path) -> None:
    """Refuse before long work what ``atomic_path`` would refuse after it; nothing is made.

    Raises:
        VOCError: the nearest folder above ``path`` that exists cannot be written.
    """
    above = next(folder for folder in Path(os.path.abspath(path)).parents if os.path.exists(folder))
    if not os.path.isdir(above) or not os.access(above, os.W_OK | os.X_OK):
        raise VOCError(f"{path} cannot be written ({above} takes no file); choose a folder with write access.")


def checkpoint_folder(asked: str | Path) -> Path:
    """The folder that somebody named for checkpoints; not made yet.

    Raises:
        VOCError: no path, or one that cannot be written.
    """
    if not isinstance(asked, (str, Path)):
        raise VOCError(f"checkpoints is {type(asked).__name__}; the path of a folder for them is needed.")
    check_writable(Path(asked) / "any.pt")
    return Path(asked)


@contextmanager
def writing(path: Path, advice: str) -> Iterator[None]:
    """For a block that writes what becomes ``path``; ``advice`` ends the sentence of a refusal.

    Raises:
        VOCError: a disk that takes no more, in place of a library's own error.
    """
    try:
        yield
    except VOCError:
        raise
    except Exception as error:
        reason = unwritable(error, path.parent)
        if reason is None:
            raise
        raise VOCError(f"{path} cannot be written ({reason}); {advice}.") from error


def unwritable(error: Exception, folder: Path) -> str | None:
    """Why the disk would not take what was written, or None where the error is of another kind.

    h5py raises its own errors on a full disk, without the system's number.
    """
    number = getattr(error, "errno", None)
    if number in _UNWRITABLE:
        return os.strerror(number)
    if isinstance(error, (OSError, RuntimeError)) and os.statvfs(folder).f_bavail == 0:
        return os.strerror(errno.ENOSPC)
    return None


def hold_folder(folder: Path, kind: str) -> IO[Any]:
    """Make a folder this process's own until the returned file is closed; ``kind`` is what messages call it.

    Raises:
        VOCError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115  the caller closes it
    except OSError as error:
        raise VOCError(f"{folder} cannot be used as a {kind} ({error.strerror}); choose another place.") from error
    lock(file, f"{folder} is in use by another run; wait for it, or choose another place.")
    return file


def lock(file: IO[Any], refusal: str) -> None:
    """Hold an open file for this process until it is closed; the end of the process, a kill too, lets go of it.

    Raises:
        VOCError: ``refusal``, where another process holds it, or a file system without locks; the file is closed then.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise VOCError(refusal) from None
    except OSError as error:
        file.close()
        raise VOCError(f"{file.name} cannot be locked ({error.strerror}); choose a folder on a local disk.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def as_json(value: Any) -> Any:
    """``value`` as it comes back from JSON: tuples as lists, NumPy's numbers as Python's.

    Raises:
        VOCError: something in it that JSON does not know. ValueError: NaN or infinity.
    """
    return json.loads(json.dumps(value, allow_nan=False, default=_plain))


def _plain(value: object) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise VOCError(f"JSON knows no {type(value).__name__}; plain numbers, words, lists and dictionaries are needed.")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as readable JSON in one step; refuses what ``as_json`` does."""
    text = json.dumps(value, indent=2, allow_nan=False, default=_plain)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n")


def read_json(path: Path, what: str = "file") -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        VOCError: the file is missing, is not JSON, or holds something else than an object.
    """
    path = Path(path)
    if not path.is_file():
        raise VOCError(f"{what} {path} does not exist.")
    try:
        value = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # brackets can be too many for Python, and numbers too long
        raise VOCError(f"{what} {path} is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise VOCError(f"{what} {path} holds {type(value).__name__}; a JSON object is needed.")
    return value


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors in one step."""
    from safetensors.torch import save

    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)  # which says why a disk refuses; the library's own writer does not


def load_tensors(path: Path, what: str = "model file") -> dict[str, Tensor]:
    """Read named tensors from a safetensors file.

    Raises:
        VOCError: the file is missing, truncated or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    if not path.is_file():
        raise VOCError(f"{what} {path} does not exist.")
    if not os.access(path, os.R_OK):  # which safetensors takes for missing
        raise VOCError(f"{what} {path} cannot be read (permission denied).")
    try:
        return load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise VOCError(f"{what} {path} is not a whole safetensors file ({error}).") from error


def weights_of(module: Any) -> dict[str, Tensor]:
    """The weights of a module by the names that they have without ``torch.compile``, which puts a word before them."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in module.state_dict().items()}


def load_state_dict(module: Any, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load ``tensors`` into ``module``; names and shapes must fit exactly.

    Raises:
        VOCError: missing or unexpected names, or another shape.
    """
    own = module.state_dict()
    missing, unexpected = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or unexpected:
        raise VOCError(
            f"{where} does not fit {type(module).__name__}: missing {few(missing)}, unexpected {few(unexpected)}."
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise VOCError(f"{where}: {name} has shape {tuple(tensor.shape)}, {tuple(own[name].shape)} is needed.")
    module.load_state_dict(dict(tensors))


def save_training_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state (tensors, numbers, strings, dictionaries, lists) in one step."""
    import torch

    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())  # as in ``save_tensors``


def load_torch_file(path: Path, what: str = "checkpoint") -> Any:
    """Read a torch file without running any code in it (``weights_only=True``).

    Raises:
        VOCError: the file is missing, damaged, or holds objects other than tensors and plain values.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise VOCError(f"{what} {path} does not exist.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise VOCError(f"{what} {path} is refused: it is damaged or holds objects other than tensors.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise VOCError(f"{what} {path} is not a whole torch file ({reason_of(error)}).") from error
