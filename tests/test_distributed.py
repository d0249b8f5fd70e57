"""Two processes that train as one, over gloo: the same losses and weights as one process with the whole batch."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from commands import SHORT
from small import SPEC, toy_episode
from test_loop import chain_data, everything, training
from torch import Tensor
from torch.nn.utils import parameters_to_vector
from worlds import together, write_world

from voc_rl.checkpoints import load_tensors, read_json, save_tensors
from voc_rl.cli import main
from voc_rl.data import Episodes, write_episode
from voc_rl.distributed import Ranks, agreed, dealt, gather, join, ranks
from voc_rl.errors import VOCError
from voc_rl.loop import Checkpoints, Descent, LoopConfig
from voc_rl.occupancy import Condition, OccupancyConfig, OccupancyTransformer, Targets, ValueHead, train_occupancy
from voc_rl.occupancy.training import OccupancyTrainee
from voc_rl.quantizers import build_quantizer, train_quantizer

STEPS = 60  # more than 50, at which slow values are computed and a line is logged


def networks() -> tuple[OccupancyTransformer, ValueHead]:
    torch.manual_seed(0)
    config = OccupancyConfig(4, 2, feature_dim=3, null_context=True, n_layer=2, n_head=2, width=16)
    return OccupancyTransformer(config), ValueHead(16, 3, hidden=8, members=3)


def train(folder: Path, lost_at: int | None = None, batch: int = 16) -> None:
    """Train in ``folder`` to the end, going on from its checkpoint; the first process writes. At ``lost_at`` the last
    one is gone. Two processes also compute their shares in two parts."""
    config = training(STEPS, n=1)
    config = replace(config, loop=replace(config.loop, batch_size=batch, accumulate=ranks().size))
    after, lines = OccupancyTrainee.after_step, []

    def after_step(self: OccupancyTrainee, step: int) -> None:
        after(self, step)
        if step == lost_at and ranks() == Ranks(1, 2):
            os._exit(9)

    OccupancyTrainee.after_step = after_step  # type: ignore[method-assign]
    kept = Checkpoints(folder / "state.pt", "a", every=20)
    with patch("voc_rl.precision.has_bfloat16", return_value=False):  # batches of another size round differently
        trained = train_occupancy(
            *networks(), *chain_data(), config, seed=5, checkpoints=kept,
            log=lambda stage, step, numbers: lines.append(torch.tensor([numbers["loss"], numbers["head"]])),
        )  # fmt: skip
    if ranks().first:
        save_tensors(folder / "out.safetensors", {**everything(*trained), "logged": torch.cat(lines)})
    if (folder / "run").exists():
        with patch("voc_rl.pipeline.STATES_AT_ONCE", 5):
            main(["evaluate", *evaluated(folder), "--samples", "10", "--max-states", "23"])
    own = ranks().share(7)
    whole = torch.arange(14, dtype=torch.int16).view(7, 2)
    assert torch.equal(gather(whole[own], 7), whole)
    assert agreed(ranks().first)


def evaluated(folder: Path) -> list[str]:
    return ["--data", str(folder.parent / "data"), "--out", str(folder / "run"), *SHORT]


SCRIPT = """
import sys; sys.path[:0] = sys.argv[1:2]
from pathlib import Path
import torch
torch.set_num_threads(1)
from voc_rl.cli import main
from voc_rl.distributed import join
from voc_rl.errors import VOCError
import test_distributed
join(torch.device("cpu"))
try:
    getattr(test_distributed, sys.argv[2])(Path(sys.argv[3]), *map(int, sys.argv[4:]))
except VOCError as error:
    sys.exit(f"refused: {error}")
