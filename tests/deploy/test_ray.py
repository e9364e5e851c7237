"""The service on a Ray cluster of this machine: two answerers and an encoder, over tiny weights and a real Redis."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from torch import Tensor

from perk.perk_model import PerkModel
from service.settings import load_settings
from service.store.adapter_format import AdapterFormat
from service.store.reader import open_reader

ray = pytest.importorskip("ray", reason="Ray is not installed (the extra `ray` has it)")
serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed (the extra `ray` has it)")

# Six processes load torch: on a busy machine that takes its time.
pytestmark = pytest.mark.timeout(1200)

_PATIENCE_SECONDS = 900.0
_DOCUMENTS = 20
_QUESTIONS = ("Where is Mary?", "Who went to the office?", "What is in the garden?")
_NAMES = ("Mary", "John", "Sandra", "Ada", "Tom")
_PLACES = ("kitchen", "garden", "office", "school")
_MAX_TOKENS = 8


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


class _Cluster:
    """The application on Ray, with a client for it.

    Attributes:
        client: an `httpx.Client` of its address.
    """

    def __init__(self) -> None:
        from deploy.ray.application import ANSWERERS, NAME, build
        from deploy.ray.options import RayOptions, Scale

        # Many more processor cores than there are: tiny models need few.
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 1024**2)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        options = RayOptions(encoders=Scale(least=1, most=1), answerers=Scale(least=2, most=2), cpus=0.5)
        serve.run(build(options), name=NAME)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_PATIENCE_SECONDS)
        self.answerers = serve.get_deployment_handle(ANSWERERS, NAME)
        _until(lambda: self.client.get("/ready").status_code == 200)

    def close(self) -> None:
        self.client.close()
        serve.shutdown()
        ray.shutdown()

    def ask(self, document_id: str, question: str) -> str:
        body = {"question": question, "max_tokens": _MAX_TOKENS}
        response = self.client.post(f"/documents/{document_id}/ask", json=body)
        assert response.status_code == 200, response.text
        answer: str = response.json()["answer"]
        return answer

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Labels and values of a metric of the replicas with a model."""
        response = self.client.get("/metrics/replicas")
        assert response.status_code == 200, response.text
        return [
            (sample.labels, sample.value)
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
            if sample.name == name
        ]

    def reads(self) -> dict[str, float]:
        """Reads of adapters by tier, by all answerers."""
        reads = [
            (labels, n) for labels, n in self.samples("perk_adapter_reads_total") if labels["deployment"] == "answerer"
        ]
        assert len({labels["replica"] for labels, _ in reads}) == 2
        return {tier: sum(n for labels, n in reads if labels["tier"] == tier) for tier in ("memory", "redis")}


