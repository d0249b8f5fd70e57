"""Joint training: by stages where nothing overlaps, resumable where it does, and a normal VOC at the end."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interrupted import interrupted_at
from torch import Tensor
from worlds import exact_values, one_sentence, small_config, write_world

from voc_rl import VOC, Episodes
from voc_rl.configs import from_dict
from voc_rl.errors import VOCError
from voc_rl.joint import JointSteps, JointTraining, Vocabulary
from voc_rl.loop import Checkpoints, LoopConfig
from voc_rl.occupancy import OccupancyTraining
from voc_rl.occupancy.training import OccupancyTrainee
from voc_rl.quantizers import Quantizer, tokenize
from voc_rl.quantizers.training import fit_quantizer
from voc_rl.training import VOCConfig, fresh_networks, fresh_quantizer, train
from voc_rl.values import RewardConfig

SMALL: dict[str, dict[str, Any]] = {
    "vqvae": {},
    "musik": {"negatives": 16, "energy_hidden": 16},
    "vqgan": {
        "channels": 8, "multipliers": (1, 2), "residual_blocks": 1, "attention_levels": (1,), "latent_channels": 8,
        "codebook_size": 12, "code_dim": 4, "side": 8,
    },
    "dino": {
        "width": 32, "depth": 1, "heads": 2, "patch": 12, "side": 24, "codebook_size": 12, "code_dim": 4,
        "decoder_width": 8, "teacher_width": 32, "teacher_steps": 5, "features": True,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, episodes=5, rows=24)
    opened = Episodes.open(folder).load_frames()
    opened.action[opened.step_type > 0] = np.random.default_rng(0).uniform(-1, 1, (5 * 23, 1))  # musik needs some
    return opened


def config_of(name: str = "vqvae", steps: tuple[int, int] = (20, 30), **joint: float) -> VOCConfig:
    config = small_config(quantizer=steps[0], steps=steps[1])
    sizes = {**config.quantizer_config, **SMALL[name]} if name in ("vqvae", "musik") else SMALL[name]
    occupancy = replace(config.occupancy, n=1, refill=4)
    return replace(
        config, quantizer=name, quantizer_config=sizes, occupancy=occupancy, joint=JointTraining(**joint)
    )  # fmt: skip


def weights(voc: VOC) -> dict[str, Tensor]:
    assert voc.value_head is not None
    parts = {"q": voc.quantizer, "o": voc.occupancy, "r": voc.reward_head, "v": voc.value_head}
    return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}


def different(one: dict[str, Tensor], two: dict[str, Tensor]) -> list[str]:
    assert one.keys() == two.keys()
    return [name for name in one if not torch.equal(one[name], two[name])]


def steps_of(dataset: Episodes, config: VOCConfig) -> tuple[Quantizer, JointSteps]:
    """A quantizer that is fitted but untrained, and the joint steps that train it."""
    assert config.joint is not None
    quantizer = fresh_quantizer(dataset, config)
    fit_quantizer(quantizer, dataset, config.seed)
    work = JointSteps(
        quantizer, lambda of: fresh_networks(of, config, ends=False), dataset, config.joint,
        config.quantizer_training, config.occupancy, config.seed,
    )  # fmt: skip
    return quantizer, work


@pytest.mark.parametrize("name", ["vqvae", "dino"])
def test_without_overlap_it_is_training_by_stages(dataset: Episodes, name: str) -> None:
    config = config_of(name, warmup=1.0)
    by_stages = weights(train(dataset, replace(config, joint=None)))
    assert different(weights(train(dataset, config)), by_stages) == []
    if name == "vqvae":
        assert different(weights(train(dataset, replace(config, joint=JointTraining(warmup=0.5)))), by_stages) != []


@pytest.mark.parametrize(
    ("warmup", "own", "others", "alone"),
    [(0.5, 20, 30, 10), (0.0, 20, 30, 0), (1.0, 20, 5, 20), (0.1, 50, 30, 20), (0.25, 30, 40, 8)],
)
def test_the_quantizer_rests_before_the_network_ends(
    dataset: Episodes, warmup: float, own: int, others: int, alone: int
) -> None:
    _, work = steps_of(dataset, config_of(steps=(own, others), warmup=warmup))
    assert (work.alone, work.steps) == (alone, alone + others)
    assert work.steps >= own


def test_the_vocabulary_is_a_slow_average_that_comes_to_rest(dataset: Episodes) -> None:
    """Weights from the recorded steps of the quantizer: moved at every fourth step of the network, until step 20."""
    quantizer, work = steps_of(dataset, config_of(warmup=0.5, decay=0.9))
    expected: Tensor | None = None
    weight, name = quantizer.get_parameter("encoder.2.weight"), "encoder.2.weight"
    for step in range(work.steps):
        work.step(step)
        if step == 10:
            expected = weight.detach().clone()
        elif step in (14, 18):
            assert expected is not None
            expected = 0.9**4 * expected + (1 - 0.9**4) * weight.detach()
        if expected is not None:
            torch.testing.assert_close(work.vocabulary.quantizer.get_parameter(name), expected)
    assert expected is not None
    assert not torch.equal(expected, weight)
    assert not work.vocabulary.quantizer.training


@pytest.mark.parametrize("name", ["dino", "vqgan"])
def test_statistics_are_copied_and_a_zero_decay_copies_all(dataset: Episodes, name: str) -> None:
    quantizer, work = steps_of(dataset, config_of(name, steps=(6, 6), warmup=0.0, decay=0.0))
    for step in range(5):  # moved at steps 0 and 4
        work.step(step)
    states = quantizer.state_dict(), work.vocabulary.quantizer.state_dict()
    assert different(*states) == []
    work.step(5)
    buffers = {key for key, _ in quantizer.named_buffers()}
    moved = set(different(quantizer.state_dict(), work.vocabulary.quantizer.state_dict()))
    assert moved - buffers
    work.vocabulary.follow(quantizer, decay=0.5)
    left = set(different(quantizer.state_dict(), work.vocabulary.quantizer.state_dict()))
    assert left
    assert left.isdisjoint(buffers)


def test_codes_are_made_when_needed_and_again_when_the_vocabulary_moves(
    dataset: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantizer, other = (fresh_quantizer(dataset, replace(config_of(), seed=seed)) for seed in (0, 1))
    for one in (quantizer, other):
        fit_quantizer(one, dataset, 0)
        one.eval()
    read: list[int] = []
    observations = dataset.observations
    monkeypatch.setattr(dataset, "observations", lambda rows: (read.extend(rows), observations(rows))[1])
    vocabulary = Vocabulary(quantizer, dataset)
    vocabulary.make(np.array([7, 3, 7]))
    assert read == [3, 7]
    vocabulary.make(np.array([[3, 8]]))
    assert read == [3, 7, 8]
    vocabulary.follow(other, decay=0.0)
    vocabulary.make(np.array([8]))
    assert read == [3, 7, 8, 8]
    first, second = (tokenize(one, dataset, np.array([3, 7, 8])) for one in (quantizer, other))
    assert not torch.equal(first[0][2], second[0][2])
    for found, before, after in ((vocabulary.codes, *(t[0] for t in (first, second))),
                                 (vocabulary.features, *(t[1] for t in (first, second)))):  # fmt: skip
        assert torch.equal(found[[3, 7]], before[:2])  # not asked for since
        assert torch.equal(found[8], after[2])
    assert vocabulary.fresh.nonzero().flatten().tolist() == [8]


def test_the_network_is_shown_the_codes_of_the_vocabulary(dataset: Episodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every context, target and bootstrap row that a step asks for has the codes of the vocabulary at that step, and so
    has every row that stands for the law of the data."""
    config = config_of(warmup=0.0, decay=0.0)
    _, work = steps_of(dataset, replace(config, network=replace(config.network, null_context=True)))
    asked: list[tuple[np.ndarray, Tensor]] = []
    original, original_at = OccupancyTrainee._codes, OccupancyTrainee._codes_at

    def recorded(self: OccupancyTrainee, rows: np.ndarray, at: Tensor | None = None) -> Tensor:
        asked.append((rows, original(self, rows, at)))
        return asked[-1][1]

    def recorded_at(self: OccupancyTrainee, rows: Tensor, used: Tensor) -> Tensor:
        found = original_at(self, rows, used)
        asked.append((rows[used].numpy(), found[used]))
        return found

    monkeypatch.setattr(OccupancyTrainee, "_codes", recorded)
    monkeypatch.setattr(OccupancyTrainee, "_codes_at", recorded_at)
    codes, lawful = [], 0
    for step in range(20):
        asked.clear()
        work.step(step)
        codes.append(tokenize(work.vocabulary.quantizer, dataset)[0].long())
        assert {len(rows) for rows, _ in asked} >= {64}  # the contexts of a batch
        assert len(asked) >= (4 if step % 4 == 0 else 2)  # and the targets and bootstrap rows of a stock
        lawful += sum(rows.size for rows, _ in asked if rows.ndim == 2)
        for rows, found in asked:
            assert torch.equal(found, codes[-1][rows])
    assert not torch.equal(codes[0], codes[-1])
    assert 100 < lawful < 500  # a tenth of 20 batches of 64, two each


