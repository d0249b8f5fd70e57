"""Teachers of the DINO tokenizer: self-distilled on frames, or a timm backbone from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from small import generator
from torch import Tensor
from worlds import one_sentence, picture

from voc_rl.errors import VOCError
from voc_rl.quantizers import DINOConfig, DINOTokenizer
from voc_rl.quantizers.teacher import FrameTeacher, TimmTeacher, cosine_distance, train_teacher

SIZE = 24


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """uint8 (200, 3, 24, 24): the square in each of its four columns, in turn."""
    return torch.from_numpy(picture(torch.arange(200).numpy() % 4, SIZE))


def taught(frames: Tensor, seed: int = 0, steps: int = 60) -> FrameTeacher:
    torch.manual_seed(0)
    teacher = FrameTeacher(SIZE, 6, 32)
    train_teacher(teacher, frames, generator(seed), steps, batch_size=32)
    return teacher


def test_cosine_distance() -> None:
    a = torch.tensor([[[1.0, 0], [0, 2]]])
    assert cosine_distance(a, 3 * a) == pytest.approx(0, abs=1e-6)
    assert cosine_distance(a, -a) == pytest.approx(2)
    assert cosine_distance(a, a.flip(1)) == pytest.approx(1)


def test_self_distillation_keeps_frames_apart(frames: Tensor) -> None:
    teacher = taught(frames)
    features = teacher(frames[:4])
    assert features.shape == (4, 16, 32)
    assert features.dtype == torch.float32
    assert not any(p.requires_grad for p in teacher.parameters())
    centred = features - features.mean(0)
    assert centred.square().mean() > 0.02 * features.square().mean()
    for i in range(4):
        for j in range(i):
            assert cosine_distance(features[i], features[j]) > 0.01
    # what changes is where the square is or was: row 1 of patches, columns i and j
    change = (features[0] - features[2]).norm(dim=-1).view(4, 4)
    assert set(change.flatten().topk(2).indices.tolist()) == {4, 6}
    assert teacher(frames).mean((0, 1)).abs().max() < 1e-4  # centred


def test_self_distillation_learns_and_repeats(frames: Tensor) -> None:
    untaught, once = taught(frames, steps=0), taught(frames)
    again = FrameTeacher(SIZE, 6, 32)
    again.load_state_dict(untaught.state_dict())
    torch.manual_seed(7)
    state = torch.get_rng_state()
    train_teacher(again, frames, generator(), 60, batch_size=32)
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator is left alone
    other = taught(frames, seed=1)
    for name, tensor in once.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    weight = "transformer.blocks.0.attn.qkv.weight"
    assert not torch.equal(once.state_dict()[weight], untaught.state_dict()[weight])
    assert not torch.equal(once.state_dict()[weight], other.state_dict()[weight])


@pytest.mark.parametrize(("name", "width", "ending"), [("test_vit", 64, "pth"), ("test_resnet", 96, "safetensors")])
def test_timm_teacher(name: str, width: int, ending: str, frames: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save({"model": model.state_dict()}, path)
    else:
        save_file(model.state_dict(), path)
    teacher = TimmTeacher(name, str(path), 4, width)
    features = teacher(frames[:4])
    assert features.shape == (4, 16, width)
    assert features.dtype == torch.float32
    assert not torch.equal(features[0], features[1])
    # against timm itself, at a grid of its own
    grid = 10 if name == "test_vit" else 5
    own = TimmTeacher(name, str(path), grid, width)(frames[:2])
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    pictures = torch.nn.functional.interpolate(frames[:2] / 255, size=160, mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = model.forward_features((pictures - mean) / std)
    expected = expected[:, 1:] if expected.dim() == 3 else expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(own, expected)


def test_a_tokenizer_learns_from_a_timm_teacher(frames: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    config = DINOConfig(
        width=32, depth=1, heads=2, patch=6, side=SIZE, codebook_size=16, code_dim=4, decoder_width=16,
        teacher="timm:test_vit", teacher_weights=str(path), teacher_width=64,
    )  # fmt: skip
    quantizer = DINOTokenizer((3, SIZE, SIZE), config)
    quantizer.initialise(frames, generator())
    names = set(quantizer.state_dict())
    loss, numbers = quantizer.loss(frames[:8], generator())
    loss.backward()
    assert 0 < numbers["cosine"] < 2
    assert set(quantizer.state_dict()) == names  # the backbone is not part of the files
    assert not any("teacher" in name for name in names)
    path.unlink()
    assert quantizer.encode(frames[:8]).shape == (8, 16)
    other = DINOTokenizer((3, SIZE, SIZE), config)
    other.load_state_dict(quantizer.state_dict())  # needs no teacher
    assert torch.equal(other.encode(frames[:8]), quantizer.encode(frames[:8]))


def test_bad_timm_teachers(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"stem.weight": torch.zeros(3)}, path)
    for name, weights, width, said in [
        ("no_such_model", str(path), 64, "timm has no model 'no_such_model'"),
        ("test_vit", "", 64, "Teacher test_vit has no weights; name a file"),
        ("test_vit", str(path), 32, "teacher_width is 32; test_vit has features of width 64"),
        ("test_vit", str(path), 64, r"weights\.pth does not fit VisionTransformer: missing blocks"),
        ("test_vit", str(tmp_path / "none.pth"), 64, "does not exist"),
        ("test_vit", str(tmp_path / "none.safetensors"), 64, "does not exist"),
    ]:
        with pytest.raises(VOCError, match=said) as caught:
            TimmTeacher(name, weights, 4, width)
        assert one_sentence(str(caught.value))
