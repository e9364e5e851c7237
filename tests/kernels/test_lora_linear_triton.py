"""The Triton kernels of `lora_linear`, run in Triton's interpreter, against the formula in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from kernels import lora_linear, quantise_rows

pytest.importorskip("triton")

from kernels.triton_ops import lora_linear as lora_linear_passes
from kernels.triton_ops import lora_linear_kernel, programs

pytestmark = pytest.mark.usefixtures("in_triton")

TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1e-2}
# Of a number's terms: in bfloat16 a term of a second derivative is rounded five times at most (the low-rank product,
# its scaling, the sum, and what is added to the sum later), by up to 2⁻⁸ each.
TERM_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 5 * 2**-8}
SCALE = 0.7


@dataclass
class Case:
    """Tensors of one call: x, a and b want gradients."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor

    @classmethod
    def random(cls, documents: int, tokens: int, inputs: int, outputs: int, rank: int, dtype: torch.dtype) -> Case:
        generator = torch.Generator(torch.get_default_device()).manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        x, weight, bias = draw(documents, tokens, inputs), draw(outputs, inputs), draw(outputs)
        return cls(x, weight, bias, draw(documents, rank, inputs), draw(documents, outputs, rank))

    @property
    def learned(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.x, self.a, self.b

    def in_float64(self) -> Case:
        bias = None if self.bias is None else self.bias.double()
        return Case(self.x.double(), self.weight.double(), bias, self.a.double(), self.b.double())

    def absolute(self) -> Case:
        """The absolute values of all, in float64."""
        case = self.in_float64()
        bias = None if case.bias is None else case.bias.abs()
        return Case(case.x.abs(), case.weight.abs(), bias, case.a.abs(), case.b.abs())


def formula(case: Case) -> Tensor:
    y = case.x @ case.weight.T + SCALE * (case.x @ case.a.mT) @ case.b.mT
    return y if case.bias is None else y + case.bias


def in_triton(case: Case) -> Tensor:
    return lora_linear(case.x, case.weight, case.bias, case.a, case.b, SCALE)


def derivatives(y: Tensor, learned: tuple[Tensor, ...], dtype: torch.dtype, *, absolute: bool = False) -> list[Tensor]:
    """y, its gradients along a fixed direction, and those gradients' own along others, all of numbers of `dtype`."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(1)

    def direction(like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(dtype).to(like.dtype)
        return drawn.abs() if absolute else drawn

    first = torch.autograd.grad(y, learned, direction(y), create_graph=True)
    second = torch.autograd.grad(first, learned, [direction(part) for part in first])
    return [y.detach(), *(part.detach() for part in first), *second]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)
    assert expected.numel() == 0 or error <= tolerance, f"relative error {error:.1e}"


def found_and_expected(case: Case) -> list[tuple[Tensor, Tensor]]:
    """y and its derivatives from Triton, and from the formula in float64."""
    reference = case.in_float64()
    for tensor in (*case.learned, *reference.learned):
        tensor.requires_grad_()
    actual = derivatives(in_triton(case), case.learned, case.x.dtype)
    expected = derivatives(formula(reference), reference.learned, case.x.dtype)
    return list(zip(actual, expected, strict=True))


def check(case: Case, tolerance: float) -> None:
    for one, other in found_and_expected(case):
        assert_near(one, other, tolerance)


def check_each_number(case: Case, tolerance: float) -> None:
    """Hold each number's error against the sum of the absolute values of its terms.

    All results are sums of products of what is given, so the formula of the absolute values makes those sums. Rounding
    is relative to a term, not to what is left of terms that cancel: where a shape leaves one number, and its terms
    nearly cancel, no bfloat16 product is near it relative to itself. In exchange each number is held by itself.
    """
    sizes = case.absolute()
    for tensor in sizes.learned:
        tensor.requires_grad_()
    terms = derivatives(formula(sizes), sizes.learned, case.x.dtype, absolute=True)
    for (one, other), size in zip(found_and_expected(case), terms, strict=True):
        assert one.shape == other.shape
        error = (one.double() - other).abs() / size.clamp_min(1e-30)
        assert one.numel() == 0 or error.max() <= tolerance, f"error {error.max():.1e} of the terms' sizes"


@pytest.mark.parametrize(
    ("documents", "tokens", "inputs", "outputs", "rank", "dtype"),
    [
        (1, 37, 33, 50, 4, torch.float32),
        (3, 66, 33, 70, 16, torch.float32),
        (1, 40, 24, 70, 100, torch.float32),
        (3, 5, 20, 24, 256, torch.float32),
        (3, 37, 33, 50, 4, torch.bfloat16),
        (1, 140, 72, 136, 16, torch.bfloat16),
        (3, 33, 40, 70, 100, torch.bfloat16),
        (1, 1, 50, 30, 256, torch.bfloat16),
        (3, 1, 33, 20, 16, torch.float16),
        (1, 0, 8, 9, 4, torch.bfloat16),
    ],
)
def test_values_and_both_derivatives_are_those_of_the_formula(
    documents: int, tokens: int, inputs: int, outputs: int, rank: int, dtype: torch.dtype
) -> None:
    check(Case.random(documents, tokens, inputs, outputs, rank, dtype), TOLERANCES[dtype])


def test_programs_that_take_several_blocks_of_outputs_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two token blocks of each document, five blocks of outputs in two groups, the second one with a block less."""
    monkeypatch.setattr(programs, "PROGRAMS", 12)
    assert lora_linear_kernel._count_groups(2 * 3, 5, 1) == 2
    check(Case.random(3, 100, 40, 300, 16, torch.float32), TOLERANCES[torch.float32])


@pytest.mark.parametrize(
    ("token_blocks", "column_blocks", "inputs", "expected"),
    [
        # Enough to fill the GPU, and no more than there are blocks of outputs.
        (8, 38, 896, 16),
        (1, 7, 896, 7),
        (0, 7, 896, 7),
        (32, 0, 896, 1),
        # Many tokens: so many that those of 128 programs, at 128 tokens, have 24 MB of x.
        (1024, 38, 896, 2),
        (32, 7, 4864, 7),
        (1024, 56, 4864, 7),
    ],
)
def test_programs_share_tokens_as_far_as_the_cache_wants(
    token_blocks: int, column_blocks: int, inputs: int, expected: int
) -> None:
    assert lora_linear_kernel._count_groups(token_blocks, column_blocks, 128 * inputs * 2) == expected


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=st.sampled_from([1, 3]),
    tokens=st.integers(0, 40),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    rank=st.sampled_from([1, 4, 16, 20]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_shape_is_right(
    documents: int, tokens: int, inputs: int, outputs: int, rank: int, dtype: torch.dtype
) -> None:
    check_each_number(Case.random(documents, tokens, inputs, outputs, rank, dtype), TERM_TOLERANCES[dtype])


def test_float64_derivatives_hold_against_differences() -> None:
    case = Case.random(2, 2, 2, 3, 1, torch.float64)
    for tensor in case.learned:
        tensor.requires_grad_()

    def apply(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return lora_linear(x, case.weight, case.bias, a, b, SCALE)

    assert gradcheck(apply, case.learned, fast_mode=True)
    assert gradgradcheck(apply, case.learned, fast_mode=True)


def test_strides_are_followed() -> None:
    """As they occur: sequences cut from a longer batch, GPT-2's transposed weights, views of a flat adapter buffer."""
    case = Case.random(3, 20, 24, 40, 16, torch.float32)
    wide = torch.randn(3, 60, 24)
    theta = torch.randn(3, 16 * 24 + 7 + 40 * 16)
    case.x = wide[:, 10:50:2]
    case.weight = torch.randn(24, 40).T
    case.a, case.b = theta[:, : 16 * 24].view(3, 16, 24), theta[:, 16 * 24 + 7 :].view(3, 40, 16)
    reference = case.in_float64()
    dy = torch.randn(3, 40, 20).mT
    for tensor in (*case.learned, *reference.learned):
        tensor.requires_grad_() if tensor.is_leaf else tensor.detach_().requires_grad_()

    y, expected = in_triton(case), formula(reference)

    assert_near(y, expected, 1e-5)
    actual = torch.autograd.grad(y, case.learned, dy)
    for one, other in zip(actual, torch.autograd.grad(expected, reference.learned, dy.double()), strict=True):
        assert_near(one, other, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_of_8_bits_acts_as_its_rows_times_their_scales(dtype: torch.dtype) -> None:
    case = Case.random(1, 35, 40, 50, 16, dtype)
    quantised, row_scales = quantise_rows(case.weight)
    reference = case.in_float64()
    reference.weight = quantised.double() * row_scales.double()[:, None]
    for tensor in (*case.learned, *reference.learned):
        tensor.requires_grad_()

    y = lora_linear(case.x, quantised, case.bias, case.a, case.b, SCALE, row_scales=row_scales)

    actual = derivatives(y, case.learned, dtype)
    expected = derivatives(formula(reference), reference.learned, dtype)
    for one, other in zip(actual, expected, strict=True):
        assert_near(one, other, TOLERANCES[dtype])


def test_a_weight_wider_or_narrower_than_the_inputs_is_read_as_it_is() -> None:
    case = Case.random(1, 9, 20, 18, 4, torch.float32)
    case.weight = case.weight.to(torch.bfloat16)
    assert_near(in_triton(case), formula(case.in_float64()), 1e-5)


def test_gradients_are_added_to_a_flat_buffer_and_come_out_the_same_to_the_last_bit() -> None:
    case = Case.random(3, 300, 20, 18, 4, torch.bfloat16)
    documents, (rows, inputs), outputs = 3, case.a.shape[1:], case.b.shape[1]
    dy = torch.randn(3, 300, outputs).to(torch.bfloat16)

    def accumulate() -> Tensor:
        flat = torch.ones(documents, rows * inputs + outputs * rows)
        into = flat[:, : rows * inputs].view(3, rows, inputs), flat[:, rows * inputs :].view(3, outputs, rows)
        x, a, b = (tensor.detach().requires_grad_() for tensor in case.learned)
        for part in (slice(0, 270), slice(270, 300)):
            y = lora_linear(x[:, part], case.weight, case.bias, a, b, SCALE, gradients=into)
            gradient = torch.autograd.grad(y, (x, a, b), dy[:, part], allow_unused=True)
            assert gradient[1] is gradient[2] is None
        return flat

    reference = case.in_float64()
    for tensor in reference.learned:
        tensor.requires_grad_()
    expected = torch.autograd.grad(formula(reference), (reference.a, reference.b), dy.double())

    flat = accumulate()

    assert_near(flat - 1, torch.cat([part.flatten(1) for part in expected], 1), 1e-2)
    assert torch.equal(flat, accumulate())


def cut_at(monkeypatch: pytest.MonkeyPatch, *places: int) -> None:
    """Have the backward pass go over slices of the tokens, cut at these places."""

    def slices(dy: Tensor, *_: object) -> list[slice]:
        ends = (*places, dy.shape[1])
        return [slice(start, end) for start, end in zip((0, *places), ends, strict=True)]

    monkeypatch.setattr(lora_linear_passes, "_token_slices", slices)


@pytest.mark.parametrize("documents", [1, 3])
@pytest.mark.parametrize(
    ("tokens", "places", "rank", "dtype"),
    [
        (37, (16, 33), 4, torch.bfloat16),
        (141, (128,), 16, torch.float32),
        (70, (1, 35), 100, torch.float32),
        (40, (23,), 256, torch.bfloat16),
    ],
)
def test_slices_of_the_tokens_make_the_derivatives_of_the_formula(
    documents: int, tokens: int, places: tuple[int, ...], rank: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_at(monkeypatch, *places)
    check(Case.random(documents, tokens, 33, 50, rank, dtype), TOLERANCES[dtype])


def test_slices_have_the_derivatives_that_differences_have(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_at(monkeypatch, 1)
    test_float64_derivatives_hold_against_differences()


def first_order(
    case: Case, dy: Tensor, into: tuple[Tensor, Tensor] | None, row_scales: Tensor | None = None
) -> list[Tensor]:
    """dx, dA and dB along `dy`; dA and dB as what `into` holds after, if given."""
    x, a, b = (tensor.detach().requires_grad_() for tensor in case.learned)
    y = lora_linear(x, case.weight, case.bias, a, b, SCALE, row_scales=row_scales, gradients=into)
    dx, *rest = torch.autograd.grad(y, (x, a, b), dy, allow_unused=True)
    return [dx, *(rest if into is None else into)]


@pytest.mark.parametrize("documents", [1, 3])
@pytest.mark.parametrize(("rank", "dtype"), [(4, torch.bfloat16), (16, torch.float32), (256, torch.bfloat16)])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("quantised", [False, True])
def test_slices_change_nothing_but_the_order_of_a_sum(
    documents: int, rank: int, dtype: torch.dtype, adds: bool, quantised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dx and dA to the last bit, dB to the rounding of its format; dy as the transpose of what lies in memory."""
    case = Case.random(documents, 203, 24, 40, rank, dtype)
    row_scales = None
    if quantised:
        case.weight, row_scales = quantise_rows(case.weight)
    dy = torch.randn(documents, 40, 203).to(dtype).mT
    found = []
    for places in ((), (128,)):
        cut_at(monkeypatch, *places)
        into = (torch.ones(case.a.shape), torch.ones(case.b.shape)) if adds else None
        found.append(first_order(case, dy, into, row_scales))
    (dx, da, db), sliced = found
    assert torch.equal(sliced[0], dx)
    assert torch.equal(sliced[1], da)
    assert sliced[2].dtype == db.dtype
    # The interpreter rounds to bfloat16 towards zero, torch to the nearest.
    assert_near(sliced[2], db.double(), 1e-5 if db.dtype == torch.float32 else 2**-7)


@pytest.mark.parametrize(
    "wanted", [(False, True, True), (True, False, True), (False, False, True), (True, True, False)]
)
def test_slices_leave_out_what_is_not_wanted(wanted: tuple[bool, bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    cut_at(monkeypatch, 33)
    case = Case.random(1, 37, 33, 50, 4, torch.float32)
    reference = case.in_float64()
    dy = torch.randn(1, 37, 50)
    for one in (case, reference):
        for tensor, needed in zip(one.learned, wanted, strict=True):
            tensor.requires_grad_(needed)
    inputs, expected_inputs = ([t for t in one.learned if t.requires_grad] for one in (case, reference))

    actual = torch.autograd.grad(in_triton(case), inputs, dy)

    for one, other in zip(actual, torch.autograd.grad(formula(reference), expected_inputs, dy.double()), strict=True):
        assert_near(one, other, 1e-5)


@pytest.mark.parametrize(
    ("documents", "tokens", "outputs", "rank", "weight_bytes", "expected"),
    [
        # 24 MB are 2,587 tokens of 4,864 outputs in bfloat16.
        (1, 2500, 4864, 16, 8 << 20, [2500]),
        (1, 4096, 4864, 256, 8 << 20, [2048, 2048]),
        (1, 8192, 4864, 256, 8 << 20, [2048] * 4),
        (1, 8000, 4864, 16, 8 << 20, [2048, 2048, 2048, 1856]),
        (3, 2000, 4864, 16, 8 << 20, [768, 768, 464]),
        # W would be read from memory again for each slice, or dB have more bytes than one.
        (1, 4096, 4864, 16, 25 << 20, [4096]),
        (3, 2000, 4864, 256, 8 << 20, [2000]),
        # No room for one block of tokens of each document.
        (32, 1000, 4864, 1, 8 << 20, [1000]),
        (0, 100, 4864, 16, 8 << 20, [100]),
        (1, 0, 4864, 16, 8 << 20, [0]),
    ],
)
def test_tokens_are_sliced_where_the_cache_would_lose_them(
    documents: int, tokens: int, outputs: int, rank: int, weight_bytes: int, expected: list[int]
) -> None:
    dy = torch.empty(documents, tokens, outputs, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(weight_bytes, dtype=torch.int8, device="meta")
    slices = lora_linear_passes._token_slices(dy, weight, rank)
    assert [part.stop - part.start for part in slices] == expected
    assert [part.start for part in slices] == [sum(expected[:i]) for i in range(len(expected))]


@pytest.mark.parametrize("documents", [1, 3])
def test_a_decode_step_gives_each_document_its_own_adapter(documents: int) -> None:
    case = Case.random(documents, 1, 70, 50, 16, torch.bfloat16)
    with torch.no_grad():
        assert_near(in_triton(case), formula(case.in_float64()), TOLERANCES[torch.bfloat16])


def test_a_rank_beyond_the_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="a: rank 257 is not between 1 and 256"):
        in_triton(Case.random(1, 2, 3, 2, 257, torch.float32))


def test_a_dtype_beyond_the_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x: dtype torch\.int32 is not one of"):
        in_triton(Case.random(1, 2, 3, 2, 2, torch.int32))
