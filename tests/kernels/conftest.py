"""What the tests of the Triton kernels share: they run on memory that starts as NaN, interpreted or on a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def in_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Operations run in Triton, and every tensor that is not written in full shows it by NaN.

    In Triton's interpreter, unless ``PERK_TEST_DEVICE`` names a device (`make test-cuda`): then all tensors are there.
    """
    pytest.importorskip("triton")
    monkeypatch.setenv("PERK_KERNELS", "triton")
    filled = torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    # A warning, where a formula has an operation on GPUs that adds in no fixed order.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_default_device(os.environ.get("PERK_TEST_DEVICE", "cpu"))
    yield
    torch.set_default_device(None)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = filled
