"""Tensors of a workspace do not overlap, and come from the same memory after a reset."""

from __future__ import annotations

import pytest
import torch

from kernels import workspace
from kernels.workspace import Workspace


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Slabs of 100 numbers."""
    monkeypatch.setattr(workspace, "_SLAB_BYTES", 800)
    return Workspace(torch.float64)


def test_tensors_have_their_shapes_and_do_not_overlap(space: Workspace) -> None:
    shapes = [(3, 5), (40,), (7, 10), (2, 0, 3), (11, 13), (1,)]
    taken = [space.take(*shape) for shape in shapes]
    for number, tensor in enumerate(taken):
        tensor.fill_(number)
    for number, (tensor, shape) in enumerate(zip(taken, shapes, strict=True)):
        assert tensor.shape == shape
        assert tensor.is_contiguous()
        assert tensor.dtype == torch.float64
        assert (tensor == number).all()
        assert tensor.numel() == 0 or tensor.data_ptr() % 64 == 0


def test_after_a_reset_the_same_memory_comes_again(space: Workspace) -> None:
    shapes = [(30,), (60,), (80, 2), (5, 5)]
    first = [space.take(*shape).data_ptr() for shape in shapes]
    space.reset()
    assert [space.take(*shape).data_ptr() for shape in shapes] == first
