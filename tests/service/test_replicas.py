"""Several replicas on one Redis: one encode a document, the same answers everywhere, and nothing lost with Redis."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

_ENCODED = 'perk_encodes_total{outcome="ready"}'


@pytest.fixture
def start_replica(start_service: Callable[..., Any], redis: Any, tmp_path: Path) -> Callable[..., Any]:
    """Starts replicas by name, each with a folder of its own."""

    def start(name: str, **options: Any) -> Any:
        return start_service(redis_url=redis.url, data_dir=tmp_path / name, **options).until_ready()

    return start


def _ask(replica: Any, document: dict[str, Any]) -> Any:
    body = {"question": "Where is Mary?", "max_tokens": 10}
    return replica.client.post(f"/documents/{document['id']}/ask", json=body)


def _answer(replica: Any, document: dict[str, Any]) -> str:
    response = _ask(replica, document)
    assert response.status_code == 200, response.text
    answer: str = response.json()["answer"]
    return answer


def _show(replica: Any, document: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = replica.client.get(f"/documents/{document['id']}").json()
    return shown


def _until_ready(replica: Any, document: dict[str, Any]) -> None:
    replica.until(lambda: _show(replica, document).get("status") == "ready")


def _key(redis: Any, document: dict[str, Any], part: str) -> str:
    (name,) = (name for name in redis.names() if name.endswith(f":doc:{document['id']}"))
    return f"{name}:{part}"


def test_the_same_text_sent_to_two_replicas_at_once_is_encoded_once(
    start_replica: Callable[..., Any], slow_checkpoint: Path, long_text: str
) -> None:
    replicas = [start_replica(name, checkpoint=slow_checkpoint) for name in ("one", "other")]
    texts = [long_text[:150], long_text[150:300]]
    barrier = threading.Barrier(4)

    def send(replica: Any, text: str) -> dict[str, Any]:
        barrier.wait()
        response = replica.client.post("/documents", json={"text": text}, headers={"Prefer": "wait=60"})
        document: dict[str, Any] = response.json()
        return document

    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(send, replicas * 2, [texts[0], texts[0], texts[1], texts[1]]))

    assert [document["status"] for document in sent] == ["ready"] * 4
    assert sum(replica.metric(_ENCODED) for replica in replicas) == 2
    assert sent[0] == sent[1]
    assert sent[2] == sent[3]
    assert replicas[0].client.get("/documents").json() == replicas[1].client.get("/documents").json()
    assert _answer(replicas[0], sent[0]) == _answer(replicas[1], sent[0])


def test_a_replica_leases_what_it_encodes_and_leaves_the_rest_to_the_others(
    start_replica: Callable[..., Any], redis: Any, slow_checkpoint: Path, long_text: str
) -> None:
    replicas = [start_replica(name, checkpoint=slow_checkpoint) for name in ("one", "other")]
    for start in range(0, 240, 60):
        assert replicas[0].client.post("/documents", json={"text": long_text[start : start + 60]}).status_code == 202
    leases = []

    def all_ready() -> bool:
        leases.append(sum(name.endswith(":lease") for name in redis.names()))
        listed = replicas[0].client.get("/documents").json()["data"]
        return [document["status"] for document in listed] == ["ready"] * 4

    replicas[0].until(all_ready)

    encoded = [replica.metric(_ENCODED) for replica in replicas]
    assert sum(encoded) == 4
    assert min(encoded) >= 1
    # While the last adapter is being written, the model has the next document.
    assert max(leases) <= 4


def test_every_replica_shows_how_far_an_encode_is(
    start_replica: Callable[..., Any], slow_checkpoint: Path, long_text: str
) -> None:
    one, other = (start_replica(name, checkpoint=slow_checkpoint) for name in ("one", "other"))
    document = one.client.post("/documents", json={"text": long_text[:1200]}).json()
    replicas = {"one": one, "other": other}
    one.until(lambda: all(_show(replica, document)["progress"] > 0 for replica in replicas.values()))

    events = other.client.get(f"/documents/{document['id']}/events").text
    shown = [_show(replica, document) for replica in replicas.values()]

    assert events.count("event: progress") >= 2
    assert events.rstrip().splitlines()[-2] == "event: ready"
    assert shown[0] == shown[1]
    assert one.metric(_ENCODED) + other.metric(_ENCODED) == 1


def test_what_one_replica_deletes_is_gone_from_the_memory_of_the_others(
    start_replica: Callable[..., Any], story: str
) -> None:
    one, other = start_replica("one"), start_replica("other")
    document = one.encode(story)
    _answer(one, document)
    _answer(other, document)
    held = [replica.engine.documents._adapters for replica in (one, other)]
    assert [tier.held for tier in held] == [[document["id"]]] * 2

    assert other.client.delete(f"/documents/{document['id']}").status_code == 204

    assert _ask(one, document).status_code == 404
    one.until(lambda: held[0].held == [])
    assert held[1].held == []
    assert one.client.get("/documents").json()["data"] == []


def test_an_answer_ends_when_another_replica_deletes_its_document(
    start_replica: Callable[..., Any], story: str
) -> None:
    one, other = start_replica("one"), start_replica("other")
    document = one.encode(story)
    body = {"question": "Where is Mary?", "max_tokens": 500, "stream": True}
    with one.client.stream("POST", f"/documents/{document['id']}/ask", json=body) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: token"
        assert other.client.delete(f"/documents/{document['id']}").status_code == 204
        rest = "\n".join(lines)
    assert rest.rstrip().splitlines()[-2] in ("event: error", "event: done")
    assert _ask(one, document).status_code == 404


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_an_adapter_damaged_in_redis_is_encoded_again_and_the_answer_is_the_same(
    start_replica: Callable[..., Any], redis: Any, story: str, damage: str
) -> None:
    one = start_replica("one")
    document = one.encode(story)
    before = _answer(one, document)
    name = _key(redis, document, "adapter")
    if damage == "gone":
        redis.client.delete(name)
    else:
        chunk = bytearray(redis.client.hget(name, "chunk:0"))
        chunk[len(chunk) // 2] ^= 0xFF
        redis.client.hset(name, "chunk:0", bytes(chunk))
    other = start_replica("other")

    with ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(_answer, [one, other] * 4, [document] * 8))

    assert answers == {before}
    assert one.metric(_ENCODED) + other.metric(_ENCODED) == 2
    assert other.metric('perk_adapters_dropped_total{reason="checksum"}') == (damage == "flipped")


@pytest.mark.parametrize("name", ["float32", "bf16", "int8-delta"])
def test_an_answer_from_memory_equals_that_after_a_reading(
    start_replica: Callable[..., Any], slow_checkpoint: Path, story: str, name: str
) -> None:
    options = {"checkpoint": slow_checkpoint, "adapter_format": name}
    one = start_replica("one", **options)
    document = one.encode(story)
    other = start_replica("other", **options)

    exports = [replica.client.get(f"/documents/{document['id']}/adapter").content for replica in (one, other)]

    assert exports[0] == exports[1]
    assert _answer(one, document) == _answer(other, document)
    assert one.metric('perk_adapter_reads_total{tier="redis"}') == 0
    assert other.metric('perk_adapter_reads_total{tier="redis"}') == 1


def test_while_redis_is_away_a_replica_goes_on_from_its_own_tiers_and_loses_nothing(
    start_replica: Callable[..., Any], redis: Any, story: str
) -> None:
    one, other = start_replica("one", queue_limit=3), start_replica("other")
    known = one.encode(story)
    answer = _answer(one, known)
    waiting = one.client.post("/documents", json={"text": "sent before"}).json()
    redis.kill()

    assert _answer(one, known) == answer
    assert one.client.get("/ready").status_code == 200
    assert one.client.get("/ready").json()["status"] == "degraded"
    assert one.metric("perk_redis_up") == 0
    texts = ["while it was away", "another one", "and a third"]
    sent = [one.client.post("/documents", json={"text": text}).json() for text in texts]
    assert one.metric("perk_outbox_documents") == 3
    refused = one.client.post("/documents", json={"text": "one too many"})
    assert (refused.status_code, "Retry-After" in refused.headers) in ((503, True), (429, True))
    assert one.client.delete(f"/documents/{known['id']}").status_code == 503
    assert one.client.get("/documents").status_code == 503
    assert one.client.get(f"/documents/doc_{'0' * 32}").status_code == 503, "unknown is not absent"

    redis.start()
    one.until(lambda: one.client.get("/ready").json()["status"] == "ready")
    one.until(lambda: one.metric("perk_outbox_documents") == 0)
    for document in [waiting, *sent]:
        _until_ready(one, document)
        _until_ready(other, document)
        assert _answer(one, document) == _answer(other, document)
    assert _answer(other, known) == answer
    assert len(one.client.get("/documents").json()["data"]) == 5


def test_a_document_taken_while_redis_was_away_outlives_its_replica(
    start_replica: Callable[..., Any], redis: Any, story: str
) -> None:
    one = start_replica("one")
    redis.kill()
    document = one.encode(story)
    answer = _answer(one, document)
    one.stop()
    redis.start()

    restarted, other = start_replica("one"), start_replica("other")

    _until_ready(other, document)
    assert _answer(other, document) == answer
    restarted.until(lambda: restarted.metric("perk_outbox_documents") == 0)
    assert restarted.metric(_ENCODED) + other.metric(_ENCODED) == 0, "it was encoded before"
    assert _show(restarted, document) == _show(other, document)


def test_questions_do_not_notice_cut_connections(start_replica: Callable[..., Any], redis: Any, story: str) -> None:
    one = start_replica("one")
    document = one.encode(story)
    answer = _answer(one, document)
    for _ in range(5):
        redis.client.client_kill_filter(_type="normal", skipme=True)
        redis.client.client_kill_filter(_type="pubsub")
        one.engine.documents._adapters.forget(document["id"])
        assert _answer(one, document) == answer
    assert one.encode("sent after the cut")["status"] == "ready"


def test_a_full_redis_refuses_documents_and_goes_on_answering(
    start_replica: Callable[..., Any], redis: Any, story: str
) -> None:
    one = start_replica("one")
    document = one.encode(story)
    answer = _answer(one, document)
    redis.client.config_set("maxmemory", "1")
    try:
        refused = one.client.post("/documents", json={"text": "no space for this"})
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        one.engine.documents._adapters.forget(document["id"])
        assert _answer(one, document) == answer
    finally:
        redis.client.config_set("maxmemory", "0")
    assert one.encode("no space for this")["status"] == "ready"


def test_an_adapter_that_expired_in_redis_is_encoded_again_on_demand(
    start_replica: Callable[..., Any], redis: Any, story: str
) -> None:
    one = start_replica("one", adapter_ttl=1000)
    document = one.encode(story)
    before = _answer(one, document)
    name = _key(redis, document, "adapter")
    assert 0 < redis.client.ttl(name) <= 1000
    # Its time is over, without the test having to wait for it.
    redis.client.delete(name)
    redis.client.hset(name.removesuffix(":adapter"), "expires_at", "1")

    assert _answer(one, document) == before
    assert one.metric("perk_reencodes_total") == 1


def _handles() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_documents_that_come_and_go_leave_no_keys_and_no_handles(start_replica: Callable[..., Any], redis: Any) -> None:
    one = start_replica("one")

    def cycle(number: int) -> None:
        document = one.encode(f"Document {number} of many.")
        _answer(one, document)
        assert one.client.delete(f"/documents/{document['id']}").status_code == 204

    for number in range(3):
        cycle(number)
    keys, handles, threads = redis.names(), _handles(), threading.active_count()
    for number in range(3, 30):
        cycle(number)

    assert redis.names() == keys == {"perk:fingerprints"}
    assert _handles() <= handles + 2
    assert threading.active_count() <= threads + 2
    assert one.engine.documents._adapters.held == []


def test_the_address_of_redis_is_in_no_log(
    start_replica: Callable[..., Any], redis: Any, story: str, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    one = start_replica("one")
    one.encode(story)
    redis.kill()
    assert one.client.post("/documents", json={"text": "while it is away"}).status_code == 202
    redis.start()
    one.until(lambda: one.metric("perk_outbox_documents") == 0)

    printed = capfd.readouterr()
    assert redis.password not in printed.out + printed.err + caplog.text
    assert redis.password not in repr(one.settings)
