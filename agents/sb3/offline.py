"""Stable-Baselines3's off-policy agents on logged episodes: fill their replay buffer, train without an environment."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import configure_logger, polyak_update

from voc_rl.agents.offline import check_continuous
from voc_rl.agents.sb3.checks import check_actions, check_logged, check_own_codes, check_statistics
from voc_rl.agents.sb3.critic import VOCCritic
from voc_rl.agents.sb3.features import VOCFeaturesExtractor
from voc_rl.data import DataSpec, Episodes
from voc_rl.data.border import machine_memory
from voc_rl.data.spec import SPEC_NAMES
from voc_rl.errors import VOCError, check_positive
from voc_rl.model import VOC
from voc_rl.plugin import codes_as_vectors, shows_codes
from voc_rl.policy import attributes_of, choices_of, one_hot_rows
from voc_rl.progress import progress_bar
from voc_rl.quantizers import tokenize
from voc_rl.training_inputs import check_dataset

_AT_ONCE = 512  # transitions whose frames are stacked at once
_RATES = 100  # how often a schedule of the learning rate is read


def fill_replay_buffer(model: OffPolicyAlgorithm, dataset: Episodes, say: Callable[[str], None] | None = print) -> int:
    """Put the transitions of logged episodes into an agent's replay buffer; returns how many were put there.

    All of them for an agent with one environment; one with n fills whole rows of n, so that up to n - 1 transitions at
    the end of the data stay out. Observations are what the agent sees: stacked frames, the flat state, or codes of the
    frames, for an agent with a ``VOCFeaturesExtractor`` and for ``VOCCritic``. Episodes that a time limit cut are
    bootstrapped from their last frame (``handle_timeout_termination``), terminations are not.

    Args:
        model: SAC, TD3, DDPG or another off-policy agent with actions in [-1, 1], or DQN where the data's are one-hot.
        dataset: logged episodes. say: takes one line that names the memory, before it is taken; None: no line.

    Raises:
        VOCError: an agent without a plain replay buffer, other spaces than the data's, an environment that shows codes
            of another VOC, or values or features of one, or that shapes rewards, actions outside [-1, 1], a
            ``VecNormalize`` without statistics, episodes that are in the buffer already, or too little room there or in
            memory.

    Warns:
        UserWarning: an environment of another task or other frames than the data's, or data of another task or other
            frames than those that the agent's VOC was trained on.
    """
    buffer = _plain_buffer(model)
    _check_steps(buffer)
    check_statistics(model.get_vec_normalize_env())
    check_logged(model.get_env())
    check_dataset(dataset)
    _compare_specs(model, dataset.spec)
    taken = _actions(model, dataset)
    read = _reader(model, dataset)
    rows = np.flatnonzero(dataset.steps_left > 0)
    rows = rows[: len(rows) // buffer.n_envs * buffer.n_envs]  # whole buffer rows only
    filled = buffer.size() * buffer.n_envs
    _check_new(buffer, rows, dataset.reward[rows + 1], taken[rows + 1], read)
    room = buffer.buffer_size * buffer.n_envs - filled
    if len(rows) > room:
        raise VOCError(
            f"The dataset's {len(rows)} transitions do not fit into the replay buffer's free {room}; make the agent "
            f"with buffer_size={len(rows) + filled} or more."
        )
    _state_memory(buffer, len(rows), say)
    if buffer.size() and not buffer.dones[buffer.pos - 1].all():  # what was played last goes on no further
        buffer.timeouts[buffer.pos - 1, buffer.dones[buffer.pos - 1] == 0] = 1
        buffer.dones[buffer.pos - 1] = 1
    for first in range(0, len(rows), _AT_ONCE * buffer.n_envs):
        some = rows[first : first + _AT_ONCE * buffer.n_envs]  # dealt to the environments' columns in turn
        place = slice(buffer.pos, buffer.pos + len(some) // buffer.n_envs)
        arrived = some + 1
        cut = (dataset.steps_left[arrived] == 0) & ~dataset.terminal[arrived]
        for array, values in (
            (buffer.observations, read(some)), (buffer.next_observations, read(arrived)),
            (buffer.actions, taken[arrived]), (buffer.rewards, dataset.reward[arrived]),
            (buffer.dones, dataset.terminal[arrived] | cut), (buffer.timeouts, cut),
        ):  # fmt: skip
            array[place] = values.reshape(array[place].shape)
        buffer.pos = place.stop % buffer.buffer_size
        buffer.full = place.stop == buffer.buffer_size
    return len(rows)


def train_offline(
    model: OffPolicyAlgorithm,
    dataset: Episodes | None,
    steps: int,
    batch_size: int | None = None,
    *,
    log_every: int = 1000,
    callback: Callable[[OffPolicyAlgorithm, int], object] | None = None,
    progress: bool = True,
    say: Callable[[str], None] | None = print,
) -> OffPolicyAlgorithm:
    """Train an off-policy agent on logged episodes alone, for ``steps`` gradient steps; returns the agent.

    Its losses go to its own logger. SAC, TD3, DDPG and DQN are the plain ones: nothing keeps them near the data, and
    where the data do not contradict them, they believe in actions that nobody tried. ``VOCCritic`` with ``bc_alpha``
    stays near. The ``target_update_interval`` of DQN counts gradient steps here, as nothing is played. A schedule of
    the learning rate is read a hundred times, and a loss is the mean since it was read last, or since DQN's target
    moved. Each call runs a schedule from its start to its end: to look at the agent in between, use ``callback``.

    ``model.learning_starts`` becomes 0: the random steps that a later ``learn`` would begin with are there to fill the
    replay buffer. DQN explores by its own schedule then (``exploration_initial_eps``); here its rate stays.

    Args:
        model: SAC, TD3, DDPG, DQN or ``VOCCritic``.
        dataset: fills its replay buffer; None: it is filled already, as where these episodes were trained on before.
        steps: gradient steps. batch_size: None is the agent's own.
        log_every: gradient steps between two dumps of its logger, which count on from call to call; rounded up to whole
            ``target_update_interval``s of SAC.
        callback: called after each dump with the agent and the gradient steps that it has taken in all.
        progress: show a bar with the time left.
        say: as in ``fill_replay_buffer``.

    Raises:
        VOCError: as ``fill_replay_buffer``, an empty replay buffer, or an agent that also learns in its ``_on_step``.
    """
    check_positive(steps, "steps")
    check_positive(log_every, "log_every")
    buffer = _plain_buffer(model)
    _check_learns_in_train(model)
    if not hasattr(model, "_logger"):  # before the buffer takes its time: it may lack tensorboard
        # not set_logger, which would keep a later learn() from making its own
        model._logger = configure_logger(model.verbose, model.tensorboard_log, "offline")
    if dataset is not None:
        fill_replay_buffer(model, dataset, say)
    if buffer.size() == 0:
        raise VOCError("The replay buffer is empty; pass a dataset, or fill it with fill_replay_buffer first.")
    model.learning_starts = 0
    log_every += -log_every % _together(model)
    done = 0
    with progress_bar(desc="offline", unit="step", total=steps, show=progress) as bar:
        for some in _take_steps(model, steps, batch_size or model.batch_size, log_every):
            bar.update(some)
            done += some
            if done % log_every == 0 or done == steps:
                model.logger.record("time/gradient_steps", model._n_updates)
                model.logger.dump(model._n_updates)
                if callback is not None:
                    callback(model, model._n_updates)
    return model


def _take_steps(model: OffPolicyAlgorithm, steps: int, batch_size: int, log_every: int) -> Iterator[int]:
    """Take gradient steps in parts, and yield the size of each: a part ends where something is logged, the learning
    rate is read again or DQN's target moves."""
    renewed, done = -(-steps // _RATES), 0
    renewed += -renewed % _together(model)
    while done < steps:
        some = min(log_every - done % log_every, renewed - done % renewed, steps - done)
        if isinstance(model, DQN):
            some = min(some, model.target_update_interval - model._n_updates % model.target_update_interval)
        model._update_current_progress_remaining(done - done % renewed, steps)
        model.train(some, batch_size)
        if isinstance(model, DQN) and model._n_updates % model.target_update_interval == 0:
            _move_target(model)
        done += some
        yield some


def _together(model: OffPolicyAlgorithm) -> int:
    """Gradient steps that one `train` has to take whole: SAC counts those between its target's moves from 0 in each."""
    return 1 if isinstance(model, DQN) else getattr(model, "target_update_interval", 1)


def _check_learns_in_train(model: OffPolicyAlgorithm) -> None:
    if type(model)._on_step is not OffPolicyAlgorithm._on_step and not isinstance(model, DQN):
        raise VOCError(
            f"{type(model).__name__} does more at its steps in an environment (_on_step) than can be done without one; "
            "train SAC, TD3, DDPG, DQN or VOCCritic."
        )


def _move_target(model: DQN) -> None:
    """As DQN does while it plays; there it also takes the exploration rate of that time, which is not of now."""
    polyak_update(model.q_net.parameters(), model.q_net_target.parameters(), model.tau)
    polyak_update(model.batch_norm_stats, model.batch_norm_stats_target, 1.0)


def _plain_buffer(model: Any) -> ReplayBuffer:
    if not isinstance(model, OffPolicyAlgorithm):
        raise VOCError(
            f"{type(model).__name__} keeps no replay buffer; an off-policy agent (SAC, TD3, DDPG, DQN) is needed."
        )
    buffer = model.replay_buffer
    if not isinstance(buffer, ReplayBuffer) or isinstance(buffer, DictReplayBuffer):
        raise VOCError(
            f"The agent keeps a {type(buffer).__name__}; a plain ReplayBuffer is needed, so let it observe the frames "
            "or the state alone."
        )
    if buffer.optimize_memory_usage:
        raise VOCError("optimize_memory_usage=True stores no next observations; make the agent without it.")
    if not buffer.handle_timeout_termination:
        raise VOCError(
            "handle_timeout_termination=False would take time limits for terminations; leave it out of "
            "replay_buffer_kwargs."
        )
    return buffer


def _check_new(
    buffer: ReplayBuffer, rows: np.ndarray, rewards: np.ndarray, actions: np.ndarray,
    read: Callable[[np.ndarray], np.ndarray],
) -> None:  # fmt: skip
    """Refuse transitions that the buffer begins or ends with already; rows (N,), their rewards and actions (N, ...)."""
    count, held = len(rows) // buffer.n_envs, buffer.size()
    for first in {0, held - count} if 0 < count <= held else ():
        stored = slice(first, first + count)
        numbers = zip((buffer.rewards, buffer.actions), (rewards, actions), strict=True)
        if not all(np.array_equal(array[stored].ravel(), given.ravel()) for array, given in numbers):
            continue
        shown = read(rows[: _AT_ONCE * buffer.n_envs])
        if np.array_equal(buffer.observations[stored][:_AT_ONCE].ravel(), shown.ravel()):
            raise VOCError("These episodes are in the replay buffer already; pass dataset=None to train on with them.")


def _check_steps(buffer: ReplayBuffer) -> None:
    steps = getattr(buffer, "n_steps", 1)
    if steps > 1 and buffer.n_envs > 1:
        raise VOCError(
            f"n_steps={steps} needs an agent with one environment, not {buffer.n_envs}: logged steps are dealt to the "
            "environments in turn, so that the next one of an environment is not the next in time."
        )


def _compare_specs(model: OffPolicyAlgorithm, logged: DataSpec) -> None:
    """Warn of an environment that is another one than the data's, as far as both say; states have no pictures."""
    names = SPEC_NAMES if model.observation_space.dtype == np.uint8 else ("task", "action_repeat")
    for spec in set(attributes_of(model.get_env(), "data_spec")):
        for name, mine, other in logged.differences(spec, names):
            warnings.warn(f"The data were logged with {name} {mine!r}, the environment has {other!r}.", stacklevel=3)


def _reader(model: OffPolicyAlgorithm, dataset: Episodes) -> Callable[[np.ndarray], np.ndarray]:
    space, voc = model.observation_space, _voc_of(model)
    if voc is not None:
        voc.check_spec(dataset.spec)
    if space.shape == dataset.observation_shape and space.dtype == np.uint8:
        return dataset.observations
    if voc is not None and shows_codes(space, voc):
        if (env := model.get_env()) is not None:
            check_own_codes(env, voc)
        vectors = _codes(voc, dataset)
        return lambda rows: vectors[rows]
    state = dataset.state
    if state is not None and space.shape == state.shape[1:] and np.issubdtype(space.dtype, np.floating):
        return lambda rows: state[rows]
    states = "no states" if state is None else f"{state.shape[1:]} states"
    raise VOCError(
        f"The agent observes {space.dtype} {space.shape}; the data hold uint8 {dataset.observation_shape} frames and "
        f"{states}."
    )


def _actions(model: OffPolicyAlgorithm, dataset: Episodes) -> np.ndarray:
    """Actions as the agent keeps them: float32 (N, A), or numbers int64 (N,) of discrete ones."""
    choices, held = choices_of(model.action_space), dataset.action[dataset.step_type > 0]
    if choices is None:
        check_actions(model.action_space, dataset.action.shape[1], "the data hold")
        check_continuous(dataset)
        return dataset.action
    if held.shape[1] != choices or not one_hot_rows(held):
        raise VOCError(
            f"The agent's actions are {model.action_space}; the data's are no one-hot rows of {choices}, which is how "
            "discrete ones are stored."
        )
    return dataset.action.argmax(1)


def _voc_of(model: OffPolicyAlgorithm) -> VOC | None:
    """The VOC that an agent reads frames or codes with: that of its policy's eyes, or of its critic."""
    acts = getattr(model.policy, "actor", None) or getattr(model.policy, "q_net", None)
    eyes = getattr(acts, "features_extractor", None)
    if isinstance(eyes, VOCFeaturesExtractor):
        return eyes.voc
    return model.known_voc if isinstance(model, VOCCritic) else None


def _codes(voc: VOC, dataset: Episodes) -> np.ndarray:
    codes, features = tokenize(voc.quantizer, dataset)
    return codes_as_vectors(codes, features if voc.occupancy.config.feature_dim else None).numpy()


def _state_memory(buffer: ReplayBuffer, transitions: int, say: Callable[[str], None] | None) -> None:
    """Say how much memory the transitions take (the buffer's arrays take it only when they are written)."""
    arrays = (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards, buffer.dones,
              buffer.timeouts)  # fmt: skip
    needed = transitions * sum(array[0, 0].nbytes for array in arrays)
    if say is not None:
        say(f"The replay buffer takes {needed / 1e9:.2f} GB of memory for {transitions} transitions.")
    free = _free_memory()
    if free is not None and needed > free:
        raise VOCError(
            f"The replay buffer would take {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB of memory are free; use "
            "fewer episodes (Episodes.subset), or an agent that observes the state instead of frames."
        )


def _free_memory() -> int | None:
    """Bytes that can still be had, where Linux says so; what caches would give back counts.

    Never more than the control group of a container or a batch job may have.
    """
    path = Path("/proc/meminfo")
    found = re.search(r"MemAvailable: +(\d+) kB", path.read_text()) if path.exists() else None
    return min(int(found[1]) * 1024, machine_memory()) if found else None
