"""Many documents and clients at once, adapters that rotate through a small tier: answers stay, and nothing grows."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import mismatch


@pytest.fixture
def crowded(start_service: Callable[..., Any], strong_checkpoint: Path) -> Any:
    """A service with room for a few of its adapters at hand."""
    return start_service(checkpoint=strong_checkpoint, memory_budget=1 << 20, queue_limit=128).until_ready()


def test_every_answer_is_the_one_given_alone(crowded: Any) -> None:
    result = mismatch.run(crowded.client, documents=64, questions=300, clients=32, max_tokens=8)

    assert result["mismatches"] == 0
    assert result["distinct"] > 64, "the adapters make no difference"
    assert crowded.metric('perk_tier_evictions_total{tier="memory"}') > 64, "the adapters did not rotate"


def test_work_leaves_nothing_behind(crowded: Any) -> None:
    process = psutil.Process()

    def load(seed: int) -> tuple[int, int, int]:
        mismatch.run(crowded.client, documents=8, questions=60, clients=8, max_tokens=4, seed=seed)
        gc.collect()
        return process.num_fds(), process.num_threads(), process.memory_info().rss

    load(0)
    handles, threads, memory = load(1)
    for seed in (2, 3):
        more = load(seed)
        assert more[0] <= handles + 2
        assert more[1] <= threads + 2
    assert more[2] <= memory + (16 << 20)
