"""Features of a VOC inside a policy: the numbers of ``feature_vectors``, whatever the policy did to the frames."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from square import SIDE, Square, square_env
from stable_baselines3 import PPO
from worlds import one_sentence

from voc_rl import VOC
from voc_rl.agents.sb3 import VOCFeaturesExtractor
from voc_rl.agents.sb3 import features as module
from voc_rl.envs import PixelObservation
from voc_rl.errors import VOCError
from voc_rl.plugin import FEATURES, codes_as_vectors, codes_size, feature_size, feature_vectors, read

SHAPE = (9, SIDE, SIDE)
SPACE = gym.spaces.Box(0, 255, SHAPE, np.uint8)


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    """uint8 (16, 9, 36, 36): a walk of the square, then noise."""
    env, rng = square_env(), np.random.default_rng(0)
    seen = [env.reset(seed=1)[0]]
    seen += [env.step(rng.uniform(-1, 1, 1).astype(np.float32))[0] for _ in range(9)]
    noise = rng.integers(256, size=(6, *SHAPE), dtype=np.uint8)
    return torch.from_numpy(np.concatenate([seen, noise]))


@pytest.mark.parametrize("kind", FEATURES)
def test_features_are_those_of_the_voc(kind: Any, square_voc: Path, frames: torch.Tensor) -> None:
    voc = VOC.load(square_voc)
    with torch.no_grad():
        exact = feature_vectors(voc, frames, kind)
    assert len(exact.unique(dim=0)) > 6  # else equality would say little
    extractor = VOCFeaturesExtractor(SPACE, square_voc, kind)
    assert extractor.features_dim == exact.shape[1]
    for seen in (frames, frames / 255, frames.float() / 255.0 * 1.00001, torch.from_numpy(frames.numpy() / 255)):
        found = extractor(seen)
        assert found.dtype == torch.float32
        assert torch.equal(found, exact)
    raw = VOCFeaturesExtractor(SPACE, str(square_voc), kind, normalized=False)
    for seen in (frames, frames.float()):
        assert torch.equal(raw(seen), exact)
    alone = torch.cat([extractor(frames[i : i + 1] / 255) for i in range(len(frames))])
    few = torch.cat([extractor(frames[i : i + 4] / 255) for i in range(0, len(frames), 4)])
    torch.testing.assert_close(alone, few, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, exact, atol=0.05, rtol=0)  # large batches are multiplied in bfloat16


def test_what_a_dict_shows_beside_frames_follows_their_features(square_voc: Path, frames: torch.Tensor) -> None:
    space = gym.spaces.Dict({"at": gym.spaces.Box(-9, 9, (2, 2)), "pixels": SPACE, "kind": gym.spaces.Discrete(3)})
    extractor, at = VOCFeaturesExtractor(space, square_voc), torch.arange(64.0).reshape(16, 2, 2)
    kind = torch.eye(3)[torch.arange(16) % 3]  # as a policy shows a number
    found = extractor({"at": at, "pixels": frames / 255, "kind": kind})
    assert extractor.features_dim == found.shape[1]
    exact = torch.cat([VOCFeaturesExtractor(SPACE, square_voc)(frames / 255), at.flatten(1), kind], 1)
    assert torch.equal(found, exact)
    env = PixelObservation(Square(), SIDE, 3, render_only=False)
    eyes = {"features_extractor_class": VOCFeaturesExtractor, "features_extractor_kwargs": {"voc": square_voc}}
    model = PPO("MultiInputPolicy", env, policy_kwargs=eyes, n_steps=8, batch_size=8, seed=0, device="cpu").learn(8)
    assert model.predict(env.reset(seed=0)[0])[0].shape == (1,)


def test_frames_that_were_divided_are_not_taken_for_whole_ones(square_voc: Path, frames: torch.Tensor) -> None:
    with pytest.raises(VOCError, match="normalized=True is for frames that are divided by 255") as refusal:
        VOCFeaturesExtractor(SPACE, square_voc, normalized=False)(frames / 255)
    assert one_sentence(str(refusal.value))


@pytest.mark.parametrize("kind", FEATURES)
def test_features_of_codes_are_those_of_their_frames(kind: Any, square_voc: Path, frames: torch.Tensor) -> None:
    voc = VOC.load(square_voc)
    codes, features = voc.context(frames)
    rows = codes_as_vectors(codes, features)
    again = read(voc, rows)
    assert torch.equal(again[0], codes)
    assert features is not None
    assert again[1] is not None
    assert torch.equal(again[1], features.float())
    space = gym.spaces.Box(-np.inf, np.inf, (codes_size(voc),), np.float32)
    extractor = VOCFeaturesExtractor(space, square_voc, kind)
    assert torch.equal(extractor(rows), VOCFeaturesExtractor(SPACE, square_voc, kind)(frames))
    assert extractor.features_dim == feature_size(voc, kind)
    for scaled in (rows / 2, rows * 1.5):  # not by every number that frames could be scaled with, but codes by none
        with pytest.raises(VOCError, match="no whole numbers") as refusal:
            extractor(scaled)
        assert one_sentence(str(refusal.value))
    with pytest.raises(VOCError, match="is the codebook"):
        extractor(rows + voc.quantizer.codebook_size)
    if kind == "context":
        tuned = VOCFeaturesExtractor(space, square_voc, kind, frozen=False)
        tuned(rows).sum().backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in tuned.parameters())
    elif kind == "tokens":
        with pytest.raises(VOCError, match="cannot be trained, only those of frames") as refusal:
            VOCFeaturesExtractor(space, square_voc, kind, frozen=False)
        assert one_sentence(str(refusal.value))


def test_every_grey_level_survives_the_division(square_voc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[torch.Tensor] = []

    def note(voc: VOC, frames: torch.Tensor, kind: str) -> torch.Tensor:
        reached.append(frames)
        return torch.zeros(len(frames), 1)

    monkeypatch.setattr(module, "feature_vectors", note)
    levels = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, *SHAPE)
    VOCFeaturesExtractor(SPACE, square_voc)(levels.float() / 255.0)
    VOCFeaturesExtractor(SPACE, square_voc)(levels.float() * (0.999999 / 255.0))  # as another rounding might leave them
    VOCFeaturesExtractor(SPACE, square_voc, normalized=False)(levels.float())
    for found in reached:
        assert found.dtype == torch.uint8
        assert torch.equal(found, levels)
    assert len(reached) == 3


@pytest.mark.parametrize("kind", ["context", "tokens"])
def test_fine_tuned_features_start_the_same_and_have_gradients(
    kind: Any, square_voc: Path, frames: torch.Tensor
) -> None:
    frozen = VOCFeaturesExtractor(SPACE, square_voc, kind)
    tuned = VOCFeaturesExtractor(SPACE, square_voc, kind, frozen=False)
    assert not list(frozen.parameters())
    assert list(frozen.state_dict()) == ["voc_mark"]
    assert not frozen(frames).requires_grad
    found = tuned(frames / 255)
    torch.testing.assert_close(found, frozen(frames), atol=1e-5, rtol=1e-5)
    (found**2).sum().backward()
    moved = {name for name, p in tuned.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    shared = frozen.voc.occupancy if kind == "context" else frozen.voc.quantizer
    names = {name for name, _ in shared.named_parameters()}
    behind = names - {"no_features"} if kind == "context" else {name for name in names if name.startswith("encoder.")}
    assert moved == {f"trained.{name}" for name in behind}
    assert all(p.grad is None for p in shared.parameters())


def test_frozen_extractors_share_one_voc_and_tuned_ones_do_not(square_voc: Path) -> None:
    frozen = [VOCFeaturesExtractor(SPACE, square_voc, kind) for kind in FEATURES]
    tuned = [VOCFeaturesExtractor(SPACE, square_voc, frozen=False) for _ in range(2)]
    assert len({id(extractor.voc) for extractor in frozen}) == 1
    assert len({id(extractor.voc) for extractor in frozen + tuned}) == 3


def test_loading_a_voc_draws_no_random_numbers(square_voc: Path, tmp_path: Path) -> None:
    VOC.load(square_voc).save(tmp_path / "new")  # no process has loaded it yet
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    VOCFeaturesExtractor(SPACE, tmp_path / "new")
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_voc_stays_in_evaluation_mode_and_keeps_its_weights(frozen: bool, square_voc: Path) -> None:
    extractor = VOCFeaturesExtractor(SPACE, square_voc, frozen=frozen)
    around = torch.nn.Sequential(extractor, torch.nn.Linear(extractor.features_dim, 1))
    around.train(True)
    assert extractor.training
    assert not any(part.training for part in [*extractor.voc.occupancy.modules(), *extractor.voc.quantizer.modules()])
    before = {name: tensor.clone() for name, tensor in extractor.voc.occupancy.state_dict().items()}
    around.apply(lambda part: [p.data.zero_() for p in part.parameters(recurse=False)])
    assert not around[1].weight.any()
    assert all(torch.equal(tensor, before[name]) for name, tensor in extractor.voc.occupancy.state_dict().items())


@pytest.mark.parametrize(
    ("normalized", "change", "words"),
    [
        (True, lambda x: x.float(), "60..240, outside 0..1; normalized=False"),
        (True, lambda x: x / 255 + 0.1, "outside 0..1;"),
        (True, lambda x: x / 255 - 0.5, "outside 0..1;"),
        (True, lambda x: x / 255 * torch.nan, "nan..nan, outside 0..1;"),
        (False, lambda x: x.float() + 20, "80..260, outside 0..255; normalized=True"),
        (False, lambda x: x.float() - 100, "-40..140, outside 0..255;"),
    ],
)
def test_floats_outside_the_range_are_refused(
    normalized: bool, change: Any, words: str, square_voc: Path, frames: torch.Tensor
) -> None:
    extractor = VOCFeaturesExtractor(SPACE, square_voc, normalized=normalized)
    with pytest.raises(VOCError) as refusal:
        extractor(change(frames[:4]))
    assert words in str(refusal.value)
    assert one_sentence(str(refusal.value))


def box(shape: tuple[int, ...], dtype: Any = np.uint8) -> gym.spaces.Box:
    return gym.spaces.Box(0, 255, shape, dtype)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (box((SIDE, SIDE, 9)), "put the channels first"),
        (box((9, 24, 24)), f"PixelObservation(env, size={SIDE}, stack=3) makes them"),
        (box((3, 3, SIDE, SIDE)), "join the first two axes"),
        (box((3, SIDE, SIDE)), f"uint8 (3, {SIDE}, {SIDE}), but this VOC reads uint8 {SHAPE}"),
        (box(SHAPE, np.float32), f"float32 {SHAPE}, but this VOC reads uint8"),
        (box(SHAPE, np.float32), "leave them as they are drawn, whole numbers from 0 to 255 (under VecNorm"),
        (box((4,), np.float32), "float32 (4,), but"),
        (gym.spaces.Dict({"frames": SPACE}), "Dict('frames': Box"),
        (gym.spaces.Discrete(4), "Discrete(4), but"),
    ],
)
def test_other_spaces_are_refused(space: gym.Space[Any], words: str, square_voc: Path) -> None:
    with pytest.raises(VOCError) as refusal:
        VOCFeaturesExtractor(space, square_voc)
    assert words in str(refusal.value)
    assert one_sentence(str(refusal.value))


def damaged(folder: Path, into: Path) -> Path:
    """A copy whose weights end too early."""
    shutil.copytree(folder, into)
    weights = (into / "voc.safetensors").read_bytes()
    (into / "voc.safetensors").write_bytes(weights[: len(weights) // 2])
    return into


def test_what_is_no_run_folder_is_refused(square_voc: Path, tmp_path: Path) -> None:
    for voc, words in (
        (VOC.load(square_voc), "the path of its run folder is needed"),
        (tmp_path / "nothing", f"{tmp_path / 'nothing'} holds no VOC"),
        (tmp_path / "nothing", "if it moved, a saved agent is loaded with its new path"),
        (damaged(square_voc, tmp_path / "damaged"), f"{tmp_path / 'damaged' / 'voc.safetensors'}"),
        (7, "voc is int"),
    ):
        with pytest.raises(VOCError) as refusal:
            VOCFeaturesExtractor(SPACE, voc)  # type: ignore[arg-type]
        assert words in str(refusal.value)
        assert one_sentence(str(refusal.value))


def test_what_cannot_be_trained_is_refused(square_voc: Path, frames: torch.Tensor) -> None:
    for kind, words in (("successor", "cannot be trained"), ("pixels", "context, successor, tokens")):
        with pytest.raises(VOCError) as refusal:
            VOCFeaturesExtractor(SPACE, square_voc, kind, frozen=False)  # type: ignore[arg-type]
        assert words in str(refusal.value)
        assert one_sentence(str(refusal.value))
    elsewhere = VOCFeaturesExtractor(SPACE, square_voc, frozen=False).to("meta")
    with pytest.raises(VOCError, match="fine-tuned on the CPU only") as refusal:
        elsewhere(frames)
    assert one_sentence(str(refusal.value))