@pytest.mark.parametrize("name", ["vqvae", "dino"])
def test_a_trained_quantizer_is_where_it_starts(dataset: Episodes, name: str) -> None:
    """Fitted anew, nearly all codes would change. The one that was given is left as it is."""
    config = replace(config_of(name, steps=(20, 2), warmup=1.0), reward=RewardConfig(8, 5, LoopConfig(2)))
    given = train(dataset.subset([0, 1]), replace(config, joint=None)).quantizer
    before = {key: tensor.clone() for key, tensor in given.state_dict().items()}
    hardly = replace(config, quantizer_training=LoopConfig(1, batch_size=8, learning_rate=1e-9))
    voc = train(dataset, hardly, quantizer=given)
    assert different(given.state_dict(), before) == []
    assert not given.training
    assert voc.quantizer is not given
    changed = set(different(voc.quantizer.state_dict(), before))
    assert not any(key.startswith(("components", "mean_", "pixel_variance", "teacher")) for key in changed)
    codes, own = (tokenize(one, dataset)[0] for one in (voc.quantizer, given))
    assert (codes != own).float().mean() < 0.05


def assert_resumes(dataset: Episodes, config: VOCConfig, path: Path, stop: int) -> None:
    kept = Checkpoints(path, "a", every=3)
    interrupted_at(stop, steps_of(dataset, config)[1], kept)
    assert path.exists()
    resumed = train(dataset, config, checkpoints=lambda stage, built_on: kept)
    assert different(weights(resumed), weights(train(dataset, config))) == []


