"""docs/metrics.md and what the service exports are the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics, tokens_label

_PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
_LABEL = re.compile(r"`(\w+)`: ([^;]+)")
_VALUE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Described:
    """A row of the page; labels with the values that they take, or None where a rule stands for them."""

    type: str
    labels: dict[str, frozenset[str] | None]
    buckets: tuple[float, ...]


def _rows() -> dict[str, Described]:
    text = _PAGE.read_text()
    lists = {
        name: tuple(float(bound) for bound in bounds.split(","))
        for name, bounds in re.findall(r"^\| (\w+) \| ([\d., ]+?) (?:\(.*\) )?\|$", text, re.MULTILINE)
    }
    rows = {}
    for line in text.splitlines():
        if not line.startswith("| ") or "`perk_" not in line:
            continue
        _, name, kind, labels, buckets = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name.strip("`")] = Described(kind, _labels(labels), lists[buckets] if buckets else ())
    return rows


def _labels(cell: str) -> dict[str, frozenset[str] | None]:
    # A list of names between backticks is all that there may be; a sentence is a rule.
    return {
        name: frozenset(_VALUE.findall(rule)) if re.fullmatch(r"`[^`]+`(, `[^`]+`)*", rule.strip()) else None
        for name, rule in _LABEL.findall(cell)
    }


def _exported() -> dict[str, Counter | Gauge | Histogram]:
    found = {}
    for metric in vars(Metrics()).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            (family,) = metric.describe()
            found[family.name + ("_total" if isinstance(metric, Counter) else "")] = metric
    return found


def test_the_page_names_every_metric_and_no_other() -> None:
    assert set(_rows()) == set(_exported())


@pytest.mark.parametrize("name", sorted(_rows()))
def test_type_labels_and_buckets_are_as_the_page_says(name: str) -> None:
    described, metric = _rows()[name], _exported()[name]
    (family,) = metric.describe()

    # Refuses labels that are not exactly those of the metric.
    child = metric.labels(**dict.fromkeys(described.labels, "x")) if described.labels else metric
    bounds = {sample.labels["le"] for sample in child._samples() if sample.name == "_bucket"}

    assert family.type == described.type
    assert {float(bound) for bound in bounds} - {float("inf")} == set(described.buckets)


def test_traffic_makes_only_the_label_values_of_the_page(start_service: Callable[..., Any], story: str) -> None:
    service = start_service().until_ready()
    document = service.encode(story)
    for path in ("/documents/doc_0", "/nothing/here", f"/documents/{document['id']}"):
        service.client.get(path, headers={"Authorization": "Bearer secret"})
    service.client.request("BREW", "/documents")
    service.client.post(f"/documents/{document['id']}/ask", json={"question": "Who?", "max_tokens": 3})
    service.client.post(f"/documents/{document['id']}/ask", json={"question": ""})

    text = service.client.get("/metrics").text

    rows = _rows()
    seen = set()
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        if name not in rows:
            continue
        for sample in family.samples:
            for label, allowed in rows[name].labels.items():
                assert allowed is None or sample.labels[label] in allowed, sample
            seen.add(name)
    for secret in (document["id"], "doc_0", "nothing", "secret", "BREW"):
        assert secret not in text
    assert {"perk_batch_rows", "perk_wait_seconds", "perk_ready_seconds", "perk_adapter_seconds"} <= seen
    assert service.metric("perk_ready") == 1
    assert service.metric('perk_tier_bytes{tier="disk"}') == service.metric('perk_tier_bytes{tier="memory"}') > 0
    assert service.metric('perk_batch_rows_sum{kind="answer"}') >= 3
    tokens = tokens_label(document["tokens"])
    assert service.metric(f'perk_encode_seconds_count{{tokens="{tokens}"}}') == 1
    assert service.metric('perk_wait_seconds_count{kind="question"}') == 1
    assert service.metric('perk_waiting_limit{kind="encode"}') == service.settings.queue_limit


@pytest.mark.parametrize(("tokens", "label"), [(1, "256"), (257, "1k"), (65_536, "64k"), (65_537, "more")])
def test_documents_are_counted_by_about_their_length(tokens: int, label: str) -> None:
    assert tokens_label(tokens) == label
