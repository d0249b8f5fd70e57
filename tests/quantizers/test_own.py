"""Quantizers of one's own and published ones, as docs/quantizers.md writes them, and what is refused of one's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_readme import README, blocks
from vqgan_layout import PUBLISHED, random_weights
from worlds import refusal, write_world

from voc_rl import VOC, Episodes, sizes, train
from voc_rl.joint import JointTraining
from voc_rl.loop import LoopConfig
from voc_rl.quantizers import QUANTIZERS, VQVAE, build_quantizer, tokenize
from voc_rl.training import VOCConfig

pytestmark = pytest.mark.skipif(not README.exists(), reason="there are no pages")
quick = partial(sizes.sized, steps=2, quantizer_steps=2, reward_steps=2)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the snippet of the page that has some words in it; training takes two steps, of size tiny."""
    monkeypatch.chdir(tmp_path)
    write_world(Path("runs/demo/data"), episodes=3, rows=30, size=84)
    monkeypatch.setattr(sizes, "sized", lambda size, *words, **others: quick("tiny", *words, **others))
    monkeypatch.setitem(QUANTIZERS, "nearest", QUANTIZERS["vqvae"])  # so that the page's entry goes afterwards

    def snippet(words: str) -> dict[str, Any]:
        (block,) = [b for b in blocks("python", page=README.parent / "docs" / "quantizers.md") if words in b]
        found: dict[str, Any] = {"__name__": __name__}
        exec(compile(block, "quantizers.md", "exec", dont_inherit=True), found)
        return found

    return snippet


def test_the_class_of_the_page_is_trained_saved_and_refused_where_it_breaks_its_word(run: Any) -> None:
    found = run("class Nearest(Quantizer)")
    voc, cls = found["voc"], found["Nearest"]
    episodes = Episodes.open("runs/demo/data")
    obs = episodes.observations(np.arange(30))
    loaded = VOC.load("runs/nearest")
    assert isinstance(loaded.quantizer, cls)
    np.testing.assert_array_equal(loaded.value(obs).mean, voc.value(obs).mean)
    codes, features = tokenize(voc.quantizer, episodes)
    nearest = (features.float()[:, None] - voc.quantizer.vectors).square().sum(-1).amin(1)
    chosen = (features.float() - voc.quantizer.vectors[codes[:, 0].long()]).square().sum(-1)
    torch.testing.assert_close(chosen, nearest, atol=1e-3, rtol=0)
    error = (voc.quantizer.decode(codes[:30].long()).float() - torch.from_numpy(obs)).abs().mean()
    assert error < 30  # of 255: the square, seen coarsely
    assert "has no parameters to train jointly" in refusal(
        train, episodes, VOCConfig(quantizer="nearest", joint=JointTraining(), quantizer_training=LoopConfig(2))
    )
    for changed, said in (
        (
            {"feature_dim": 5},
            "gives codes (90, 1) and features (90, 324); by its n_tokens and feature_dim (90, 1) and (90, 5)",
        ),
        ({"n_tokens": 2}, "by its n_tokens and feature_dim (90, 2)"),
        ({"codebook_size": 1}, "Codes lie in 0.."),
        ({"codebook_size": 40_000}, "Quantizer nearest: codebook_size is 40000; at most 32768 codes are accepted"),
        (
            {"features": lambda obs: 1e5 + cls.features(voc.quantizer, obs)},
            "features above 65504, the most that float16",
        ),
    ):
        broken = cls(episodes.observation_shape, found["NearestConfig"]())
        broken.load_state_dict(voc.quantizer.state_dict())
        for name, value in changed.items():
            setattr(broken, name, value)
        broken.latents = voc.quantizer.latents
        assert said in refusal(tokenize, broken, episodes)


def test_entries_that_could_not_be_loaded_again_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUANTIZERS, "mine", VQVAE)  # type: ignore[misc]
    assert "is <class" in refusal(build_quantizer, "mine", (9, 24, 24))
    assert "(its class, the dataclass of its config)" in refusal(build_quantizer, "mine", (9, 24, 24))
    monkeypatch.setitem(QUANTIZERS, "mine", QUANTIZERS["vqvae"])
    said = refusal(build_quantizer, "mine", (9, 24, 24))
    assert said == "QUANTIZERS['mine'] calls itself 'vqvae'; its `name` has to be 'mine'."


def test_sizes_are_replaced_as_the_page_says(run: Any) -> None:
    voc = run("NetworkSize(")["voc"]
    assert (voc.occupancy.config.n_layer, voc.occupancy.config.width, voc.quantizer.n_tokens) == (3, 192, 12)


def test_published_codes_are_written_read_and_trained_on_as_the_page_says(run: Any) -> None:
    torch.save(random_weights(PUBLISHED["five levels"]), "vqvae.pth")
    found = run("write_latents(")
    voc, episodes = found["voc"], found["episodes"]
    assert voc.occupancy.config.n_tokens == 75
    assert voc.occupancy.config.top_k == 50
    stacked = tokenize(voc.quantizer, Episodes.open("runs/demo/data"))[0]
    np.testing.assert_array_equal(found["tokens"][0], stacked.numpy())
    assert voc.value(episodes.observations([10]), estimator="sample", samples=4).mean.shape == (1,)
    said = refusal(tokenize, VQVAE.from_published("vqvae.pth"), episodes)
    assert "reads observations (3, 84, 84), and those of" in said
    assert said.endswith("are (9, 84, 84); open them with stack=1, as Episodes.open(path, stack=1) or --stack 1.")
    write_world(Path("small"), episodes=1, rows=5, size=24)
    assert refusal(tokenize, voc.quantizer, Episodes.open("small")).endswith("give frames of 84 x 84 pixels.")
