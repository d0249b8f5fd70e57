"""A quantizer's training that was killed goes on as if nothing had happened, whatever torch's own generator holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from vqgan_layout import TINY
from worlds import write_world

from voc_rl.data import Episodes
from voc_rl.errors import VOCError
from voc_rl.loop import Checkpoints, LoopConfig
from voc_rl.quantizers import Quantizer, build_quantizer, train_quantizer

SIZE = 24


class Case(NamedTuple):
    """config: of the quantizer. every: steps between checkpoints. drawn: tensors that another seed makes others."""

    config: dict[str, Any]
    loop: LoopConfig
    every: int
    drawn: tuple[str, ...]


_CODES = {"n_tokens": 2, "levels": [5, 4], "components": 8, "hidden": 32, "decoder_width": 8, "patch": 6}
CASES = {
    "vqvae": Case(_CODES, LoopConfig(70, batch_size=16), 20, ("to_pixels.weight",)),
    "musik": Case(
        {**_CODES, "shift": 2, "negatives": 32, "energy_hidden": 32}, LoopConfig(70, batch_size=16), 20,
        ("encoder.0.weight",),
    ),
    "dino": Case(
        {
            "width": 32, "depth": 1, "heads": 2, "patch": 6, "side": SIZE, "codebook_size": 16, "code_dim": 4,
            "features": True, "decoder_width": 16, "teacher_width": 32, "teacher_steps": 20,
        },
        LoopConfig(60, batch_size=16), 20,
        ("teacher.transformer.pos_embed", "codebook.vectors", "to_code.0.weight"),
    ),
    "vqgan": Case({**asdict(TINY), "channels": 4}, LoopConfig(52, batch_size=2), 40, ("encoder.stem.weight",)),
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, size=SIZE)
    episodes = Episodes.open(folder).load_frames()
    episodes.action = np.random.default_rng(0).uniform(-1, 1, episodes.action.shape).astype(np.float32)
    return episodes


class KilledError(Exception):
    pass


@pytest.mark.parametrize("name", sorted(CASES))
def test_training_resumes_bit_for_bit(name: str, dataset: Episodes, tmp_path: Path) -> None:
    case = CASES[name]
    checkpoints = Checkpoints(tmp_path / "state.pt", "a", every=case.every)

    def fresh(seed: int) -> Quantizer:
        torch.manual_seed(seed)
        return build_quantizer(name, dataset.observation_shape, case.config)

    def kill(stage: str, step: int, numbers: object) -> None:
        if stage == "quantizer":
            raise KilledError

    plain = train_quantizer(fresh(1), dataset, case.loop, seed=3)
    with pytest.raises(KilledError):  # at step 50, 10 steps after the last checkpoint
        train_quantizer(fresh(1), dataset, case.loop, seed=3, checkpoints=checkpoints, log=kill)
    torch.manual_seed(99)
    resumed = train_quantizer(fresh(2), dataset, case.loop, seed=3, checkpoints=checkpoints)
    assert plain.state_dict().keys() == resumed.state_dict().keys()
    for key, tensor in plain.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], tensor), key
    other = train_quantizer(fresh(1), dataset, case.loop, seed=4)
    for key in case.drawn:
        assert not torch.equal(other.state_dict()[key], plain.state_dict()[key])
    with pytest.raises(VOCError, match="other settings or data"):
        train_quantizer(fresh(1), dataset, case.loop, seed=3, checkpoints=Checkpoints(checkpoints.path, "b"))


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_trained_one_goes_on_as_it_is(name: str, dataset: Episodes) -> None:
    """What is fitted before the first step is fitted once: under trained weights, codes would mean something else."""
    torch.manual_seed(0)
    quantizer = build_quantizer(name, dataset.observation_shape, CASES[name].config)
    assert not quantizer.initialised
    part = dataset.subset([0, 1])
    part.action = dataset.action[: len(part)]
    train_quantizer(quantizer, part, LoopConfig(5, batch_size=4))
    assert quantizer.initialised
    before = {key: tensor.clone() for key, tensor in quantizer.state_dict().items()}
    obs = torch.from_numpy(dataset.observations(np.arange(0, len(dataset), 7)))
    codes = quantizer.encode(obs)
    train_quantizer(quantizer, dataset, LoopConfig(1, batch_size=4, learning_rate=1e-9))
    for key, tensor in quantizer.state_dict().items():
        if key.startswith(("components", "mean_", "pixel_variance", "teacher")):
            assert torch.equal(tensor, before[key]), key
    assert (quantizer.encode(obs) != codes).float().mean() < 0.05
