"""What training and policy evaluation are given: a dataset, a quantizer, and its tokens where they are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from voc_rl.data import Episodes
from voc_rl.errors import VOCError, check_token_rows
from voc_rl.model import VOC
from voc_rl.model_files import check_spec_of
from voc_rl.precision import as_tensor
from voc_rl.quantizers import Quantizer, load_quantizer
from voc_rl.quantizers.base import check_codes

QuantizerSource = Quantizer | VOC | str | Path
Tokens = tuple[Tensor | np.ndarray, Tensor | np.ndarray | None]  # codes and features


def check_dataset(dataset: Any) -> None:
    """Refuse what are no episodes, as their path.

    Raises:
        VOCError: it is none.
    """
    if not isinstance(dataset, Episodes):
        raise VOCError(
            f"The dataset is {type(dataset).__name__}; Episodes are needed: voc_rl.Episodes.open(path), or "
            "voc_rl.data.load_dataset for other formats."
        )


def quantizer_of(source: QuantizerSource | None, dataset: Episodes) -> Quantizer | None:
    """A quantizer as it is, that of a VOC, or that in the folder of either or of a run; None where there is no source.

    Of a VOC that was trained with data of another kind than ``dataset`` it is warned.

    Raises:
        VOCError: missing or damaged files, or another source.
    """
    if source is None or isinstance(source, Quantizer):
        return source
    if isinstance(source, VOC):
        source.check_spec(dataset.spec)
        return source.quantizer
    if isinstance(source, (str, Path)):
        quantizer = load_quantizer(Path(source))
        check_spec_of(source, dataset.spec)
        return quantizer
    raise VOCError(f"quantizer is {type(source).__name__}; a quantizer, a VOC or the folder of one is needed.")


def known_tokens(
    tokens: Tokens, quantizer: Quantizer | None, dataset: Episodes, needs_features: bool
) -> tuple[Tensor, Tensor | None]:
    """Codes and features that were given, as tensors.

    Raises:
        VOCError: what ``tokens_of`` refuses, or features of another width than the quantizer's, or none where they are
            needed.
    """
    codes, features = tokens_of(tokens, quantizer, dataset)
    assert quantizer is not None
    width = quantizer.feature_dim
    if features is None and needs_features and width:
        raise VOCError(
            f"Tokens lack the features of quantizer {quantizer.name}; give those of tokenize(quantizer, dataset), or a "
            "NetworkSize(features=False) in the config."
        )
    if features is not None and features.shape != (len(dataset), width):
        raise VOCError(f"Features have shape {tuple(features.shape)}; {(len(dataset), width)} are needed.")
    return codes, features


def tokens_of(tokens: Tokens, quantizer: Quantizer | None, dataset: Episodes) -> tuple[Tensor, Tensor | None]:
    """Codes and features that were given, the features of any width, as tensors without gradients.

    Raises:
        VOCError: tokens without a quantizer, no pair of tensors or arrays, another number of rows than the data's, or
            codes that are not of the quantizer.
    """
    if quantizer is None:
        raise VOCError("Tokens were given without the quantizer that made them; give both.")
    if not isinstance(tokens, (tuple, list)) or len(tokens) != 2:
        raise VOCError(f"tokens is {type(tokens).__name__}; a pair is needed, as of tokenize(quantizer, dataset).")
    codes, features = tensor_of(tokens[0], "Codes"), None if tokens[1] is None else tensor_of(tokens[1], "Features")
    check_token_rows(codes, features, len(dataset))
    check_codes(codes, quantizer)
    return codes, features


def tensor_of(rows: Any, name: str) -> Tensor:
    """A tensor without gradients of a tensor or array, which messages call ``name``.

    Raises:
        VOCError: it is neither.
    """
    if not isinstance(rows, (Tensor, np.ndarray)):
        raise VOCError(f"{name} are {type(rows).__name__}; a tensor or an array is needed.")
    return as_tensor(rows).detach()
