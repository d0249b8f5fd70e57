"""The public VQ-KD tokenizer: codes equal to the published formulas, and files that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small import Payload, generator
from torch import Tensor
from worlds import one_sentence

from voc_rl.errors import VOCError
from voc_rl.quantizers import DINOConfig, DINOTokenizer, load_quantizer, save_quantizer


def published(
    width: int = 48, depth: int = 2, codes: int = 64, dim: int = 8, bias: str = "split", norm: str = "fc_norm",
    layer_scale: bool = False, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Random weights by the names of the public file, large enough for every one of them to change codes."""
    draw = generator(seed)

    def random(*shape: int, size: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=draw) * size

    def linear(name: str, out: int, inp: int) -> dict[str, Tensor]:
        return {f"{name}.weight": random(out, inp, size=1.5 * inp**-0.5), f"{name}.bias": random(out, size=0.1)}

    def layer_norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": 1 + random(width, size=0.3), f"{name}.bias": random(width, size=0.3)}

    tensors = {
        "encoder.cls_token": random(1, 1, width),
        "encoder.pos_embed": random(1, 197, width, size=2.0),
        "encoder.patch_embed.proj.weight": random(width, 3, 16, 16, size=0.1),
        "encoder.patch_embed.proj.bias": random(width, size=0.3),
        **layer_norm(f"encoder.{norm}"),
        **linear("encode_task_layer.0", width, width),
        **linear("encode_task_layer.2", dim, width),
        # nearly of length 1, as in the public file, but not so nearly that angles would do for distances
        "quantize.embedding.weight": F.normalize(random(codes, dim), dim=-1) * (1 + random(codes, 1, size=0.05)),
    }
    for i in range(depth):
        block = f"encoder.blocks.{i}"
        tensors |= layer_norm(f"{block}.norm1") | layer_norm(f"{block}.norm2")
        tensors |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(f"{block}.attn.proj", width, width)
        tensors |= linear(f"{block}.mlp.fc1", 4 * width, width) | linear(f"{block}.mlp.fc2", width, 4 * width)
        if bias == "split":
            query, _, value = tensors.pop(f"{block}.attn.qkv.bias").chunk(3)
            tensors |= {f"{block}.attn.q_bias": query.clone(), f"{block}.attn.v_bias": value.clone()}
        if layer_scale:
            tensors |= {f"{block}.gamma_1": random(width), f"{block}.gamma_2": random(width)}
    # latents all round zero, so that many codes are used
    tensors["encode_task_layer.2.bias"] -= published_latents(tensors, pictures(2), heads=3).mean((0, 1))
    return tensors


TRAINING_ONLY = {
    name: torch.ones(3)
    for name in (
        "decoder.cls_token", "decoder.blocks.0.norm1.weight", "decode_task_layer.0.weight", "quantize.cluster_size",
        "quantize.embedding.cluster_size", "quantize.embedding.embed_avg", "quantize.embedding.initted",
        "quantize.initted", "teacher_model.cls_token", "scaling_layer.shift", "loss.weight", "loss_fn.bias",
    )
}  # fmt: skip


def published_distances(tensors: dict[str, Tensor], frames: Tensor, heads: int, **changes: bool) -> Tensor:
    """uint8 (B, 3, 84, 84) -> squared distances (B, patches, codes) to every code, by plain functions."""
    latents = published_latents(tensors, frames, heads, **changes)
    unit = latents / latents.norm(dim=-1, keepdim=True)
    return (unit[:, :, None] - tensors["quantize.embedding.weight"]).square().sum(-1)


