"""A service that works does not grow."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from redis import Redis

from benchmarks import soak

_SECONDS = 8.0


@pytest.mark.parametrize("shared", [False, True])
def test_a_service_that_works_does_not_grow(start_service: Callable[..., Any], redis: Any, shared: bool) -> None:
    options = {"redis_url": redis.url} if shared else {}
    service = start_service(**options).until_ready()
    store: Redis | None = redis.client if shared else None

    result = soak.run(
        service.client, soak.probe_process(psutil.Process(), service.client, store), seconds=_SECONDS, clients=3
    )

    assert result["unexpected"] == {}
    assert result["grown"] == {}, json.dumps(result["samples"])
    assert result["rounds"] >= 3
    assert result["samples"][-1]["documents"] == 0
    if shared:
        assert soak.lasting_keys(redis.client) == {"perk:fingerprints"}


def test_what_grows_is_named() -> None:
    samples = [
        {"rss_mib": 100.0 + number % 7, "handles": 10.0 + number, "redis_keys": float(number // 9)}
        for number in range(18)
    ]

    assert soak.grown(samples) == {"handles": (18.5, 24.5), "redis_keys": (0.5, 1.0)}
    assert soak.grown([{**sample, "handles": 10.0, "redis_keys": 1.0} for sample in samples]) == {}
