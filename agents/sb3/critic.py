"""TD3 whose critic is drawn towards a VOC's Q, or that follows the VOC's Q alone; it can stay near logged actions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from stable_baselines3 import TD3
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor

from voc_rl.agents.action_values import ActionValues
from voc_rl.agents.sb3.checks import check_actions, check_own_codes, check_raw_rewards, check_specs, check_unshaped
from voc_rl.agents.sb3.features import open_path
from voc_rl.errors import VOCError, known_gamma
from voc_rl.model import VOC
from voc_rl.model_files import weights_mark
from voc_rl.plugin import check_readable, read
from voc_rl.precision import as_tensor


class VOCCritic(TD3):
    """TD3 with a VOC of the futures of actions (``train_action_voc``) beside its critic.

    The critic's loss is mse(Q, y) + voc_weight mse(Q, Q_voc), at the replay buffer's states and actions, y TD3's own
    target. It is computed as (1 + voc_weight) mse(Q, (y + voc_weight Q_voc) / (1 + voc_weight)), and divided by that
    factor, which Adam does not see. With ``voc_weight=math.inf`` the VOC takes the critic's place: the actor follows
    the gradient of Q_voc itself, through the value head, and the critic only copies Q_voc.

    Logged episodes never contradict what a Q, the VOC's included, says of actions that nobody tried. So ``bc_alpha``
    keeps the actor near the actions of the replay buffer, as TD3+BC does (Fujimoto and Gu 2021, eqs. 3 and 5): it
    minimises -bc_alpha Q / mean |Q| + mse(action, the buffer's action). ``agent.bc_alpha = None`` frees it, once an
    environment can correct it.

    Q_voc is of the policy that made the VOC's data, acting after the action, in reward units: the head's (1 - gamma) Q,
    divided by 1 - gamma. So the agent has to have the VOC's discount and the rewards of the VOC's data. There is no SAC
    twin: its Q counts entropy, which Q_voc does not.

    The agent sees the VOC's frames, or their codes (a value wrapper with ``features="codes"``), which is many times
    faster; everything else is TD3's: policies (also with ``VOCFeaturesExtractor``), ``learn``, ``train_offline``,
    ``save``, ``load``. The zip holds the path of the VOC and a mark of its weights, and not the weights;
    ``VOCCritic.load(path, voc="moved")`` names another path. A policy with ``VOCFeaturesExtractor`` holds a path of its
    own, which is named beside it, ``custom_objects={"policy_kwargs": ...}``, as the extractor's docstring shows.

    Args:
        voc: run folder of the VOC. voc_weight: from 0 (TD3, number for number) to infinity.
        bc_alpha: weight of Q against cloning, 2.5 in the paper, 0 a plain clone; None: no cloning.
        gamma: None: the VOC's. settings: TD3's own, by name.

    Raises:
        VOCError: no VOC there, another than the saved agent's, or one without action input or value head; other
            frames, actions or discount than the VOC's, or codes of another VOC; weights below zero; when it learns,
            rewards that ``VecNormalize`` scales or a VOC wrapper shapes.
    """

    def __init__(
        self,
        policy: str | type[TD3Policy],
        env: GymEnv | str,
        voc: str | Path | None = None,
        voc_weight: float = 1.0,
        gamma: float | None = None,
        *,
        bc_alpha: float | None = None,
        _init_setup_model: bool = True,
        **settings: Any,
    ) -> None:
        if _init_setup_model:  # not where a saved agent is read, whose attributes come afterwards
            env = maybe_make_env(env, settings.get("verbose", 0))
            known = open_path(voc)
            if env is None:
                raise VOCError("env is None; give the agent an environment with the VOC's frames.")
            _check_voc_actions(env.action_space, known)  # before TD3, which asserts
            gamma = known.gamma if gamma is None else gamma
        super().__init__(policy, env, gamma=0.99 if gamma is None else gamma, _init_setup_model=False, **settings)
        self.voc, self.voc_weight, self.bc_alpha = str(voc), voc_weight, bc_alpha
        self.voc_mark: str | None = None  # of the weights that the agent learned with
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        known = open_path(self.voc)
        _check_voc_actions(self.action_space, known)
        mark = weights_mark(known.quantizer, known.occupancy, known.value_head)
        if self.voc_mark not in (None, mark):
            raise VOCError(
                f"The agent learned with another VOC than {self.voc} holds; train it anew, or name its own VOC's path, "
                "VOCCritic.load(path, voc=...)."
            )
        self.voc_mark = mark
        check_readable(self.observation_space, known, "The agent's")
        if known_gamma(self.gamma, known.gamma) != known.gamma:
            raise VOCError(f"The agent's gamma is {self.gamma}, the VOC's {known.gamma}; leave gamma out to take its.")
        if not self.voc_weight >= 0:
            raise VOCError(f"voc_weight is {self.voc_weight}; a number from 0 to infinity is needed.")
        self._check_bc_alpha()
        if self.env is not None:
            self._check_env(self.env, known)
        self._q_voc = _ActionQ(known, self.device)
        super()._setup_model()

    def _check_bc_alpha(self) -> None:
        if self.bc_alpha is not None and not 0 <= self.bc_alpha < math.inf:
            raise VOCError(f"bc_alpha is {self.bc_alpha}; a finite number from 0 on is needed, or None.")

    @staticmethod
    def _check_env(env: VecEnv, voc: VOC) -> None:
        check_specs(env, voc)
        check_own_codes(env, voc)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Another environment.

        Raises:
            VOCError: it shows codes of another VOC than the agent's.
        """
        env = self._wrap_env(env, self.verbose)
        self._check_env(env, self.known_voc)
        super().set_env(env, force_reset)

    def _setup_learn(self, *arguments: Any, **settings: Any) -> tuple[int, BaseCallback]:
        if self.env is not None:  # before it is played
            check_raw_rewards(self.env)
        return super()._setup_learn(*arguments, **settings)

    def _create_aliases(self) -> None:
        super()._create_aliases()
        self._set_score()

    def _set_score(self) -> None:
        """What the actor climbs: Q_voc where it follows that, else the critic."""
        vars(self.critic).pop("q1_forward", None)
        if math.isinf(self.voc_weight):
            self.critic.q1_forward = self._q_voc  # type: ignore[method-assign]

    @property
    def known_voc(self) -> VOC:
        """The VOC behind Q_voc, a frozen copy."""
        return self._q_voc.voc

    def q_voc(self, obs: Any, actions: Any) -> Tensor:
        """Q_voc float32 (B, 1), in reward units, of actions (B, A) at what the agent sees: frames uint8 (B, 3K, H, W),
        or their codes."""
        with torch.no_grad():
            return self._q_voc(as_tensor(obs), as_tensor(actions))

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """TD3's steps, on targets drawn towards Q_voc; ``bc_alpha`` keeps the actor near the batches' actions."""
        self._check_bc_alpha()  # it may have been changed
        if self.env is not None:
            check_raw_rewards(self.env)
        buffer = self.replay_buffer
        assert buffer is not None
        share = 1.0 if math.isinf(self.voc_weight) else self.voc_weight / (1.0 + self.voc_weight)
        batches = _Towards(buffer, self._q_voc, share, self.gamma)
        if self.bc_alpha is not None:
            score = self.critic.q1_forward
            self.critic.q1_forward = _near(batches, score, self.bc_alpha)  # type: ignore[method-assign]
        self.replay_buffer = batches  # type: ignore[assignment]
        try:
            super().train(gradient_steps, batch_size)
        finally:
            self.replay_buffer = buffer
            self._set_score()

    def _store_transition(
        self, replay_buffer: ReplayBuffer, buffer_action: Any, new_obs: Any, reward: Any, dones: Any, infos: Any
    ) -> None:
        check_unshaped(infos)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_q_voc"]


class _ActionQ:
    """Q of a frozen copy of a VOC, (B, 1) in reward units; its gradient reaches the actions."""

    def __init__(self, voc: VOC, device: torch.device) -> None:
        self.voc = copy.deepcopy(voc).to(device)
        self.score = ActionValues(self.voc)
        for part in (self.voc.quantizer, self.voc.occupancy, self.voc.value_head):
            assert part is not None
            part.requires_grad_(False)

    def __call__(self, obs: Tensor, actions: Tensor) -> Tensor:
        with torch.no_grad():
            codes, features = read(self.voc, obs)
        return self.score(codes, features, actions[:, None]) / (1.0 - self.voc.gamma)


class _Towards:
    """A replay buffer's batches with rewards and discounts of the targets (1 - share) y + share Q_voc."""

    def __init__(self, buffer: ReplayBuffer, q_voc: _ActionQ, share: float, gamma: float) -> None:
        self.buffer, self.q_voc, self.share, self.gamma = buffer, q_voc, share, gamma
        self.actions: Tensor  # of the last batch

    def sample(self, batch_size: int, env: Any = None) -> ReplayBufferSamples:
        batch = self.buffer.sample(batch_size, env)
        self.actions = batch.actions
        if not self.share:
            return batch
        discounts = torch.full_like(batch.rewards, self.gamma) if batch.discounts is None else batch.discounts
        with torch.no_grad():
            drawn = self.q_voc(batch.observations, batch.actions)
        rewards = (1.0 - self.share) * batch.rewards + self.share * drawn
        return batch._replace(rewards=rewards, discounts=(1.0 - self.share) * discounts)


def _near(batches: _Towards, score: Callable[[Tensor, Tensor], Tensor], alpha: float) -> Callable[..., Tensor]:
    """What the actor of TD3+BC climbs, in place of Q (B, 1): alpha Q / mean |Q|, less the distance to the batch."""

    def objective(obs: Tensor, actions: Tensor) -> Tensor:
        q = score(obs, actions)
        return alpha * q / q.detach().abs().mean().clamp(min=1e-6) - F.mse_loss(actions, batches.actions)

    return objective


def _check_voc_actions(space: Any, voc: VOC) -> None:
    if voc.occupancy.config.action_dim and voc.value_head is None:
        raise VOCError(
            "This VOC has no value head, which VOCCritic asks; train one with voc_rl.agents.train_action_voc at one "
            "discount (without gammas)."
        )
    ActionValues(voc)  # refuses a VOC that reads no actions
    check_actions(space, voc.occupancy.config.action_dim, "this VOC reads")
