"""What a block computes between its products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small import generator

from voc_rl.occupancy.blocks import VECTOR, gelu, softmax


def test_gelu_is_gpt2s_and_in_bfloat16_as_near_to_it_as_pytorchs() -> None:
    x = 2 * torch.randn(1 << 18, generator=generator(), dtype=torch.float64)
    expected = F.gelu(x, approximate="tanh")
    torch.testing.assert_close(gelu(x.float()).double(), expected, atol=1e-6, rtol=1e-5)
    low = x.bfloat16()
    found, plain = (F.mse_loss(y.double(), expected).sqrt() for y in (gelu(low), F.gelu(low, approximate="tanh")))
    assert found < 1.01 * plain < 0.01  # both by what bfloat16 rounds
    assert (gelu(low).double() - F.gelu(low.double(), approximate="tanh")).abs().max() < 5e-4 + 2**-8 * x.abs().max()


@pytest.mark.parametrize("size", [1, VECTOR - 1, VECTOR, VECTOR + 1])
def test_softmax_of_short_rows_and_its_gradient(size: int) -> None:
    scores = torch.randn(5, 3, size, generator=generator(), dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, 3, size, generator=generator(1), dtype=torch.float64)
    expected = scores.softmax(-1)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), scores)
    plain = scores.detach().float().requires_grad_(True)
    found = softmax(plain)
    (own,) = torch.autograd.grad((found * weights.float()).sum(), plain)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(own.double(), gradient, atol=1e-6, rtol=1e-5)
    assert softmax(plain.detach().bfloat16()).dtype == torch.float32
