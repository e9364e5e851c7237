"""Every row of a batch has its own adapter and rank: in torch, and in Triton, interpreted, against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import RowAdapters, multi_adapter

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def draw(
    rows: list[int], tokens: int, inputs: int, outputs: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, RowAdapters]:
    """y, x and adapters of the ranks `rows`, which lie in their buffer in reverse, with NaN between them."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    gap = torch.full((5,), torch.nan, dtype=dtype)
    parts, starts = [gap], {}
    for row in reversed(range(len(rows))):
        for side, size in (("a", rows[row] * inputs), ("b", outputs * rows[row])):
            starts[side, row] = sum(part.numel() for part in parts)
            parts += [random(size), gap]
    adapters = RowAdapters(
        buffer=torch.cat(parts),
        a_starts=torch.tensor([starts["a", row] for row in range(len(rows))]),
        b_starts=torch.tensor([starts["b", row] for row in range(len(rows))]),
        ranks=torch.tensor(rows, dtype=torch.int32),
        scales=torch.linspace(0.5, 2, len(rows)),
        widest=max(rows),
    )
    return random(len(rows), tokens, outputs), random(len(rows), tokens, inputs), adapters


def expected(y: Tensor, x: Tensor, adapters: RowAdapters) -> Tensor:
    result = y.double()
    for row, rank in enumerate(adapters.ranks.tolist()):
        a = adapters.buffer[int(adapters.a_starts[row]) :][: rank * x.shape[2]].view(rank, x.shape[2]).double()
        b = adapters.buffer[int(adapters.b_starts[row]) :][: y.shape[2] * rank].view(y.shape[2], rank).double()
        result[row] += adapters.scales[row].double() * (x[row].double() @ a.T) @ b.T
    return result


def check(y: Tensor, x: Tensor, adapters: RowAdapters) -> None:
    reference = expected(y, x, adapters)
    assert multi_adapter(y, x, adapters) is y
    for row in range(y.shape[0]):
        error = (y[row].double() - reference[row]).norm() / reference[row].norm().clamp_min(1e-30)
        assert y.numel() == 0 or error <= TOLERANCES[y.dtype], f"row {row}: relative error {error:.1e}"


def test_in_torch_each_row_gets_its_own_adapter() -> None:
    check(*draw([4, 0, 16, 100], 3, 20, 30, torch.float32))


@pytest.mark.usefixtures("in_triton")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("ranks", "tokens", "inputs", "outputs"),
    [([4, 0, 16, 100], 1, 200, 70), ([256], 18, 33, 65), ([3, 3], 0, 8, 8), ([0], 2, 8, 8)],
)
def test_in_triton_each_row_gets_its_own_adapter(
    ranks: list[int], tokens: int, inputs: int, outputs: int, dtype: torch.dtype
) -> None:
    check(*draw(ranks, tokens, inputs, outputs, dtype))


@pytest.mark.usefixtures("in_triton")
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ranks=st.lists(st.integers(0, 40), min_size=1, max_size=3),
    tokens=st.integers(0, 3),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
)
def test_in_triton_any_shape_is_right(ranks: list[int], tokens: int, inputs: int, outputs: int) -> None:
    check(*draw(ranks, tokens, inputs, outputs, torch.float32))


@pytest.mark.usefixtures("in_triton")
def test_strides_are_followed() -> None:
    y, x, adapters = draw([4, 7], 2, 20, 30, torch.float32)
    check(y.mT.contiguous().mT, x.repeat_interleave(2, dim=1)[:, ::2], adapters)


def test_what_does_not_fit_is_named() -> None:
    y, x, adapters = draw([4, 7], 2, 20, 30, torch.float32)
    with pytest.raises(ValueError, match=r"y: shape \[2, 1, 30\] does not have the rows and tokens of x, \[2, 2, 20\]"):
        multi_adapter(y[:, :1], x, adapters)
    with pytest.raises(ValueError, match=r"a_starts: shape \[2\] is not \[1\]"):
        multi_adapter(y[:1], x[:1], adapters)
    with pytest.raises(ValueError, match="require gradients"):
        multi_adapter(y, x.requires_grad_(), adapters)
