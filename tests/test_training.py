"""Training a VOC: one seed gives one model, parts that are given are used, every stage is logged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_joint import config_of, different
from worlds import SPEC, picture, refusal, small_config, write_world

from voc_rl import VOC, Episodes
from voc_rl.agents.networks import FrozenEncoder
from voc_rl.joint import JointTraining
from voc_rl.loop import LoopConfig
from voc_rl.ope import EvaluationConfig, PolicyEvaluator
from voc_rl.quantizers import MUSIKConfig, VQVAEConfig, tokenize, train_quantizer
from voc_rl.training import VOCConfig, fresh_networks, fresh_quantizer, ready_quantizer, train
from voc_rl.training_inputs import quantizer_of


@pytest.fixture(scope="module")
def episodes(tmp_path_factory: pytest.TempPathFactory) -> Episodes:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, rows=60)
    return Episodes.open(folder).load_frames()


def equal_states(one: VOC, two: VOC) -> bool:
    pairs = [
        (one.quantizer, two.quantizer),
        (one.occupancy, two.occupancy),
        (one.reward_head, two.reward_head),
    ]
    assert one.value_head is not None
    assert two.value_head is not None
    pairs.append((one.value_head, two.value_head))  # type: ignore[arg-type]
    return all(
        torch.equal(a, b)
        for x, y in pairs
        for a, b in zip(x.state_dict().values(), y.state_dict().values(), strict=True)
    )


def test_one_seed_gives_one_model(episodes: Episodes) -> None:
    config = small_config(quantizer=20, steps=30)
    dataset = episodes.subset([0, 1, 2, 3])
    torch.manual_seed(1)
    one = train(dataset, config)
    torch.manual_seed(2)  # the global state has no say
    two = train(dataset, config)
    assert equal_states(one, two)
    assert not equal_states(one, train(dataset, replace(config, seed=1)))


def test_training_takes_a_quantizer_and_tokens(episodes: Episodes) -> None:
    config = small_config(quantizer=20, steps=30)
    dataset = episodes.subset([0, 1, 2, 3])
    whole = train(dataset, config)
    tokens = tokenize(whole.quantizer, dataset)
    assert equal_states(whole, train(dataset, config, quantizer=whole.quantizer, tokens=tokens))
    assert "quantizer" in refusal(train, dataset, config, tokens=tokens)
    assert "tokenise this dataset" in refusal(train, episodes, config, quantizer=whole.quantizer, tokens=tokens)


def test_tokens_are_checked_before_anything_is_trained(episodes: Episodes, monkeypatch: pytest.MonkeyPatch) -> None:
    config, dataset = small_config(quantizer=5, steps=5), episodes.subset([0, 1])
    voc = train(dataset, config)
    codes, features = tokenize(voc.quantizer, dataset)
    arrays = train(dataset, config, quantizer=voc.quantizer, tokens=(codes.numpy(), features.numpy()))
    assert equal_states(voc, arrays)
    alone = replace(config, network=replace(config.network, features=False))
    assert (
        train(dataset, alone, quantizer=voc.quantizer, tokens=(codes.numpy(), None)).occupancy.config.feature_dim == 0
    )
    monkeypatch.setattr("voc_rl.loop.Descent.step", None)
    end = torch.full_like(codes, voc.quantizer.codebook_size)
    for tokens, said in (
        ((codes[:, :1], features), f"Codes have shape ({len(dataset)}, 1); 2 tokens per row are needed."),
        ((codes - 100, features), "is the codebook."),
        ((end, features), "Codes lie in 12..12; 0..11 is the codebook, and 12 is END, a future"),
        ((codes.numpy().astype(float), features), "Codes have dtype float64; whole numbers are needed"),
        (
            (codes, None),
            "Tokens lack the features of quantizer vqvae; give those of tokenize(quantizer, dataset), or a",
        ),
        ((codes, features[:, 1:]), f"Features have shape ({len(dataset)}, 23); ({len(dataset)}, 24) are needed."),
    ):
        assert said in refusal(train, dataset, config, quantizer=voc.quantizer, tokens=tokens)


@pytest.mark.parametrize(("name", "gammas"), [("vqvae", None), ("musik", (0.3, 0.8)), ("dino", None), ("vqgan", None)])
def test_the_default_type_makes_no_difference(
    episodes: Episodes, name: str, gammas: tuple[float, float] | None, tmp_path: Path
) -> None:
    config, dataset = replace(config_of(name, steps=(3, 4)), joint=None), episodes.subset([0, 1])
    reward = replace(config.reward, loop=LoopConfig(5, batch_size=16))
    config = replace(config, occupancy=replace(config.occupancy, gammas=gammas), reward=reward)
    dataset.action[dataset.step_type > 0] = np.random.default_rng(0).uniform(-1, 1, (2 * 59, 1))  # musik needs some
    obs = dataset.observations(np.arange(12))

    def found() -> list[np.ndarray]:
        voc = train(dataset, config)
        voc.save(tmp_path)
        again = VOC.load(tmp_path).fit_reward(dataset, lambda rows: 2 * rows.reward, config=config.reward)
        sampled = [one.value(obs, estimator="sample", samples=5).mean for one in (voc, again)]
        return [voc.value(obs).mean, *sampled, voc.successor_features(obs, 5)]

    expected = found()
    torch.set_default_dtype(torch.float64)
    try:
        for one, other in zip(expected, found(), strict=True):
            np.testing.assert_array_equal(one, other)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_quantizer_that_is_there_already_is_not_copied(episodes: Episodes) -> None:
    """Where it is has a number, which a command's word for it has not: ``cuda:0`` and ``cuda``."""
    own = fresh_quantizer(episodes, small_config())
    for device in (None, torch.device("cpu"), torch.device("cpu", 0)):
        assert ready_quantizer(own, episodes, small_config(), device) is own
    assert ready_quantizer(own, episodes, small_config(), torch.device("meta")) is not own


