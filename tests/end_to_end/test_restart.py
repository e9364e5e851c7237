"""What a service has taken outlives its process, however that ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any


def test_a_killed_service_goes_on_where_it_was(start_service: Callable[..., Any], story: str, long_text: str) -> None:
    before = start_service().until_ready()
    ready = before.encode(story)
    answer = before.ask(ready, "Where is Mary?")
    interrupted = before.send(long_text)
    waiting = before.send("The train to the north leaves at seven in the morning.")
    before.until(lambda: before.show(interrupted)["progress"] > 0)

    assert before.signal(signal.SIGKILL) == -signal.SIGKILL
    after = start_service().until_ready()

    assert after.show(ready) == ready
    assert after.ask(ready, "Where is Mary?") == answer
    assert after.show(interrupted)["progress"] < 1, "the answer did not wait for the encode"
    after.until(lambda: after.show(interrupted)["status"] == after.show(waiting)["status"] == "ready")
    assert after.metric('perk_encodes_total{outcome="ready"}') == 2, "what was ready is not encoded again"
    assert after.ask(waiting, "When does the train leave?")
    assert [document["id"] for document in after.client.get("/documents").json()["data"]] == [
        waiting["id"],
        interrupted["id"],
        ready["id"],
    ]


def test_an_interrupted_encode_ends_in_the_adapter_of_a_whole_one(
    start_service: Callable[..., Any], tmp_path: Any, long_text: str
) -> None:
    text = long_text[:4000]
    interrupted = start_service(data_dir=tmp_path / "interrupted").until_ready()
    document = interrupted.send(text)
    interrupted.until(lambda: interrupted.show(document)["progress"] > 0.1)
    assert interrupted.signal(signal.SIGTERM) == 0

    resumed = start_service(data_dir=tmp_path / "interrupted").until_ready()
    resumed.until(lambda: resumed.show(document)["status"] == "ready")
    whole = start_service(data_dir=tmp_path / "whole").until_ready()

    assert whole.encode(text)["id"] == document["id"]
    adapters = [service.client.get(f"/documents/{document['id']}/adapter").content for service in (resumed, whole)]
    assert adapters[0] == adapters[1]


def test_a_stop_ends_an_encode_after_its_slice_and_lets_an_answer_end(
    start_service: Callable[..., Any], story: str, long_text: str
) -> None:
    service = start_service().until_ready()
    ready = service.encode(story)
    encoding = service.send(long_text)
    service.until(lambda: service.show(encoding)["progress"] > 0)
    body = {"question": "Where is Mary?", "max_tokens": 200, "stream": True}

    with service.client.stream("POST", f"/documents/{ready['id']}/ask", json=body) as response:
        lines = response.iter_lines()
        assert next(lines) == "event: token"
        started = time.monotonic()
        status = service.signal(signal.SIGTERM)
        seconds = time.monotonic() - started
        rest = list(lines)

    assert status == 0
    assert seconds < 10
    assert "event: done" in rest
