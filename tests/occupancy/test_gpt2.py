"""GPT-2 files in Hugging Face's layout: logits equal to the published formulas, and refusals."""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from occupancy_table import all_logits
from small import Payload
from test_readme import README, blocks
from torch import Tensor
from vqgan_layout import PUBLISHED, random_weights
from worlds import loop, one_sentence, refusal, write_world

from voc_rl import VOC
from voc_rl.errors import VOCError
from voc_rl.occupancy import OccupancyTransformer, sample_futures
from voc_rl.values import RewardConfig

V, POSITIONS = 40, 64


def gpt2(layers: int = 2, width: int = 24, vocabulary: int = V, positions: int = POSITIONS) -> dict[str, Tensor]:
    """Random weights under Hugging Face's names; Conv1D weights are (in, out)."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return 1.5 * width**-0.5 * torch.randn(shape, generator=generator)

    tensors = {"transformer.wte.weight": draw(vocabulary, width), "transformer.wpe.weight": draw(positions, width)}
    for i in range(layers):
        block = f"transformer.h.{i}."
        for norm in ("ln_1", "ln_2"):
            tensors |= {f"{block}{norm}.weight": 1 + draw(width), f"{block}{norm}.bias": draw(width)}
        for name, inputs, outputs in (
            ("attn.c_attn", width, 3 * width), ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width), ("mlp.c_proj", 4 * width, width),
        ):  # fmt: skip
            tensors |= {f"{block}{name}.weight": draw(inputs, outputs), f"{block}{name}.bias": draw(outputs)}
    tensors |= {"transformer.ln_f.weight": 1 + draw(width), "transformer.ln_f.bias": draw(width)}
    return {**tensors, "lm_head.weight": tensors["transformer.wte.weight"]}


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * weight + bias


def logits_of(tensors: dict[str, Tensor], ids: Tensor, n_head: int) -> Tensor:
    """GPT-2 by its formulas, head by head, in float64."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    T, width = ids.shape[1], t["transformer.wte.weight"].shape[1]
    d = width // n_head
    x = t["transformer.wte.weight"][ids] + t["transformer.wpe.weight"][:T]
    hidden_from = torch.ones(T, T, dtype=torch.bool).triu(1)
    layers = sum(name.endswith("ln_1.weight") for name in t)
    for i in range(layers):
        w = {name.removeprefix(f"transformer.h.{i}."): tensor for name, tensor in t.items()}
        a = norm(x, w["ln_1.weight"], w["ln_1.bias"]) @ w["attn.c_attn.weight"] + w["attn.c_attn.bias"]
        q, k, v = a.split(width, -1)
        heads = []
        for h in range(n_head):
            part = slice(h * d, (h + 1) * d)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(d)
            heads.append(scores.masked_fill(hidden_from, -math.inf).softmax(-1) @ v[..., part])
        x = x + torch.cat(heads, -1) @ w["attn.c_proj.weight"] + w["attn.c_proj.bias"]
        m = norm(x, w["ln_2.weight"], w["ln_2.bias"]) @ w["mlp.c_fc.weight"] + w["mlp.c_fc.bias"]
        m = 0.5 * m * (1 + torch.tanh(math.sqrt(2 / math.pi) * (m + 0.044715 * m**3)))
        x = x + m @ w["mlp.c_proj.weight"] + w["mlp.c_proj.bias"]
    return norm(x, t["transformer.ln_f.weight"], t["transformer.ln_f.bias"]) @ t["transformer.wte.weight"].T


def written(path: Path, tensors: Any) -> Path:
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize(("layers", "width", "n_head"), [(2, 24, 8), (4, 32, 4), (1, 768, 8)])
@pytest.mark.parametrize("buffers", [False, True])
def test_logits_are_those_of_the_formulas(layers: int, width: int, n_head: int, buffers: bool, tmp_path: Path) -> None:
    tensors = gpt2(layers, width)
    saved = dict(tensors)
    for i in range(layers if buffers else 0):
        mask = torch.ones(1, 1, POSITIONS, POSITIONS, dtype=torch.bool).tril()
        saved |= {f"transformer.h.{i}.attn.bias": mask, f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4)}
    model = OccupancyTransformer.from_published(written(tmp_path / "gpt.pth", saved), n_head=n_head)
    ids = torch.randint(V, (3, 30), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = model(ids)
    assert logits.shape == (3, 30, V)
    exact = logits_of(tensors, ids, n_head)
    assert (logits - exact).abs().max() < 1e-4
    assert exact.std() > 0.5
    assert (logits - logits_of(tensors, ids, 1)).abs().max() > 0.01  # the number of heads matters
    assert not model.training


def test_the_default_type_makes_no_difference(tmp_path: Path) -> None:
    path = written(tmp_path / "gpt.pth", gpt2())
    torch.set_default_dtype(torch.float64)
    try:
        model = OccupancyTransformer.from_published(path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.float32}


def test_paper_size(tmp_path: Path) -> None:
    """4 layers, width 768, 1024 codes and positions; sampled with 75 tokens."""
    path = written(tmp_path / "gpt.pth", gpt2(4, 768, 1024, 1024))
    model = OccupancyTransformer.from_published(path, n_tokens=75)
    assert (model.config.n_layer, model.config.width, model.config.codebook_size) == (4, 768, 1024)
    assert model.positions.weight.shape == (150, 768)
    whole = OccupancyTransformer.from_published(path)
    ids = torch.randint(1024, (1, 150), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), whole(ids))
        shared = all_logits(model, model.prefix(ids[:, :75]), ids[:, None, 75:])[:, 0]
        torch.testing.assert_close(shared[..., :1024], model(ids)[:, 74:149], atol=1e-3, rtol=1e-3)
    drawn = sample_futures(model, ids[:, :75], None, 2, torch.Generator().manual_seed(0))
    assert drawn.shape == (1, 2, 75)
    assert drawn.max() < 1024  # END is never sampled


