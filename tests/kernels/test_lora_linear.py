"""y = x Wᵀ + b + s (x Aᵀ) Bᵀ, for each document its own A and B."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from kernels import lora_linear, quantise_rows

DIMENSIONS = st.integers(1, 5)


def _random(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@settings(max_examples=20, deadline=None)
@given(
    documents=st.sampled_from([1, 3]),
    tokens=DIMENSIONS,
    inputs=DIMENSIONS,
    outputs=DIMENSIONS,
    rank=DIMENSIONS,
    bias=st.booleans(),
)
def test_it_and_both_its_derivatives_are_those_of_the_formula(
    documents: int, tokens: int, inputs: int, outputs: int, rank: int, bias: bool
) -> None:
    x = _random(documents, tokens, inputs, seed=0).requires_grad_()
    a = _random(documents, rank, inputs, seed=1).requires_grad_()
    b = _random(documents, outputs, rank, seed=2).requires_grad_()
    weight = _random(outputs, inputs, seed=3)
    offset = _random(outputs, seed=4) if bias else None

    y = lora_linear(x, weight, offset, a, b, 0.7)
    for d in range(documents):
        expected = x[d] @ (weight + 0.7 * b[d] @ a[d]).T + (0 if offset is None else offset)
        torch.testing.assert_close(y[d], expected)

    def apply(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return lora_linear(x, weight, offset, a, b, 0.7)

    assert gradcheck(apply, (x, a, b))
    assert gradgradcheck(apply, (x, a, b))


@pytest.mark.parametrize("documents", [1, 3])
def test_with_b_zero_it_is_the_frozen_map(documents: int) -> None:
    x, weight = _random(documents, 4, 3, seed=0), _random(5, 3, seed=1)
    y = lora_linear(x, weight, None, _random(documents, 2, 3, seed=2), torch.zeros(documents, 5, 2).double(), 0.7)
    torch.testing.assert_close(y, x @ weight.T, rtol=0, atol=0)


def test_a_document_does_not_depend_on_the_others() -> None:
    x, a, b = _random(3, 4, 3, seed=0), _random(3, 2, 3, seed=1), _random(3, 5, 2, seed=2)
    weight = _random(5, 3, seed=3)
    together = lora_linear(x, weight, None, a, b, 0.7)
    a[0], x[2] = 100, -100
    torch.testing.assert_close(lora_linear(x, weight, None, a, b, 0.7)[1], together[1], rtol=0, atol=0)


def test_gradients_can_be_added_to_a_flat_buffer() -> None:
    x = _random(3, 4, 3, seed=0).requires_grad_()
    a, b = _random(3, 2, 3, seed=1).requires_grad_(), _random(3, 5, 2, seed=2).requires_grad_()
    weight, dy = _random(5, 3, seed=3), _random(3, 4, 5, seed=4)
    flat = torch.ones(3, 16, dtype=torch.float64)
    into = flat[:, :6].view(3, 2, 3), flat[:, 6:].view(3, 5, 2)

    y = lora_linear(x, weight, None, a, b, 0.7, gradients=into)
    dx, da, db = torch.autograd.grad(y, (x, a, b), dy, allow_unused=True)

    expected = torch.autograd.grad(lora_linear(x, weight, None, a, b, 0.7), (x, a, b), dy)
    assert da is db is None
    torch.testing.assert_close(dx, expected[0])
    torch.testing.assert_close(flat - 1, torch.cat([part.flatten(1) for part in expected[1:]], 1))


def test_a_pass_that_adds_to_buffers_is_not_differentiated_twice() -> None:
    x, a, b = _random(1, 4, 3, seed=0), _random(1, 2, 3, seed=1).requires_grad_(), _random(1, 5, 2, seed=2)
    y = lora_linear(x, _random(5, 3, seed=3), None, a, b, 0.7, gradients=(torch.zeros_like(a), torch.zeros_like(b)))
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(y.sum(), a, create_graph=True)


def test_a_weight_of_8_bits_is_near_the_one_it_stands_for() -> None:
    x, a, b = _random(1, 4, 30, seed=0), _random(1, 2, 30, seed=1), _random(1, 5, 2, seed=2)
    weight = _random(5, 30, seed=3)
    quantised, row_scales = quantise_rows(weight)
    y = lora_linear(x, quantised, None, a, b, 0.7, row_scales=row_scales)
    torch.testing.assert_close(y, lora_linear(x, weight, None, a, b, 0.7), rtol=0, atol=0.1)


def test_shapes_that_do_not_fit_are_named() -> None:
    x, a, b = _random(2, 4, 3, seed=0), _random(2, 2, 3, seed=1), _random(2, 5, 2, seed=2)
    weight = _random(5, 3, seed=3)
    with pytest.raises(ValueError, match=r"x: shape \[2, 4, 2\] is not \[2, 4, 3\]"):
        lora_linear(x[..., :2], weight, None, a, b, 0.7)
    with pytest.raises(ValueError, match=r"b: shape \[2, 5, 1\] is not \[2, 5, 2\]"):
        lora_linear(x, weight, None, a, b[..., :1], 0.7)
    with pytest.raises(ValueError, match="row_scales: needed with 8-bit weights"):
        lora_linear(x, weight.to(torch.int8), None, a, b, 0.7)