def test_the_quantizer_of_a_voc_is_used(episodes: Episodes) -> None:
    dataset = episodes.subset([0, 1])
    voc = train(dataset, small_config(quantizer=2, steps=2))
    assert train(dataset, small_config(steps=2), quantizer=voc).quantizer is voc.quantizer
    voc.spec = replace(voc.spec, task="other")
    with pytest.warns(UserWarning, match="trained with task 'other'"):
        quantizer_of(voc, dataset)


def test_neither_a_path_nor_a_dictionary_is_trained_on(episodes: Episodes) -> None:
    assert refusal(train, "pend").startswith("The dataset is str; Episodes are needed: voc_rl.Episodes.open(path), or")
    said = refusal(train, episodes, {"gamma": 0.9})
    assert said == "config is dict; a VOCConfig is needed, as of voc_rl.sizes.sized('tiny', gamma=0.9)."


def test_an_untrained_quantizer_is_not_used(episodes: Episodes) -> None:
    dataset, config = episodes.subset([0, 1]), small_config()
    said = refusal(train, dataset, config, quantizer=fresh_quantizer(dataset, config))
    assert "Quantizer vqvae is untrained, and its codes say nothing" in said


@pytest.mark.parametrize("name", ["vqvae", "dino"])
def test_what_joint_training_returns_can_be_trained_again(episodes: Episodes, name: str) -> None:
    """All but what is frozen for good, as the encoder and the codes of published files."""
    dataset, config = episodes.subset([0, 1]), config_of(name, steps=(4, 4))
    if name == "dino":
        config = replace(config, quantizer_config={**config.quantizer_config, "published": True, "features": False})
    fresh, quantizer = fresh_quantizer(dataset, config), train(dataset, config).quantizer
    trainable = {key for key, parameter in quantizer.named_parameters() if parameter.requires_grad}
    assert trainable == {key for key, parameter in fresh.named_parameters() if parameter.requires_grad}
    assert any(key.startswith(("encoder", "painter")) for key in trainable)
    before = {key: parameter.detach().clone() for key, parameter in quantizer.named_parameters()}
    for again in (train(dataset, config, quantizer=quantizer).quantizer,
                  train_quantizer(quantizer, dataset, LoopConfig(2, batch_size=8))):  # fmt: skip
        assert set(different(dict(again.named_parameters()), before)) == trainable
    said = refusal(train, dataset, config, quantizer=quantizer.requires_grad_(False))
    assert f"Quantizer {name} has no parameters that train" in said


