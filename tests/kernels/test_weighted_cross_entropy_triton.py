"""The Triton kernels of `weighted_cross_entropy`, run in Triton's interpreter, against the formula in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from kernels import weighted_cross_entropy

pytestmark = pytest.mark.usefixtures("in_triton")

TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}


@dataclass
class Case:
    """Tensors of one call; some tokens may weigh nothing."""

    hidden: Tensor
    head: Tensor
    targets: Tensor
    weights: Tensor

    @classmethod
    def random(cls, documents: int, tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> Case:
        generator = torch.Generator(torch.get_default_device()).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        return cls(
            hidden=draw(documents, tokens, width),
            head=draw(vocabulary, width) * width**-0.5,
            targets=torch.randint(vocabulary, (documents, tokens), generator=generator),
            weights=draw(documents, tokens).abs() + 0.1,
        )

    def in_float64(self) -> Case:
        return Case(self.hidden.double(), self.head.double(), self.targets, self.weights.double())


def formula(case: Case) -> Tensor:
    logits = case.hidden @ case.head.T
    nll = logits.logsumexp(-1) - logits.gather(-1, case.targets[..., None])[..., 0]
    return (nll * case.weights).sum(-1)


def in_triton(case: Case) -> Tensor:
    return weighted_cross_entropy(case.hidden, case.head, case.targets, case.weights)


def derivatives(loss: Tensor, learned: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """Losses, their gradients, and the gradients of those along a fixed direction, of a dtype, of the states' slope."""
    upstream = torch.linspace(1, 2, loss.numel()).to(loss.dtype)
    first = torch.autograd.grad(loss, learned, upstream, create_graph=True)
    direction = torch.sin(torch.arange(first[0].numel()).double()).view_as(first[0]).to(dtype)
    second = torch.autograd.grad(first[0], learned, direction.to(first[0].dtype))
    return [loss.detach(), *(part.detach() for part in first), *second]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)
    assert expected.numel() == 0 or error <= tolerance, f"relative error {error:.1e}"


def check(case: Case, *, learned_weights: bool) -> None:
    reference = case.in_float64()
    results = []
    for one, run in ((case, in_triton), (reference, formula)):
        learned = (one.hidden, one.weights) if learned_weights else (one.hidden,)
        for tensor in learned:
            tensor.requires_grad_()
        results.append(derivatives(run(one), learned, case.hidden.dtype))
    for actual, expected in zip(*results, strict=True):
        assert_near(actual, expected, TOLERANCES[case.hidden.dtype])


