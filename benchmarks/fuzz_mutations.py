"""Ways to damage the files of a dataset, as a bad disk, a careless program or an ill-meaning person would."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import h5py
import numpy as np

Files = dict[str, bytes]  # the files of one dataset by their names


def mutated(files: Files, rng: np.random.Generator) -> Files:
    """One file of a dataset damaged: its bytes, or an array in it."""
    name = sorted(files)[rng.integers(len(files))]
    data = files[name]
    if rng.random() < 0.4:
        change = {".npz": _change_member, ".hdf5": _change_array}.get(Path(name).suffix, _change_bytes)
        return {**files, name: change(data, rng)}
    return {**files, name: _change_bytes(data, rng)}


_NUMBERS = (0, 1, 0x7F, 0xFF, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def _change_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bits flipped, a number replaced, bytes replaced, removed or repeated, or the end cut off."""
    out = bytearray(data)
    kind = rng.integers(6)
    at = int(rng.integers(len(out)))
    length = int(rng.integers(1, 64))
    if kind == 0:
        for place in rng.integers(len(out), size=rng.integers(1, 9)):
            out[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        size = int(rng.choice([1, 2, 4, 8]))
        number = _NUMBERS[rng.integers(len(_NUMBERS))] % 256**size
        out[at : at + size] = number.to_bytes(size, "little")
    elif kind == 2:
        out[at : at + length] = rng.bytes(length)
    elif kind == 3:
        del out[at : at + length]
    elif kind == 4:
        out[at:at] = out[at : at + length]
    else:
        del out[at:]
    return bytes(out)


def _change_member(data: bytes, rng: np.random.Generator) -> bytes:
    """An array of an npz damaged before its checksum is made; otherwise the checksum would find every change."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = sorted(members)[rng.integers(len(members))]
    members[chosen] = _change_bytes(members[chosen], rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return out.getvalue()


def _change_array(data: bytes, rng: np.random.Generator) -> bytes:
    """An array of an HDF5 file replaced by another that a careless program might have written."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        keys: list[str] = []
        file.visititems(lambda name, item: keys.append(name) if isinstance(item, h5py.Dataset) else None)
        key = keys[rng.integers(len(keys))]
        array = np.atleast_1d(file[key][()])
        del file[key]
        kind = rng.integers(9)
        if kind == 0:
            file.create_group(key)
        elif kind == 1:
            file[key] = h5py.ExternalLink("elsewhere.hdf5", key)
        elif kind == 2:
            file[key] = h5py.SoftLink("/" + keys[rng.integers(len(keys))])
        elif kind == 3:
            file.create_dataset(key, (2 ** int(rng.integers(30, 60)), *array.shape[1:]), array.dtype, chunks=True)
        elif kind == 4:
            file[key] = array[:: int(rng.choice([-1, 2]))]
        elif kind == 5:
            kinds = ["S4", "i1", "u8", "f2", "?"] if array.dtype.kind in "biuf" else ["S1"]
            file[key] = array.astype(rng.choice(kinds))
        elif kind == 6:
            odd = array.astype(np.float64) if array.dtype.kind in "biuf" else np.zeros(array.shape)
            odd.flat[rng.integers(odd.size)] = rng.choice([np.nan, np.inf, -1, 2, 0.5, 1e300])
            file[key] = odd
        elif kind == 7:
            file[key] = np.roll(array, 1, 0)
        # else: it is gone
    return buffer.getvalue()
