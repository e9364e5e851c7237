"""The Triton kernels of the optimiser step, run in Triton's interpreter, against the formulas in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import adamw_update, rms_update

pytestmark = pytest.mark.usefixtures("in_triton")

BETAS = (0.9, 0.95)
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def draw(documents: int, size: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return torch.randn(documents, size, generator=generator, dtype=torch.float64).to(dtype)


def adamw(
    theta: Tensor, gradient: Tensor, first: Tensor, second: Tensor, rates: Tensor, sizes: Sequence[int]
) -> Tensor:
    """New adapters and both new moments, ``[3, D, P]``."""
    moved, moments = adamw_update(
        theta, gradient, (first, second), rates, sizes, 3, betas=BETAS, weight_decay=0.1, epsilon=1e-4
    )
    return torch.stack([moved, *moments])


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)
    assert expected.numel() == 0 or error <= tolerance, f"relative error {error:.1e}"


def check(documents: int, sizes: list[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    theta, gradient, first, second = (draw(documents, sum(sizes), seed, dtype) for seed in range(4))
    second = second.square()
    rates = torch.linspace(0.1, 1, len(sizes)).to(dtype)
    tensors = (theta, gradient, first, second, rates)
    by_adamw = adamw(*tensors, sizes)
    by_rms = rms_update(theta, gradient, rates, sizes, epsilon=1e-4)
    with monkeypatch.context() as patch:
        patch.setenv("PERK_KERNELS", "torch")
        wide = [tensor.double() for tensor in tensors]
        expected_adamw = adamw(*wide, sizes)
        expected_rms = rms_update(wide[0], wide[1], wide[4], sizes, epsilon=1e-4)
    for actual, expected in zip((*by_adamw, by_rms), (*expected_adamw, expected_rms), strict=True):
        assert_near(actual, expected, TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("documents", "sizes", "dtype"),
    [
        (1, [1], torch.float32),
        (3, [5000, 1, 2048, 7], torch.float32),
        (1, [70000, 3], torch.float32),
        (3, [100, 2049], torch.bfloat16),
    ],
)
def test_both_rules_are_those_of_the_formula(
    documents: int, sizes: list[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(documents, sizes, dtype, monkeypatch)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=st.sampled_from([0, 1, 3]), sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=4))
def test_any_sizes_are_right(documents: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    check(documents, sizes, torch.float32, monkeypatch)


def test_tensors_beyond_one_group_are_moved_group_by_group(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels.triton_ops import adapter_update

    monkeypatch.setattr(adapter_update, "_GROUP_BYTES", 3 * 4 * 1000)
    for sizes, groups in (([300] * 11, 3), ([300] * 30, 1)):
        assert len(adapter_update._groups(sizes, 3 * 4)) == groups
        check(3, sizes, torch.float32, monkeypatch)


def test_strides_are_followed() -> None:
    """As they occur: an initialisation expanded over documents, buffers cut from wider ones, and a transposed one."""
    sizes, rates = [30, 20], torch.tensor([0.1, 0.2])
    theta = draw(1, 50, 0).expand(3, -1)
    wide, transposed = draw(3, 80, 1)[:, 10:60], draw(50, 3, 2).T
    plain = [tensor.clone(memory_format=torch.contiguous_format) for tensor in (theta, wide, transposed)]
    expected = adamw(*plain, plain[2].square(), rates, sizes)
    assert torch.equal(adamw(theta, wide, transposed, transposed.square(), rates, sizes), expected)
    expected = rms_update(plain[0], plain[2], rates, sizes, epsilon=1e-4)
    assert torch.equal(rms_update(theta, transposed, rates, sizes, epsilon=1e-4), expected)


def test_the_inputs_stay_as_they_are() -> None:
    theta, gradient = draw(2, 40, 0), draw(2, 40, 1)
    before = theta.clone(), gradient.clone()
    rms_update(theta, gradient, torch.ones(1), [40], epsilon=1e-4)
    assert torch.equal(theta, before[0])
    assert torch.equal(gradient, before[1])


def test_a_step_that_is_differentiated_keeps_its_graph() -> None:
    theta, gradient, rates = draw(2, 40, 0).requires_grad_(), draw(2, 40, 1), torch.ones(2)
    moved = rms_update(theta, gradient, rates, [10, 30], epsilon=1e-4)
    assert torch.equal(torch.autograd.grad(moved.sum(), theta)[0], torch.ones(2, 40))
    zeros = torch.zeros(2, 40)
    moved = adamw(theta, gradient, zeros, zeros, rates, [10, 30])[0]
    torch.testing.assert_close(torch.autograd.grad(moved.sum(), theta)[0], torch.full((2, 40), 0.9))


@pytest.mark.parametrize(
    ("sizes", "rates", "message"),
    [
        ([2, 2], 2, "sizes: add up to 4, and theta has 5 elements"),
        ([2, 3], 3, r"step_sizes: shape \[3\] is not \[2\]"),
    ],
)
def test_sizes_and_step_sizes_that_do_not_fit_are_errors(sizes: list[int], rates: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rms_update(draw(1, 5, 0), draw(1, 5, 1), torch.ones(rates), sizes, epsilon=1e-4)
