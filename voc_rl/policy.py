"""What a policy is, for everything that acts or is evaluated: Stable-Baselines3's ``predict``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from voc_rl.errors import VOCError, reason_of

PREDICT = "predict(observation, state=None, episode_start=None, deterministic=False)"


@runtime_checkable
class Policy(Protocol):
    """Anything with Stable-Baselines3's ``predict``, and ``observation``: what it looks at.

    ``observation`` is ``"state"`` (the flat state, float32 (B, S) or (S,)) or ``"pixels"`` (stacked frames,
    uint8 (B, 3K, H, W) or (3K, H, W)). A Stable-Baselines3 agent, which lacks it, is taken for what its
    ``observation_space`` is (``observation_of``).
    """

    observation: Literal["state", "pixels"]

    def predict(
        self,
        observation: np.ndarray,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        """Actions, float32 in [-1, 1], for one observation or a batch, and the recurrent state (or None).

        A policy whose ``action_space`` is Gymnasium's ``Discrete`` gives numbers, which data hold one-hot. One with a
        recurrent state can act in an environment; where rows are shown one by one, as in policy evaluation, it is
        refused (``memoryless``).
        """
        ...


def observation_of(policy: Any) -> Literal["state", "pixels"]:
    """What a policy looks at: its ``observation``; where there is none, what its ``observation_space`` is, a flat space
    (states) or one of three dimensions (frames).

    Raises:
        VOCError: no ``predict``, neither tells, ``Dict`` observations, actions of other bounds than [-1, 1], or
            observations that a ``VecNormalize`` has to normalise first.
    """
    if not callable(getattr(policy, "predict", None)):
        raise VOCError(f"{named(policy)} is no policy; `predict` and `observation` ('state' or 'pixels') are needed.")
    _check_scales(policy)
    kind = getattr(policy, "observation", None)
    if kind is None:
        _check_shown(policy)
        kind = {1: "state", 3: "pixels"}.get(len(space_shape(policy) or ()))
    if kind == "state":
        return "state"
    if kind == "pixels":
        return "pixels"
    if kind is None:
        raise VOCError(f"{named(policy)} has no attribute `observation`; give it one, 'state' or 'pixels'.")
    raise VOCError(f"{named(policy)} says that it observes {kind!r}; its `observation` has to be 'state' or 'pixels'.")


def named(policy: Any) -> str:
    """What messages call a policy: its ``repr``, or its type where that takes several lines, as a network's."""
    words = repr(policy)
    return type(policy).__name__ if "\n" in words else words


@contextmanager
def asking(policy: Any, observation: np.ndarray, method: str = PREDICT) -> Iterator[None]:
    """For a block that calls ``method`` of a policy: without gradients, and as it acts. Networks that it is, or that
    are its attributes, are in eval mode meanwhile: with dropout on it would be another policy, and statistics of
    batches would move.

    Raises:
        VOCError: in place of any error of the policy's own.
    """
    torch: Any = sys.modules.get("torch")  # not imported for policies that need none; a network has imported it
    held = [] if torch is None else [policy, *getattr(policy, "__dict__", {}).values()]
    parts = [part for part in held if isinstance(part, torch.nn.Module)]
    before = [(module, module.training) for part in parts for module in part.modules()]
    try:
        for part in parts:
            part.eval()
        with nullcontext() if torch is None else torch.no_grad():
            yield
    except VOCError:
        raise
    except Exception as error:  # what is wrong with code of the user's own, only that says
        stack = f", stack {observation.shape[-3] // 3}" if observation.ndim > 2 else ""
        raise VOCError(
            f"{named(policy)} could not act on {observation.dtype} {observation.shape}{stack} "
            f"({type(error).__name__}: {reason_of(error)}); {method} is needed."
        ) from error
    finally:
        for module, training in before:
            module.training = training


def in_unit_bounds(space: Any) -> bool:
    """Whether a space of actions is bounded by -1 and 1, as far as it says."""
    return bool(np.all(getattr(space, "low", -1.0) == -1.0) and np.all(getattr(space, "high", 1.0) == 1.0))


def choices_of(space: Any) -> int | None:
    """How many actions a ``Discrete`` space has, which data hold one-hot; None for any other space."""
    return int(space.n) if hasattr(space, "n") and hasattr(space, "start") else None


def one_hot(numbers: Any, space: Any) -> np.ndarray:
    """Numbers of a ``Discrete`` space's actions, of any shape (...), as data hold them: float32 (..., n)."""
    return np.eye(space.n, dtype=np.float32)[np.asarray(numbers, np.int64) - space.start]


def one_hot_rows(actions: np.ndarray) -> bool:
    """Whether each of actions (N, A) is one-hot."""
    return bool(((actions == 1).sum(1) == 1).all()) and np.count_nonzero(actions) == len(actions)


def holds_choices(dataset: Any) -> bool:
    """Whether all that was taken in episodes are one-hot rows of two entries or more, as discrete ones are stored."""
    taken = dataset.action[dataset.step_type > 0]
    return len(taken) > 0 and taken.shape[1] > 1 and one_hot_rows(taken)


def numbers(rows: np.ndarray, space: Any) -> np.ndarray:
    """The numbers int64 (...) that one-hot rows (..., n) stand for in a ``Discrete`` space."""
    return rows.argmax(-1) + int(space.start)


