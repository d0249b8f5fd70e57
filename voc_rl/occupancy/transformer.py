"""The occupancy network: a GPT-2-compatible transformer that reads a context and writes codes of its future.

Sequences are ``[context codes, future codes]``. One context is shared by many futures, both in training (several
targets per context) and in sampling: its keys and values are computed once and never copied. Plain ``forward`` is
the same network on flat sequences.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from voc_rl.checkpoints import load_state_dict
from voc_rl.errors import VOCError
from voc_rl.occupancy.blocks import Block
from voc_rl.occupancy.contexts import Cache, Condition, OccupancyConfig, Prefix
from voc_rl.occupancy.features import SeesFeatures
from voc_rl.occupancy.published import read_gpt2
from voc_rl.precision import single_precision

WAVES = 8  # cosines that tell a discount


class Discounts(nn.Module):
    """A discount as a vector: cosines of where the logarithm of its horizon 1 / (1 - gamma) stands in the range."""

    def __init__(self, gammas: tuple[float, float], width: int) -> None:
        super().__init__()
        self.low, self.high = (-math.log1p(-gamma) for gamma in gammas)
        self.waves: Tensor
        self.register_buffer("waves", math.pi * torch.arange(1.0, WAVES + 1), persistent=False)
        self.layers = nn.Sequential(nn.Linear(WAVES, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, gamma: Tensor) -> Tensor:
        """float (B,) -> (B, width)."""
        place = (-torch.log1p(-gamma.float()) - self.low) / (self.high - self.low)
        return self.layers(torch.cos(place[:, None] * self.waves))


class OccupancyTransformer(SeesFeatures):
    """Context codes [and features] -> distribution of the codes of an observation at a discounted future time.

    Attributes:
        memory: bytes that sampling may take at once; None: chosen for the device (``decoding_memory.default_memory``).
    """

    def __init__(self, config: OccupancyConfig) -> None:
        super().__init__()
        self.config = config
        self.memory: int | None = None
        self.vocabulary = config.codebook_size + 1
        self.codes = nn.Embedding(self.vocabulary, config.width)
        self.positions = nn.Embedding(2 * config.n_tokens, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        if config.feature_dim:
            self.features = nn.Sequential(
                nn.Linear(config.feature_dim, 2 * config.width),
                nn.GELU(),
                nn.Linear(2 * config.width, config.width),
            )
            self.no_features = nn.Parameter(torch.zeros(config.width))
            self.hold_features(config.feature_dim)
        if config.action_dim:
            self.actions = nn.Sequential(
                nn.Linear(config.action_dim, config.width), nn.GELU(), nn.Linear(config.width, config.width)
            )
            self.no_action = nn.Parameter(torch.zeros(config.width))
        if config.policies:
            self.policies = nn.Embedding(config.policies, config.width)
        if config.gammas is not None:
            self.discounts = Discounts(config.gammas, config.width)
        if config.null_context:
            self.nothing = nn.Parameter(torch.zeros(config.width))
        self.apply(self._initialise)
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "mlp.2.weight")):  # GPT-2: residual branches shrink with depth
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer))

    @property
    def drops(self) -> bool:
        """Whether dropout is on."""
        return self.training and (self.config.dropout > 0 or self.config.attention_dropout > 0)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    @torch.no_grad()
    def warm_start(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Start from embeddings that are alike for alike codes; vectors float (codebook_size, code_dim).

        Random Fourier features (Rahimi and Recht 2007) of the codes' vectors, as wide as the typical distance between
        neighbours. Embedding and output share them, so the network need not learn first which codes are neighbours.
        """
        distance = torch.cdist(vectors, vectors).fill_diagonal_(torch.inf).amin(1).median().clamp(min=1e-6)
        width = self.config.width
        drawn: dict[str, Any] = {"generator": generator, "device": generator.device}
        frequencies = torch.randn(vectors.shape[1], width, **drawn).to(vectors.device) / (1.5 * distance)
        phases = 2 * math.pi * torch.rand(width, **drawn).to(vectors.device)
        self.codes.weight[: len(vectors)] = 0.02 * math.sqrt(2) * torch.cos(vectors @ frequencies + phases)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (..., vocabulary), with the tied head."""
        return hidden @ self.codes.weight.T

    @classmethod
    @single_precision()
    def from_published(
        cls, path: str | Path, n_head: int = 8, n_tokens: int | None = None, top_k: int | None = 50
    ) -> OccupancyTransformer:
        """The GPT-2 of a file that the paper's code saved: Hugging Face's names, with or without mask buffers.

        Sizes are read off the shapes; only the number of heads cannot be (the paper: 8, for DINO 4).

        Args:
            path: a torch file with a state dict; nothing in it is executed.
            n_tokens: codes per observation, which sampling needs (75 for three frames of the paper's VQ-VAE); None:
                half of the positions, enough for ``forward``.
            top_k: codes that are sampled at each place, the likeliest: 50, as in the paper's code, which values by them
                with a bias. None: all codes, for samples of the distribution that the network learned.

        Raises:
            VOCError: a missing or refused file, or names and shapes that are not a GPT-2's with a tied head.
        """
        config, tensors = read_gpt2(Path(path), n_head, n_tokens, top_k)
        model = cls(config)
        load_state_dict(model, tensors, str(path))
        return model.eval()

    def forward(self, ids: Tensor) -> Tensor:
        """int64 (B, T) -> logits (B, T, V) of the next code at each place; V: the codes, and END where episodes end."""
        x = self.dropout(self.codes(ids) + self.positions.weight[: ids.shape[1]])[:, None]
        for block in self.blocks:
            x = block(x)[0]
        logits = self.logits(self.norm(x[:, 0]))
        return logits if self.config.ends else logits[..., : self.config.end_code]

    def prefix(
        self,
        context: Tensor,
        features: Tensor | None = None,
        use_features: Tensor | None = None,
        condition: Condition | None = None,
        nothing: Tensor | None = None,
    ) -> Prefix:
        """Read contexts: codes int64 (B, n_tokens), optional features (B, feature_dim).

        ``use_features`` bool (B,) says where the features are shown (contexts that were sampled have none);
        ``nothing`` bool (B,), where nothing at all is shown (``prefix_of_nothing``).

        Raises:
            VOCError: an action, policy or discount for a network without that input, no discount for one that reads it,
                or one outside its range.
        """
        x = self._read(context, features, use_features, condition or Condition(), nothing)[:, None]
        keys, values = [], []
        for block in self.blocks:
            x, k, v = block(x)
            keys.append(k[:, 0])
            values.append(v[:, 0])
        return Prefix(keys, values, self.norm(x[:, 0, -1]))

    def last(self, context: Tensor, features: Tensor | None = None, condition: Condition | None = None) -> Tensor:
        """``prefix(...).last`` (B, width) alone, which value heads read: the last block works at the last place."""
        x = self._read(context, features, None, condition or Condition(), None)[:, None]
        for block in self.blocks[:-1]:
            x = block(x)[0]
        return self.norm(cast(Block, self.blocks[-1]).last(x)[:, 0, 0])

    def last_of_actions(self, context: Tensor, features: Tensor | None, actions: Tensor) -> Tensor:
        """``last`` (B, M, width) of each of M actions (B, M, action_dim) at every context.

        An action is read at the last place alone, so all places before it are worked out once for all M.

        Raises:
            VOCError: a network that reads no actions, or others.
        """
        x = self._given(context, features, None, Condition(actions.flatten(0, 1)))[:, None]
        before, at = x[:, :, :-1], x[:, :, -1:] + self.actions(actions.float())[:, :, None]
        before, at = self.dropout(before), self.dropout(at)
        for block in self.blocks:
            before, k, v = block(before)
            at = block(at, (k[:, 0], v[:, 0]))[0]
        return self.norm(at[:, :, 0])

    def _read(
        self, context: Tensor, features: Tensor | None, use_features: Tensor | None, condition: Condition,
        nothing: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """What the first block is given, (B, n_tokens, width); see ``prefix``."""
        x = self._given(context, features, use_features, condition)
        if self.config.action_dim:
            x = torch.cat([x[:, :-1], x[:, -1:] + self._action_vector(len(context), condition)[:, None]], 1)
        if nothing is not None:
            blank = self.nothing + self.positions.weight[: context.shape[1]]
            x = torch.where(nothing[:, None, None], blank.to(x.dtype), x)
        return self.dropout(x)

    def _given(
        self, context: Tensor, features: Tensor | None, use_features: Tensor | None, condition: Condition
    ) -> Tensor:
        """All that is read but the action, (B, n_tokens, width)."""
        condition.check(self.config, entries=not self.training)  # training makes its own
        x = self.codes(context) + self.positions.weight[: context.shape[1]]
        if self.config.feature_dim:
            x = x + self._feature_vector(len(context), features, use_features)[:, None]
        if self.config.policies:
            policy = condition.policy
            x = x + self.policies(context.new_zeros(len(context)) if policy is None else policy)[:, None]
        if condition.gamma is not None:
            x = x + self.discounts(condition.gamma)[:, None]
        return x

    def prefix_of_nothing(self) -> Prefix:
        """No context at all, a batch of one: what follows has the law of all rows that were arrived at.

        Raises:
            VOCError: a network that was not trained for it.
        """
        if not self.config.null_context:
            raise VOCError(
                "This occupancy network was trained without a null context, which density ratios need; train it with "
                "null_context=True, or use estimator='sample'."
            )
        device = self.nothing.device
        context = torch.zeros(1, self.config.n_tokens, dtype=torch.long, device=device)
        largest = self.config.gammas and torch.full((1,), self.config.gammas[1], dtype=torch.float32, device=device)
        condition = Condition(gamma=largest)
        return self.prefix(context, None, None, condition, torch.ones(1, dtype=torch.bool, device=device))

    def _feature_vector(self, batch: int, features: Tensor | None, use_features: Tensor | None) -> Tensor:
        if features is None:
            return self.no_features.expand(batch, -1)
        vector = self.features(self.standard(features))
        if use_features is None:
            return vector
        return torch.where(use_features[:, None], vector, self.no_features.to(vector.dtype))

    def _action_vector(self, batch: int, condition: Condition) -> Tensor:
        if condition.action is None:
            return self.no_action.expand(batch, -1)
        vector = self.actions(condition.action.float())
        if condition.shown is None:
            return vector
        return torch.where(condition.shown[:, None], vector, self.no_action.to(vector.dtype))

    def future_logits(self, prefix: Prefix, futures: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of each code of given futures int64 (B, M, n_tokens).

        Of the first code, (B, vocabulary), alike for all futures of a context; and of the later ones, (B, M,
        n_tokens - 1, vocabulary).
        """
        T = futures.shape[2]
        x = self.dropout(self.codes(futures[..., :-1]) + self.positions.weight[T : 2 * T - 1])
        for i, block in enumerate(self.blocks):
            x = block(x, (prefix.keys[i], prefix.values[i]))[0]
        return self.logits(prefix.last), self.logits(self.norm(x))

    def next_hidden(self, prefix: Prefix, last: Tensor, cache: Cache) -> Tensor:
        """Append codes ``last`` int64 (B, M) to the futures in ``cache``; output (B, M, width) for the next code."""
        place = self.config.n_tokens + cache.length
        x = (self.codes(last) + self.positions.weight[place])[:, :, None]
        for i, block in enumerate(self.blocks):
            x = block(x, (prefix.keys[i], prefix.values[i]), (cache.keys[i], cache.values[i], cache.length))[0]
        cache.length += 1
        return self.norm(x[:, :, 0])