@pytest.fixture(scope="module")
def checkpoint(save_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint whose adapters differ so much that answers do too; 512 KiB hold ten of them."""
    return save_checkpoint("ray", rank=6, steps=4, step_size=0.02)


@pytest.fixture(scope="module")
def cluster(checkpoint: Path, redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Cluster]:
    """All of it, for the tests of this file."""
    folder = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PERK_")]:
            patch.delenv(name)
        patch.setenv("PERK_CHECKPOINT", str(checkpoint))
        patch.setenv("PERK_DEVICE", "cpu")
        patch.setenv("PERK_DATA_DIR", str(folder))
        patch.setenv("PERK_REDIS_URL", redis_server.url)
        patch.setenv("PERK_MEMORY_BUDGET", "1MiB")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray lets its workers go after everything else that runs on the machine.
        patch.setenv("RAY_worker_niceness", "0")
        # A replica that answers late is no reason to ask another: the machine is busy.
        patch.setenv("RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "10")
        running = _Cluster()
        yield running
        running.close()


def _text(number: int) -> str:
    draw = random.Random(number)
    return " ".join(f"{draw.choice(_NAMES)} went to the {draw.choice(_PLACES)}." for _ in range(6)) + f" {number}."


@pytest.fixture(scope="module")
def documents(cluster: _Cluster) -> list[str]:
    """Ids of twenty documents that are ready."""
    sent = [cluster.client.post("/documents", json={"text": _text(number)}) for number in range(_DOCUMENTS)]
    assert {response.status_code for response in sent} == {202}, [response.text for response in sent]
    ids = [str(response.json()["id"]) for response in sent]

    def are_ready() -> bool:
        listed = cluster.client.get("/documents", params={"limit": 100}).json()["data"]
        return {document["id"] for document in listed if document["status"] == "ready"} == set(ids)

    _until(are_ready)
    return ids


@pytest.fixture(scope="module")
def expected(documents: list[str], checkpoint: Path) -> dict[tuple[str, str], str]:
    """What one model says alone, by document and question."""
    model = PerkModel.load(checkpoint, device="cpu")
    adapter_format = AdapterFormat(size=model.adapter_size, fingerprint=model.fingerprint)

    async def read() -> dict[str, Tensor | None]:
        async with open_reader(load_settings(), adapter_format, model.fingerprint) as store:
            return {name: await store.get(name) for name in documents}

    answers = {
        (name, question): model.answer(adapter, question, max_tokens=_MAX_TOKENS).text
        for name, adapter in asyncio.run(read()).items()
        for question in _QUESTIONS
    }
    assert len(set(answers.values())) > len(answers) / 3, "answers tell documents apart"
    return answers


def _drawn(documents: list[str], count: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    return [(draw.choice(documents), draw.choice(_QUESTIONS)) for _ in range(count)]


def _share_at_hand(before: dict[str, float], after: dict[str, float]) -> float:
    """Of all reads between the two, those that found the adapter in memory."""
    return (after["memory"] - before["memory"]) / (sum(after.values()) - sum(before.values()))


def test_a_question_goes_where_its_adapter_is(
    cluster: _Cluster, documents: list[str], expected: dict[tuple[str, str], str], record_property: Any
) -> None:
    for document in documents:
        cluster.ask(document, _QUESTIONS[0])
    asked = _drawn(documents, 100, seed=1)
    before = cluster.reads()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda pair: cluster.ask(*pair), asked))
    between = cluster.reads()
    assert answers == [expected[pair] for pair in asked]

    async def ask_anywhere(pair: tuple[str, str]) -> str:
        from deploy.ray.wire import Piece
        from perk.answer import AnswerRequest

        request = AnswerRequest(question=pair[1], max_tokens=_MAX_TOKENS)
        events: AsyncIterator[Any] = cluster.answerers.options(stream=True).ask.remote(pair[0], request, "", 60.0)
        return "".join([event.delta.text async for event in events if isinstance(event, Piece)])

    async def ask_all() -> list[str]:
        return [await ask_anywhere(pair) for pair in asked]

    assert asyncio.run(ask_all()) == answers
    routed, random_share = _share_at_hand(before, between), _share_at_hand(between, cluster.reads())
    record_property("share_at_hand_routed", routed)
    record_property("share_at_hand_random", random_share)
    print(f"adapters at hand: {routed:.0%} routed by document, {random_share:.0%} at random")
    assert routed > random_share + 0.1


def test_the_front_shows_what_replicas_count(cluster: _Cluster, documents: list[str]) -> None:
    encodes = cluster.samples("perk_encodes_total")
    assert {labels["deployment"] for labels, _ in encodes} == {"encoder"}
    assert sum(count for labels, count in encodes if labels["outcome"] == "ready") == len(documents)
    slices = cluster.samples("perk_slice_seconds_count")
    assert {(labels["deployment"], labels["kind"]) for labels, _ in slices} >= {
        ("encoder", "encode"),
        ("answerer", "answer"),
    }


def test_a_killed_answerer_loses_no_question(
    cluster: _Cluster, documents: list[str], expected: dict[tuple[str, str], str]
) -> None:
    asked = _drawn(documents, 100, seed=2)
    victim = cluster.answerers.process_id.remote().result(timeout_s=_PATIENCE_SECONDS)

    def ask(number: int) -> str:
        if number == 30:
            os.kill(victim, signal.SIGKILL)
        return cluster.ask(*asked[number])

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(len(asked))))

    assert answers == [expected[pair] for pair in asked]
    with suppress(ProcessLookupError):
        os.kill(victim, 0)
        pytest.fail("the answerer was killed")
