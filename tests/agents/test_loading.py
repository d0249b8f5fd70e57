"""Policies by name: the actor inside a real layout of a SAC zip, callables, and what is refused."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small import Payload

from voc_rl.agents import AgentConfig, Deterministic, OfflineAgent, load_policy, policy_of, shipped_policies
from voc_rl.errors import VOCError

NAMES = {"layers.0": "actor.latent_pi.0", "layers.1": "actor.latent_pi.2", "mu": "actor.mu", "log_std": "actor.log_std"}


PLAIN = {"use_sde": False, "policy_kwargs": {}, "observation_space": {"_shape": [24], "dtype": "float32"}}


def zipped(path: Path, weights: object, **settings: object) -> Path:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", buffer.getvalue())
        archive.writestr("data", json.dumps({**PLAIN, **settings}))
    return path


def weights() -> dict[str, torch.Tensor]:
    ours = load_file(shipped_policies()["walker-walk/step_60000"])
    theirs = {f"{NAMES[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": tensor for name, tensor in ours.items()}
    return {**theirs, "critic.qf0.0.weight": torch.zeros(2, 2)}


def test_a_sac_zip_acts_as_the_actor_that_it_holds(tmp_path: Path) -> None:
    policy = policy_of(str(zipped(tmp_path / "model.zip", weights())))
    states = np.random.default_rng(0).normal(size=(5, 24))
    expected = load_policy("walker-walk/step_60000").predict(states, deterministic=True)[0]
    np.testing.assert_array_equal(policy.predict(states, deterministic=True)[0], expected)


def test_the_folder_of_a_saved_agent_is_a_policy(tmp_path: Path) -> None:
    agent = OfflineAgent((3, 16, 16), 2, AgentConfig(inputs="frames", width=8), name="clone")
    agent.save(tmp_path / "agent")
    policy, obs = policy_of(str(tmp_path / "agent")), np.full((2, 3, 16, 16), 9, np.uint8)
    assert repr(policy) == "OfflineAgent(clone)"
    np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], agent.predict(obs, deterministic=True)[0])
    with pytest.raises(VOCError, match=r"No policy .* the folder of a saved OfflineAgent serves too\), or cheetah"):
        policy_of(str(tmp_path))


def test_a_zip_that_holds_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save({"actor.mu.weight": Payload(trap)}, buffer)
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("policy.pth", buffer.getvalue())
        archive.writestr("data", json.dumps({}))
    with pytest.raises(VOCError, match="holds only tensors"):
        policy_of(str(path))
    assert not trap.exists()
    pickle.loads(pickle.dumps(Payload(trap)))
    assert trap.exists()  # the trap works where pickles are opened


@pytest.mark.parametrize(
    ("change", "settings", "other"),
    [
        ({"actor.latent_pi.4.weight": torch.zeros(2, 2)}, {}, "its actor has other layers"),
        ({}, {"use_sde": True}, "it explores by use_sde"),
        ({}, {"policy_kwargs": {"activation_fn": str(torch.nn.Tanh)}}, "its activation_fn is <class 'torch.*Tanh'>"),
        ({}, {"policy_kwargs": {"features_extractor_class": "<class 'Eyes'>"}}, "it has a features_extractor_class"),
        ({}, {"observation_space": {"_shape": None}}, "it does not observe one row of floats"),
        ({}, {"observation_space": {"_shape": [9, 84, 84], "dtype": "uint8"}}, "it does not observe one row of floats"),
        ({}, {"observation_space": {"_shape": [24], "dtype": "int64"}}, "it does not observe one row of floats"),
    ],
)
def test_another_network_is_refused(
    tmp_path: Path, change: dict[str, torch.Tensor], settings: dict[str, object], other: str
) -> None:
    path = zipped(tmp_path / "model.zip", {**weights(), **change}, **settings)
    with pytest.raises(VOCError, match=f"two hidden ReLU layers of the flat state: {other}; load it with"):
        policy_of(str(path))


def test_a_zip_is_found_without_its_ending_and_may_name_its_relu(tmp_path: Path) -> None:
    named = {"policy_kwargs": {":type:": "<class 'dict'>", "net_arch": "[32, 32]", "activation_fn": str(torch.nn.ReLU)}}
    zipped(tmp_path / "model.zip", weights(), **named)
    assert repr(policy_of(str(tmp_path / "model"))) == "GaussianActor(model)"


def test_names_that_are_no_policies(tmp_path: Path) -> None:
    (tmp_path / "cut.zip").write_bytes(b"PK")
    for name, message in (
        (str(tmp_path / "none.zip"), "No policy"),
        (str(tmp_path / "cut.zip"), "no whole model"),
        ("mine.py:make", "names a file, not a module; mine:make is meant"),
        ("nowhere:make", "names no module:callable"),
        ("builtins:chr", "names no callable without arguments"),
        ("builtins:__name__", "cannot be called"),
        ("builtins:dict", "is no policy"),
        ("walker-walk/step_7", "No policy"),
    ):
        with pytest.raises(VOCError, match=message):
            policy_of(name)


def broken() -> object:
    raise AttributeError("no such actor")


def walker() -> object:
    return load_policy("walker-walk/step_0")


def test_a_callable_and_the_deterministic_wrapper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(AttributeError, match="no such actor"):  # an error of the callable's own
        policy_of("test_loading:broken")
    policy = Deterministic(policy_of("test_loading:walker"))
    states = np.ones((2, 24))
    acted = walker().predict(states, deterministic=True)[0]  # type: ignore[attr-defined]
    np.testing.assert_array_equal(policy.predict(states)[0], acted)
    np.testing.assert_array_equal(policy.draws(states, 3, np.random.default_rng(0)), [acted] * 3)
