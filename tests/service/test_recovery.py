"""Nothing that was taken is lost: restarts, damage, a full disk, an expired adapter."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perk.perk_model import PerkModel
from service.engine import encode_queue


def _ask(service: Any, document: dict[str, Any]) -> str:
    body = {"question": "Where is Mary?", "max_tokens": 10}
    response = service.client.post(f"/documents/{document['id']}/ask", json=body)
    assert response.status_code == 200, response.text
    answer: str = response.json()["answer"]
    return answer


def _file(service: Any, document: dict[str, Any]) -> Path:
    path: Path = service.settings.data_dir / "adapters" / f"{document['id']}.safetensors"
    return path


def test_a_ready_document_answers_the_same_after_a_restart(start_service: Callable[..., Any], story: str) -> None:
    service = start_service().until_ready()
    document = service.encode(story)
    before = _ask(service, document)
    service.stop()

    restarted = start_service().until_ready()

    assert restarted.client.get(f"/documents/{document['id']}").json() == document
    assert _ask(restarted, document) == before
    assert restarted.metric('perk_adapter_reads_total{tier="disk"}') == 1
    assert restarted.metric('perk_encodes_total{outcome="ready"}') == 0


def test_documents_that_wait_at_a_stop_are_encoded_after_the_restart(
    start_service: Callable[..., Any], slow_checkpoint: Path, long_text: str
) -> None:
    service = start_service(checkpoint=slow_checkpoint).until_ready()
    sent = [service.client.post("/documents", json={"text": text}).json() for text in (long_text[:600], "a", "b")]
    place = f"/documents/{sent[0]['id']}"
    service.until(lambda: service.client.get(place).json()["progress"] > 0)
    service.stop()
    encodes = service.engine.metrics.registry.get_sample_value
    assert encodes("perk_encodes_total", {"outcome": "handed back"}) == 1, "the others had not begun"

    restarted = start_service(checkpoint=slow_checkpoint).until_ready()
    for document in sent:
        place = f"/documents/{document['id']}"
        restarted.until(lambda place=place: restarted.client.get(place).json()["status"] == "ready")

    assert [document["id"] for document in restarted.client.get("/documents").json()["data"]] == [
        document["id"] for document in sent[::-1]
    ]


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_adapter_is_encoded_again_and_the_question_answered(
    start_service: Callable[..., Any], story: str, damage: str
) -> None:
    service = start_service().until_ready()
    document = service.encode(story)
    before = _ask(service, document)
    path = _file(service, document)
    service.stop()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.unlink()
    if damage == "flipped":
        path.write_bytes(content)

    restarted = start_service().until_ready()

    assert _ask(restarted, document) == before
    reason = "checksum" if damage == "flipped" else "missing"
    assert restarted.metric(f'perk_adapters_dropped_total{{reason="{reason}"}}') == 1
    assert restarted.metric("perk_reencodes_total") == 1
    assert path.is_file()


def test_an_adapter_beyond_its_time_is_dropped_and_encoded_again_on_demand(
    start_service: Callable[..., Any], story: str
) -> None:
    service = start_service(adapter_ttl=1).until_ready()
    document = service.encode(story)
    before = _ask(service, document)
    # Its time is over, without the test having to wait for it.
    with sqlite3.connect(service.settings.data_dir / "documents.sqlite") as index:
        index.execute("UPDATE documents SET expires_at = 1")

    assert _ask(service, document) == before
    assert service.metric('perk_adapters_dropped_total{reason="expired"}') == 1
    assert service.metric("perk_reencodes_total") == 1


def test_at_the_start_expired_adapters_are_removed(start_service: Callable[..., Any], story: str) -> None:
    service = start_service().until_ready()
    document = service.encode(story)
    path = _file(service, document)
    service.stop()
    with sqlite3.connect(service.settings.data_dir / "documents.sqlite") as index:
        index.execute("UPDATE documents SET expires_at = 1")

    restarted = start_service(adapter_ttl=1000).until_ready()

    restarted.until(lambda: not path.exists())
    assert restarted.client.get(f"/documents/{document['id']}").json()["status"] == "ready"


def test_a_document_whose_kept_text_is_damaged_fails_and_can_be_sent_again(
    start_service: Callable[..., Any], story: str
) -> None:
    service = start_service().until_ready()
    document = service.encode(story)
    place = f"/documents/{document['id']}"
    service.stop()
    _file(service, document).unlink()
    with sqlite3.connect(service.settings.data_dir / "documents.sqlite") as index:
        index.execute("UPDATE texts SET compressed = x'00'")

    restarted = start_service().until_ready()
    asked = restarted.client.post(f"{place}/ask", json={"question": "Where is Mary?"})

    assert asked.status_code == 409
    assert "damaged" in asked.json()["detail"]
    failed = restarted.client.get(place).json()
    assert failed["status"] == "failed"
    assert "damaged" in failed["error"]
    assert "event: failed" in restarted.client.get(f"{place}/events").text
    assert restarted.encode(story)["id"] == document["id"]


def test_an_encode_that_breaks_fails_its_document_only(
    start_service: Callable[..., Any], story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start_service().until_ready()
    real = PerkModel.start_encoding

    def start(self: PerkModel, texts: list[str], **options: Any) -> Any:
        if "boom" in texts[0]:
            raise MemoryError("cannot hold: boom")
        return real(self, texts, **options)

    monkeypatch.setattr(PerkModel, "start_encoding", start)
    sent = service.client.post("/documents", json={"text": "boom"}, headers={"Prefer": "wait=60"}).json()

    assert sent["status"] == "failed"
    assert sent["error"] == "internal error: MemoryError"
    assert service.encode(story)["status"] == "ready"
    asked = service.client.post(f"/documents/{sent['id']}/ask", json={"question": "Who?"})
    assert asked.status_code == 409
    assert "Retry-After" not in asked.headers

    monkeypatch.undo()
    assert service.encode("boom")["id"] == sent["id"], "sent again, it is tried again"


def test_on_a_full_disk_documents_are_refused_and_nothing_is_half_written(
    start_service: Callable[..., Any], story: str
) -> None:
    service = start_service().until_ready()
    ready = service.encode(story)
    index = service.engine.documents._store._index._connection
    (pages,) = index.execute("PRAGMA page_count").fetchone()
    index.execute(f"PRAGMA max_page_count = {pages}")
    text = os.urandom(30_000).hex()

    refused = service.client.post("/documents", json={"text": text})

    assert refused.status_code == 503
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert int(refused.headers["Retry-After"]) >= 1
    assert "full" in refused.json()["detail"]
    assert service.client.get("/documents").json()["data"] == [ready]
    assert _ask(service, ready), "what is kept still answers"

    index.execute("PRAGMA max_page_count = 1000000")
    assert service.client.post("/documents", json={"text": text}).status_code == 202


def test_an_adapter_that_finds_the_disk_full_is_kept_once_there_is_space(
    start_service: Callable[..., Any], story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_queue, "STORE_PAUSE_SECONDS", 0.05)
    service = start_service().until_ready()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as fault:
        fault.setattr(os, "fsync", full)
        document = service.client.post("/documents", json={"text": story}).json()
        service.until(lambda: service.client.get("/ready").status_code == 503)
        assert "full" in service.client.get("/ready").json()["detail"]
        assert service.client.get(f"/documents/{document['id']}").json()["status"] == "encoding"
        assert list((service.settings.data_dir / "adapters").iterdir()) == []

    service.until(lambda: service.client.get(f"/documents/{document['id']}").json()["status"] == "ready")
    assert service.client.get("/ready").status_code == 200
    assert service.metric('perk_store_errors_total{reason="full"}') >= 1
    assert service.metric('perk_encodes_total{outcome="ready"}') == 1, "it was not encoded again for that"