def test_features_are_needed_where_nothing_else_is_read(episodes: Episodes, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"channels": 8, "multipliers": (1,), "attention_levels": (), "latent_channels": 8, "code_dim": 4, "side": 4}
    config = replace(small_config(), quantizer="vqgan", quantizer_config=sizes)
    without = fresh_quantizer(episodes, config)
    policy = SimpleNamespace(observation="pixels", predict=None)
    monkeypatch.setattr("voc_rl.loop.Descent.step", None)  # refused before anything is trained
    for asked in (
        lambda: FrozenEncoder(without, tokens=False),
        lambda: PolicyEvaluator(episodes, {"a": policy}, quantizer=without),
        lambda: PolicyEvaluator(episodes, {"a": policy}, config=EvaluationConfig(voc=config)),
    ):
        assert "Quantizer vqgan has no continuous features" in refusal(asked)
    assert FrozenEncoder(without, tokens=True).width == without.n_tokens * 4


def test_frames_get_a_patch_that_fits_them(tmp_path: Path) -> None:
    for size, patch in ((24, 6), (64, 4), (9, None)):
        write_world(tmp_path / str(size), episodes=1, rows=4, size=size, spec=replace(SPEC, size=size))
        dataset = Episodes.open(tmp_path / str(size))
        for name in ("vqvae", "musik"):
            config = VOCConfig(quantizer=name)
            if patch is None:
                assert "multiples of 12 are needed, or both of 4, 6 or 10 and another `patch`" in refusal(
                    fresh_quantizer, dataset, config
                )
                continue
            assert fresh_quantizer(dataset, config).config.patch == patch
            for sizes in ({"patch": 2}, {"vqvae": VQVAEConfig, "musik": MUSIKConfig}[name](patch=2)):
                chosen = replace(config, quantizer_config=sizes)
                assert fresh_quantizer(dataset, chosen).config.patch == 2


