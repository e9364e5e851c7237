"""The peak of memory inside a block is seen, also when it is gone at the end."""

from __future__ import annotations

import time

import torch

from benchmarks.peak_memory import PeakMemory

_MEGABYTES = 200


def test_a_peak_counts_after_its_memory_is_freed() -> None:
    with PeakMemory() as before:
        pass
    with PeakMemory() as during:
        deadline = time.monotonic() + 10
        block = torch.ones(_MEGABYTES * 1_000_000, dtype=torch.uint8)
        while during.megabytes < before.megabytes + _MEGABYTES / 2 and time.monotonic() < deadline:
            block.add_(1)
        del block

    assert during.megabytes > before.megabytes + _MEGABYTES / 2
