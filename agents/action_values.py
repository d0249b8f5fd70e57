"""What actions are worth: a VOC that reads actions, and its Q(s, a) by the value head or by sampled futures."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from voc_rl.data import Episodes, going_rows
from voc_rl.errors import VOCError, check_choice, check_count, check_gamma
from voc_rl.loop import StepLog
from voc_rl.model import VOC
from voc_rl.occupancy import (
    Condition,
    OccupancyTraining,
    OccupancyTransformer,
    PolicyTraining,
    StitchedChain,
    hops,
    sample_futures,
    train_policies,
    uniforms,
)
from voc_rl.precision import as_device, autocast, device_of, generator_on
from voc_rl.quantizers import tokenize
from voc_rl.training import VOCConfig, fresh_networks, ready_quantizer
from voc_rl.training_inputs import QuantizerSource, Tokens, known_tokens, quantizer_of
from voc_rl.values import fit_reward_head

ROWS_AT_ONCE = 4096  # whose values a head is asked for in one pass
DISTANCES_AT_ONCE = 1 << 24
TIES = 8  # rows that are followed where a time limit cut an episode


def action_training(occupancy: OccupancyTraining | None = None) -> PolicyTraining:
    """How a VOC with action input is trained: the action is shown to most contexts, since Q is what is asked of it, and
    starts are no more likely than other rows, since it acts everywhere. ``occupancy``: discount and loop; None: those
    of ``PolicyTraining``."""
    shares = PolicyTraining(action_share=0.7, start_share=0.0)
    return shares if occupancy is None else replace(shares, occupancy=occupancy)


def logged_chain(dataset: Episodes, features: Tensor) -> StitchedChain:
    """The behaviour's own chain: every row goes on to the next one of its episode.

    A time limit is no end: its last row goes on where the row with the nearest frame did: by features (N, F), or, where
    a quantizer has none, by codes int (N, n_tokens), of which as many as possible are the same. Of equally near rows
    several are drawn, so that luck after one does not become a rule.
    """
    rows, going = np.arange(len(dataset)), going_rows(dataset)
    cut = np.flatnonzero((dataset.steps_left == 0) & ~dataset.terminal)
    view, norm = features.float(), 2.0 if features.is_floating_point() else 0.0
    seen = view[torch.from_numpy(going)]
    arrival, generator = np.repeat(rows[:, None] + 1, TIES, 1), torch.Generator().manual_seed(0)
    for some in np.array_split(cut, -(-len(cut) * len(going) // DISTANCES_AT_ONCE) or 1):
        # not by products of vectors, which lose small distances
        distances = torch.cdist(view[torch.from_numpy(some)], seen, norm, "donot_use_mm_for_euclid_dist")
        nearest = (distances <= distances.amin(1, keepdim=True)).cpu()
        arrival[some] = going[_drawn(nearest, TIES, generator)] + 1
    arrival[dataset.terminal] = rows[dataset.terminal, None]
    return StitchedChain(arrival, np.zeros(arrival.shape, np.float32), dataset.terminal)


def _drawn(among: Tensor, count: int, generator: torch.Generator) -> np.ndarray:
    """``count`` columns int64 (B, count) of those that are True in each row of ``among`` (B, C), drawn uniformly."""
    places = torch.rand((len(among), count), generator=generator) * among.sum(1, keepdim=True)
    return torch.searchsorted(among.cumsum(1), places.long() + 1).numpy()


def train_action_voc(
    dataset: Episodes,
    training: PolicyTraining | None = None,
    config: VOCConfig | None = None,
    chain: StitchedChain | None = None,
    *,
    quantizer: QuantizerSource | None = None,
    tokens: Tokens | None = None,
    device: torch.device | str | None = None,
    log: StepLog | None = None,
    progress: bool = False,
) -> VOC:
    """A VOC with action input: futures of an action at a frame, of the behaviour (or of another policy) after it.

    Args:
        training: of network and head, its discount too; None: ``action_training()``.
        config: quantizer, sizes, reward head and seed; a value head of two members where it has none, but no head for
            a range of discounts.
        chain: of the policy that acts after the action; None: the behaviour's, ``logged_chain``.
        quantizer, tokens, device: as in ``voc_rl.train``.

    Raises:
        VOCError: tokens without the quantizer that made them or the features that the network reads, or of other
            rows.
    """
    training, config = training or action_training(), config or VOCConfig()
    quantizer = quantizer_of(quantizer, dataset)
    known = None if tokens is None else known_tokens(tokens, quantizer, dataset, config.network.features)
    quantizer = ready_quantizer(quantizer, dataset, config, as_device(device), log=log, progress=progress)
    codes, features = known or tokenize(quantizer, dataset)
    chain = chain or logged_chain(dataset, codes if features is None or not features.shape[1] else features)
    gamma = training.occupancy.gamma
    values = chain.values(dataset.reward, gamma)
    # a head learns values at one discount; with a range of them, Q is asked of sampled futures
    members = 0 if training.occupancy.gammas else config.network.head_members or 2
    size = replace(config.network, head_members=members)
    network, head = fresh_networks(
        quantizer,
        replace(config, network=size, occupancy=training.occupancy),
        bool(dataset.terminal.any()),
        dataset.action.shape[1],
    )
    model, trained_head = train_policies(
        network, head, dataset, codes, features, [chain], training, config.seed,
        values=values[None], stage="actions", log=log, progress=progress,
    )  # fmt: skip
    reward = fit_reward_head(
        quantizer, codes, dataset, dataset.reward, config.reward, config.seed, log=log, progress=progress
    )
    return VOC(quantizer, model, reward, trained_head, gamma, dataset.spec)


class ActionScores(Protocol):
    """What a planner asks: scores float (B, M) of M actions (B, M, A) at each of B contexts (codes and features)."""

    def __call__(self, codes: Tensor, features: Tensor | None, actions: Tensor) -> Tensor: ...


def _contexts(
    model: OccupancyTransformer, codes: Tensor, features: Tensor | None, copies: int = 1
) -> tuple[Tensor, Tensor | None]:
    """Codes and features where the network is, each row ``copies`` times; no features where it reads none."""
    device = device_of(model)
    contexts = codes.to(device).long().repeat_interleave(copies, 0)
    if not model.config.feature_dim:
        return contexts, None
    assert features is not None
    return contexts, features.to(device).float().repeat_interleave(copies, 0)


class ActionValues:
    """(1 - gamma) Q(s, a), in reward units, of a VOC with action input.

    Args:
        estimator: ``head``, one pass for all actions; or ``sample``, the mean reward of ``samples`` futures of each
            action, all drawn with the same random numbers, so that actions differ by what they do and not by luck.
            The latter is also for a VOC of another reward (``VOC.fit_reward``).
        caution: standard deviations of the head's members that are taken off.

    Raises:
        VOCError: a VOC without action input, another estimator, ``head`` where the VOC has none, or no samples.
    """

    def __init__(
        self,
        voc: VOC,
        estimator: str = "head",
        samples: int = 16,
        caution: float = 0.0,
        seed: int = 0,
    ) -> None:
        if not voc.occupancy.config.action_dim:
            raise VOCError("This VOC reads no actions; train one with voc_rl.agents.train_action_voc.")
        check_choice(estimator, ("head", "sample"), "estimator")
        check_count(samples, "samples")
        if estimator == "head" and voc.value_head is None:
            raise VOCError("This VOC has no value head; use estimator='sample'.")
        self.voc, self.estimator, self.samples, self.caution, self.seed = voc, estimator, samples, caution, seed

    def __call__(self, codes: Tensor, features: Tensor | None, actions: Tensor) -> Tensor:
        """Scores float32 (B, M) of actions (B, M, A) at codes (B, n_tokens) and features (B, feature_dim).

        The head's have gradients; wrap the call in ``torch.no_grad()`` where none are wanted.
        """
        model, device, (B, M, size) = self.voc.occupancy, device_of(self.voc.occupancy), actions.shape
        if size != model.config.action_dim:
            raise VOCError(f"Actions have size {size}, but this VOC reads actions of size {model.config.action_dim}.")
        contexts, seen = _contexts(model, codes, features)
        actions = actions.to(device)
        if self.estimator == "head":
            assert self.voc.value_head is not None
            with autocast(model, B * M):
                last = model.last_of_actions(contexts, seen, actions).flatten(0, 1)
                members = self.voc.value_head(last, None if seen is None else seen.repeat_interleave(M, 0)).float()
            spread = members.std(1) if self.caution else torch.zeros_like(members[:, 0])
            return (members.mean(1) - self.caution * spread).view(B, M)
        noise = uniforms(model, 1, self.samples, generator_on(device, self.seed))
        with torch.no_grad():
            with autocast(model):
                futures = sample_futures(
                    model, *_contexts(model, codes, features, M), self.samples, generator_on(device, self.seed), noise,
                    replace(self.voc.condition(B * M), action=actions.flatten(0, 1)),
                )  # fmt: skip
            return self.voc.rewards(futures).mean(1).view(B, M)

    @torch.no_grad()
    def advantages(self, codes: Tensor, features: Tensor, actions: Tensor) -> Tensor:
        """(1 - gamma) (Q(s, a) - V(s)) float32 (N,) of one action (N, A) at each of N states, by the head, on the CPU.

        V is the same network's, where no action is shown.
        """
        voc, parts = self.voc, []
        model, head, device = voc.occupancy, voc.value_head, device_of(voc.occupancy)
        assert head is not None
        for some in torch.arange(len(codes)).split(ROWS_AT_ONCE):
            context, seen = _contexts(model, codes[some], features[some])
            with autocast(model):
                with_action = model.last(context, seen, Condition(actions[some].to(device)))
                without = model.last(context, seen)
                found = head(with_action, seen).float() - head(without, seen).float()
            parts.append(found.mean(1).cpu())
        return torch.cat(parts)


class RollOutScores:
    """Scores of actions by a one-step model (a VOC with action input and discount 0), rolled out step by step.

    After the action the model goes on as the data's policy did. ``steps`` observations of one path are sampled: as many
    as what ``ActionValues`` calls samples, at equal compute.

    Raises:
        VOCError: another VOC, gamma outside [0, 1), or no steps.
    """

    def __init__(self, voc: VOC, gamma: float, steps: int = 16, seed: int = 0) -> None:
        if not voc.occupancy.config.action_dim or voc.gamma != 0.0:
            raise VOCError("Roll-outs need a VOC with action input that was trained for gamma 0, the next observation.")
        check_gamma(gamma)
        check_count(steps, "steps")
        self.voc, self.weights, self.seed = voc, gamma ** np.arange(steps), seed

    @torch.no_grad()
    def __call__(self, codes: Tensor, features: Tensor | None, actions: Tensor) -> Tensor:
        """Scores float32 (B, M), as ``ActionScores``: the mean of the ``steps`` rewards, weighted by gamma^k."""
        model, device, (B, M, _) = self.voc.occupancy, device_of(self.voc.occupancy), actions.shape
        contexts, seen = _contexts(model, codes, features, M)
        condition = Condition(actions.to(device).flatten(0, 1))
        generator = generator_on(device, self.seed)
        total = torch.zeros(B * M, device=device)
        with autocast(model):
            paths = hops(model, contexts, seen, 1, len(self.weights), generator, True, condition)
            for weight, states in zip(self.weights / self.weights.sum(), paths, strict=True):
                total += float(weight) * self.voc.rewards(states).mean(1)
        return total.view(B, M)
