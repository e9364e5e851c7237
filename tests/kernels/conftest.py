"""What the tests of the Triton kernels share: they run in Triton's interpreter, on memory that starts as NaN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def in_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Operations run in Triton, interpreted, and every tensor that is not written in full shows it by NaN."""
    pytest.importorskip("triton")
    monkeypatch.setenv("PERK_KERNELS", "triton")
    filled = torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = filled