def test_futures_are_of_the_50_likeliest_codes_unless_all_are_asked_for(tmp_path: Path) -> None:
    """As the public code sampled; which codes these are, the formulas say."""
    tensors = gpt2(vocabulary=200)
    path, context = written(tmp_path / "gpt.pth", tensors), torch.arange(4)[None]
    likeliest = set(logits_of(tensors, context, 8)[0, -1].topk(50).indices.tolist())
    published = OccupancyTransformer.from_published(path, n_tokens=4)
    every = OccupancyTransformer.from_published(path, n_tokens=4, top_k=None)
    few, all_codes = (
        set(sample_futures(model, context, None, 2000, torch.Generator().manual_seed(0))[0, :, 0].tolist())
        for model in (published, every)
    )
    assert few <= likeliest
    assert len(few) > 25
    assert not all_codes <= likeliest


def test_nested_and_bare_state_dicts(tmp_path: Path) -> None:
    tensors, ids = gpt2(), torch.arange(10)[None]
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    plain = OccupancyTransformer.from_published(written(tmp_path / "a.pth", tensors))(ids)
    for i, other in enumerate(({"state_dict": tensors}, bare)):
        assert torch.equal(OccupancyTransformer.from_published(written(tmp_path / f"{i}.pth", other))(ids), plain)


@pytest.mark.skipif(not README.exists(), reason="there are no pages")
def test_published_parts_become_a_voc_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_world(Path("runs/demo/data"), episodes=2, rows=12, size=84)
    sizes = PUBLISHED["five levels"]
    torch.save(random_weights(sizes), "vqvae.pth")
    torch.save(gpt2(vocabulary=sizes.codebook_size, positions=150), "gpt.pth")
    monkeypatch.setattr("voc_rl.values.RewardConfig", lambda: RewardConfig(loop=loop(5)))
    page = README.parent / "docs" / "quantizers.md"
    (block,) = [block for block in blocks("python", page=page) if "OccupancyTransformer.from_published" in block]
    found: dict[str, Any] = {}
    exec(compile(block, "quantizers.md", "exec"), found)
    voc, obs = found["voc"], found["episodes"].observations([10])
    voc.save("saved")
    assert VOC.load("saved").quantizer.n_tokens == 75
    assert voc.value(obs, estimator="sample", samples=4).mean.shape == (1,)
    assert "use estimator='sample'" in refusal(voc.value, obs)
    said = refusal(VOC, voc.quantizer, voc.occupancy, None, None, 0.9, voc.spec)
    assert said == "A VOC needs a reward head; voc_rl.values.fit_reward_head fits one to the rewards of episodes."


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in gpt2().items() if key != name}


@pytest.mark.parametrize(("tensors", "words"), [
    (without("transformer.wte.weight"), "is not a GPT-2 state dict"),
    (without("transformer.h.1.ln_2.bias"), "missing blocks.1.norm_2.bias, unexpected nothing"),
    ({**gpt2(), "transformer.h.0.attn.extra.weight": torch.zeros(2)}, "unexpected h.0.attn.extra.weight"),
    ({**gpt2(), "transformer.h.0.mlp.c_fc.bias": torch.zeros(2)}, "has shape (2,), (96,) is needed"),
    ({**gpt2(), "lm_head.weight": torch.zeros(V, 24)}, "a tied head is needed"),
    ({"quantize.embedding.weight": torch.zeros(4, 4)}, "is not a GPT-2 state dict"),
    ([1, 2], "holds no state dict"),
    ({"transformer.wte.weight": "text"}, "holds no state dict"),
])  # fmt: skip
def test_other_files_are_refused(tensors: Any, words: str, tmp_path: Path) -> None:
    path = written(tmp_path / "gpt.pth", tensors)
    with pytest.raises(VOCError) as caught:
        OccupancyTransformer.from_published(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert one_sentence(str(caught.value)), str(caught.value)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "was_here"
    for name, content in (("torch.pth", {**gpt2(), "x": Payload(mark)}), ("plain.pth", None)):
        path = tmp_path / name
        if content is None:
            path.write_bytes(pickle.dumps(Payload(mark)))
        else:
            torch.save(content, path)
        with pytest.raises(ValueError, match=r"refused|not a whole torch file"):
            OccupancyTransformer.from_published(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()  # it would have


def test_arguments(tmp_path: Path) -> None:
    path = written(tmp_path / "gpt.pth", gpt2())
    with pytest.raises(VOCError, match="width 24 is not a multiple of n_head 5"):
        OccupancyTransformer.from_published(path, n_head=5)
    with pytest.raises(VOCError, match=r"n_tokens is 33; .* has 64 positions, for 1 to 32 tokens"):
        OccupancyTransformer.from_published(path, n_tokens=33)
    with pytest.raises(VOCError, match="does not exist"):
        OccupancyTransformer.from_published(tmp_path / "none.pth")
