"""What the tests of timings and counts share: the same products on every machine."""

from __future__ import annotations

import pytest


@pytest.fixture
def float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine is faster in: in bfloat16 micro-batches are filled up, and PEFT is timed once more."""
    monkeypatch.setenv("PERK_PRODUCTS", "float32")