@pytest.mark.parametrize(
    ("documents", "tokens", "width", "vocabulary", "dtype"),
    [
        (1, 70, 33, 150, torch.float32),
        (3, 5, 70, 67, torch.float32),
        (3, 43, 33, 300, torch.bfloat16),
        (1, 1, 130, 140, torch.bfloat16),
        (3, 1, 20, 9, torch.float16),
        (1, 0, 8, 9, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("learned_weights", [False, True])
def test_values_and_both_derivatives_are_those_of_the_formula(
    documents: int, tokens: int, width: int, vocabulary: int, dtype: torch.dtype, learned_weights: bool
) -> None:
    check(Case.random(documents, tokens, width, vocabulary, dtype), learned_weights=learned_weights)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.sampled_from([1, 3]),
    tokens=st.integers(0, 40),
    width=st.integers(1, 70),
    vocabulary=st.integers(1, 140),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    some_dead=st.booleans(),
)
# Few tokens of a small vocabulary: one of them has nearly all of the probability, and of the curvature little is left.
@example(documents=1, tokens=11, width=64, vocabulary=3, dtype=torch.bfloat16, some_dead=False)
@example(documents=1, tokens=2, width=12, vocabulary=5, dtype=torch.bfloat16, some_dead=True)
@example(documents=1, tokens=11, width=1, vocabulary=2, dtype=torch.bfloat16, some_dead=True)
def test_any_shape_is_right(
    documents: int, tokens: int, width: int, vocabulary: int, dtype: torch.dtype, some_dead: bool
) -> None:
    case = Case.random(documents, tokens, width, vocabulary, dtype)
    if some_dead:
        case.weights[:, ::2] = 0
    # Of one token alone the curvature is rounding error and no more: its probability is 1. And a gradient of a few
    # numbers may be a difference of what bfloat16 rounds to nearly the same, in all of them.
    if vocabulary > 1 and (dtype == torch.float32 or case.hidden.numel() == 0 or case.hidden.numel() >= 8):
        check(case, learned_weights=False)


def test_float64_derivatives_hold_against_differences() -> None:
    case = Case.random(2, 2, 3, 5, torch.float64)
    case.hidden.requires_grad_()
    case.weights.requires_grad_()

    def apply(hidden: Tensor, weights: Tensor) -> Tensor:
        return weighted_cross_entropy(hidden, case.head, case.targets, weights)

    assert gradcheck(apply, (case.hidden, case.weights))
    assert gradgradcheck(apply, (case.hidden, case.weights))


def test_strides_are_followed() -> None:
    """As they occur: states cut from a longer batch, a head that lies transposed, targets of every other token."""
    case = Case.random(1, 20, 24, 70, torch.float32)
    case.hidden = torch.randn(1, 24, 40).mT[:, ::2]
    case.head = (torch.randn(24, 70) / 5).T
    case.targets = torch.arange(40).view(1, 40)[:, ::2]
    check(case, learned_weights=False)


def test_tokens_of_weight_zero_are_not_computed() -> None:
    case = Case.random(3, 30, 16, 40, torch.float32)
    case.weights[:, 1::3] = 0
    # What is read of them would show.
    case.hidden[:, 1::3] = torch.nan
    alive = torch.arange(30) % 3 != 1
    fewer = Case(case.hidden[:, alive].clone(), case.head, case.targets[:, alive], case.weights[:, alive])
    results = []
    for one in (case, fewer):
        one.hidden.requires_grad_()
        loss = in_triton(one)
        (gradient,) = torch.autograd.grad(loss.sum(), one.hidden, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), one.hidden)
        results.append((loss.detach(), gradient.detach(), second))
    (loss, gradient, second), expected = results
    torch.testing.assert_close(loss, expected[0])
    for actual, other in ((gradient, expected[1]), (second, expected[2])):
        assert (actual[:, ~alive] == 0).all()
        torch.testing.assert_close(actual[:, alive], other)


def test_where_no_token_weighs_anything_loss_and_gradient_are_zero() -> None:
    case = Case.random(1, 5, 8, 9, torch.float32)
    case.weights.zero_()
    case.hidden.requires_grad_()
    loss = in_triton(case)
    (gradient,) = torch.autograd.grad(loss.sum(), case.hidden)
    assert (loss == 0).all()
    assert (gradient == 0).all()


def test_large_logits_do_not_overflow() -> None:
    case = Case.random(1, 4, 8, 300, torch.float32)
    case.hidden *= 1e4
    reference = case.in_float64()
    results = []
    for one, run in ((case, in_triton), (reference, formula)):
        one.hidden.requires_grad_()
        results.append(derivatives(run(one), (one.hidden,), case.hidden.dtype))
    (loss, gradient, second), expected = results
    assert_near(loss, expected[0], 1e-5)
    assert_near(gradient, expected[1], 1e-5)
    # Each token's probability is 1 somewhere: no curvature is left.
    assert second.abs().max() < 1e-5


def test_a_head_of_another_dtype_is_refused() -> None:
    case = Case.random(1, 2, 3, 4, torch.float32)
    case.head = case.head.half()
    with pytest.raises(ValueError, match=r"head: dtype torch\.float16 is not torch\.float32"):
        in_triton(case)
