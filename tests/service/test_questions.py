"""Questions over HTTP: answers, streams, limits, and questions while other work runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from perk.perk_model import PerkModel


def _ask(service: Any, document: dict[str, Any], question: str, **options: Any) -> dict[str, Any]:
    response = service.client.post(f"/documents/{document['id']}/ask", json={"question": question, **options})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_an_answer_comes_with_its_cost(service: Any, story: str) -> None:
    answer = _ask(service, service.encode(story), "Where is Mary?", max_tokens=7)

    assert set(answer) == {"id", "answer", "support", "finish_reason", "usage", "timings"}
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 7
    assert answer["usage"]["prompt_tokens"] > 1
    timings = answer["timings"]
    assert set(timings) == {"queue_ms", "adapter_ms", "first_token_ms", "total_ms"}
    assert 0 <= timings["adapter_ms"] + timings["queue_ms"] <= timings["first_token_ms"] <= timings["total_ms"]


def test_the_answer_is_the_one_that_the_model_gives_alone(service: Any, story: str) -> None:
    model = PerkModel.load(service.settings.checkpoint, device="cpu")
    alone = model.answer(model.encode(story).adapter, "Where is Mary?", max_tokens=12)

    answer = _ask(service, service.encode(story), "Where is Mary?", max_tokens=12)

    assert answer["answer"] == alone.text
    assert answer["usage"] == {"prompt_tokens": alone.prompt_tokens, "completion_tokens": alone.completion_tokens}


def test_a_streamed_answer_is_the_same_in_pieces(service: Any, story: str) -> None:
    document = service.encode(story)
    whole = _ask(service, document, "Where is John?", max_tokens=12)
    body = {"question": "Where is John?", "max_tokens": 12, "stream": True}

    response = service.client.post(f"/documents/{document['id']}/ask", json=body)

    assert response.headers["Content-Type"].startswith("text/event-stream")
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in response.text.strip().split("\n\n")]
    pieces = [json.loads(block["data"])["text"] for block in blocks if block["event"] == "token"]
    assert len(pieces) > 1
    assert "".join(pieces) == whole["answer"]
    assert blocks[-1]["event"] == "done"
    assert json.loads(blocks[-1]["data"])["answer"] == whole["answer"]


def test_the_same_seed_gives_the_same_answer(service: Any, story: str) -> None:
    document = service.encode(story)
    options = {"temperature": 1.5, "top_p": 0.9, "max_tokens": 24}

    first, second, other = (_ask(service, document, "Who?", seed=seed, **options)["answer"] for seed in (1, 1, 2))

    assert first == second != other


@pytest.mark.parametrize("stop", ["{}", ["unheard of", "{}"]])
def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(service: Any, story: str, stop: str | list[str]) -> None:
    document = service.encode(story)
    whole = _ask(service, document, "Where is Mary?", max_tokens=12)["answer"]
    end = whole[4:6]
    stops = stop.format(end) if isinstance(stop, str) else [text.format(end) for text in stop]

    answer = _ask(service, document, "Where is Mary?", max_tokens=12, stop=stops)

    assert answer["answer"] == whole[: whole.index(end)].rstrip()
    assert answer["finish_reason"] == "stop"


def test_questions_asked_together_get_the_answers_they_get_alone(service: Any, story: str) -> None:
    documents = [service.encode(story), service.encode("The train to the north leaves at seven in the morning.")]
    questions = ["Where is Mary?", "When does the train leave?", "Who has the apple in the office, or in the garden?"]
    pairs = [(document, question) for document in documents for question in questions] * 3
    alone = [_ask(service, *pair, max_tokens=10)["answer"] for pair in pairs[:6]] * 3

    with ThreadPoolExecutor(len(pairs)) as pool:
        together = list(pool.map(lambda pair: _ask(service, *pair, max_tokens=10)["answer"], pairs))

    assert together == alone


def test_a_question_does_not_wait_for_the_end_of_an_encode(
    start_service: Callable[..., Any], slow_checkpoint: Path, long_text: str, story: str
) -> None:
    service = start_service(checkpoint=slow_checkpoint).until_ready()
    ready = service.encode(story)
    encoding = service.client.post("/documents", json={"text": long_text}).json()
    place = f"/documents/{encoding['id']}"
    service.until(lambda: service.client.get(place).json()["progress"] > 0)

    progress = [service.client.get(place).json()["progress"]]
    for _ in range(3):
        _ask(service, ready, "Where is Mary?", max_tokens=4)
        progress.append(service.client.get(place).json()["progress"])

    assert progress[-1] < 1, "the questions were answered in the middle of the encode"
    assert progress[0] < progress[-1], "and the encode went on between them"


def test_a_document_asked_too_early_says_when_to_come_back(
    start_service: Callable[..., Any], slow_checkpoint: Path, long_text: str
) -> None:
    service = start_service(checkpoint=slow_checkpoint).until_ready()
    document = service.client.post("/documents", json={"text": long_text}).json()

    response = service.client.post(f"/documents/{document['id']}/ask", json={"question": "Who?"})

    assert response.status_code == 409
    assert response.headers["Content-Type"] == "application/problem+json"
    assert 1 <= int(response.headers["Retry-After"]) <= 600


def test_a_client_that_goes_away_frees_its_place(service: Any, story: str) -> None:
    document = service.encode(story)
    cancelled = 'perk_questions_total{outcome="cancelled"}'
    before = service.metric(cancelled)

    with pytest.raises(httpx.ReadTimeout):
        service.client.post(
            f"/documents/{document['id']}/ask", json={"question": "Who?", "max_tokens": 500}, timeout=0.1
        )

    service.until(lambda: service.metric(cancelled) == before + 1)


def test_a_reader_that_leaves_a_stream_frees_its_place(service: Any, story: str) -> None:
    document = service.encode(story)
    cancelled = 'perk_questions_total{outcome="cancelled"}'
    before = service.metric(cancelled)
    body = {"question": "Who?", "max_tokens": 500, "stream": True}

    with service.client.stream("POST", f"/documents/{document['id']}/ask", json=body) as response:
        next(response.iter_lines())

    service.until(lambda: service.metric(cancelled) == before + 1)


def test_deleting_the_document_ends_the_answers_it_is_giving(service: Any) -> None:
    document = service.encode("A document with a short life.")
    body = {"question": "Who?", "max_tokens": 500, "stream": True}

    with service.client.stream("POST", f"/documents/{document['id']}/ask", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        assert service.client.delete(f"/documents/{document['id']}").status_code == 204
        rest = "\n".join(lines)

    assert "event: error" in rest
    assert f"there is no document {document['id']}" in rest


def test_questions_beyond_the_queue_are_refused(start_service: Callable[..., Any], story: str) -> None:
    service = start_service(queue_limit=1).until_ready()
    document = service.encode(story)

    def ask(_: int) -> httpx.Response:
        body = {"question": "Who?", "max_tokens": 100}
        response: httpx.Response = service.client.post(f"/documents/{document['id']}/ask", json=body)
        return response

    with ThreadPoolExecutor(24) as pool:
        responses = list(pool.map(ask, range(24)))

    refused = [response for response in responses if response.status_code == 429]
    assert refused
    assert all(int(response.headers["Retry-After"]) >= 1 for response in refused)
    assert {response.status_code for response in responses} == {200, 429}
    assert service.metric('perk_rejected_total{reason="queue-full"}') == len(refused)


def test_one_bad_question_of_many_fails_alone(service: Any, story: str) -> None:
    document = service.encode(story)
    too_long = "Where is the apple? " * 350

    def ask(question: str) -> int:
        body = {"question": question, "max_tokens": 20}
        status: int = service.client.post(f"/documents/{document['id']}/ask", json=body).status_code
        return status

    with ThreadPoolExecutor(12) as pool:
        statuses = list(pool.map(ask, ["Where is Mary?", too_long, "Where is John?"] * 4))

    assert statuses == [200, 422, 200] * 4


def test_timings_hold_under_the_clock_of_the_client(service: Any, story: str) -> None:
    document = service.encode(story)
    started = time.monotonic()

    answer = _ask(service, document, "Where is Mary?", max_tokens=20)

    assert answer["timings"]["total_ms"] <= 1000 * (time.monotonic() - started)
