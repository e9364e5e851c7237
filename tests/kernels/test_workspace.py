"""Tensors of a workspace do not overlap, and come from the same memory after a reset."""

from __future__ import annotations

import pytest
import torch

from kernels import workspace
from kernels.workspace import Workspace

DTYPES = (torch.float64, torch.bfloat16, torch.float32, torch.float64, torch.float64, torch.bfloat16)


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Slabs of 100 numbers of eight bytes."""
    monkeypatch.setattr(workspace, "_SLAB_BYTES", 800)
    return Workspace()


def test_tensors_have_their_shapes_and_do_not_overlap(space: Workspace) -> None:
    shapes = [(3, 5), (40,), (7, 10), (2, 0, 3), (11, 13), (1,)]
    taken = [space.take(*shape, dtype=dtype) for shape, dtype in zip(shapes, DTYPES, strict=True)]
    for number, tensor in enumerate(taken):
        tensor.fill_(number)
    for number, (tensor, shape, dtype) in enumerate(zip(taken, shapes, DTYPES, strict=True)):
        assert tensor.shape == shape
        assert tensor.is_contiguous()
        assert tensor.dtype == dtype
        assert (tensor == number).all()
        assert tensor.numel() == 0 or tensor.data_ptr() % 64 == 0


def test_after_a_reset_the_same_memory_comes_again(space: Workspace) -> None:
    shapes = [(30,), (60,), (80, 2), (5, 5)]
    first = [space.take(*shape, dtype=torch.float64).data_ptr() for shape in shapes]
    space.reset()
    assert [space.take(*shape, dtype=torch.float64).data_ptr() for shape in shapes] == first


def test_only_another_type_is_copied(space: Workspace) -> None:
    tensor = torch.randn(3, 4)
    assert space.cast(tensor, torch.float32) is tensor
    narrow = space.cast(tensor, torch.bfloat16)
    assert narrow.equal(tensor.bfloat16())
    space.reset()
    assert space.take(1, dtype=torch.float32).data_ptr() == narrow.data_ptr()


def test_a_copy_may_have_rows_of_zeros_after_its_own(space: Workspace) -> None:
    space.take(100, dtype=torch.float64).fill_(torch.nan)
    space.reset()
    tensor = torch.randn(3, 4)
    assert space.cast(tensor, torch.float32, rows=3) is tensor
    longer = space.cast(tensor, torch.bfloat16, rows=5)
    assert longer.equal(torch.cat([tensor.bfloat16(), torch.zeros(2, 4, dtype=torch.bfloat16)]))
    same = space.copy(tensor, torch.float32, rows=3)
    assert same.equal(tensor)
    assert same.data_ptr() != tensor.data_ptr()