"""


def two(work: Callable[..., None], folder: Path, *arguments: int) -> list[tuple[int, str]]:
    """Exit code and errors of two processes that do a work of this module together."""
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), work.__name__, str(folder)]
    return together([*command, *map(str, arguments)])


def assert_close(one: Path, other: Path) -> None:
    found, expected = (load_tensors(folder / "out.safetensors") for folder in (one, other))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-4, rtol=2e-3, msg=name)


def test_two_processes_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("alone", "together", "lost"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(OccupancyTrainee, "after_step", OccupancyTrainee.after_step)  # put back afterwards
    write_world(tmp_path / "data", episodes=5, rows=30)
    main(["train", *evaluated(tmp_path / "alone")])
    shutil.copytree(tmp_path / "alone" / "run", tmp_path / "together" / "run")
    train(tmp_path / "alone")
    ended = two(train, tmp_path / "together")
    assert [code for code, _ in ended] == [0, 0], ended
    assert_close(tmp_path / "together", tmp_path / "alone")
    found, expected = (read_json(tmp_path / name / "run" / "metrics.json") for name in ("together", "alone"))
    assert found["states"] == expected["states"] == 23  # five shares of states, three for the first process
    for name, scores in expected["methods"].items():
        assert found["methods"][name] == pytest.approx(scores, rel=1e-3)

    first, second = two(train, tmp_path / "lost", 41)
    assert second[0] == 9
    assert first[0] == 1, first
    assert "refused: Another process of this run was lost, or did not answer; start all of them again" in first[1]
    assert not (tmp_path / "lost" / "out.safetensors").exists()
    train(tmp_path / "lost")  # one process goes on from the checkpoint of two, at step 40
    assert_close(tmp_path / "lost", tmp_path / "alone")


ENDING = """
import atexit, os, sys
from pathlib import Path

@atexit.register
def left():
    tasks = Path("/proc/self/task").iterdir()
    names = [name for task in tasks if "gloo" in (name := (task / "comm").read_text())]
    sys.stderr.write(f"threads of gloo: {names}")

import torch
from voc_rl.distributed import average, join, ranks
join(torch.device("cpu"))
import torch._dynamo  # as an optimiser does
average([torch.ones(3)])
if ranks().rank == 1:
    os._exit(9)
try:
    average([torch.ones(3)])
except ValueError as error:
    kept = error
