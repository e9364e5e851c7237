"""Token-weighted negative log-likelihood under a frozen head and its derivatives, in blocks of tokens and words."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from kernels import weighted_cross_entropy


@dataclass(frozen=True)
class Tokens:
    """Random hidden states ``[D, T, H]`` and weights ``[D, T]`` that want gradients, a head and targets."""

    hidden: Tensor
    head: Tensor
    targets: Tensor
    weights: Tensor

    def loss(self, hidden: Tensor, weights: Tensor) -> Tensor:
        return weighted_cross_entropy(hidden, self.head, self.targets, weights)


def _tokens(documents: int, count: int, *, size: int = 4, vocabulary: int = 7, scale: float = 1.0) -> Tokens:
    generator = torch.Generator().manual_seed(documents + 10 * count)
    hidden = scale * torch.randn(documents, count, size, generator=generator, dtype=torch.float64)
    weights = 0.1 + torch.rand(documents, count, generator=generator, dtype=torch.float64)
    return Tokens(
        hidden=hidden.requires_grad_(),
        head=torch.randn(vocabulary, size, generator=generator, dtype=torch.float64),
        targets=torch.randint(vocabulary, (documents, count), generator=generator),
        weights=weights.requires_grad_(),
    )


def _plain(tokens: Tokens) -> Tensor:
    logits = tokens.hidden @ tokens.head.T
    nll = functional.cross_entropy(logits.flatten(0, 1), tokens.targets.flatten(), reduction="none")
    return (nll.view_as(tokens.weights) * tokens.weights).sum(-1)


@settings(max_examples=15, deadline=None)
@given(
    documents=st.sampled_from([1, 3]),
    count=st.integers(1, 6),
    size=st.integers(1, 5),
    vocabulary=st.integers(1, 9),
)
def test_it_and_both_its_derivatives_are_those_of_the_formula(
    documents: int, count: int, size: int, vocabulary: int
) -> None:
    tokens = _tokens(documents, count, size=size, vocabulary=vocabulary)
    torch.testing.assert_close(tokens.loss(tokens.hidden, tokens.weights), _plain(tokens))
    assert gradcheck(tokens.loss, (tokens.hidden, tokens.weights))
    assert gradgradcheck(tokens.loss, (tokens.hidden, tokens.weights))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 64 tokens by 3 of the 7 words."""
    module = sys.modules["kernels.weighted_cross_entropy"]
    monkeypatch.setitem(module._BLOCK_TOKENS, "cpu", 64)
    monkeypatch.setitem(module._BLOCK_BYTES, "cpu", 64 * 3 * 8)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("documents", "count"), [(1, 64), (1, 65), (1, 150), (3, 43)])
def test_more_tokens_and_words_than_one_block_change_nothing(documents: int, count: int) -> None:
    tokens = _tokens(documents, count)
    ours, plain = tokens.loss(tokens.hidden, tokens.weights), _plain(tokens)
    torch.testing.assert_close(ours, plain)
    # First and second derivative, the latter along a random direction that also depends on the weights.
    leaves = (tokens.hidden, tokens.weights)
    upstream = torch.linspace(1, 2, documents).double()
    first, first_plain = (torch.autograd.grad(loss, leaves, upstream, create_graph=True) for loss in (ours, plain))
    torch.testing.assert_close(first, first_plain)
    direction = torch.sin(torch.arange(tokens.hidden.numel()).double()).view_as(tokens.hidden)
    second, second_plain = (torch.autograd.grad((g[0] * direction).sum(), leaves) for g in (first, first_plain))
    torch.testing.assert_close(second, second_plain)


@pytest.mark.usefixtures("small_blocks")
def test_the_derivatives_over_several_blocks_are_those_of_finite_differences() -> None:
    tokens = _tokens(3, 43)
    assert gradcheck(tokens.loss, (tokens.hidden, tokens.weights), fast_mode=True)
    assert gradgradcheck(tokens.loss, (tokens.hidden, tokens.weights), fast_mode=True)


def test_a_token_of_weight_zero_adds_nothing() -> None:
    tokens = _tokens(3, 5)
    with torch.no_grad():
        tokens.weights[:, 3:] = 0
    loss = tokens.loss(tokens.hidden, tokens.weights)
    fewer = weighted_cross_entropy(tokens.hidden[:, :3], tokens.head, tokens.targets[:, :3], tokens.weights[:, :3])
    torch.testing.assert_close(loss, fewer)
    (gradient,) = torch.autograd.grad(loss.sum(), tokens.hidden, create_graph=True)
    assert (gradient[:, 3:] == 0).all()
    (second,) = torch.autograd.grad(gradient.square().sum(), tokens.hidden)
    assert (second[:, 3:] == 0).all()
    # Its weight's own gradient is its negative log-likelihood all the same.
    assert gradcheck(tokens.loss, (tokens.hidden, tokens.weights))


def test_large_logits_do_not_overflow() -> None:
    tokens = _tokens(1, 4, scale=1e4)
    hidden = tokens.hidden.detach().float().requires_grad_()
    loss = weighted_cross_entropy(hidden, tokens.head.float(), tokens.targets, tokens.weights.detach().float())
    (gradient,) = torch.autograd.grad(loss.sum(), hidden)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    torch.testing.assert_close(loss.double(), _plain(tokens), rtol=1e-4, atol=0)


def test_without_a_gradient_for_the_states_the_weights_still_have_one() -> None:
    tokens = _tokens(1, 5)
    frozen = tokens.hidden.detach()
    (gradient,) = torch.autograd.grad(tokens.loss(frozen, tokens.weights).sum(), tokens.weights)
    (expected,) = torch.autograd.grad(_plain(tokens).sum(), tokens.weights)
    torch.testing.assert_close(gradient, expected)


def test_the_sum_of_many_terms_has_more_digits_than_they_have() -> None:
    """In bfloat16 alone, 2,000 terms of a mean would be told to two digits."""
    tokens = _tokens(1, 2000)
    rounded = [tensor.to(torch.bfloat16) for tensor in (tokens.hidden, tokens.head, tokens.weights)]
    hidden, head, weights = rounded
    loss = weighted_cross_entropy(hidden, head, tokens.targets, weights)
    logits = hidden.double() @ head.double().T
    nll = logits.logsumexp(-1) - logits.gather(-1, tokens.targets[..., None])[..., 0]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), (nll * weights.double()).sum(-1), rtol=1e-3, atol=0)
