"""The VQGAN: published weights against the published formulas written out here, its own training, files, refusals."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from worlds import one_sentence, write_world

from voc_rl.data import Episodes
from voc_rl.errors import VOCError
from voc_rl.loop import Checkpoints, LoopConfig
from voc_rl.quantizers import VQVAE, build_quantizer, load_quantizer, save_quantizer, tokenize, train_quantizer
from voc_rl.quantizers.vqgan import VQGAN, VQGANConfig

SIZE = 24
TINY = VQGANConfig(
    channels=16, multipliers=(1, 2, 2), residual_blocks=1, attention_levels=(2,), latent_channels=16,
    codebook_size=32, code_dim=8, side=SIZE,
)  # fmt: skip
PUBLISHED = {
    "two levels": VQGANConfig(32, (1, 2), 1, (1,), 8, 16, 8),
    "attention in the middle": VQGANConfig(8, (1, 1, 2), 2, (1, 2), 6, 20, 12),
    "no attention": VQGANConfig(16, (1, 4, 1, 2), 1, (), 5, 33, 3),
    "five levels": VQGANConfig(4, (1, 1, 2, 2, 4), 2, (4,), 8, 64, 8),
}
State = dict[str, Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- the published network, written out on its own names


def published_layout(config: VQGANConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file for these sizes."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inputs: int, outputs: int, kernel: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, kernel, kernel), (outputs,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def block(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, outputs, 3)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def attention(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for layer in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{layer}", width, width, 1)

    def level(name: str, width: int, outputs: int, count: int, attends: bool) -> int:
        for j in range(count):
            block(f"{name}.block.{j}", width, outputs)
            width = outputs
            if attends:
                attention(f"{name}.attn.{j}", width)
        return width

    def middle(name: str, width: int) -> None:
        block(f"{name}.mid.block_1", width, width)
        attention(f"{name}.mid.attn_1", width)
        block(f"{name}.mid.block_2", width, width)

    width, last = config.channels, len(config.multipliers) - 1
    conv("encoder.conv_in", 3, width, 3)
    for i, multiplier in enumerate(config.multipliers):
        outputs = config.channels * multiplier
        width = level(f"encoder.down.{i}", width, outputs, config.residual_blocks, i in config.attention_levels)
        if i < last:
            conv(f"encoder.down.{i}.downsample.conv", width, width, 3)
    middle("encoder", width)
    norm("encoder.norm_out", width)
    conv("encoder.conv_out", width, config.latent_channels, 3)
    conv("decoder.conv_in", config.latent_channels, width, 3)
    middle("decoder", width)
    for i in range(last, -1, -1):
        outputs = config.channels * config.multipliers[i]
        width = level(f"decoder.up.{i}", width, outputs, config.residual_blocks + 1, i in config.attention_levels)
        if i > 0:
            conv(f"decoder.up.{i}.upsample.conv", width, width, 3)
    norm("decoder.norm_out", width)
    conv("decoder.conv_out", width, 3, 3)
    conv("quant_conv", config.latent_channels, config.code_dim, 1)
    conv("post_quant_conv", config.code_dim, config.latent_channels, 1)
    shapes["quantize.embedding.weight"] = (config.codebook_size, config.code_dim)
    return shapes


def random_weights(config: VQGANConfig, seed: int = 0) -> State:
    draws, state = generator(seed), {}
    for name, shape in published_layout(config).items():
        if len(shape) == 4:
            state[name] = torch.randn(shape, generator=draws) * (1.5 / np.prod(shape[1:]) ** 0.5)
        else:
            state[name] = 0.2 * torch.randn(shape, generator=draws) + ("norm" in name and name.endswith("weight"))
    state["quantize.embedding.weight"] = 0.5 * torch.randn(config.codebook_size, config.code_dim, generator=draws)
    return state


def conv(state: State, name: str, x: Tensor, padding: int = 0, stride: int = 1) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=stride, padding=padding)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    groups = min(32, x.shape[1])
    return F.group_norm(x, groups, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def block(state: State, name: str, x: Tensor) -> Tensor:
    hidden = conv(state, f"{name}.conv1", swish(norm(state, f"{name}.norm1", x)), padding=1)
    hidden = conv(state, f"{name}.conv2", swish(norm(state, f"{name}.norm2", hidden)), padding=1)
    if f"{name}.nin_shortcut.weight" in state:
        x = conv(state, f"{name}.nin_shortcut", x)
    return x + hidden


def attention(state: State, name: str, x: Tensor) -> Tensor:
    normed = norm(state, f"{name}.norm", x)
    q, k, v = (conv(state, f"{name}.{layer}", normed).flatten(2) for layer in "qkv")
    weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / x.shape[1] ** 0.5, dim=2)  # i asks, j answers
    mixed = torch.einsum("bcj,bij->bci", v, weights).reshape(x.shape)
    return x + conv(state, f"{name}.proj_out", mixed)


def level(state: State, name: str, x: Tensor) -> Tensor:
    j = 0
    while f"{name}.block.{j}.conv1.weight" in state:
        x = block(state, f"{name}.block.{j}", x)
        if f"{name}.attn.{j}.q.weight" in state:
            x = attention(state, f"{name}.attn.{j}", x)
        j += 1
    return x


def middle(state: State, name: str, x: Tensor) -> Tensor:
    x = attention(state, f"{name}.mid.attn_1", block(state, f"{name}.mid.block_1", x))
    return block(state, f"{name}.mid.block_2", x)


def published_latents(state: State, obs: Tensor, levels: int) -> Tensor:
    """uint8 (B, 3, 84, 84) -> (B, cells, code_dim)."""
    pictures = F.interpolate(obs.float(), size=80).permute(0, 2, 3, 1) / 255.0
    pictures = pictures - torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225])
    x = conv(state, "encoder.conv_in", pictures.permute(0, 3, 1, 2), padding=1)
    for i in range(levels):
        x = level(state, f"encoder.down.{i}", x)
        if i < levels - 1:
            x = conv(state, f"encoder.down.{i}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
    x = swish(norm(state, "encoder.norm_out", middle(state, "encoder", x)))
    return conv(state, "quant_conv", conv(state, "encoder.conv_out", x, padding=1)).flatten(2).transpose(1, 2)


def published_pictures(state: State, codes: Tensor, levels: int) -> Tensor:
    """int64 (B, cells) -> float (B, 3, 80, 80)."""
    side = round(codes.shape[1] ** 0.5)
    grid = state["quantize.embedding.weight"][codes].transpose(1, 2).unflatten(2, (side, side))
    x = middle(state, "decoder", conv(state, "decoder.conv_in", conv(state, "post_quant_conv", grid), padding=1))
    for i in range(levels - 1, -1, -1):
        x = level(state, f"decoder.up.{i}", x)
        if i > 0:
            larger = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = conv(state, f"decoder.up.{i}.upsample.conv", larger, padding=1)
    return conv(state, "decoder.conv_out", swish(norm(state, "decoder.norm_out", x)), padding=1)


# ---- frames and files


def frames(count: int, channels: int = 3, seed: int = 0) -> Tensor:
    """uint8 (count, channels, 84, 84): smooth blobs with grain, another picture in every frame."""
    coarse = torch.rand(count, channels, 7, 7, generator=generator(seed)) * 255
    smooth = F.interpolate(coarse, size=84, mode="bilinear")
    grain = torch.rand(smooth.shape, generator=generator(seed + 1)) * 30 - 15
    return (smooth + grain).clamp(0, 255).to(torch.uint8)


def rows_read() -> list[int]:
    """Rows of a frame of 84 pixels that make a picture of 80, in PyTorch's float32."""
    return (np.arange(80, dtype=np.float32) * np.float32(84 / 80)).astype(int).tolist()


