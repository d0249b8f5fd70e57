"""Codebooks: how their vectors are found and followed, and how evenly they are used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import generator

from voc_rl.quantizers import code_counts, codebook_use, perplexity
from voc_rl.quantizers.codebook import CosineCodebook, move_unused


def test_codebook_finds_directions() -> None:
    """Four bundles of directions: k-means puts a vector on each, and an unused vector moves to a bundle without one."""
    axes = torch.eye(4)
    noise = torch.randn(400, 4, generator=generator()) * 0.05
    latents = (axes.repeat(100, 1) + noise) * torch.rand(400, 1, generator=generator(1)).add(0.1)
    torch.manual_seed(0)
    book = CosineCodebook(16, 4, decay=0.9)
    book.fit(latents, generator())
    assert (F.normalize(latents, dim=-1) * book.vectors[book.nearest(latents)]).sum(1).min() > 0.97
    torch.testing.assert_close(book.vectors.norm(dim=1), torch.ones(16))
    book.vectors.copy_(F.normalize(torch.tensor([[1.0, 0.1, 0, 0]]), dim=1).expand(16, 4))
    for step in range(150):
        book.follow(latents, book.nearest(latents), generator(step))
    assert len(book.nearest(axes).unique()) == 4
    assert (book.vectors[book.nearest(axes)] * axes).sum(1).min() > 0.97
    few = CosineCodebook(16, 4, decay=0.9)
    few.fit(latents[:3], generator())
    assert len(few.nearest(latents[:3]).unique()) == 3


def test_codebook_follows_at_its_decay() -> None:
    book = CosineCodebook(2, 2, decay=0.75)
    book.vectors.copy_(torch.eye(2))
    latents = F.normalize(torch.tensor([[2.0, 1.0], [2.0, -0.5]]), dim=1)
    book.follow(latents * 7, torch.tensor([0, 0]), generator())
    mean = F.normalize(latents.mean(0), dim=0)
    torch.testing.assert_close(book.vectors[0], F.normalize(0.75 * torch.tensor([1.0, 0]) + 0.25 * mean, dim=0))
    assert torch.equal(book.vectors[1], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(book.share, torch.tensor([0.515, 0.485]))


def test_a_codebook_leaves_it_to_the_loop_to_say_that_training_diverged() -> None:
    """Latents that are not finite move unused codes without an error of PyTorch's."""
    book = CosineCodebook(4, 2, decay=0.9)
    book.share[3] = 0.0
    latents = torch.full((5, 2), torch.nan)
    book.follow(latents, book.nearest(latents), generator())
    vectors, share, far = torch.zeros(4, 2), torch.tensor([1.0, 0, 0, 0]), torch.full((5,), torch.inf)
    move_unused(vectors, share, torch.ones(5, 2), torch.zeros(5, dtype=torch.long), far, generator())
    assert torch.equal(vectors[1:], torch.ones(3, 2))


def test_codebook_use() -> None:
    codes = np.array([[0, 2], [0, 3], [1, 2], [1, 3], [0, 2], [0, 3], [1, 2], [1, 3]])
    np.testing.assert_array_equal(code_counts(codes, 8)[:, :4], [[4, 4, 0, 0], [0, 0, 4, 4]])
    assert code_counts(codes, 8).shape == (2, 8)
    assert codebook_use(codes, 8) == pytest.approx({"use": 0.5, "perplexity": 2.0})
    one = np.zeros((5, 3), np.int64)
    assert codebook_use(one, 4) == pytest.approx({"use": 0.25, "perplexity": 1.0})
    mixed = np.array([[0, 0], [0, 1], [0, 2], [0, 3]])  # perplexities 1 and 4
    assert codebook_use(mixed, 4) == pytest.approx({"use": 1.0, "perplexity": 2.5})
    assert perplexity(np.array([5, 5, 5, 5, 0])) == pytest.approx(4.0)
    assert perplexity(np.zeros(3)) == 0.0
    skewed = np.array([[0]] * 3 + [[1]])
    assert codebook_use(skewed, 2)["perplexity"] == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))
