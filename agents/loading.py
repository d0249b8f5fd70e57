"""Policies, and code of the user's own, named on the command line."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from voc_rl.agents.actors import GaussianActor, load_policy, shipped_policies
from voc_rl.agents.offline import OfflineAgent
from voc_rl.errors import VOCError
from voc_rl.policy import observation_of

# what Stable-Baselines3 calls the tensors of a SAC actor with two hidden layers, and what we call them
_SAC = {
    "actor.latent_pi.0": "layers.0",
    "actor.latent_pi.2": "layers.1",
    "actor.mu": "mu",
    "actor.log_std": "log_std",
}
_RELU = str(torch.nn.ReLU)  # as a saved model says it in words, beside the pickle that is not opened


def policy_of(name: str) -> Any:
    """A policy by name: a shipped actor, an actor's ``.safetensors``, a SAC ``.zip``, the folder of a saved
    ``OfflineAgent``, or ``module:callable``.

    ``module:callable`` imports the module and calls the callable, which returns the policy: that runs its code. The
    other kinds run none. A SAC that learned under ``VecNormalize`` has to come through
    ``module:callable`` (``sac_actor`` says why).

    Raises:
        VOCError: nothing of that name, a damaged file, or something that is no policy.
    """
    if name.endswith(".zip"):
        return sac_actor(Path(name))
    if (Path(name) / "agent.json").is_file():
        return OfflineAgent.load(name)
    if (zipped := Path(f"{name}.zip")).is_file() and not Path(name).exists() and name not in shipped_policies():
        return sac_actor(zipped)  # as Stable-Baselines3 finds it
    if ":" not in name or Path(name).exists():
        return load_policy(name)
    make = callable_of(name)
    try:
        signature(make).bind()
    except ValueError:  # written in C, it may not tell
        pass
    except TypeError as error:
        raise VOCError(f"{name!r} names no callable without arguments that returns a policy ({error}).") from error
    policy = make()  # what goes wrong inside is for its author to see
    observation_of(policy)
    return policy


def callable_of(name: str) -> Callable[..., Any]:
    """What ``module:callable`` names; the module is imported, from the working directory too, which runs its code.

    Raises:
        VOCError: no such module or callable.
    """
    module, _, attribute = name.rpartition(":")
    if module.endswith(".py"):
        raise VOCError(f"{name!r} names a file, not a module; {Path(module).stem}:{attribute} is meant, in its folder.")
    if str(Path.cwd()) not in sys.path:  # an installed command does not look there by itself
        sys.path.append(str(Path.cwd()))  # last: nothing there takes the place of an installed module
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise VOCError(f"{name!r} names no module:callable that can be imported ({error}).") from error
    if not callable(found):
        raise VOCError(f"{name!r} names {found!r}, which cannot be called.")
    return found


def sac_actor(path: Path) -> GaussianActor:
    """The actor of a SAC model that Stable-Baselines3 saved, of the flat state, two hidden ReLU layers.

    Reads the weights and the plain text of the settings: what is pickled beside them is not opened. The zip does not
    say what scaled or made the flat observations: an agent that learned under ``VecNormalize``, or on a value wrapper's
    features, goes through ``module:callable``, which returns a policy that does the same to states.

    Raises:
        VOCError: no such file, another algorithm, another network, other observations, or a file that holds more than
            tensors.
    """
    hint = "load it with Stable-Baselines3 in a function that returns it, and name that, module:callable"
    try:
        with zipfile.ZipFile(path) as archive:
            weights = torch.load(io.BytesIO(archive.read("policy.pth")), map_location="cpu", weights_only=True)
            settings = json.loads(archive.read("data"))
    except FileNotFoundError as error:
        raise VOCError(f"No policy {path}.") from error
    except Exception as error:  # zipfile, torch and json each have their own
        raise VOCError(f"{path} is no whole model of Stable-Baselines3 that holds only tensors; {hint}.") from error
    names = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in _SAC.items() for kind in ("weight", "bias")}
    actor = {name for name in weights if name.startswith("actor.")}
    if other := _unread(settings, actor == set(names)):
        raise VOCError(f"{path} is no SAC model with two hidden ReLU layers of the flat state: {other}; {hint}.")
    return GaussianActor({ours: weights[theirs].numpy() for theirs, ours in names.items()}, name=path.stem)


def _unread(settings: dict[str, Any], two_layers: bool) -> str:
    """In what a saved agent is another than those that are read, in words; else "". Its actor's weights do not show
    every difference: an extractor may have none."""
    policy, space = settings.get("policy_kwargs") or {}, settings.get("observation_space") or {}
    if not two_layers:
        return "its actor has other layers"
    if settings.get("use_sde"):
        return "it explores by use_sde"
    if len(space.get("_shape") or ()) != 1 or "float" not in str(space.get("dtype")):
        return "it does not observe one row of floats"
    if policy.get("activation_fn", _RELU) != _RELU:
        return f"its activation_fn is {policy['activation_fn']}"
    return "it has a features_extractor_class" if "features_extractor_class" in policy else ""