def write_weights(folder: Path, config: VQGANConfig, seed: int = 0) -> tuple[Path, State]:
    state = random_weights(config, seed)
    torch.save(state, folder / "vqgan.pth")
    return folder / "vqgan.pth", state


def check_parity(quantizer: VQGAN, state: State, obs: Tensor) -> Tensor:
    """Latents, codes and pictures are those of the published formulas; returns the codes."""
    levels = len(quantizer.config.multipliers)
    with torch.no_grad():
        latents = published_latents(state, obs, levels)
        torch.testing.assert_close(quantizer.latents(obs), latents, atol=1e-4, rtol=1e-4)
        codes = quantizer.encode(obs)
        distances = torch.cdist(latents.double(), state["quantize.embedding.weight"].double()) ** 2
        chosen = distances.gather(2, codes[..., None]).squeeze(2)
        differ = codes != distances.argmin(2)
        assert (chosen - distances.min(2).values)[differ].abs().sum() < 1e-3  # ties only
        assert differ.float().mean() < 0.01
        pictures = published_pictures(state, codes, levels)
        torch.testing.assert_close(quantizer._paint(quantizer.embed(codes)), pictures, atol=1e-4, rtol=1e-4)
        shift = torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225])
        levels_of_grey = ((pictures + shift[:, None, None]) * 255).round().clamp(0, 255)
        read = np.array(rows_read())
        back = [int(abs(read - j).argmin()) for j in range(84)]  # the pixel that was read nearest
        expected = levels_of_grey[:, :, back][..., back]
    decoded = quantizer.decode(codes)
    assert decoded.dtype == torch.uint8
    assert (decoded.float() - expected).abs().max() <= 1  # where rounding falls on either side
    return codes


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_give_the_published_numbers(name: str, tmp_path: Path) -> None:
    sizes = PUBLISHED[name]
    path, state = write_weights(tmp_path, sizes)
    quantizer = VQGAN.from_published(path)
    assert not quantizer.training
    assert quantizer.config == VQGANConfig(**{**vars(sizes), "published": True})  # all sizes were inferred
    assert quantizer.observation_shape == (3, 84, 84)
    assert quantizer.n_tokens == (80 // 2 ** (len(sizes.multipliers) - 1)) ** 2
    codes = check_parity(quantizer, state, frames(3))
    assert codes.shape == (3, quantizer.n_tokens)
    assert len(codes.unique()) > 3
    torch.testing.assert_close(quantizer.code_vectors(), state["quantize.embedding.weight"])


def test_the_published_sizes(tmp_path: Path) -> None:
    sizes = VQGANConfig()
    path, state = write_weights(tmp_path, sizes)
    assert sum(tensor.numel() for tensor in state.values()) > 60e6
    quantizer = VQGAN.from_published(path, stack=3)
    assert quantizer.config == VQGANConfig(published=True)
    assert (quantizer.n_tokens, quantizer.codebook_size, quantizer.code_dim) == (75, 1024, 256)
    single = VQVAE.from_published(path)  # the paper's name for it
    assert isinstance(single, VQGAN)
    assert single.n_tokens == 25
    codes = check_parity(single, state, frames(1))
    assert len(codes.unique()) > 3


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 7}, lambda s: {"model": s}])
def test_what_belonged_to_training_is_left_out(wrap: Callable[[State], Any], tmp_path: Path) -> None:
    sizes = PUBLISHED["five levels"]
    _, state = write_weights(tmp_path, sizes)
    extra = {
        "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
        "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 64, 1, 1),
        "loss.discriminator.main.3.num_batches_tracked": torch.tensor(3),
        "model_ema.decay": torch.tensor(0.5),
    }
    torch.save(wrap({**state, **extra}), tmp_path / "more.pth")
    obs = frames(2)
    codes = VQGAN.from_published(tmp_path / "more.pth").encode(obs)
    assert torch.equal(codes, VQGAN.from_published(str(tmp_path / "vqgan.pth")).encode(obs))


