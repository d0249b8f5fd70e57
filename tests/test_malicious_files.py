"""A pickle that would create a file, in every slot that takes a path: refused, and nothing is run."""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import Payload, toy_dataset

from voc_rl import VOC
from voc_rl.agents import load_policy, policy_of
from voc_rl.checkpoints import load_tensors, load_torch_file, read_json
from voc_rl.data import load_dataset, read_latents, write_latents, write_minari
from voc_rl.errors import VOCError
from voc_rl.occupancy import OccupancyTransformer
from voc_rl.quantizers import VQVAE, DINOTokenizer, build_quantizer, load_quantizer, save_quantizer


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


def _beside(save: Callable[[Path], object], name: str, load: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Loads the folder of a file that has taken the place of ``name`` among what ``save`` wrote there."""

    def load_folder(path: Path) -> Any:
        save(path.parent)
        path.replace(path.parent / name)
        return load(path.parent)

    return load_folder


def _quantizer(kind: str) -> Callable[[Path], None]:
    sizes = {"n_tokens": 2, "levels": [3, 3], "components": 4, "hidden": 8, "decoder_width": 4, "patch": 6}
    return lambda folder: save_quantizer(build_quantizer(kind, (9, 12, 12), sizes), folder)


def _latents(path: Path) -> np.ndarray:
    payload = path.read_bytes()
    write_latents(path, toy_dataset(path.parent / "ours", (4,)), np.zeros((4, 25), np.int64), "vae_latents")
    dataset = load_dataset(path)
    path.write_bytes(payload)
    return read_latents(dataset, "vae_latents", 1024)


def _minari(name: str) -> Callable[[Path], Any]:
    def save(folder: Path) -> None:
        pytest.importorskip("minari")
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
            patch.setenv("MINARI_DATASETS_PATH", str(folder))
            write_minari("toy/x-v0", toy_dataset(folder / "ours", (4,)))

    return _beside(save, f"toy/x-v0/data/{name}", lambda folder: load_dataset(f"minari:{folder / 'toy' / 'x-v0'}"))


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
    "quantizer, weights": ("a", _beside(_quantizer("vqvae"), "quantizer.safetensors", load_quantizer)),
    "musik, settings": ("a", _beside(_quantizer("musik"), "quantizer.json", load_quantizer)),
    "musik, weights": ("a", _beside(_quantizer("musik"), "quantizer.safetensors", load_quantizer)),
    "latents": ("a.hdf5", _latents),
    "Minari, episodes": ("a", _minari("main_data.hdf5")),
    "Minari, settings": ("a", _minari("metadata.json")),
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