def published_latents(tensors: dict[str, Tensor], frames: Tensor, heads: int, shift_first: bool = False) -> Tensor:
    """uint8 (B, 3, 84, 84) -> (B, patches, code_dim), by plain functions."""
    side = 224
    source = torch.arange(side) * frames.shape[-1] // side
    pixels = frames.float()[:, :, source][:, :, :, source] / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    pixels = (pixels - mean) / std if shift_first else pixels - mean / std

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return unit * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    weight = tensors["encoder.patch_embed.proj.weight"]
    grid = F.conv2d(pixels, weight, tensors["encoder.patch_embed.proj.bias"], stride=weight.shape[-1])
    x = torch.cat([tensors["encoder.cls_token"].expand(len(frames), -1, -1), grid.flatten(2).transpose(1, 2)], 1)
    x = x + tensors["encoder.pos_embed"]
    depth = sum(name.endswith("norm1.weight") and name.startswith("encoder.") for name in tensors)
    for i in range(depth):
        block = f"encoder.blocks.{i}"
        y = norm(x, f"{block}.norm1") @ tensors[f"{block}.attn.qkv.weight"].T
        if f"{block}.attn.q_bias" in tensors:
            q_bias, v_bias = tensors[f"{block}.attn.q_bias"], tensors[f"{block}.attn.v_bias"]
            y = y + torch.cat([q_bias, torch.zeros_like(q_bias), v_bias])
        else:
            y = y + tensors[f"{block}.attn.qkv.bias"]
        B, N, width = x.shape
        q, k, v = (part.view(B, N, heads, width // heads).transpose(1, 2) for part in y.split(width, -1))
        weights = (q @ k.transpose(2, 3) / (width // heads) ** 0.5).softmax(-1)
        y = linear((weights @ v).transpose(1, 2).reshape(B, N, width), f"{block}.attn.proj")
        x = x + y * tensors.get(f"{block}.gamma_1", torch.ones(()))
        y = linear(F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        x = x + y * tensors.get(f"{block}.gamma_2", torch.ones(()))
    last = "encoder.fc_norm" if "encoder.fc_norm.weight" in tensors else "encoder.norm"
    return linear(linear(norm(x[:, 1:], last), "encode_task_layer.0").tanh(), "encode_task_layer.2")


def pictures(rows: int, channels: int = 3, cells: int = 28) -> Tensor:
    """uint8 (rows, channels, 84, 84): random pictures, smooth between ``cells`` x ``cells`` points."""
    coarse = torch.rand(rows, channels, cells, cells, generator=generator(5)) * 255
    return F.interpolate(coarse, size=84, mode="bilinear").to(torch.uint8)


def saved(tensors: dict[str, Tensor], folder: Path, container: str | None = None) -> Path:
    path = folder / "vqkd.pth"
    torch.save({container: tensors} if container else tensors, path)
    return path


@pytest.mark.parametrize(
    ("container", "changes"),
    [
        ("model", {}),
        ("state_dict", {"bias": "joined"}),
        (None, {"norm": "norm"}),
        ("model", {"layer_scale": True}),
    ],
)
def test_published_codes_are_those_of_plain_functions(
    container: str | None, changes: dict[str, object], tmp_path: Path
) -> None:
    tensors = published(**changes)  # type: ignore[arg-type]
    tokenizer = DINOTokenizer.from_published(saved({**tensors, **TRAINING_ONLY}, tmp_path, container), n_head=3)
    assert tokenizer.observation_shape == (3, 84, 84)
    assert (tokenizer.n_tokens, tokenizer.codebook_size, tokenizer.code_dim) == (196, 64, 8)
    assert tokenizer.feature_dim == 0
    obs = pictures(6)
    assert tokenizer.features(obs).shape == (6, 0)
    distances = published_distances(tensors, obs, heads=3)
    codes, nearest = tokenizer.encode(obs), distances.argmin(-1)
    assert len(nearest.unique()) > 20
    chosen = distances.gather(-1, codes[..., None]).squeeze(-1)
    assert (chosen - distances.min(-1).values).max() < 1e-4  # the nearest, but for ties of floats
    assert (codes == nearest).float().mean() > 0.995
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(obs), codes)  # never in bfloat16
    # what the comparison would notice
    assert (published_distances(tensors, obs, heads=3, shift_first=True).argmin(-1) == nearest).float().mean() < 0.9
    assert (published_distances(tensors, obs, heads=4).argmin(-1) == nearest).float().mean() < 0.95


def test_published_stacks_saves_and_paints(tmp_path: Path) -> None:
    path = saved(published(depth=1), tmp_path, "model")
    single = DINOTokenizer.from_published(path, n_head=3)
    obs = pictures(40, 6, cells=4)
    both = DINOTokenizer.from_published(path, n_head=3, stack=2)
    codes = both.encode(obs)
    assert both.n_tokens == 392
    assert torch.equal(codes, torch.cat([single.encode(obs[:, :3]), single.encode(obs[:, 3:])], 1))
    assert (both.decode(codes) == 128).all()  # plain grey, until they are trained
    # training teaches pictures, and moves no code
    both.initialise(obs, generator())
    blank = (both.decode(codes).float() - obs.float()).square().mean()
    trainable = [p for p in both.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) == sum(p.numel() for p in both.painter.parameters())
    optimizer = torch.optim.AdamW(trainable, lr=3e-3)
    both.train()
    for step in range(40):
        loss, _ = both.loss(obs, generator(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (both.decode(codes).float() - obs.float()).square().mean() < 0.8 * blank
    assert torch.equal(both.encode(obs), codes)
    save_quantizer(both.eval(), tmp_path / "ours")
    loaded = load_quantizer(tmp_path / "ours")
    assert torch.equal(loaded.encode(obs), codes)
    assert torch.equal(loaded.decode(codes), both.decode(codes))


def test_the_default_type_makes_no_difference(tmp_path: Path) -> None:
    path = saved(published(), tmp_path)
    torch.set_default_dtype(torch.float64)
    try:
        tokenizer = DINOTokenizer.from_published(path, n_head=3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in tokenizer.state_dict().values()} == {torch.float32}
    assert torch.equal(tokenizer.encode(pictures(2)), DINOTokenizer.from_published(path, n_head=3).encode(pictures(2)))


def test_published_size(tmp_path: Path) -> None:
    shapes = {name: tensor.shape for name, tensor in published(width=768, depth=1, codes=8192, dim=32).items()}
    for name, shape in list(shapes.items()):
        if "blocks.0" in name:
            shapes |= {name.replace("blocks.0", f"blocks.{i}"): shape for i in range(12)}
    # one number behind every tensor: a file of kilobytes
    tokenizer = DINOTokenizer.from_published(
        saved({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}, tmp_path, "model"), stack=2
    )
    config = tokenizer.config
    assert (config.width, config.depth, config.heads, config.patch, config.side) == (768, 12, 12, 16, 224)
    assert (tokenizer.codebook_size, tokenizer.code_dim, tokenizer.n_tokens) == (8192, 32, 392)
    assert tokenizer.observation_shape == (6, 84, 84)
    assert config == DINOConfig(published=True)


def test_bad_published_files(tmp_path: Path) -> None:
    good = published(depth=1)
    path = tmp_path / "vqkd.pth"
    vqgan = {"encoder.conv_in.weight": torch.zeros(4, 3, 3, 3), "quantize.embedding.weight": torch.zeros(8, 4)}

    def without(*names: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in good.items() if name not in names}

    for content, said in [
        (without("encoder.cls_token"), "missing encoder.cls_token, unexpected nothing"),
        (without("encoder.blocks.0.attn.v_bias"), r"missing encoder\.blocks\.0\.attn\.qkv\.bias.*attn\.q_bias"),
        (without("encoder.fc_norm.weight"), r"missing encoder\.norm\.weight"),
        (without("quantize.embedding.weight"), "is not a VQ-KD tokenizer: .* are needed"),
        ({**good, "encoder.mask_token": torch.zeros(3)}, r"unexpected encoder\.mask_token"),
        ({**good, "encoder.norm.weight": torch.zeros(48)}, r"unexpected encoder\.fc_norm\.weight"),
        ({**good, "encoder.blocks.0.attn.qkv.bias": torch.zeros(144)}, r"unexpected .*attn\.q_bias"),
        ({**good, "encoder.pos_embed": torch.zeros(1, 200, 48)}, r"encoder\.pos_embed has shape \(1, 200, 48\)"),
        ({**good, "encoder.blocks.0.mlp.fc1.bias": torch.zeros(5)}, r"fc1\.bias has shape \(5,\), \(192,\) is needed"),
        ({**good, "encoder.pos_embed": torch.zeros(3)}, "is not a VQ-KD tokenizer"),
        (vqgan, "is not a VQ-KD tokenizer"),
        ({"wte.weight": torch.zeros(3, 3)}, "is not a VQ-KD tokenizer"),
    ]:
        saved(content, tmp_path, "model")
        with pytest.raises(VOCError, match=said) as caught:
            DINOTokenizer.from_published(path, n_head=3)
        assert one_sentence(str(caught.value)), caught.value
        assert str(path) in str(caught.value)
    saved(good, tmp_path)
    with pytest.raises(VOCError, match=r"n_head is 5; .* width of 48, which it must divide"):
        DINOTokenizer.from_published(path, n_head=5)
    with pytest.raises(VOCError, match="does not exist"):
        DINOTokenizer.from_published(tmp_path / "none.pth")


def test_a_malicious_file_is_refused(tmp_path: Path) -> None:
    torch.save({"model": published(depth=1), "optimizer": Payload(tmp_path / "trace")}, tmp_path / "vqkd.pth")
    with pytest.raises(VOCError, match="refused") as caught:
        DINOTokenizer.from_published(tmp_path / "vqkd.pth", n_head=3)
    assert one_sentence(str(caught.value))
    assert not (tmp_path / "trace").exists()
    torch.load(tmp_path / "vqkd.pth", weights_only=False)  # it would have run
    assert (tmp_path / "trace").exists()