def test_half_precision_weights_are_read(tmp_path: Path) -> None:
    _, state = write_weights(tmp_path, PUBLISHED["five levels"])
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.pth")
    quantizer = VQGAN.from_published(tmp_path / "half.pth")
    assert {p.dtype for p in quantizer.parameters()} == {torch.float32}
    check_parity(quantizer, {name: tensor.half().float() for name, tensor in state.items()}, frames(2))


def test_published_codes_do_not_depend_on_autocast(tmp_path: Path) -> None:
    path, _ = write_weights(tmp_path, PUBLISHED["five levels"])
    quantizer, obs = VQGAN.from_published(path, stack=2), frames(12, channels=6)
    with torch.autocast("cpu", torch.bfloat16):
        codes = quantizer.encode(obs)
    assert torch.equal(codes, quantizer.encode(obs))


def test_a_stack_is_its_frames_oldest_first(tmp_path: Path) -> None:
    path, _ = write_weights(tmp_path, PUBLISHED["five levels"])
    stacked, single = VQGAN.from_published(path, stack=3), VQGAN.from_published(path)
    assert stacked.observation_shape == (9, 84, 84)
    assert stacked.n_tokens == 75
    obs = frames(13, channels=9)  # 39 frames: more than pass at once
    parts = [single.encode(obs[:, 3 * k : 3 * k + 3]) for k in range(3)]
    assert not torch.equal(parts[0], parts[1])
    codes = stacked.encode(obs)
    # the work is cut elsewhere, and sums of floats with it
    assert (codes == torch.cat(parts, 1)).float().mean() > 0.99
    pictures = torch.cat([single.decode(part) for part in codes.chunk(3, 1)], 1).float()
    assert stacked.decode(codes).shape == obs.shape
    assert (stacked.decode(codes).float() - pictures).abs().max() <= 1


