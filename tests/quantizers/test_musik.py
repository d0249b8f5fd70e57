"""MUSIK: pairs and their actions, the contrastive loss, codes that hold what actions change, saving, refusals."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from small import generator, toy_dataset
from torch import Tensor
from worlds import CELLS, SPEC, picture, refusal, write_world

from voc_rl.data import Episode, Episodes, write_episode
from voc_rl.data.hdf5 import FIRST, LAST, MID
from voc_rl.errors import VOCError
from voc_rl.loop import LoopConfig
from voc_rl.quantizers import VQVAE, load_quantizer, save_quantizer, tokenize, train_quantizer
from voc_rl.quantizers.musik import MUSIK, ActionEnergy, MUSIKBatch, MUSIKConfig, info_nce

SIZE = 24
SMALL = MUSIKConfig(
    n_tokens=2, levels=(4, 3), components=8, hidden=32, decoder_width=8, patch=6, horizon=5, negatives=32,
    energy_hidden=32,
)  # fmt: skip
TINY = dataclasses.replace(SMALL, components=2, patch=1)  # for the numbered pictures of 2 x 2 pixels


def fresh(config: MUSIKConfig = SMALL, seed: int = 0, size: int = SIZE) -> MUSIK:
    torch.manual_seed(seed)
    return MUSIK((9, size, size), config)


def walled_episode(rows: int, rng: np.random.Generator) -> tuple[Episode, np.ndarray, np.ndarray]:
    """A square that actions push left or right between walls, below it one that wanders by itself; and both columns."""
    action = rng.uniform(-1, 1, (rows, 1)).astype(np.float32)
    action[0] = 0
    pushed = rng.integers(0, CELLS, rows)
    for t in range(1, rows):
        pushed[t] = np.clip(pushed[t - 1] + np.sign(action[t, 0]), 0, CELLS - 1)
    wandering = np.cumsum(rng.integers(0, 2, rows)) % CELLS
    frames, width = picture(pushed, SIZE), SIZE // CELLS
    for t, column in enumerate(wandering):
        frames[t, :, 16 : 16 + width, column * width : (column + 1) * width] = 240
    step_type = np.full(rows, MID, np.uint8)
    step_type[0], step_type[-1] = FIRST, LAST
    zeros, ones = np.zeros(rows, np.float32), np.ones(rows, np.float32)
    return Episode(frames=frames, action=action, reward=zeros, discount=ones, step_type=step_type), pushed, wandering


@dataclasses.dataclass
class Walled:
    dataset: Episodes
    pushed: np.ndarray
    wandering: np.ndarray


@pytest.fixture(scope="module")
def walled(tmp_path_factory: pytest.TempPathFactory) -> Walled:
    folder, rng = tmp_path_factory.mktemp("walled"), np.random.default_rng(0)
    columns = []
    for i in range(16):
        episode, *both = walled_episode(60, rng)
        write_episode(folder / f"{i:02d}.hdf5", episode, SPEC)
        columns.append(both)
    pushed, wandering = np.concatenate(columns, axis=1)
    return Walled(Episodes.open(folder).load_frames(), pushed, wandering)


LOOP = LoopConfig(steps=400, batch_size=64, learning_rate=3e-3)


@pytest.fixture(scope="module", params=[False, True], ids=["k hidden", "k given"])
def trained(request: pytest.FixtureRequest, walled: Walled) -> tuple[MUSIK, list[float]]:
    losses: list[float] = []
    quantizer = train_quantizer(
        fresh(dataclasses.replace(SMALL, condition_on_k=request.param)), walled.dataset, LOOP,
        log=lambda stage, step, numbers: losses.append(numbers["infonce"]),
    )  # fmt: skip
    assert isinstance(quantizer, MUSIK)
    return quantizer, losses


def pairs(walled: Walled, config: MUSIKConfig = SMALL, count: int = 64) -> MUSIKBatch:
    rng = np.random.default_rng(0)
    return fresh(config).batch(walled.dataset, walled.dataset.sample_rows(count, rng), rng)


# -- the contrastive loss


def test_loss_of_given_energies() -> None:
    energies = np.random.default_rng(0).normal(size=(7, 12)) * 3
    energies[2, 0] = -20  # certainly right
    energies[3] = 1.0  # a tie is not right
    by_hand = [np.log(sum(np.exp(-e) for e in row)) + row[0] for row in energies]
    right = [all(row[0] < e for e in row[1:]) for row in energies]
    assert 0 < sum(right) < 7
    loss, accuracy = info_nce(torch.from_numpy(energies))
    assert float(loss) == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert float(accuracy) == pytest.approx(np.mean(right))
    loss, accuracy = info_nce(torch.zeros(3, 257))
    assert float(loss) == pytest.approx(np.log(257), rel=1e-6)
    assert float(accuracy) == 0


@pytest.mark.parametrize("condition_on_k", [False, True])
def test_an_untrained_classifier_guesses(walled: Walled, condition_on_k: bool) -> None:
    config = dataclasses.replace(SMALL, negatives=256, condition_on_k=condition_on_k)
    quantizer, batch = fresh(config), pairs(walled, config, 256)
    quantizer.initialise(batch.obs, generator())
    loss, numbers = quantizer.loss(batch, generator())
    assert set(numbers) == {"infonce", "accuracy", "pixels"}
    assert float(numbers["infonce"]) == pytest.approx(np.log(257), abs=0.25)
    assert float(numbers["accuracy"]) < 0.05
    assert float(loss.detach()) == pytest.approx(float(numbers["infonce"] + numbers["pixels"]), rel=1e-5)


def test_energies_of_each_candidate_alone() -> None:
    """Against one candidate at a time, with the action filled up with zeros; k counts only where it is given."""
    torch.manual_seed(0)
    for given in (False, True):
        net = ActionEnergy(6, dataclasses.replace(SMALL, condition_on_k=given, max_action_size=5))
        now, later, actions = torch.randn(3, 6), torch.randn(3, 6), torch.rand(3, 4, 2)
        steps = torch.tensor([1, 2, SMALL.horizon])
        energies = net(now, later, actions, steps)
        assert energies.shape == (3, 4)
        for i in range(3):
            for j in range(4):
                action = torch.cat([actions[i, j], torch.zeros(3)])
                hidden = net.pair(torch.cat([now[i], later[i]])) + net.action(action)
                if net.steps is not None:
                    hidden = hidden + net.steps.weight[steps[i]]
                torch.testing.assert_close(energies[i, j], net.energy(hidden)[0], atol=1e-5, rtol=1e-4)
        other_k = net(now, later, actions, torch.tensor([3, 3, 3]))
        assert torch.equal(other_k, energies) != given
        assert not torch.allclose(net(later, now, actions, steps), energies)
        said = "Actions have 6 dimensions; max_action_size of the musik config is 5"
        assert said in refusal(net, now, later, torch.rand(3, 4, 6), steps)


def test_pictures_never_teach_the_encoder(walled: Walled) -> None:
    batch = pairs(walled)
    quantizer = fresh()
    quantizer.initialise(batch.obs, generator())
    last = quantizer.energies.energy[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.zero_()  # nothing reaches the encoder from the actions now
    quantizer.loss(batch, generator())[0].backward()
    assert _gradient(quantizer, "encoder") == 0
    assert min(_gradient(quantizer, part) for part in ("trunk", "to_grid", "upsample", "to_pixels")) > 0
    quantizer.zero_grad()
    torch.nn.init.normal_(last.weight)
    quantizer.loss(batch, generator())[0].backward()
    assert _gradient(quantizer, "encoder") > 0  # straight through the codebook


def _gradient(quantizer: MUSIK, part: str) -> float:
    found = [p.grad for name, p in quantizer.named_parameters() if name.startswith(part + ".")]
    assert found
    return sum(float(grad.abs().sum()) for grad in found if grad is not None)


def test_both_ends_of_a_pair_are_shifted_alike(walled: Walled, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = pairs(walled)
    same = batch._replace(later=batch.obs)
    quantizer = fresh(dataclasses.replace(SMALL, shift=4))
    quantizer.initialise(batch.obs, generator())
    seen: list[Tensor] = []
    latents = quantizer.latents
    monkeypatch.setattr(quantizer, "latents", lambda obs: seen.append(obs) or latents(obs))
    quantizer.loss(same, generator())
    now, later = seen[0].chunk(2)
    assert torch.equal(now, later)
    assert not torch.equal(now, batch.obs)


# -- learning


def probe(inputs: np.ndarray, labels: np.ndarray) -> float:
    """Share of the second half whose label a linear fit of the first half gets right."""
    inputs = np.c_[inputs, np.ones(len(inputs))]
    half = len(labels) // 2
    weights = np.linalg.lstsq(inputs[:half], np.eye(labels.max() + 1)[labels[:half]], rcond=1e-6)[0]
    return float(((inputs[half:] @ weights).argmax(1) == labels[half:]).mean())


def one_hot(quantizer: VQVAE, dataset: Episodes) -> np.ndarray:
    codes = tokenize(quantizer, dataset)[0].numpy()
    return np.eye(quantizer.codebook_size)[codes].reshape(len(codes), -1)


def test_codes_hold_what_actions_change(trained: tuple[MUSIK, list[float]], walled: Walled) -> None:
    quantizer, losses = trained
    assert not quantizer.training
    # an action is known by its sign at best, and the less the more steps lie between
    assert np.mean(losses[-4:]) < np.log(33) - 0.08
    codes = one_hot(quantizer, walled.dataset)
    pushed, wandering = probe(codes, walled.pushed), probe(codes, walled.wandering)
    rows = np.flatnonzero(walled.dataset.steps_left > 0)
    right = (walled.dataset.action[rows + 1, 0] > 0).astype(int)
    action = probe(np.c_[codes[rows], codes[rows + 1]], right)
    print(f"column of the pushed square {pushed:.2f}, of the wandering one {wandering:.2f} (chance .25)")
    print(f"action {action:.2f} (chance .50), infonce {losses[0]:.2f} to {np.mean(losses[-3:]):.2f}")
    assert pushed > 0.65
    assert wandering < 0.55
    assert pushed > wandering + 0.25
    assert action > 0.7


def test_codes_and_pictures(trained: tuple[MUSIK, list[float]], walled: Walled) -> None:
    quantizer, _ = trained
    obs = torch.from_numpy(walled.dataset.observations(np.arange(200)))
    codes = quantizer.encode(obs)
    assert codes.shape == (200, 2)
    assert 0 <= codes.min() <= codes.max() < quantizer.codebook_size == 12
    assert len(codes.unique(dim=0)) > 4
    assert quantizer.features(obs).shape == (200, quantizer.feature_dim) == (200, 24)
    pictures = quantizer.decode(codes)
    assert pictures.shape == obs.shape
    assert pictures.dtype == torch.uint8
    mean = obs.float().mean(0)
    error = (pictures.float() - obs.float()).square().mean() / (mean - obs.float()).square().mean()
    assert error < 1.0  # codes that forget the wandering square can only paint some of the picture


# -- saving, resuming, refusing


def test_saved_and_loaded_gives_the_same_codes(
    trained: tuple[MUSIK, list[float]], walled: Walled, tmp_path: Path
) -> None:
    quantizer, _ = trained
    save_quantizer(quantizer, tmp_path)
    loaded = load_quantizer(tmp_path)
    assert isinstance(loaded, MUSIK)
    assert loaded.config == quantizer.config
    assert not loaded.training
    obs = torch.from_numpy(walled.dataset.observations(np.arange(300)))
    codes = quantizer.encode(obs)
    assert torch.equal(loaded.encode(obs), codes)
    assert torch.equal(loaded.decode(codes), quantizer.decode(codes))
    assert torch.equal(loaded.features(obs), quantizer.features(obs))
    batch = pairs(walled)
    assert float(loaded.loss(batch, generator())[0].detach()) == float(quantizer.loss(batch, generator())[0].detach())


def no_batch(dataset: Episodes) -> str:
    return refusal(fresh(TINY, size=2).batch, dataset, np.zeros(3, np.int64), np.random.default_rng(0))


def test_datasets_without_actions_or_steps(tmp_path: Path) -> None:
    write_world(tmp_path, episodes=2, rows=5)
    dataset = Episodes.open(tmp_path)
    said = "musik learns from actions; this dataset has none"
    assert said in no_batch(dataset)
    dataset.action = dataset.action[:, :0]
    assert said in no_batch(dataset)
    constant = toy_dataset(tmp_path / "constant", (4, 3))
    constant.action = np.where(constant.step_type[:, None] == FIRST, 0, 0.5).astype(np.float32)
    assert said in no_batch(constant)
    # of episodes that are one row long, none is left but first rows
    short = toy_dataset(tmp_path / "short", (4, 3))
    short.step_type = np.full(len(short), FIRST, np.uint8)
    short.steps_left = np.zeros(len(short), np.int64)
    assert "no episode of this dataset has two rows" in no_batch(short)


def test_bad_configs() -> None:
    for name in ("horizon", "negatives", "energy_hidden", "max_action_size"):
        assert f"{name} is 0" in refusal(dataclasses.replace, SMALL, **{name: 0})
    with pytest.raises(VOCError, match="shift is -1"):
        dataclasses.replace(SMALL, shift=-1)
    for change, said in (({"patch": 0}, "patch is 0"), ({"levels": (4, 2)}, r"levels are \(4, 2\)")):
        with pytest.raises(VOCError, match=said):
            dataclasses.replace(SMALL, **change)
    with pytest.raises(VOCError, match="do not fit musik with a patch of 6; sides that are multiples of 12"):
        fresh(size=20)
    assert "a.pth is no musik, of which nothing is published" in refusal(MUSIK.from_published, "a.pth")