sys.exit(1)
"""


def test_a_process_that_lost_another_ends_the_threads_between_them() -> None:
    """Before the interpreter is taken apart: a thread of gloo that still holds a message then would abort it."""
    first, second = together([sys.executable, "-c", ENDING])
    assert first == (1, "threads of gloo: []")
    assert second[0] == 9


_JOINT_TOKENS: dict[str, Any] = {
    "n_tokens": 2, "levels": (5, 4), "components": 8, "hidden": 32, "decoder_width": 8, "patch": 6,
}  # fmt: skip
QUANTIZERS: dict[str, dict[str, Any]] = {
    "vqvae": _JOINT_TOKENS,
    "musik": {**_JOINT_TOKENS, "negatives": 32, "energy_hidden": 32, "shift": 2},
    "vqgan": {
        "channels": 8, "multipliers": (1, 2), "residual_blocks": 1, "attention_levels": (), "latent_channels": 8,
        "codebook_size": 64, "code_dim": 4, "side": 4,
    },
    "dino": {
        "width": 32, "depth": 1, "heads": 2, "patch": 12, "side": 24, "codebook_size": 24, "code_dim": 4,
        "decoder_width": 8, "teacher_width": 32, "teacher_steps": 5, "features": True,
    },
}  # fmt: skip


def train_quantizers(folder: Path) -> None:
    """Train all quantizers, each process on its rows; every one writes what it has.

    Where codebooks follow latents, codes without any are moved after a few steps.
    """
    dataset = Episodes.open(folder.parent / "data").load_frames()
    logged: dict[str, Tensor] = {}

    def log(stage: str, step: int, numbers: Mapping[str, float]) -> None:
        logged.update({key: torch.tensor([number]) for key, number in numbers.items()})

    for name, sizes in QUANTIZERS.items():
        logged.clear()
        torch.manual_seed(0)
        quantizer = build_quantizer(name, dataset.observation_shape, sizes)
        kept = parameters_to_vector(quantizer.parameters())
        with (
            patch("voc_rl.precision.has_bfloat16", return_value=False),
            patch("voc_rl.quantizers.codebook.USE_RATE", 0.5),
        ):
            train_quantizer(quantizer, dataset, LoopConfig(8, batch_size=8), seed=3, log=log)
        assert not torch.equal(parameters_to_vector(quantizer.parameters()), kept)
        tensors = {**quantizer.state_dict(), **{f"logged.{key}": number for key, number in logged.items()}}
        save_tensors(folder / f"{name}{ranks().rank}.safetensors", tensors)


def test_two_processes_have_one_quantizer(tmp_path: Path) -> None:
    for name in ("alone", "together"):
        (tmp_path / name).mkdir()
    frames = np.random.default_rng(0).integers(256, size=(2, 40, 3, 24, 24), dtype=np.uint8)  # no two patches alike
    for i in range(2):
        write_episode(tmp_path / "data" / f"{i}.hdf5", toy_episode(i, 40, frames=frames[i]), SPEC)
    train_quantizers(tmp_path / "alone")
    ended = two(train_quantizers, tmp_path / "together")
    assert [code for code, _ in ended] == [0, 0], ended
    for name in QUANTIZERS:
        places = ("alone", 0), ("together", 0), ("together", 1)
        whole, first, second = (load_tensors(tmp_path / place / f"{name}{rank}.safetensors") for place, rank in places)
        assert [key for key, tensor in second.items() if not torch.equal(tensor, first[key])] == []
        for key, tensor in whole.items():
            # not biases before a norm: they learn from rounding
            if key.startswith(
                ("codebook", "use", "feature", "encoder.0", "trunk", "to_features", "to_pixels", "logged.per")
            ):
                torch.testing.assert_close(first[key], tensor, atol=1e-5, rtol=1e-5, msg=f"{name} {key}")
        assert ("logged.perplexity" in whole) == (name == "vqgan")
    torch.testing.assert_close(first["codebook.vectors"].norm(dim=1), torch.ones(24))


def dropped(kept: list[Tensor]) -> None:
    """Losses of a step, whole and in two parts, and what a target network with dropout samples; all of one batch."""
    config = replace(training(8), target_dropout=True)
    for accumulate in (1, 2):
        torch.manual_seed(0)
        model = OccupancyTransformer(OccupancyConfig(4, 2, n_layer=1, n_head=2, width=16, dropout=0.5))
        trainee = OccupancyTrainee(model, None, *chain_data(), config, 5)
        loop = replace(config.loop, accumulate=accumulate)
        kept.append(Descent(trainee, loop, 5).step(0)["loss"])
        rows = np.arange(200)[:, None]
        kept.append(trainee._futures(0, Targets(np.full_like(rows, -1), rows), Condition()))


def test_each_process_draws_its_own_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given the same rows, one that is alone and the first of two drop the same, every other one something else."""
    found: dict[Ranks, list[Tensor]] = {Ranks(): [], Ranks(0, 2): [], Ranks(1, 2): [], Ranks(2, 4): []}
    for rank, kept in found.items():
        monkeypatch.setattr("voc_rl.loop.ranks", lambda rank=rank: rank)
        dropped(kept)
    alone, first, second, third = found.values()
    assert all(torch.equal(one, other) for one, other in zip(alone, first, strict=True))
    for one, other in ((first, second), (first, third), (second, third)):
        assert not any(torch.equal(own, its) for own, its in zip(one, other, strict=True))


def test_without_a_store_numbers_are_dealt_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(dealt(3)) == [0, 1, 2]
    found = []
    for rank in range(3):
        monkeypatch.setattr("voc_rl.distributed.ranks", lambda rank=rank: Ranks(rank, 3))
        found.append(list(dealt(7)))
    assert found == [[0, 3, 6], [1, 4], [2, 5]]


def test_shares() -> None:
    assert ranks() == Ranks(0, 1)
    assert join(torch.device("cpu")) == torch.device("cpu")
    assert [Ranks(rank, 3).share(7) for rank in range(3)] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert [Ranks(rank, 4).share(2) for rank in range(4)] == [slice(0, 1), slice(1, 2), slice(2, 2), slice(2, 2)]
    assert [Ranks(rank, 3).equal_share(6) for rank in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 6)]
    with pytest.raises(VOCError, match=r"^A batch of 16 rows cannot be shared by 3 processes; a multiple is needed"):
        Ranks(0, 3).equal_share(16)