def test_discounts_of_the_datas_own_and_huge_rewards_are_refused_before_anything_is_trained(
    episodes: Episodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets would run through such discounts, and true returns not."""
    dataset = episodes.subset([0, 1])
    quantizer = fresh_quantizer(dataset, small_config())
    policy = SimpleNamespace(observation="pixels", predict=lambda *args, **kwargs: (np.zeros(1), None))
    dataset.discount[7] = 0.0
    monkeypatch.setattr("voc_rl.loop.Descent.step", None)
    for given in (None, quantizer):
        for joint in (None, JointTraining()):
            said = refusal(train, dataset, replace(small_config(), joint=joint), quantizer=given)
            assert "1 row(s) have a discount that training does not know (the first, row 7, has 0); write 1" in said
    assert "(the first, row 7, has 0)" in refusal(PolicyEvaluator, dataset, {"still": policy}, quantizer=quantizer)
    dataset.discount[7], dataset.reward[7] = 1.0, 1e16
    for joint in (None, JointTraining()):
        said = refusal(train, dataset, replace(small_config(), joint=joint), quantizer=quantizer)
        assert said.endswith("and training takes 1e+15 at most; divide the rewards by 1e+16.")
    assert "by 1e+16" in refusal(PolicyEvaluator, dataset, {"still": policy}, quantizer=quantizer)


@pytest.mark.parametrize("joint", [None, JointTraining()])
def test_rewards_of_rows_to_which_no_step_led_have_no_say(episodes: Episodes, joint: JointTraining | None) -> None:
    config = replace(small_config(quantizer=4, steps=8, reward=4), joint=joint)
    plain, other = episodes.subset([0, 1]), episodes.subset([0, 1])
    other.reward[other.starts] = 1e20
    assert equal_states(train(plain, config), train(other, config))


def test_training_logs_every_stage(episodes: Episodes) -> None:
    lines: list[tuple[str, int, dict[str, float]]] = []
    config = small_config(quantizer=60, steps=50)
    train(
        episodes.subset([0, 1, 2]),
        config,
        log=lambda stage, step, numbers: lines.append((stage, step, dict(numbers))),
    )
    assert {stage for stage, _, _ in lines} == {"quantizer", "occupancy", "reward", "reward_in_context"}
    assert [step for stage, step, _ in lines if stage == "quantizer"] == [50, 60]
    assert all(np.isfinite(list(numbers.values())).all() for _, _, numbers in lines)


@pytest.mark.parametrize("stage", ["quantizer", "occupancy", "joint"])
def test_the_same_call_goes_on_from_its_checkpoints(episodes: Episodes, tmp_path: Path, stage: str) -> None:
    config, dataset = small_config(quantizer=60, steps=60), episodes.subset([0, 1])
    config = replace(config, joint=JointTraining() if stage == "joint" else None)
    config = replace(config, reward=replace(config.reward, loop=LoopConfig(5)))
    whole, logged = train(dataset, config), list[tuple[str, int]]()

    def log(stage: str, step: int, numbers: object) -> None:
        logged.append((stage, step))
        if (stage, step) == cut:
            raise KeyboardInterrupt

    cut: tuple[str, int] | None = (stage, 50)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, config, checkpoints=str(tmp_path / "kept"), log=log)
    logged.clear()
    cut = None
    assert equal_states(train(dataset, config, checkpoints=tmp_path / "kept", log=log), whole)
    assert logged[0] == (stage, 50)  # from step 48, and what comes before it not again
    logged.clear()
    assert equal_states(train(dataset, config, checkpoints=tmp_path / "kept", log=log), whole)
    assert {name for name, _ in logged} <= {"reward", "reward_in_context"}


def test_checkpoints_of_another_training_are_refused(episodes: Episodes, tmp_path: Path) -> None:
    config, dataset, kept = small_config(quantizer=4, steps=4), episodes.subset([0, 1]), tmp_path / "kept"
    config = replace(config, reward=replace(config.reward, loop=LoopConfig(5)))
    voc = train(dataset, config, checkpoints=kept)
    changed = episodes.subset([0, 1])
    changed.reward[5] += 1
    others = replace(config, occupancy=replace(config.occupancy, gamma=0.4))
    for name, asked in (
        ("quantizer", lambda: train(episodes.subset([0, 2]), config, checkpoints=kept)),
        ("quantizer", lambda: train(changed, config, checkpoints=kept)),
        ("quantizer", lambda: train(dataset, replace(config, seed=1), checkpoints=kept)),
        ("occupancy", lambda: train(dataset, others, checkpoints=kept)),
        ("occupancy", lambda: train(dataset, config, quantizer=ready_quantizer(None, dataset, replace(config, seed=2)),
                                    checkpoints=kept)),
    ):  # fmt: skip
        said = refusal(asked)
        assert said == (
            f"{kept / name}.pt was written by a run with other settings or data; delete it to start anew, or give "
            "another folder of checkpoints."
        )
    codes, features = tokenize(voc.quantizer, dataset)
    given = {"quantizer": voc.quantizer, "checkpoints": kept}
    assert equal_states(train(dataset, config, tokens=(codes, features), **given), voc)  # type: ignore[arg-type]
    assert "occupancy.pt was written by" in refusal(train, dataset, config, tokens=(codes.flip(0), features), **given)
    longer = replace(config, quantizer_training=LoopConfig(9))  # nothing to a quantizer that is there
    assert equal_states(train(dataset, longer, **given), voc)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refusal(train, dataset, config, checkpoints=tmp_path / "file")
    assert refusal(train, dataset, config, checkpoints=3) == (
        "checkpoints is int; the path of a folder for them is needed."
    )


def test_the_discount_that_is_meant_of_several_changes_no_weights(episodes: Episodes) -> None:
    config, dataset = small_config(quantizer=4, steps=20), episodes.subset([0, 1])
    config = replace(config, reward=replace(config.reward, loop=LoopConfig(5)))
    for joint in (None, JointTraining()):
        found = []
        for gamma in (0.4, 0.8):
            occupancy = replace(config.occupancy, gamma=gamma, gammas=(0.3, 0.8))
            found.append(train(dataset, replace(config, occupancy=occupancy, joint=joint)))
        assert equal_states(*found)
        assert [voc.gamma for voc in found] == [0.4, 0.8]


def test_pictures_and_networks_of_one_seed_repeat(episodes: Episodes) -> None:
    config = small_config()
    quantizer = fresh_quantizer(episodes, config)
    a, b = fresh_networks(quantizer, config), fresh_networks(quantizer, config)
    for one, two in zip(a, b, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one.parameters(), two.parameters(), strict=True))
    frames = picture(np.array([0, 3]), 24)
    assert frames[0, 0, 9, 2] == frames[1, 0, 9, 20] == 240
