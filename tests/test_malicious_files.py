"""A pickle that would create a file, in every slot that takes a path: refused, and nothing is run."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from voc_rl import VOC
from voc_rl.agents import load_policy, policy_of
from voc_rl.checkpoints import load_tensors, load_torch_file, read_json
from voc_rl.data import load_dataset
from voc_rl.errors import VOCError
from voc_rl.occupancy import OccupancyTransformer
from voc_rl.quantizers import VQVAE, DINOTokenizer, load_quantizer


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def in_torch_file(payload: Payload) -> bytes:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "x": payload}, file)
    return file.getvalue()


def in_npz(payload: Payload) -> bytes:
    file = io.BytesIO()
    one = np.empty(1, object)
    one[0] = payload
    keys = ("image", "action", "reward", "discount", "is_first", "is_last")
    np.savez(file, allow_pickle=True, **dict.fromkeys(keys, one))
    return file.getvalue()


def in_agent(payload: Payload) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("policy.pth", in_torch_file(payload))
        archive.writestr("data", pickle.dumps(payload))
    return file.getvalue()


KINDS: dict[str, Callable[[Payload], bytes]] = {
    "pickle": pickle.dumps, "torch": in_torch_file, "npz": in_npz, "agent": in_agent,
}  # fmt: skip


def _inside(name: str, load: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Loads the folder of a file, in which the file has another name."""

    def load_folder(path: Path) -> Any:
        path.rename(path.parent / name)
        return load(path.parent)

    return load_folder


SLOTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "GPT-2": ("a.pth", OccupancyTransformer.from_published),
    "vqgan": ("a.pth", VQVAE.from_published),
    "dino": ("a.pth", DINOTokenizer.from_published),
    "torch file": ("a.pt", load_torch_file),
    "safetensors": ("a.safetensors", load_tensors),
    "json": ("a.json", read_json),
    "actor": ("a.safetensors", lambda path: load_policy(str(path))),
    "agent of SB3": ("a.zip", lambda path: policy_of(str(path))),
    "voc, settings": ("a", _inside("voc.json", VOC.load)),
    "voc, weights": ("a", _inside("voc.safetensors", VOC.load)),
    "quantizer, settings": ("a", _inside("quantizer.json", load_quantizer)),
    "quantizer, weights": ("a", _inside("quantizer.safetensors", load_quantizer)),
    "ours": ("a.hdf5", lambda path: load_dataset(f"voc:{path}")),
    "V-D4RL": ("a.hdf5", lambda path: load_dataset(f"vd4rl:{path}")),
    "V-D4RL, 64 px": ("a.npz", lambda path: load_dataset(f"vd4rl:{path}")),
    "D4RL": ("a.hdf5", lambda path: load_dataset(f"d4rl:{path}")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("slot", SLOTS)
def test_no_slot_runs_a_payload(tmp_path: Path, slot: str, kind: str) -> None:
    name, load = SLOTS[slot]
    created, path = tmp_path / "created", tmp_path / "files" / name
    path.parent.mkdir()
    path.write_bytes(KINDS[kind](Payload(created)))
    with pytest.raises(VOCError):
        load(path)
    assert not created.exists()


def test_the_payload_is_real(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "created")))
    assert (tmp_path / "created").exists()