# ---- files that are refused


def refused(path: Path) -> str:
    with pytest.raises(VOCError) as caught:
        VQGAN.from_published(path)
    text = str(caught.value)
    assert one_sentence(text), text
    assert str(path) in text
    return text


class Evil:
    """Pickled so that reading it the careless way creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("nested", [False, True])
def test_code_in_a_file_is_never_run(nested: bool, tmp_path: Path) -> None:
    state: dict[str, Any] = dict(random_weights(PUBLISHED["five levels"]))
    state["encoder.conv_in.weight"] = Evil(tmp_path / "created")
    torch.save({"state_dict": state} if nested else state, tmp_path / "evil.pth")
    assert "is refused" in refused(tmp_path / "evil.pth")
    assert not (tmp_path / "created").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)["state_dict" if nested else "encoder.conv_in.weight"]
    assert (tmp_path / "created").exists()  # the trap was live


def changed_states() -> dict[str, tuple[Callable[[State], Any], str]]:
    """Changes of a good state dict, and what is said about them."""

    def without(*names: str) -> Callable[[State], Any]:
        return lambda s: {n: t for n, t in s.items() if n not in names and not n.startswith(names)}

    def replaced(**tensors: Tensor) -> Callable[[State], Any]:
        return lambda s: {**s, **{n.replace("__", "."): t for n, t in tensors.items()}}

    return {
        "a missing bias": (without("decoder.mid.attn_1.k.bias"), r"missing decoder\.mid\.attn_1\.k\.bias, unexp.*noth"),
        "no decoder": (without("decoder."), r"missing decoder\.conv_in\.bias, .* and \d+ more, unexpected nothing"),
        "no codebook": (without("quantize."), r"not a VQGAN: quantize\.embedding\.weight missing"),
        "no stem": (without("encoder.conv_in."), r"not a VQGAN: encoder\.conv_in\.weight missing"),
        "a hole in the levels": (without("encoder.down.2."), r"encoder\.down\.2\.block\.0\.conv1\.weight missing"),
        "an unexpected name": (replaced(extra__weight=torch.zeros(3)), r"missing nothing, unexpected extra\.weight"),
        "another shape": (
            replaced(encoder__norm_out__weight=torch.ones(17)),
            r"encoder\.norm_out\.weight is float32 \(17,\); float \(16,\) is needed",
        ),
        "whole numbers": (
            replaced(quant_conv__bias=torch.zeros(8, dtype=torch.int64)), r"quant_conv\.bias is int64 \(8,\)",
        ),
        "a flat stem": (replaced(encoder__conv_in__weight=torch.zeros(4)), r"encoder\.conv_in\.weight missing or of"),
        "an empty stem": (replaced(encoder__conv_in__weight=torch.zeros(0, 3, 3, 3)), "not multiples of the 0"),
        "broken multiples": (replaced(encoder__conv_in__weight=torch.zeros(3, 3, 3, 3)), "not multiples of the 3"),
        "an empty codebook": (replaced(quantize__embedding__weight=torch.zeros(0, 8)), "codebook_size is 0"),
        "other widths": (
            lambda s: random_weights_of_width(48), "48 channels; at most 32, or a multiple of it",
        ),
        "too deep": (lambda s: {**s, **sixth_level(s)}, "side 80 of a vqgan is not a multiple of 32"),
    }  # fmt: skip


def random_weights_of_width(width: int) -> State:
    return {name: torch.zeros(shape) for name, shape in published_layout_of_width(width).items()}


def published_layout_of_width(width: int) -> dict[str, tuple[int, ...]]:
    sizes = VQGANConfig(16, (1, 1), 1, (), 4, 8, 4)
    object.__setattr__(sizes, "channels", width)  # a width that our config refuses
    return published_layout(sizes)


def sixth_level(state: State) -> State:
    return {n.replace("down.4", "down.5"): t for n, t in state.items() if n.startswith("encoder.down.4.block.")}


@pytest.mark.parametrize("change", changed_states())
def test_other_state_dicts_are_refused(change: str, tmp_path: Path) -> None:
    alter, said = changed_states()[change]
    torch.save(alter(random_weights(PUBLISHED["five levels"])), tmp_path / "other.pth")
    text = refused(tmp_path / "other.pth")
    assert re.search(said, text), text


def test_other_files_are_refused(tmp_path: Path) -> None:
    path, _ = write_weights(tmp_path, PUBLISHED["five levels"])
    whole = path.read_bytes()
    for share in (0.0, 0.3, 0.99):
        (tmp_path / "part.pth").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(VOCError, match=r"part\.pth is (not a whole torch file|refused)"):  # PyTorch says more
            VQGAN.from_published(tmp_path / "part.pth")
    assert "does not exist" in refused(tmp_path / "absent.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds no state dict" in refused(tmp_path / "list.pth")
    dino = {
        "encoder.pos_embed": torch.zeros(1, 197, 768),
        "encoder.blocks.0.attn.qkv.weight": torch.zeros(2304, 768),
        "quantize.embedding.weight": torch.zeros(8192, 32),
    }
    torch.save({"model": dino}, tmp_path / "dino.pth")
    text = refused(tmp_path / "dino.pth")
    assert "is not a VQGAN: encoder.conv_in.weight, encoder.conv_out.weight, encoder.down.0" in text


# ---- our own training


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, size=SIZE)
    return Episodes.open(folder).load_frames()


def fresh(seed: int = 0, stack: int = 3, config: VQGANConfig = TINY) -> VQGAN:
    torch.manual_seed(seed)
    return VQGAN((3 * stack, SIZE, SIZE), config)


def observations(dataset: Episodes) -> Tensor:
    return torch.from_numpy(dataset.observations(np.arange(len(dataset))))


@pytest.fixture(scope="module")
def trained(dataset: Episodes) -> tuple[VQGAN, list[float]]:
    losses: list[float] = []
    before = fresh()
    before.initialise(observations(dataset), generator())
    with torch.no_grad():
        losses.append(float(before.loss(observations(dataset)[::5], generator())[0]))
    quantizer = train_quantizer(fresh(), dataset, LoopConfig(steps=60, batch_size=16, learning_rate=3e-3))
    assert isinstance(quantizer, VQGAN)
    with torch.no_grad():
        losses.append(float(quantizer.loss(observations(dataset)[::5], generator())[0]))
    return quantizer, losses


def test_training_learns_the_picture(trained: tuple[VQGAN, list[float]], dataset: Episodes) -> None:
    quantizer, (before, after) = trained
    assert not quantizer.training
    assert after < 0.3 * before
    obs = observations(dataset)[::4]
    codes = quantizer.encode(obs)
    assert len(codes.unique()) > 3
    truth = obs.float()
    error = (quantizer.decode(codes).float() - truth).square().mean()
    assert error < 0.2 * (truth.mean(0) - truth).square().mean()


def test_codes_are_in_raster_order(trained: tuple[VQGAN, list[float]], dataset: Episodes) -> None:
    """Another vector in a corner changes that corner of the picture most."""
    quantizer, _ = trained
    with torch.no_grad():
        vectors = quantizer.embed(quantizer.encode(observations(dataset)[:8]))[:, -36:]
        for cell, corner in ((0, (0, 0)), (5, (0, 1)), (30, (1, 0)), (35, (1, 1))):
            changed = vectors.clone()
            changed[:, cell] += 1.0
            moved = (quantizer._paint(changed) - quantizer._paint(vectors)).abs().mean((0, 1))
            quarters = moved.unflatten(1, (2, 12)).unflatten(0, (2, 12)).mean((1, 3))
            assert divmod(int(quarters.argmax()), 2) == corner


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("stack", [1, 3])
def test_shapes_dtypes_and_ranges(dataset: Episodes, stack: int, published: bool) -> None:
    quantizer = fresh(stack=stack, config=VQGANConfig(**{**vars(TINY), "published": published}))
    obs = observations(dataset)[:20, -3 * stack :]
    quantizer.initialise(obs, generator())
    assert quantizer.n_tokens == 36 * stack
    latents = quantizer.latents(obs)
    assert latents.shape == (20, quantizer.n_tokens, 8)
    assert latents.dtype == torch.float32
    codes = quantizer.encode(obs)
    assert codes.shape == (20, quantizer.n_tokens)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() < codes.max() < 32
    vectors = quantizer.embed(codes)
    assert vectors.shape == latents.shape
    assert vectors.dtype == torch.float32
    assert torch.equal(quantizer.code_vectors()[codes], vectors)
    assert quantizer.embed(codes.view(4, 5, -1)).shape == (4, 5, quantizer.n_tokens, 8)
    assert torch.equal(quantizer.code_vectors()[quantizer.quantize(vectors)], vectors)
    pictures = quantizer.decode(codes)
    assert pictures.shape == obs.shape
    assert pictures.dtype == torch.uint8
    features = quantizer.features(obs)
    assert features.shape == (20, quantizer.feature_dim) == (20, 0)
    assert features.dtype == torch.float32
    assert quantizer.encode(obs[:0]).shape == (0, quantizer.n_tokens)
    assert quantizer.decode(codes[:0]).shape == (0, 3 * stack, SIZE, SIZE)


@pytest.mark.parametrize("published", [False, True])
def test_what_the_network_sees_can_be_undone(published: bool) -> None:
    config = VQGANConfig(**{**vars(TINY), "published": published})
    obs = torch.randint(256, (4, 3, SIZE, SIZE), generator=generator(), dtype=torch.uint8)
    quantizer = fresh(stack=1, config=config)
    assert torch.equal(quantizer._frames(quantizer._pictures(obs)), obs)
    larger = VQGAN((3, 48, 48), config)
    doubled = obs.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(larger._frames(larger._pictures(doubled)), doubled)
    usual = VQGAN((3, 84, 84), VQGANConfig.small(published=published))
    obs = frames(2)
    back = usual._frames(usual._pictures(obs))
    read = rows_read()  # 80 of 84 rows and columns
    assert torch.equal(back[:, :, read][..., read], obs[:, :, read][..., read])


def test_loss_by_hand(dataset: Episodes) -> None:
    quantizer = fresh()
    obs = observations(dataset)[:8]
    quantizer.initialise(obs, generator())
    with torch.no_grad():
        latents = quantizer.latents(obs)[:, -36:]  # of the newest frame
        vectors = quantizer.embed(quantizer.encode(obs))[:, -36:]
        error = quantizer._paint(vectors) - (obs[:, -3:].float() / 127.5 - 1)
    newest = obs[:, -3:].float() / 127.5 - 1
    variance = (newest - newest.mean(0)).square().mean()
    torch.testing.assert_close(quantizer.pixel_variance, variance)
    pixels = error.abs().mean() / variance.sqrt() + error.square().mean() / variance
    distance = (latents - vectors).square().mean()
    loss, numbers = quantizer.loss(obs, generator())
    torch.testing.assert_close(loss.detach(), pixels + 1.25 * distance, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(numbers["codebook"], distance, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(numbers["commitment"], distance, atol=1e-5, rtol=1e-4)
    assert 1 <= numbers["perplexity"] <= 32
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in quantizer.parameters())


def served(quantizer: VQGAN, obs: Tensor) -> Tensor:
    """Give every latent of the newest frame of one observation a code of its own; returns the latents (36, 8)."""
    with torch.no_grad():
        latents = quantizer.latents(obs)[0, -36:]
        quantizer.codebook.weight[:36] = latents
        quantizer.codebook.weight[36:] = 1e3
    return latents


def test_pixels_reach_the_encoder_straight_through_the_rounding(dataset: Episodes) -> None:
    quantizer, obs = fresh(config=VQGANConfig(**{**vars(TINY), "codebook_size": 64})), observations(dataset)[5:6]
    served(quantizer, obs)
    loss, numbers = quantizer.loss(obs, generator())
    assert numbers["commitment"] < 1e-9  # no pull from there
    loss.backward()
    assert quantizer.to_code.weight.grad is not None
    assert quantizer.to_code.weight.grad.abs().max() > 1e-3


def test_codes_start_from_latents_and_published_ones_stay(dataset: Episodes, tmp_path: Path) -> None:
    quantizer, obs = fresh(), observations(dataset)
    quantizer.initialise(obs, generator())
    with torch.no_grad():
        latents = quantizer.latents(obs)[:, -36:].flatten(0, 1)
    assert torch.cdist(quantizer.code_vectors(), latents).min(1).values.max() < 1e-2
    path, state = write_weights(tmp_path, PUBLISHED["five levels"])
    published = VQGAN.from_published(path)
    published.initialise(frames(4), generator())
    assert torch.equal(published.code_vectors(), state["quantize.embedding.weight"])
    published.train()
    published.use.zero_()
    published.loss(frames(2), generator())
    assert torch.equal(published.code_vectors(), state["quantize.embedding.weight"])


def test_unused_codes_move_to_where_they_help(dataset: Episodes) -> None:
    quantizer, obs = fresh(config=VQGANConfig(**{**vars(TINY), "codebook_size": 64})), observations(dataset)[5:6]
    latents = served(quantizer, obs)
    distance = torch.cdist(latents, latents) + 1e3 * torch.eye(36)
    alone = int(distance.min(1).values.argmax())
    with torch.no_grad():
        quantizer.codebook.weight[alone] = 1e3  # one latent is served badly now
        quantizer.use[50] = 0.0  # and one code serves none
        kept = quantizer.code_vectors().clone()
    quantizer.eval()
    quantizer.loss(obs, generator())
    assert torch.equal(quantizer.code_vectors(), kept)
    quantizer.train()
    quantizer.loss(obs, generator())
    assert (quantizer.code_vectors() != kept).any(1).nonzero().flatten().tolist() == [50]
    torch.testing.assert_close(quantizer.code_vectors()[50], latents[alone], atol=1e-4, rtol=1e-4)
    assert quantizer.use[50] == 1 / 64


def test_saved_and_loaded_gives_the_same_codes(
    trained: tuple[VQGAN, list[float]], dataset: Episodes, tmp_path: Path
) -> None:
    quantizer, _ = trained
    save_quantizer(quantizer, tmp_path)
    loaded = load_quantizer(tmp_path)
    assert loaded.config == quantizer.config
    obs = observations(dataset)[:20]
    codes = quantizer.encode(obs)
    assert torch.equal(loaded.encode(obs), codes)
    assert torch.equal(loaded.decode(codes), quantizer.decode(codes))
    path, _ = write_weights(tmp_path, PUBLISHED["five levels"])
    published = VQGAN.from_published(path, stack=2)
    save_quantizer(published, tmp_path / "published")
    again = load_quantizer(tmp_path / "published")
    assert torch.equal(again.encode(frames(2, channels=6)), published.encode(frames(2, channels=6)))


def test_tokenize_takes_codes_and_no_features(trained: tuple[VQGAN, list[float]], dataset: Episodes) -> None:
    codes, features = tokenize(trained[0], dataset.subset([0]), batch_size=16)
    assert codes.shape == (40, 108)
    assert features.shape == (40, 0)


class KilledError(Exception):
    pass


def test_training_resumes_bit_for_bit(dataset: Episodes, tmp_path: Path) -> None:
    config = LoopConfig(steps=52, batch_size=2)
    small = VQGANConfig(**{**vars(TINY), "channels": 4})
    checkpoints = Checkpoints(tmp_path / "state.pt", "a", every=40)
    plain = train_quantizer(fresh(1, config=small), dataset, config, seed=3)

    def kill(stage: str, step: int, numbers: object) -> None:
        raise KilledError

    with pytest.raises(KilledError):  # at step 50, 10 steps after the checkpoint
        train_quantizer(fresh(1, config=small), dataset, config, seed=3, checkpoints=checkpoints, log=kill)
    resumed = train_quantizer(fresh(2, config=small), dataset, config, seed=3, checkpoints=checkpoints)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


# ---- arguments that are refused


def test_bad_arguments() -> None:
    quantizer = fresh()
    with pytest.raises(VOCError, match="dtype float32; uint8"):
        quantizer.encode(torch.zeros(2, 9, SIZE, SIZE))
    for shape in ((2, 6, SIZE, SIZE), (9, SIZE, SIZE), (2, 9, SIZE, 6)):
        with pytest.raises(VOCError, match=r"\(batch, 9, 24, 24\) is needed"):
            quantizer.encode(torch.zeros(shape, dtype=torch.uint8))
    for codes, said in [
        (torch.zeros(2, 4, dtype=torch.int64), "108 tokens per row"),
        (torch.full((2, 108), 32), r"32\.\.32; 0\.\.31 is the codebook"),
        (torch.full((2, 108), -1), r"-1\.\.-1"),
    ]:
        with pytest.raises(VOCError, match=said):
            quantizer.embed(codes)
        with pytest.raises(VOCError, match=said):
            quantizer.decode(codes)
    for channels in (0, 4):
        with pytest.raises(VOCError, match="not stacked frames of 3 channels"):
            VQGAN((channels, SIZE, SIZE), TINY)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"channels": 0}, "channels is 0"),
        ({"code_dim": -1}, "code_dim is -1"),
        ({"codebook_weight": 0.0}, "codebook_weight is 0"),
        ({"multipliers": ()}, "one whole number above zero per level"),
        ({"multipliers": (1, 0)}, "one whole number above zero per level"),
        ({"attention_levels": (5,)}, "levels from 0 to 4 are accepted"),
        ({"side": 84}, "side 84 of a vqgan is not a multiple of 16"),
        ({"channels": 40}, "40 channels; at most 32, or a multiple of it"),
    ],
)
def test_bad_sizes(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(VOCError, match=said) as caught:
        VQGANConfig(**changes)
    assert one_sentence(str(caught.value))


def test_by_name() -> None:
    config = {**vars(TINY), "multipliers": [1, 2, 2], "attention_levels": [2]}
    built = build_quantizer("vqgan", (3, SIZE, SIZE), config)
    assert built.config == TINY
    small = VQGAN((9, 84, 84), VQGANConfig.small())
    assert small.n_tokens == 75
    assert sum(p.numel() for p in small.parameters()) < 1e6
    with pytest.raises(VOCError, match="unknown key"):
        build_quantizer("vqgan", (3, SIZE, SIZE), {"colour": 3})
