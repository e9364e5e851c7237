"""Faults while questions run: no wrong answer, errors only while the fault lasts, and no restart afterwards."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from service.engine import encode_queue

_CLIENTS = 3
_QUESTIONS = ("Where is Mary?", "What is the grade of the student?")
_PLACES = ("hall", "attic", "garden", "office", "kitchen", "station")
_TEXTS = tuple(
    f"Student <{3_100_000 + number}>, Grade: {40 + 7 * number}\nMary went to the {place} of house {number}."
    for number, place in enumerate(_PLACES)
)
# Of these adapters, fewer are at hand than there are documents.
_LITTLE_ROOM = {"memory_budget": 1 << 20}


class Outcome(NamedTuple):
    """Of one question.

    Attributes:
        begun: when it was sent (`time.monotonic`).
        ended: when it was answered or refused.
        status: of the response.
        is_right: whether the answer is the one given before.
        retry_after: of a refusal.
    """

    begun: float
    ended: float
    status: int
    is_right: bool
    retry_after: str | None


class Crowd:
    """Clients that ask and ask.

    Attributes:
        outcomes: of all questions so far.
    """

    def __init__(self, replicas: list[Any], documents: list[dict[str, Any]]) -> None:
        self._asked = [(document["id"], question) for document in documents for question in _QUESTIONS]
        self._replicas = replicas
        self._expected = {pair: _answer(self._ask(replicas[0], *pair)) for pair in self._asked}
        assert len(set(self._expected.values())) >= len(documents) / 2, "the documents make no difference"
        self.outcomes: list[Outcome] = []
        self._turns = itertools.count()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(_CLIENTS)]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def until_right(self, count: int = 2 * _CLIENTS) -> None:
        """Wait until so many questions asked from now on are answered rightly."""
        now = time.monotonic()
        self._replicas[0].until(lambda: sum(one.is_right for one in self.outcomes if one.begun >= now) >= count)

    @contextmanager
    def fault(self) -> Iterator[None]:
        """What runs within may fail; all else is checked once it is over and questions are answered again."""
        self.until_right()
        begun = time.monotonic()
        yield
        self.until_right()
        ended = time.monotonic()
        self.until_right()
        outside = [one for one in self.outcomes if one.ended < begun or one.begun > ended]
        assert outside
        assert [one for one in outside if not one.is_right] == []
        assert [one for one in self.outcomes if one.status == 200 and not one.is_right] == [], "a wrong answer"
        refused = [one for one in self.outcomes if one.status != 200]
        assert {one.status for one in refused} <= {409, 429, 503}
        assert all(one.retry_after is not None and int(one.retry_after) >= 1 for one in refused)

    def _run(self) -> None:
        while not self._stopping.is_set():
            turn = next(self._turns)
            pair = self._asked[turn % len(self._asked)]
            begun = time.monotonic()
            response = self._ask(self._replicas[turn % len(self._replicas)], *pair)
            is_right = response.status_code == 200 and _answer(response) == self._expected[pair]
            retry_after = response.headers.get("Retry-After")
            self.outcomes.append(Outcome(begun, time.monotonic(), response.status_code, is_right, retry_after))

    @staticmethod
    def _ask(replica: Any, document_id: str, question: str) -> Any:
        body = {"question": question, "max_tokens": 6}
        return replica.client.post(f"/documents/{document_id}/ask", json=body)


def _answer(response: Any) -> tuple[str, str, int]:
    answer = response.json()
    return answer["answer"], answer["finish_reason"], answer["usage"]["completion_tokens"]


@pytest.fixture
def replicas(start_service: Callable[..., Any], redis: Any, strong_checkpoint: Path, tmp_path: Path) -> list[Any]:
    """Two on one Redis, with few adapters at hand."""
    options = {"redis_url": redis.url, "checkpoint": strong_checkpoint, **_LITTLE_ROOM}
    started = [start_service(data_dir=tmp_path / name, **options) for name in ("one", "other")]
    return [replica.until_ready() for replica in started]


def _encode_all(service: Any) -> list[dict[str, Any]]:
    return [service.encode(text) for text in _TEXTS]


def test_redis_is_killed_and_started_again(replicas: list[Any], redis: Any) -> None:
    one, other = replicas
    documents = _encode_all(one)
    with Crowd(replicas, documents) as crowd, crowd.fault():
        redis.kill()
        one.until(lambda: one.metric("perk_redis_up") == 0)
        taken = one.client.post("/documents", json={"text": "sent while Redis was away"}).json()
        one.until(lambda: one.client.get(f"/documents/{taken['id']}").json().get("status") == "ready")
        redis.start()
        for replica in replicas:
            replica.until(lambda replica=replica: replica.client.get("/ready").json()["status"] == "ready")
    assert one.metric('perk_tier_evictions_total{tier="memory"}') > 0, "the adapters did not rotate"
    one.until(lambda: one.metric("perk_outbox_documents") == 0)
    ids = {document["id"] for document in other.client.get("/documents").json()["data"]}
    assert ids == {taken["id"], *(document["id"] for document in documents)}, "a document is lost"


def test_connections_to_redis_are_cut(replicas: list[Any], redis: Any) -> None:
    documents = _encode_all(replicas[0])
    with Crowd(replicas, documents) as crowd:
        for _ in range(5):
            redis.client.client_kill_filter(_type="normal", skipme=True)
            redis.client.client_kill_filter(_type="pubsub")
            crowd.until_right(2)
        assert {one.status for one in crowd.outcomes} == {200}
        assert all(one.is_right for one in crowd.outcomes)


def test_an_entry_in_redis_is_damaged(replicas: list[Any], redis: Any) -> None:
    documents = _encode_all(replicas[0])
    (name,) = (name for name in redis.names() if name.endswith(f":{documents[0]['id']}:adapter"))
    with Crowd(replicas, documents) as crowd, crowd.fault():
        chunk = bytearray(redis.client.hget(name, "chunk:0"))
        chunk[len(chunk) // 2] ^= 0xFF
        redis.client.hset(name, "chunk:0", bytes(chunk))
        for replica in replicas:
            replica.engine.documents._adapters.forget(documents[0]["id"])
        dropped = 'perk_adapters_dropped_total{reason="checksum"}'
        replicas[0].until(lambda: sum(replica.metric(dropped) for replica in replicas) >= 1)
    assert bytes(chunk) != redis.client.hget(name, "chunk:0"), "it was not encoded again"


def test_the_disk_is_full(
    start_service: Callable[..., Any], strong_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_queue, "STORE_PAUSE_SECONDS", 0.05)
    service = start_service(checkpoint=strong_checkpoint, **_LITTLE_ROOM).until_ready()
    documents = _encode_all(service)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Crowd([service], documents) as crowd, crowd.fault():
        with monkeypatch.context() as fault:
            fault.setattr(os, "fsync", full)
            waiting = service.client.post("/documents", json={"text": "it finds no space"}).json()
            service.until(lambda: service.metric('perk_store_errors_total{reason="full"}') >= 1)
            crowd.until_right()
        service.until(lambda: service.client.get(f"/documents/{waiting['id']}").json()["status"] == "ready")
    assert {one.status for one in crowd.outcomes} == {200}, "what is kept answers all the while"
