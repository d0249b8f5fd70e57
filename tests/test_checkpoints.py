"""Files that are whole or absent, and loading that runs no code."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import resource
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from small import Payload
from torch import nn
from worlds import one_sentence, refusal

from voc_rl.checkpoints import (
    atomic_path,
    load_state_dict,
    load_tensors,
    load_torch_file,
    read_json,
    save_tensors,
    save_training_state,
    write_json,
)
from voc_rl.data.border import reading
from voc_rl.errors import VOCError


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert list((tmp_path / "new").iterdir()) == []


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.name.startswith(".")  # readers of a folder pass it over
        assert temporary.parent == tmp_path
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_and_then_its_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything later is written: a stage that is noted as finished has its files where the power fails too."""
    synced: list[tuple[str, list[str]]] = []

    def fsync(handle: int) -> None:
        names = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
        synced.append((os.path.basename(os.readlink(f"/proc/self/fd/{handle}")), names))
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "a file system that knows no such thing")

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "a.json", {})
    (temporary, before), named = synced
    assert temporary.startswith(".a.json.")
    assert before == []
    assert named == (tmp_path.name, ["a.json"])


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o640


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(VOCError, match="cannot be written"), atomic_path(tmp_path / "file" / "a.txt"):
        pass


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    said = refusal(write_json, tmp_path, {})
    assert said == f"{tmp_path} is a folder; the name of a file is needed."
    assert list(tmp_path.parent.glob(f".{tmp_path.name}.*")) == []


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 2.5, None], "b": {"c": "d"}})
    assert read_json(path) == {"a": [1, 2.5, None], "b": {"c": "d"}}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path)["b"] == {"c": "d"}
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b'{"a": 1', "is not valid JSON"), (b"", "is not valid JSON"), (b"\xff\xfe\x00", "is not valid JSON"),
     pytest.param(100_000 * b"[", "is not valid JSON", id="deep"),
     pytest.param(b'{"a": ' + 5000 * b"9" + b"}", "is not valid JSON", id="long"),
     (b"[1, 2]", "holds list; a JSON object is needed"), (b"3", "holds int")],
)  # fmt: skip
def test_bad_json(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(VOCError, match=f"^config {re.escape(str(path))} {said}"):
        read_json(path, "config")
    with pytest.raises(VOCError, match="does not exist"):
        read_json(tmp_path / "none.json")


def test_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "a": torch.randn(3, 4).T,
        "b": torch.arange(5),
        "c": torch.randn(2).bfloat16().requires_grad_(),
    }
    save_tensors(path, tensors)
    loaded = load_tensors(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("kept", [0, 4, 0.3, 0.99])
def test_truncated_tensors(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"a": torch.randn(30, 4)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    with pytest.raises(VOCError, match=f"{re.escape(str(path))} is not a whole safetensors file"):
        load_tensors(path)
    with pytest.raises(VOCError, match=r"none.safetensors does not exist"):
        load_tensors(tmp_path / "none.safetensors")


def test_files_of_another_user_are_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)})
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK)  # whoever runs this test
    with pytest.raises(VOCError, match=r"a\.safetensors cannot be read \(permission denied\)\.$"):
        load_tensors(tmp_path / "a.safetensors")
    with pytest.raises(VOCError, match=r"b cannot be read \(permission denied\)\.$"), reading(Path("b"), "HDF5", "one"):
        raise PermissionError(13, "Permission denied")


def test_state_dicts_must_fit(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    tensors = dict(nn.Linear(3, 2).state_dict())
    load_state_dict(module, tensors, "file")
    assert torch.equal(module.weight, tensors["weight"])
    before = module.bias.clone()
    with pytest.raises(VOCError, match=r"^file does not fit Linear: missing bias, unexpected other"):
        load_state_dict(module, {"weight": torch.zeros(2, 3), "other": torch.zeros(1)}, "file")
    with pytest.raises(VOCError, match=r"^file: weight has shape \(2, 4\), \(2, 3\) is needed"):
        load_state_dict(module, {"bias": torch.zeros(2), "weight": torch.zeros(2, 4)}, "file")
    with pytest.raises(VOCError, match=r"missing a0, a1, a2 and 2 more, unexpected bias, weight"):
        load_state_dict(nn.ParameterDict({f"a{i}": torch.zeros(1) for i in range(5)}), tensors, "file")
    assert torch.equal(module.bias, before)  # nothing is loaded by halves


def test_training_state(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    state: dict[str, Any] = {
        "step": 3,
        "x": torch.randn(4),
        "deep": [{"a": torch.arange(3), "word": "b"}],
        "f": 0.1,
    }
    save_training_state(path, state)
    loaded = load_torch_file(path)
    assert loaded["step"] == 3
    assert loaded["f"] == 0.1
    assert torch.equal(loaded["x"], state["x"])
    assert torch.equal(loaded["deep"][0]["a"], torch.arange(3))
    assert loaded["deep"][0]["word"] == "b"


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    path, mark = tmp_path / "evil.pt", tmp_path / "executed"
    if kind == "torch":
        torch.save({"fingerprint": "x", "payload": Payload(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(VOCError, match=f"{re.escape(str(path))} is refused: it is damaged or holds objects"):
        load_torch_file(path)
    assert not mark.exists()
    torch.load(path, weights_only=False) if kind == "torch" else pickle.loads(path.read_bytes())
    assert mark.exists()  # the payload would have run


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_truncated_training_state(tmp_path: Path, share: float) -> None:
    path = tmp_path / "state.pt"
    save_training_state(path, {"x": torch.randn(200)})
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(VOCError) as caught:
        load_torch_file(path)
    assert str(path) in str(caught.value)
    assert one_sentence(str(caught.value)), str(caught.value)
    with pytest.raises(VOCError, match=r"checkpoint .* does not exist"):
        load_torch_file(tmp_path / "none.pt")


def test_text_is_no_training_state(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_text(json.dumps({"step": 3}))
    with pytest.raises(VOCError, match=re.escape(str(path))):
        load_torch_file(path)


@pytest.mark.parametrize("kind", ["tensors", "training state", "json"])
def test_a_limit_on_files_is_a_sentence(tmp_path: Path, kind: str) -> None:
    """As a quota is: the libraries' own writers do not say why the disk refused."""
    numbers = torch.zeros(100_000)
    write = {
        "tensors": lambda: save_tensors(tmp_path / "a", {"x": numbers}),
        "training state": lambda: save_training_state(tmp_path / "a", {"x": numbers}),
        "json": lambda: write_json(tmp_path / "a", {"x": numbers.tolist()}),
    }[kind]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        said = refusal(write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert said == f"{tmp_path / 'a'} cannot be written (File too large); nothing of it is kept, run again once it can."
    assert list(tmp_path.iterdir()) == []
