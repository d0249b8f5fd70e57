"""How numbers are computed."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from voc_rl.errors import VOCError
from voc_rl.precision import (
    SMALL_NETWORK,
    as_device,
    as_tensor,
    autocast,
    choose_device,
    current,
    float32,
    free_cores,
    has_bfloat16,
    keep_freed_memory,
    same_device,
    seeded,
    take_gpu,
    visible_gpus,
)

CPU = torch.device("cpu")
LARGE = torch.nn.Linear(256, 256)


def test_products_in_bfloat16_and_sums_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voc_rl.precision.has_bfloat16", lambda: True)
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    with autocast(LARGE):
        product = a @ b
        chosen = product.float().softmax(-1)
    assert product.dtype == torch.bfloat16
    assert chosen.dtype == torch.float32
    assert (a @ b).dtype == torch.float32  # only inside
    torch.testing.assert_close(product.float(), a @ b, rtol=0.05, atol=0.1)


def test_processors_without_bfloat16_compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = torch.randn(16, 8), torch.randn(8, 8)
    for known, dtype in (
        ({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_f": True, "amx_bf16": False}, torch.float32), ({}, torch.float32),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known, raising=False)
        has_bfloat16.cache_clear()
        with autocast(LARGE):
            assert (a @ b).dtype == dtype
        with autocast(LARGE, rows=4):
            assert (a @ b).dtype == torch.float32
    has_bfloat16.cache_clear()


def test_small_networks_compute_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voc_rl.precision.has_bfloat16", lambda: True)
    a, b = torch.randn(16, 8), torch.randn(8, 8)
    for parameters, dtype in ((SMALL_NETWORK - 1, torch.float32), (SMALL_NETWORK, torch.bfloat16)):
        with autocast(torch.nn.Linear(parameters, 1, bias=False)):
            assert (a @ b).dtype == dtype
    with autocast(torch.nn.Sequential(LARGE, torch.nn.LazyLinear(3))):  # whose size is not known yet
        assert (a @ b).dtype == torch.bfloat16


def test_the_environment_asks_for_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voc_rl.precision.has_bfloat16", lambda: True)
    a, b = torch.randn(16, 8), torch.randn(8, 8)
    for word, dtype in (("float32", torch.float32), ("auto", torch.bfloat16), (None, torch.bfloat16)):
        monkeypatch.delenv("VOC_RL_PRECISION", raising=False)
        if word is not None:
            monkeypatch.setenv("VOC_RL_PRECISION", word)
        with autocast(LARGE):
            assert (a @ b).dtype == dtype
    monkeypatch.setenv("VOC_RL_PRECISION", "bf16")
    with pytest.raises(VOCError, match=r"^Unknown VOC_RL_PRECISION 'bf16'; accepted: auto, float32\.$"):
        autocast(LARGE)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(VOCError, match=r"^device is 'cuda', but PyTorch finds no GPU here; use 'cpu', or 'auto'"):
        choose_device("cuda")
    with pytest.raises(VOCError, match=r"Unknown device 'tpu'; accepted: auto, cpu, cuda"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == torch.device("cpu")


def test_devices_as_users_name_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu = torch.device("cuda", 1)
    assert (as_device(None), as_device(gpu), as_device("cuda:1")) == (None, gpu, gpu)
    assert (as_device("auto"), as_device("cpu")) == (torch.device("cuda"), CPU)
    with pytest.raises(VOCError, match=r"^device is 'tpu'; 'auto', 'cpu', 'cuda' or a name like 'cuda:1' is needed\.$"):
        as_device("tpu")
    with pytest.raises(VOCError, match=r"^device is torch\.bfloat16; 'auto', 'cpu', 'cuda' or a name like 'cuda:1' is"):
        as_device(torch.bfloat16)  # type: ignore[arg-type]
    with pytest.raises(VOCError, match=r"^device is 'cuda:2', but PyTorch finds 2 GPU\(s\) here; use 'auto'"):
        as_device("cuda:2")
    for absent in ("mps", torch.device("mps", 0)):
        with pytest.raises(VOCError, match=r"^device is 'mps(:0)?', which PyTorch cannot use here; use 'auto', "):
            as_device(absent)


def test_a_device_with_and_without_its_number_is_the_same() -> None:
    """As ``cuda`` and ``cuda:0``, where that is the current one."""
    assert torch.device("cpu", 0) != CPU
    assert same_device(CPU, torch.device("cpu", 0))
    assert not same_device(CPU, torch.device("meta"))


def test_processes_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = multiprocessing.get_context("spawn").Value("i")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    take_gpu(taken, [])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8932f937,-1,0")  # what follows a wrong one does not count
    assert visible_gpus() == ["3", "GPU-8932f937"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1"]
    found = []
    for _ in range(4):
        take_gpu(taken, ["3", "5"])
        found.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert found == ["5", "3", "5", "3"]  # the first process took one too


def test_float32_inside_of_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("voc_rl.precision.has_bfloat16", lambda: True)
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    with autocast(LARGE), float32(CPU):
        assert (a @ b).dtype == torch.float32


def test_arrays_of_any_strides_and_read_only_ones_become_tensors() -> None:
    whole = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    kept = whole.copy()
    kept.flags.writeable = False
    torch.set_warn_always(True)  # PyTorch warns once in a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for array in (whole[::-1], whole[..., ::-1], whole[:, ::2], kept):
                np.testing.assert_array_equal(as_tensor(array).numpy(), array)
    finally:
        torch.set_warn_always(False)
    assert np.shares_memory(as_tensor(whole).numpy(), whole)  # without a copy where none is needed
    tensor = torch.zeros(2)
    assert as_tensor(tensor) is tensor


def test_seeded_leaves_no_trace() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(CPU, 5):
        inside = torch.rand(2)
    assert torch.equal(torch.rand(3), expected)
    with seeded(CPU, 5):
        assert torch.equal(torch.rand(2), inside)


def test_seeded_leaves_other_devices_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.manual_seed`` would also seed GPUs, which are not put back."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a user's stream of the GPU is lost"))
    with seeded(CPU, 5):
        inside = torch.rand(2)
    assert torch.equal(inside, torch.rand(2, generator=torch.Generator().manual_seed(5)))


def test_the_gpu_that_is_worked_on_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.device] = []

    @contextmanager
    def chosen(device: torch.device) -> Iterator[None]:
        entered.append(device)
        yield

    monkeypatch.setattr(torch.cuda, "device", chosen)
    with current(CPU):
        assert entered == []
    with current(torch.device("cuda", 1)):
        assert entered == [torch.device("cuda", 1)]


@pytest.mark.parametrize(
    ("bound", "load", "quota", "processes", "threads"),
    [
        (64, 0.2, None, None, 4),
        (3, 0.0, None, None, 3),
        (8, 5.1, None, None, 3),
        (2, 9.0, None, None, 1),
        (64, 0.0, "max 100000", None, 4),
        (64, 10.0, "250000 100000", None, 2),
        (64, 0.0, "50000 100000", None, 1),
        (8, 0.0, None, "4", 2),
        (8, 0.0, None, "16", 1),
        (64, 0.0, "600000 100000", "2", 3),
    ],
)
def test_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bound: int, load: float, quota: str | None, processes: str | None,
    threads: int,
) -> None:  # fmt: skip
    """Cores less the load, within a container's quota, shared by the processes of a machine, at most four."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(bound)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("voc_rl.precision.QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert free_cores() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # as it was when PyTorch read it
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert free_cores() == 7


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("no glibc there"))
    keep_freed_memory()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_kept() -> None:
    """In a process of its own: pages of a freed array are not asked from the system again."""
    script = """
import resource, sys
import numpy as np
from voc_rl.precision import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(12_000_000)
before = faults()
for _ in range(5):
    np.ones(12_000_000)
print(faults() - before)
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", script, word], capture_output=True, text=True, check=True).stdout)
        for word in ("keep", "give back")
    )
    assert kept < given_back / 5 or given_back < 500  # huge pages: nothing to save