@pytest.mark.parametrize("stop", [8, 17, 33])
def test_it_resumes_bit_for_bit(dataset: Episodes, tmp_path: Path, stop: int) -> None:
    """Stopped in the warm-up, between two stocks while both move, and when the vocabulary rests."""
    assert_resumes(dataset, config_of(), tmp_path / "state.pt", stop)


@pytest.mark.parametrize("name", ["musik", "vqgan", "dino"])
def test_every_quantizer_resumes_and_becomes_a_normal_voc(dataset: Episodes, tmp_path: Path, name: str) -> None:
    config = config_of(name, steps=(10, 12), warmup=0.2)
    assert_resumes(dataset, config, tmp_path / "state.pt", stop=7)
    voc = train(dataset, config)
    voc.save(tmp_path / "voc")
    loaded = VOC.load(tmp_path / "voc")
    assert loaded.quantizer.name == name
    obs = dataset.observations(np.array([0, 30, 60]))
    for estimator in ("head", "sample"):
        one, two = (model.value(obs, estimator=estimator, samples=8) for model in (voc, loaded))  # type: ignore[arg-type]
        np.testing.assert_array_equal(one.mean, two.mean)
        assert np.isfinite(one.mean).all()


def test_values_are_those_of_the_chain(tmp_path: Path) -> None:
    paths = write_world(tmp_path, episodes=12, rows=40)
    episodes = Episodes.open(tmp_path).load_frames()
    config = replace(small_config(0.5, quantizer=80, steps=150, reward=300), joint=JointTraining(warmup=0.25))
    voc = train(episodes, config)
    rows = np.flatnonzero(episodes.steps_left >= 3)[::7]
    truth = exact_values(0.5)[paths.ravel()[rows]]
    for estimator in ("head", "sample"):
        mean = voc.value(episodes.observations(rows), estimator=estimator, samples=200).mean  # type: ignore[arg-type]
        assert np.mean((mean - truth) ** 2) < 0.2 * truth.var()


def test_what_is_refused(dataset: Episodes) -> None:
    for values in ({"warmup": 1.5}, {"warmup": -0.1}, {"decay": 1.0}, {"decay": -0.5}):
        with pytest.raises(VOCError, match=next(iter(values))) as caught:
            JointTraining(**values)
        assert one_sentence(str(caught.value))
    config = config_of()
    quantizer = fresh_quantizer(dataset, config)
    fit_quantizer(quantizer, dataset, 0)
    with pytest.raises(VOCError, match="Tokens were given to joint training") as caught:
        train(dataset, config, quantizer=quantizer, tokens=tokenize(quantizer.eval(), dataset))
    assert one_sentence(str(caught.value))


def test_the_config_survives_json() -> None:
    for config in (VOCConfig(), VOCConfig(joint=JointTraining(warmup=0.1))):
        assert from_dict(VOCConfig, asdict(config)) == config


@pytest.mark.slow
def test_the_published_vqgan_trains(tmp_path: Path) -> None:
    """Full width and codebook, 80 pixels to 5 x 5 codes a frame; a few joint steps of batches of 2."""
    write_world(tmp_path, episodes=2, rows=8, size=84)
    episodes = Episodes.open(tmp_path).load_frames()
    loop = LoopConfig(steps=3, batch_size=2, learning_rate=1e-4)
    config = replace(
        small_config(0.5, steps=3), quantizer="vqgan", quantizer_config={}, quantizer_training=loop,
        occupancy=OccupancyTraining(gamma=0.5, loop=loop, refill=1), joint=JointTraining(warmup=0.0),
    )  # fmt: skip
    lines: dict[str, dict[str, float]] = {}
    voc = train(episodes, config, log=lambda stage, _, numbers: lines.update({stage: dict(numbers)}))
    quantizer = voc.quantizer
    assert (quantizer.n_tokens, quantizer.codebook_size, quantizer.code_dim) == (75, 1024, 256)
    assert lines["joint"]["pixels"] < 3.0
    assert np.isfinite(lines["joint"]["cross_entropy"])
    obs = episodes.observations(np.array([3, 10]))
    assert np.isfinite(voc.value(obs).mean).all()
    assert quantizer.decode(voc.sample_futures(obs, 1)[:, 0]).shape == (2, 9, 84, 84)
