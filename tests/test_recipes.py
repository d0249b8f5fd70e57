"""The recipe `paper`: what the public code did, and that it reaches training, sampling and the command."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from worlds import refusal, small_config, write_world

from voc_rl import VOC, Episodes, cli
from voc_rl.errors import VOCError
from voc_rl.joint import JointTraining
from voc_rl.loop import Descent, LoopConfig
from voc_rl.occupancy import OccupancyTraining, PolicyTraining
from voc_rl.occupancy.training import OccupancyTrainee
from voc_rl.pipeline import Pipeline
from voc_rl.quantizers import build_quantizer, tokenize
from voc_rl.runs import RunFolder
from voc_rl.sizes import SIZES, sized, with_recipe
from voc_rl.training import VOCConfig, fresh_networks, fresh_quantizer, train


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, episodes=6, rows=30)
    return folder


@pytest.fixture(scope="module")
def dataset(data: Path) -> Episodes:
    return Episodes.open(data).load_frames()


@pytest.fixture(scope="module")
def config() -> VOCConfig:
    return with_recipe(small_config(0.8), "paper")


@pytest.fixture(scope="module")
def voc(dataset: Episodes, config: VOCConfig) -> VOC:
    return train(dataset, config)


@pytest.mark.parametrize("size", sorted(SIZES))
def test_the_papers_numbers_at_every_size(size: str) -> None:
    ours, paper = SIZES[size], with_recipe(SIZES[size], "paper")
    training, loop = paper.occupancy, paper.occupancy.loop
    assert (training.n, training.futures, training.ema, training.top_k) == (1, 1, 0.9, 50)
    assert (training.context_loss, training.target_dropout) == (True, True)
    assert (loop.learning_rate, loop.weight_decay, loop.warmup, loop.batch_size) == (3e-4, 0.1, 0.05, 64)
    assert loop.betas == (0.9, 0.999)
    assert (paper.network.dropout, paper.network.attention_dropout, paper.network.features) == (0.2, 0.1, False)
    assert loop.steps == ours.occupancy.loop.steps
    assert (paper.network.width, paper.network.n_layer) == (ours.network.width, ours.network.n_layer)
    assert (paper.quantizer, paper.quantizer_config) == (ours.quantizer, ours.quantizer_config)
    assert with_recipe(ours, "voc") is ours
    assert paper.joint is None
    both = replace(ours, joint=JointTraining())
    assert with_recipe(both, "paper").joint == JointTraining(warmup=0.0, decay=0.0)
    assert with_recipe(both, "voc").joint == JointTraining()
    with pytest.raises(VOCError, match=r"Unknown recipe 'best'; accepted: paper, voc\."):
        with_recipe(ours, "best")  # type: ignore[arg-type]
    longer = sized(size, n=5)
    assert refusal(with_recipe, longer, "paper") == "n is 5, but the recipe paper has one-step targets; leave n out."
    assert with_recipe(longer, "voc").occupancy.n == 5


def test_sizes_of_quantizers() -> None:
    assert sized("tiny") == SIZES["tiny"]
    assert sized("small", "musik") == replace(SIZES["small"], quantizer="musik")
    assert build_quantizer("musik", (9, 84, 84), SIZES["small"].quantizer_config).n_tokens == 16
    dino = sized("small", "dino")
    assert dino.network == SIZES["small"].network
    quantizer = build_quantizer("dino", (9, 84, 84), dino.quantizer_config)
    assert (quantizer.n_tokens, quantizer.codebook_size) == (3 * 49, 256)
    for name, size, tokens in (("dino", "tiny", 3 * 9), ("vqgan", "tiny", 3 * 9), ("vqgan", "small", 3 * 25)):
        found = sized(size, name)
        assert (found.quantizer, found.network) == (name, SIZES[size].network)
        assert build_quantizer(name, (9, 84, 84), found.quantizer_config).n_tokens == tokens
    for name, frames, tokens, codes, heads in (("vqgan", 3, 75, 1024, 8), ("dino", 2, 392, 8192, 4)):
        published = sized("paper", name)
        network = published.network
        assert (network.n_layer, network.n_head, network.width) == (4, heads, 768)
        assert published.occupancy.loop.steps == 100_000
        with torch.device("meta"):  # sizes, not weights
            quantizer = build_quantizer(name, (3 * frames, 84, 84), published.quantizer_config)
        assert (quantizer.n_tokens, quantizer.codebook_size) == (tokens, codes)
    for words in (("huge", "vqvae"), ("tiny", "vae")):
        with pytest.raises(VOCError, match=r"Unknown (size 'huge'|quantizer 'vae'); accepted: "):
            sized(*words)


@pytest.mark.parametrize("size", sorted(SIZES))
@pytest.mark.parametrize("quantizer", ["vqvae", "dino"])
def test_a_config_that_is_changed_in_place_changes_no_size(size: str, quantizer: str) -> None:
    found, before = sized(size, quantizer), asdict(sized(size, quantizer))
    found.quantizer_config["hidden"] = 999
    assert asdict(sized(size, quantizer)) == before


def test_settings_leave_the_tuned_loops_of_a_size() -> None:
    found = sized(
        "small", "musik", gamma=0.8, gammas=(0.5, 0.95), n=3, steps=20, quantizer_steps=10, reward_steps=5, seed=4
    )
    size = SIZES["small"]
    occupancy = replace(size.occupancy, gamma=0.8, gammas=(0.5, 0.95), n=3, loop=replace(size.occupancy.loop, steps=20))
    assert found == replace(
        size, quantizer="musik", quantizer_training=replace(size.quantizer_training, steps=10), occupancy=occupancy,
        reward=replace(size.reward, loop=replace(size.reward.loop, steps=5)), seed=4,
    )  # fmt: skip
    tuned = LoopConfig(steps=700, batch_size=128, learning_rate=4e-3, weight_decay=0.05)
    assert OccupancyTraining(gamma=0.95).loop == SIZES["tiny"].occupancy.loop == tuned
    assert PolicyTraining().occupancy.loop == replace(tuned, steps=3000)
    refused = "seed is {}; a whole number from 0 to 2^63 - 1 is needed."
    for seed in (-1, 0.5, 2**63, "3"):
        assert refusal(VOCConfig, seed=seed) == refused.format(repr(seed))
    assert VOCConfig(seed=np.int64(3)).seed == 3  # type: ignore[arg-type]
    assert refusal(sized, "tiny", seed=-1) == "seed is -1; a whole number from 0 to 2^63 - 1 is needed."


def trainee(dataset: Episodes, config: VOCConfig) -> OccupancyTrainee:
    quantizer = fresh_quantizer(dataset, config)
    quantizer.initialise(torch.from_numpy(dataset.observations(np.arange(100))), torch.Generator().manual_seed(0))
    codes, _ = tokenize(quantizer.eval(), dataset)
    model, _ = fresh_networks(quantizer, config, ends=False)
    return OccupancyTrainee(model, None, dataset, codes, None, config.occupancy, 0)


def test_the_loss_is_a_language_models_on_context_and_future(dataset: Episodes, config: VOCConfig) -> None:
    plain = replace(config, network=replace(config.network, dropout=0.0, attention_dropout=0.0))
    own = trainee(dataset, plain)
    loss, numbers = own.loss_of(own.prepare(0, torch.Generator().manual_seed(0)))
    batch = own.stock[0]
    ids = torch.cat([own._codes(batch.rows), batch.futures[:, 0]], 1)
    with torch.no_grad():
        logits = own.model.logits(_hidden(own, ids))
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=0.01)  # the loop computes in bfloat16
    future = F.cross_entropy(logits[:, ids.shape[1] // 2 - 1 : -1].flatten(0, 1), batch.futures[:, 0].flatten())
    assert numbers["cross_entropy"].item() == pytest.approx(future.item(), rel=0.01)
    assert abs(future - expected) > 0.02 * expected


def _hidden(own: OccupancyTrainee, ids: torch.Tensor) -> torch.Tensor:
    """The last hidden states of flat sequences."""
    x = (own.model.codes(ids) + own.model.positions.weight[: ids.shape[1]])[:, None]
    for block in own.model.blocks:
        x = block(x)[0]
    return own.model.norm(x[:, 0])


def test_targets_are_noisy_where_dropout_is_left_on(dataset: Episodes, config: VOCConfig) -> None:
    for left_on in (True, False):
        own = trainee(dataset, replace(config, occupancy=replace(config.occupancy, target_dropout=left_on)))
        codes = own._codes(np.arange(20))
        with torch.no_grad():
            one, two = own.target.prefix(codes).last, own.target.prefix(codes).last
        assert torch.equal(one, two) != left_on
        before = torch.get_rng_state()
        Descent(own, own.config.loop, 0).step(0)
        assert torch.equal(torch.get_rng_state(), before)


def test_one_step_targets_and_one_future(dataset: Episodes, config: VOCConfig) -> None:
    own = trainee(dataset, config)
    own.prepare(0, torch.Generator().manual_seed(0))
    batch = own.stock[0]
    assert len(own.stock) == 1
    assert batch.futures.shape == (64, 1, 2)
    following = own._codes(batch.rows + 1)
    share = (batch.futures[:, 0] == following).all(1).float().mean()
    assert 0.1 < share < 0.6  # a fifth at gamma .8, and what the untrained target network hits


def test_a_trained_model_has_no_head_no_features_and_is_deterministic(voc: VOC, dataset: Episodes) -> None:
    assert voc.value_head is None
    assert voc.occupancy.config.feature_dim == 0
    assert voc.occupancy.config.top_k == 50
    obs = dataset.observations(np.arange(40))
    one, two = (voc.value(obs, estimator="sample").mean for _ in range(2))
    np.testing.assert_array_equal(one, two)
    with pytest.raises(VOCError, match="has no value head"):
        voc.value(obs)


def test_top_k_is_kept_and_used_for_values(voc: VOC, dataset: Episodes, tmp_path: Path) -> None:
    voc.save(tmp_path)
    greedy = VOC.load(tmp_path)
    assert greedy.occupancy.config.top_k == 50
    greedy.occupancy.config = replace(greedy.occupancy.config, top_k=1)
    obs = dataset.observations(np.arange(10))
    futures = greedy.sample_futures(obs, 8)
    assert (futures == futures[:, :1]).all()
    assert (voc.sample_futures(obs, 8) != futures).any()


def test_a_pipeline_scores_samples_alone(data: Path, config: VOCConfig, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        metrics = Pipeline(run, data, config).evaluate(samples=10, max_states=20)
    assert set(metrics["methods"]) == {"voc", "constant"}


def test_the_command_knows_recipes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--data", str(data), "--out", str(tmp_path / "run"), "--gamma", "0.5", "--recipe"]
    for recipe, words_of_error in (("best", "Unknown recipe 'best'"), ("paper --n 5", "has one-step targets")):
        with pytest.raises(SystemExit) as caught:
            cli.main([*words, *recipe.split()])
        assert caught.value.code == 2
        assert words_of_error in capsys.readouterr().err
