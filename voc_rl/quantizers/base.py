"""What every quantizer offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from voc_rl.data import Episodes
from voc_rl.distributed import ranks
from voc_rl.errors import VOCError, check_observations
from voc_rl.loop import StepLog
from voc_rl.precision import device_of

MOST_CODES = 1 << 15  # they are kept as int16


class Quantizer(nn.Module, ABC):
    """Stacked uint8 observations to ``n_tokens`` codes below ``codebook_size``, and back to pictures.

    Attributes:
        name: the word that users choose it by. config: a dataclass with its sizes.
        observation_shape: (3K, H, W).
        n_tokens: codes per observation. codebook_size: number of codes. code_dim: width of a code's vector.
        feature_dim: width of the continuous features.
    """

    name: str
    config: Any
    observation_shape: tuple[int, int, int]
    n_tokens: int
    codebook_size: int
    code_dim: int
    feature_dim: int

    @property
    @abstractmethod
    def initialised(self) -> bool:
        """Whether ``initialise`` was done, here or before it was saved. Doing it again would change what codes mean."""

    @property
    def usable(self) -> bool:
        """Whether its codes say anything: it was initialised, or read from published files."""
        return self.initialised or getattr(self.config, "published", False)

    @abstractmethod
    def initialise(self, obs: Tensor, generator: torch.Generator, log: StepLog | None = None) -> None:
        """Fit what comes before training, on a sample of uint8 (N, 3K, H, W), once; ``log`` takes the numbers of it."""

    @abstractmethod
    def features(self, obs: Tensor) -> Tensor:
        """uint8 (B, 3K, H, W) -> float32 (B, feature_dim): a continuous view of frames, richer than the codes."""

    @abstractmethod
    def latents(self, obs: Tensor) -> Tensor:
        """uint8 (B, 3K, H, W) -> float32 (B, n_tokens, code_dim), before rounding to codes."""

    @abstractmethod
    def quantize(self, latents: Tensor) -> Tensor:
        """float (B, n_tokens, code_dim) -> int64 (B, n_tokens)."""

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """int64 (..., n_tokens) -> float32 (..., n_tokens, code_dim), the vectors of the codes."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """int64 (B, n_tokens) -> uint8 (B, 3K, H, W)."""

    def batch(self, dataset: Episodes, rows: np.ndarray, rng: np.random.Generator) -> Any:
        """What ``loss`` is given for rows of a dataset: their observations, uint8 (B, 3K, H, W).

        Where the quantizer is. Quantizers that learn from more than single observations override it.
        """
        return torch.from_numpy(dataset.observations(rows)).to(device_of(self))

    @abstractmethod
    def loss(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss of a ``batch``, and numbers worth logging."""

    @abstractmethod
    def code_vectors(self) -> Tensor:
        """The codebook: float32 (codebook_size, code_dim)."""

    def encode(self, obs: Tensor) -> Tensor:
        """uint8 (B, 3K, H, W) -> int64 (B, n_tokens).

        In float32, unless autocast is on. Stored codes are those of ``seen_as_stored``, of which about 1 % differ where
        it computes in bfloat16.

        Raises:
            VOCError: another dtype or shape.
        """
        check_observations(obs, self.observation_shape)
        return self.quantize(self.latents(obs))

    def codes_and_features(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """``encode`` and ``features`` of the same observations; quantizers that can do both in one pass override it."""
        return self.encode(obs), self.features(obs)


def frames_in_stack(observation_shape: tuple[int, int, int]) -> int:
    """K of a shape (3K, H, W).

    Raises:
        VOCError: channels that are not a multiple of 3.
    """
    if observation_shape[0] < 3 or observation_shape[0] % 3:
        raise VOCError(f"Observations of shape {observation_shape} are not stacked frames of 3 channels.")
    return observation_shape[0] // 3


def scale(obs: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return obs.float().mul_(1 / 127.5).sub_(1.0)  # in place: these tensors are large


def unscale(picture: Tensor) -> Tensor:
    """float -1..1 -> uint8 0..255, rounded and clipped."""
    return ((picture.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def check_codes(codes: Tensor, quantizer: Quantizer) -> Tensor:
    """Codes (..., n_tokens) of any whole numbers, as int16 ones of ``tokenize``, as int64.

    Raises:
        VOCError: no tensor, other numbers or another width, or codes outside the codebook, as END, which futures may
            hold.
    """
    if not isinstance(codes, Tensor):
        raise VOCError(f"Codes are {type(codes).__name__}; a tensor is needed, as torch.from_numpy makes of an array.")
    if codes.dtype == torch.bool or codes.is_floating_point() or codes.is_complex():
        raise VOCError(f"Codes are {codes.dtype}; whole numbers are needed, as encode and tokenize give.")
    if not codes.ndim or codes.shape[-1] != quantizer.n_tokens:
        raise VOCError(f"Codes have shape {tuple(codes.shape)}; {quantizer.n_tokens} tokens per row are needed.")
    codes = codes.long()
    if codes.numel() and (codes.min() < 0 or codes.max() >= quantizer.codebook_size):
        least, most, size = codes.min().item(), codes.max().item(), quantizer.codebook_size
        end = f", and {size} is END, a future behind a termination, which has no picture: leave such rows out"
        known = f"0..{size - 1} is the codebook{end if most == size else ''}"
        raise VOCError(f"Codes lie in {least}..{most}; {known}.")
    return codes


def check_rows_of_codes(codes: Tensor) -> None:
    """Codes (B, n_tokens), as ``decode`` takes them."""
    if codes.ndim != 2:
        raise VOCError(
            f"Codes have shape {tuple(codes.shape)}; (B, n_tokens) are decoded: of futures (B, n, n_tokens) give "
            "futures.flatten(0, 1)."
        )


def check_codebook_size(size: int, name: str = "codebook_size") -> None:
    """A number of codes that can be stored."""
    if size > MOST_CODES:
        raise VOCError(f"{name} is {size}; at most {MOST_CODES} codes are accepted, because they are kept as int16.")


def check_answers(quantizer: Quantizer, codes: Tensor, features: Tensor) -> None:
    """A quantizer's sizes, against its codes int64 (B, n_tokens) and features float16 (B, feature_dim) of a batch.

    Those of one's own are held to it: else codes would wrap around when they are kept, and features be infinite.
    """
    name = f"Quantizer {quantizer.name}"
    check_codebook_size(quantizer.codebook_size, f"{name}: codebook_size")
    rows, width = len(codes), quantizer.feature_dim
    if codes.shape != (rows, quantizer.n_tokens) or features.shape != (rows, width):
        raise VOCError(
            f"{name} gives codes {tuple(codes.shape)} and features {tuple(features.shape)}; by its n_tokens and "
            f"feature_dim {(rows, quantizer.n_tokens)} and {(rows, width)} are needed."
        )
    check_codes(codes, quantizer)
    if features.isinf().any():
        most = int(torch.finfo(torch.float16).max)
        raise VOCError(
            f"{name} gives features above {most}, the most that float16 holds, as they are kept; scale them."
        )


def check_features(quantizer: Quantizer, tokens: tuple[Tensor, Tensor | None] | None = None) -> None:
    """A quantizer with continuous features, for what reads nothing else of frames; finite ones in tokens, if given."""
    if quantizer.feature_dim == 0:
        raise VOCError(
            f"Quantizer {quantizer.name} has no continuous features, and nothing else is read here; use vqvae, musik "
            "or a dino whose config says features, or for an agent inputs='tokens'."
        )
    if tokens is not None and (tokens[1] is None or not bool(tokens[1].isfinite().all())):
        raise VOCError("Tokens lack features, or these hold NaN or infinity; tokenise this dataset for finite ones.")


def whole_batch(rows: int) -> tuple[int, slice]:
    """Size of the global batch, and the slice of it that is this process's, given its local size ``rows`` (the same in
    every process).

    What is drawn for each row is drawn for all of them, so that several processes learn what one would.
    """
    count = rows * ranks().size
    return count, ranks().equal_share(count)


def codebook_use(codes: np.ndarray, codebook_size: int) -> dict[str, float]:
    """Share of codes that occur, and the perplexity exp(entropy) of their frequencies, averaged over token positions.

    ``codes`` is int (N, n_tokens).
    """
    counts = code_counts(codes, codebook_size)
    return {"use": float((counts.sum(0) > 0).mean()), "perplexity": float(np.mean([perplexity(own) for own in counts]))}


def perplexity(counts: np.ndarray) -> float:
    """exp of the entropy of code counts (codebook_size,): how many equally frequent codes would be as diverse; 0 where
    nothing was counted."""
    shares = counts[counts > 0] / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def code_counts(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """How often each code occurs at each token position: int64 (n_tokens, codebook_size)."""
    return np.stack([np.bincount(column, minlength=codebook_size) for column in codes.T])
