"""The metrics of many replicas in one text."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deploy.ray.replica_metrics import add_route, join_texts
from service.metrics import Metrics


def _text(encodes: int) -> str:
    metrics = Metrics()
    metrics.encodes.labels("ready").inc(encodes)
    metrics.slice_seconds.labels("encode").observe(0.1)
    return generate_latest(metrics.registry).decode()


def _samples(text: str, name: str) -> list[tuple[dict[str, str], float]]:
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return [(sample.labels, sample.value) for sample in found if sample.name == name]


def test_each_sample_says_whose_it_is_and_each_family_stands_once() -> None:
    joined = join_texts([("encoder", "a", _text(2)), ("encoder", "b", _text(3))]).decode()

    assert _samples(joined, "perk_encodes_total") == [
        ({"outcome": "ready", "deployment": "encoder", "replica": "a"}, 2.0),
        ({"outcome": "ready", "deployment": "encoder", "replica": "b"}, 3.0),
    ]
    assert [count for _, count in _samples(joined, "perk_slice_seconds_count")] == [1.0, 1.0]
    assert all(math.isnan(value) for _, value in _samples(joined, "perk_redis_up"))
    types = [line for line in joined.splitlines() if line.startswith("# TYPE perk_")]
    assert len(types) == len(set(types))
    assert "# TYPE perk_slice_seconds histogram" in types


class _Handle:
    """A deployment whose replicas answer so, or do not."""

    def __init__(self, *answers: tuple[str, str] | Exception, late: bool = False) -> None:
        self._answers = answers
        self._late = late

    def broadcast(self, method: str) -> _Handle:
        assert method == "metrics"
        return self

    async def results_async(self, **_: Any) -> list[tuple[str, str] | Exception]:
        if self._late:
            raise TimeoutError
        return list(self._answers)


@pytest.mark.parametrize("lost", [_Handle(RuntimeError("it died")), _Handle(late=True), _Handle()])
def test_replicas_that_do_not_answer_hide_no_others(lost: _Handle) -> None:
    app = FastAPI()
    add_route(app, {"answerer": lost, "encoder": _Handle(RuntimeError("it died"), ("b", _text(3)))})

    response = TestClient(app).get("/metrics/replicas")

    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    assert [labels["replica"] for labels, _ in _samples(response.text, "perk_encodes_total")] == ["b"]
