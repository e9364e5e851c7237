"""What operators see: health, readiness, metrics, keys and logs."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from perk.errors import BaseMismatch
from perk.perk_model import PerkModel
from service.engine.engine import load_perk_model
from service.logging import configure_logs
from service.settings import Settings


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What loads the model waits for this."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def json_logs() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Makes this process log as the service does; gives the lines written so far, each of which must be JSON."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configure_logs()
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    handler.setStream(written)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    root.handlers = handlers
    root.setLevel(level)


def test_a_service_that_loads_lives_but_is_not_ready(start_service: Callable[..., Any], gate: threading.Event) -> None:
    def load(settings: Settings) -> PerkModel:
        assert gate.wait(60)
        return load_perk_model(settings)

    service = start_service(load_model=load)

    assert service.client.get("/health").status_code == 200
    for response in (
        service.client.get("/ready"),
        service.client.get("/documents"),
        service.client.post("/documents", json={"text": "Mary went home."}),
    ):
        assert response.status_code == 503
        assert response.headers["Content-Type"] == "application/problem+json"
        assert int(response.headers["Retry-After"]) >= 1
        assert "loading" in response.json()["detail"]
    assert service.client.get("/metrics").status_code == 200

    gate.set()
    service.until_ready()
    assert service.client.get("/documents").status_code == 200


def test_a_service_that_cannot_load_says_why(start_service: Callable[..., Any]) -> None:
    def load(_: Settings) -> PerkModel:
        raise BaseMismatch("checkpoint 'x' belongs to another base")

    service = start_service(load_model=load)
    service.until(lambda: "another base" in service.client.get("/ready").text)

    assert service.client.get("/ready").status_code == 503
    assert service.client.get("/health").status_code == 200


def test_a_data_folder_serves_one_process(start_service: Callable[..., Any]) -> None:
    start_service().until_ready()

    second = start_service()

    second.until(lambda: "PERK_DATA_DIR" in second.client.get("/ready").text)
    assert "in use" in second.client.get("/ready").json()["detail"]


def test_metrics_are_prometheus_text_and_count_what_happened(start_service: Callable[..., Any], story: str) -> None:
    service = start_service().until_ready()
    document = service.encode(story)
    service.client.post(f"/documents/{document['id']}/ask", json={"question": "Who?", "max_tokens": 3})

    response = service.client.get("/metrics")

    assert response.headers["Content-Type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    for name in (
        "perk_encodes",
        "perk_encode_seconds",
        "perk_questions",
        "perk_first_token_seconds",
        "process_open_fds",
    ):
        assert name in families
    assert service.metric('perk_documents{status="ready"}') == 1
    assert service.metric('perk_documents{status="queued"}') == 0
    assert service.metric('perk_encodes_total{outcome="ready"}') == 1
    assert service.metric("perk_encoded_tokens_total") == document["tokens"]
    assert service.metric('perk_questions_total{outcome="answered"}') == 1
    assert service.metric("perk_answered_tokens_total") == 3
    asked = 'perk_requests_total{method="POST",route="/documents/{document_id}/ask",status="200"}'
    assert service.metric(asked) == 1


def test_a_key_opens_what_it_should_and_nothing_else_does(start_service: Callable[..., Any]) -> None:
    service = start_service(api_keys="first-key,second-key").until_ready()

    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic first-key"},
        {"X-API-Key": "first"},
    ):
        for response in (
            service.client.get("/documents", headers=headers),
            service.client.post("/documents", json={"text": "Mary went home."}, headers=headers),
            service.client.post("/documents/doc_0/ask", json={"question": "Who?"}, headers=headers),
            service.client.delete("/documents/doc_0", headers=headers),
        ):
            assert response.status_code == 401
            assert response.headers["Content-Type"] == "application/problem+json"
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
    for headers in ({"Authorization": "Bearer first-key"}, {"X-API-Key": "second-key"}):
        assert service.client.get("/documents", headers=headers).status_code == 200
    for path in ("/health", "/ready", "/metrics"):
        assert service.client.get(path).status_code == 200


def test_a_request_id_comes_back_or_is_made(service: Any) -> None:
    given = service.client.get("/health", headers={"X-Request-ID": "abc-123"})
    made = [service.client.get("/health").headers["X-Request-ID"] for _ in range(2)]
    replaced = service.client.get("/health", headers={"X-Request-ID": "a b\tc" * 100})

    assert given.headers["X-Request-ID"] == "abc-123"
    assert made[0] != made[1]
    assert " " not in replaced.headers["X-Request-ID"]


def test_logs_are_json_with_ids_and_without_texts(
    start_service: Callable[..., Any], json_logs: Callable[[], list[dict[str, Any]]]
) -> None:
    service = start_service().until_ready()
    document = service.encode("Mary hid the apple.")
    headers = {"X-Request-ID": "request-7"}
    body = {"question": "Where is the pear?", "max_tokens": 2}
    service.client.post(f"/documents/{document['id']}/ask", json=body, headers=headers)
    service.client.post("/documents", json={"text": "the peach\0"})
    service.client.get("/documents?cursor=plum")
    service.stop()

    lines = json_logs()
    asked = next(line for line in lines if line.get("request_id") == "request-7")
    assert asked["document_id"] == document["id"]
    assert asked["route"] == "/documents/{document_id}/ask"
    assert asked["status"] == 200
    assert asked["level"] == "info"
    sent = next(line for line in lines if line.get("route") == "/documents" and line["status"] == 201)
    ended = next(line for line in lines if line["event"] == "encode ended")
    assert sent["document_id"] == ended["document_id"] == document["id"]
    assert sent["request_id"] == ended["request_id"], "the encode names the request that asked for it"
    for word in ("apple", "pear", "peach", "plum"):
        assert word not in str(lines)


def test_a_bug_is_a_500_that_tells_nothing(
    start_service: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    json_logs: Callable[[], list[dict[str, Any]]],
) -> None:
    service = start_service().until_ready()

    async def fail(*_: str) -> None:
        raise RuntimeError("the apple is under the bed")

    monkeypatch.setattr(service.engine.documents, "find", fail)
    response = service.client.get("/documents/doc_0", headers={"X-Request-ID": "request-9"})

    assert response.status_code == 500
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-Request-ID"] == "request-9"
    lines = json_logs()
    assert "apple" not in response.text + str(lines)
    assert any(line.get("error") == "RuntimeError" and line["request_id"] == "request-9" for line in lines)


def test_the_schema_describes_every_route(service: Any) -> None:
    paths = service.client.get("/openapi.json").json()["paths"]

    assert set(paths) == {
        "/health",
        "/ready",
        "/metrics",
        "/documents",
        "/documents/{document_id}",
        "/documents/{document_id}/events",
        "/documents/{document_id}/adapter",
        "/documents/{document_id}/ask",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/chat/completions",
    }
    kinds = paths["/documents"]["post"]["requestBody"]["content"]
    assert set(kinds) == {"application/json", "text/plain", "multipart/form-data"}
    assert "429" in paths["/documents"]["post"]["responses"]