def _check_scales(policy: Any) -> None:
    """Refuse agents whose numbers are not the data's: these hold actions in [-1, 1] and observations as they are."""
    if not in_unit_bounds(space := getattr(policy, "action_space", None)):
        raise VOCError(
            f"{named(policy)} acts in {space}, and data hold actions in [-1, 1]; give an object whose `predict` "
            "rescales them to that (agent.policy.scale_action does, of Stable-Baselines3's agents)."
        )
    if sees_normalised(policy):
        raise VOCError(
            f"{named(policy)} learned under VecNormalize, which data do not go through; give an object whose "
            "`predict` normalises first (VecNormalize.normalize_obs)."
        )


def sees_normalised(policy: Any) -> bool:
    """Whether it is an agent of Stable-Baselines3 that learned from observations that ``VecNormalize`` scaled."""
    return bool(getattr(getattr(policy, "get_vec_normalize_env", lambda: None)(), "norm_obs", False))


def _check_shown(policy: Any) -> None:
    """Refuse agents of ``Dict`` observations, and those that observe what a VOC says of frames: of the same width, it
    would be taken for states."""
    if parts := getattr(getattr(policy, "observation_space", None), "spaces", None):
        raise VOCError(
            f"{named(policy)} observes several things ({', '.join(map(str, parts))}), and Dict observations are not "
            "supported; let it learn from flat ones (gymnasium.wrappers.FlattenObservation), or give an object with "
            "`predict` and observation='state' that takes logged states apart."
        )
    if any(own.mode == "observation" for own in value_settings_of(getattr(policy, "get_env", lambda: None)())):
        raise VOCError(
            f"{named(policy)} observes what a VOC says of frames; give an object whose `predict` takes frames and asks "
            "it."
        )


def attributes_of(env: Any, name: str) -> list[Any]:
    """An attribute of each of Stable-Baselines3's environments; [] where there is none (None), they lack it, or
    they are closed."""
    try:
        return env.get_attr(name) if env is not None and env.has_attr(name) else []
    except (OSError, EOFError):  # processes of a closed environment answer no more
        return []


def value_settings_of(env: Any) -> list[Any]:
    """What the value wrappers in such an environment (None: there is none) were asked for."""
    while hasattr(env, "venv") and not hasattr(type(env), "value_settings"):
        env = env.venv
    if hasattr(type(env), "value_settings"):
        return list(env.value_settings)
    return [own for settings in attributes_of(env, "value_settings") for own in settings]


def space_shape(policy: Any) -> tuple[int, ...] | None:
    """Shape of the observations that a policy was made for; None where it does not say, or they have none."""
    return getattr(getattr(policy, "observation_space", None), "shape", None)


def memoryless(policy: Any, observation: np.ndarray, deterministic: bool) -> np.ndarray:
    """What ``predict`` gives for observations shown without what came before them; discrete actions as one-hot rows.

    Raises:
        VOCError: a policy that keeps a recurrent state, answers with something else than actions and state, gives
            actions outside [-1, 1], or fails.
    """
    with asking(policy, observation):
        found = policy.predict(observation, deterministic=deterministic)
        if not isinstance(found, tuple) or len(found) != 2:
            raise VOCError(
                f"{named(policy)} gave no pair of actions and state; its `predict` has to return (actions, None)."
            )
        if found[1] is not None:
            raise VOCError(
                f"{named(policy)} keeps a recurrent state; recurrent policies cannot be asked row by row, so give one "
                "that acts by the observation alone."
            )
        actions, space = np.asarray(found[0]), getattr(policy, "action_space", None)
        if choices_of(space) is not None:
            return one_hot(actions, space)
        check_actions(policy, actions)
        return actions


def check_actions(policy: Any, actions: np.ndarray) -> None:
    """Refuse actions (...) that are not in [-1, 1]: clipped, they would be another policy's.

    Raises:
        VOCError: some are outside, or NaN.
    """
    if actions.dtype.kind not in "biuf":
        return  # for those who know which shape they need
    wrong = ~(np.abs(actions) <= 1.0 + 1e-6)  # NaN too
    if wrong.any():
        raise VOCError(
            f"{named(policy)} gave the action {actions[wrong].flat[0]:.6g}; numbers from -1 to 1 are needed, so "
            "rescale them as the data's are (discrete ones: one-hot rows, or their numbers beside an `action_space`, "
            "Discrete)."
        )


def epsilon_greedy(mode: np.ndarray, epsilon: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` draws of one-hot rows (..., n), float32 (count, ..., n): each row is that of ``mode``, or with chance
    ``epsilon`` any, all alike."""
    shape, choices = (count, *mode.shape[:-1]), mode.shape[-1]
    some = np.eye(choices, dtype=np.float32)[rng.integers(choices, size=shape)]
    return np.where(rng.random((*shape, 1)) < epsilon, some, mode)


@runtime_checkable
class BehaviourPolicy(Protocol):
    """A policy that collects data: it draws actions from a generator and says how likely they were."""

    observation: Literal["state", "pixels"]

    def start_episode(self, rng: np.random.Generator) -> None:
        """Called once before each episode (a mixture draws its first member here)."""
        ...

    def sample(self, observation: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float, int]:
        """For one observation: the *unclipped* action (A,), its log-density, and the id of the acting policy."""
        ...
