"""Documents over HTTP: sending, waiting, following, listing, deleting, taking the adapter."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig
from safetensors.torch import load_file

from perk import PerkModel
from perk.checkpoint import load_checkpoint
from perk.settings import SegmentSettings, TemplateSettings
from service.settings import Settings


def _events(body: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in body.strip().split("\n\n")]
    return [(block["event"], json.loads(block["data"])) for block in blocks if "event" in block]


def test_a_document_is_taken_at_once_and_ready_later(service: Any) -> None:
    sent = service.client.post("/documents", json={"text": "The apple is in the garden.", "title": "apple"})

    assert sent.status_code == 202
    document = sent.json()
    assert re.fullmatch(r"doc_[0-9a-f]{32}", document["id"])
    assert sent.headers["Location"] == f"/documents/{document['id']}"
    assert document["status"] in ("queued", "encoding")
    assert document["ready_at"] is None
    assert document["encode"] is None

    service.until(lambda: service.client.get(sent.headers["Location"]).json()["status"] == "ready")
    ready = service.client.get(sent.headers["Location"]).json()
    assert ready["object"] == "document"
    assert ready["title"] == "apple"
    assert ready["metadata"] == {}
    assert ready["bytes"] == len("The apple is in the garden.")
    assert ready["tokens"] > 1
    assert ready["segments"] == 1
    assert ready["progress"] == 1
    assert datetime.fromisoformat(ready["created_at"]) <= datetime.fromisoformat(ready["ready_at"])
    assert ready["expires_at"] is None
    assert (ready["model"], ready["checkpoint"]) == ("tiny-llama", "tiny")
    assert ready["encode"]["steps"] == 2
    assert ready["encode"]["seconds"] > 0
    assert ready["encode"]["loss_after"] < ready["encode"]["loss_before"]
    assert "error" not in ready


def test_a_client_may_wait_for_the_end(service: Any) -> None:
    response = service.client.post(
        "/documents", json={"text": "Where is John? In the garden."}, headers={"Prefer": "respond-async, wait=60"}
    )

    assert response.status_code == 201
    assert response.headers["Preference-Applied"] == "wait=60"
    assert response.json()["status"] == "ready"


def test_a_wait_that_is_too_short_is_answered_like_none(
    start_service: Callable[..., Any], slow_checkpoint: Path, long_text: str
) -> None:
    service = start_service(checkpoint=slow_checkpoint).until_ready()

    response = service.client.post("/documents", json={"text": long_text}, headers={"Prefer": "wait=0"})

    assert response.status_code == 202
    assert response.json()["status"] in ("queued", "encoding")


def test_the_same_text_is_the_same_document_however_it_is_sent(service: Any, story: str) -> None:
    first = service.encode(story)

    answers = [
        service.client.post("/documents", json={"text": f"\r\n{story}  \n", "title": "another title"}),
        service.client.post("/documents", content=story.encode(), headers={"Content-Type": "text/plain"}),
        service.client.post("/documents", files={"file": ("story.txt", story.encode(), "text/plain")}),
    ]

    for answer in answers:
        assert answer.status_code == 200
        assert answer.json() == first
        assert answer.headers["Location"] == f"/documents/{first['id']}"


def test_a_file_brings_its_name_as_title_unless_the_form_has_one(service: Any) -> None:
    named = service.client.post("/documents", files={"file": ("notes/story.txt", b"Mary went home.")}).json()
    form = {"title": "mine", "metadata": '{"shelf": 3}'}
    titled = service.client.post("/documents", files={"file": ("story.txt", b"John went home.")}, data=form).json()

    assert named["title"] == "story.txt"
    assert titled["title"] == "mine"
    assert titled["metadata"] == {"shelf": 3}


def test_metadata_comes_back_as_it_was_sent(service: Any) -> None:
    metadata = {"tags": ["α", {"deep": [1, 2.5, None, True]}], "": "empty name"}
    sent = service.client.post("/documents", json={"text": "Sandra has the apple.", "metadata": metadata}).json()

    assert service.client.get(f"/documents/{sent['id']}").json()["metadata"] == metadata


def test_the_list_has_every_document_once_newest_first(start_service: Callable[..., Any]) -> None:
    service = start_service().until_ready()
    sent = [service.encode(f"Fact number {number} is true.")["id"] for number in range(5)]

    listed: list[str] = []
    parameters: dict[str, Any] = {"limit": 2}
    while True:
        page = service.client.get("/documents", params=parameters).json()
        assert len(page["data"]) <= 2
        listed += [document["id"] for document in page["data"]]
        if page["next_cursor"] is None:
            break
        parameters["cursor"] = page["next_cursor"]

    assert listed == sent[::-1]


def test_events_tell_the_progress_and_then_the_end(
    start_service: Callable[..., Any], slow_checkpoint: Path, long_text: str
) -> None:
    service = start_service(checkpoint=slow_checkpoint).until_ready()
    document = service.client.post("/documents", json={"text": long_text[:600]}).json()

    response = service.client.get(f"/documents/{document['id']}/events")

    assert response.headers["Content-Type"].startswith("text/event-stream")
    names, objects = zip(*_events(response.text), strict=True)
    assert set(names[:-1]) == {"progress"}
    assert names[-1] == "ready"
    progress = [shown["progress"] for shown in objects]
    assert progress == sorted(progress)
    assert any(0 < share < 1 for share in progress)
    assert any(shown["status"] == "encoding" for shown in objects)
    assert objects[-1] == service.client.get(f"/documents/{document['id']}").json()


def test_events_of_a_ready_document_end_at_once(service: Any, story: str) -> None:
    document = service.encode(story)

    assert _events(service.client.get(f"/documents/{document['id']}/events").text) == [("ready", document)]


def test_a_deleted_document_is_gone_from_every_tier(start_service: Callable[..., Any], story: str) -> None:
    service = start_service().until_ready()
    document = service.encode(story)
    assert service.metric('perk_tier_bytes{tier="memory"}') > 0

    deleted = service.client.delete(f"/documents/{document['id']}")

    assert deleted.status_code == 204
    assert deleted.content == b""
    assert service.client.get(f"/documents/{document['id']}").status_code == 404
    assert service.client.post(f"/documents/{document['id']}/ask", json={"question": "Who?"}).status_code == 404
    assert service.client.delete(f"/documents/{document['id']}").status_code == 404
    assert service.client.get("/documents").json()["data"] == []
    assert service.metric('perk_tier_bytes{tier="memory"}') == 0
    assert list((service.settings.data_dir / "adapters").iterdir()) == []


def test_deleting_ends_an_encode_and_lets_the_next_begin(
    start_service: Callable[..., Any], slow_checkpoint: Path, long_text: str, story: str
) -> None:
    service = start_service(checkpoint=slow_checkpoint).until_ready()
    document = service.client.post("/documents", json={"text": long_text}).json()
    place = f"/documents/{document['id']}"
    service.until(lambda: service.client.get(place).json()["progress"] > 0)

    assert service.client.delete(place).status_code == 204
    service.encode(story)

    assert service.metric('perk_encodes_total{outcome="cancelled"}') == 1
    assert service.metric('perk_encodes_total{outcome="ready"}') == 1
    assert service.client.get(place).status_code == 404


def test_a_deleted_document_can_be_sent_again(
    start_service: Callable[..., Any], slow_checkpoint: Path, long_text: str
) -> None:
    service = start_service(checkpoint=slow_checkpoint).until_ready()
    text = long_text[:600]
    document = service.client.post("/documents", json={"text": text}).json()
    place = f"/documents/{document['id']}"
    service.until(lambda: service.client.get(place).json()["progress"] > 0)
    service.client.delete(place)

    assert service.encode(text)["id"] == document["id"]


def test_the_adapter_is_a_peft_folder(service: Any, story: str, tmp_path: Path) -> None:
    document = service.encode(story)

    response = service.client.get(f"/documents/{document['id']}/adapter")

    assert response.headers["Content-Type"] == "application/zip"
    assert f"{document['id']}.zip" in response.headers["Content-Disposition"]
    zipfile.ZipFile(io.BytesIO(response.content)).extractall(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert PeftConfig.from_pretrained(str(tmp_path)).r == 4
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


def test_the_adapter_of_a_document_that_is_not_ready_cannot_be_taken(
    start_service: Callable[..., Any], slow_checkpoint: Path, long_text: str
) -> None:
    service = start_service(checkpoint=slow_checkpoint).until_ready()
    document = service.client.post("/documents", json={"text": long_text}).json()

    assert service.client.get(f"/documents/{document['id']}/adapter").status_code == 409


def test_documents_beyond_the_queue_are_refused_until_there_is_a_place(
    start_service: Callable[..., Any], slow_checkpoint: Path, long_text: str
) -> None:
    service = start_service(checkpoint=slow_checkpoint, queue_limit=1).until_ready()
    running = service.client.post("/documents", json={"text": long_text}).json()
    service.until(lambda: service.client.get(f"/documents/{running['id']}").json()["status"] == "encoding")
    # Long: a short one would not wait.
    waiting = service.client.post("/documents", json={"text": long_text + "one that waits"}).json()
    assert waiting["status"] == "queued"

    refused = service.client.post("/documents", json={"text": "one too many"})

    assert refused.status_code == 429
    assert refused.headers["Content-Type"] == "application/problem+json"
    assert int(refused.headers["Retry-After"]) >= 1
    assert "PERK_QUEUE_LIMIT" in refused.json()["detail"]
    assert service.client.get("/documents").json()["data"][0]["id"] != running["id"]
    assert len(service.client.get("/documents").json()["data"]) == 2

    service.client.delete(f"/documents/{running['id']}")
    service.until(lambda: service.client.get(f"/documents/{waiting['id']}").json()["status"] == "encoding")
    service.encode("one too many")


@pytest.mark.parametrize("ttl", [None, 3600])
def test_an_adapter_expires_as_the_settings_say(start_service: Callable[..., Any], story: str, ttl: int | None) -> None:
    document = start_service(adapter_ttl=ttl).until_ready().encode(story)

    if ttl is None:
        assert document["expires_at"] is None
    else:
        kept = datetime.fromisoformat(document["expires_at"]) - datetime.fromisoformat(document["ready_at"])
        assert kept.total_seconds() == pytest.approx(ttl, abs=0.01)


def test_what_was_recalled_of_a_document_is_forgotten_with_it(
    start_service: Callable[..., Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tiny = load_checkpoint(tiny_checkpoint)
    templates = TemplateSettings(prompt="{question}", support=" {support}\nAnswer:", answer=" {answer}")
    changes = {"templates": templates, "segments": SegmentSettings(parts=True)}
    replace(tiny, settings=tiny.settings.model_copy(update=changes)).save(tmp_path / "parts")
    loaded: list[PerkModel] = []

    def load(settings: Settings) -> PerkModel:
        loaded.append(PerkModel.load(settings.checkpoint, device="cpu"))
        return loaded[0]

    service = start_service(load_model=load, checkpoint=tmp_path / "parts").until_ready()
    document = service.encode("Ann built it. She was a mason.")
    asked = service.client.post(f"/documents/{document['id']}/ask", json={"question": "Who?", "max_tokens": 2})
    assert asked.status_code == 200
    recalled = loaded[0].readers.recalled
    assert recalled.count == 1
    assert service.client.delete(f"/documents/{document['id']}").status_code == 204
    service.until(lambda: recalled.count == 0)
