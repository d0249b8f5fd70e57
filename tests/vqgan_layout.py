"""The published VQGAN by its formulas, on its own names: random weights in its layout, and what they have to give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from small import generator
from torch import Tensor

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
