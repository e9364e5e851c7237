"""The front over an encoder and an answerer in this process: what a client sees when replicas are lost or busy."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from perk.perk_model import PerkModel
from service.app import create_app
from service.engine.engine import EngineParts
from service.settings import load_settings

pytest.importorskip("ray.serve", reason="Ray Serve is not installed (the extra `ray` has it)")

_STORY = "Mary went to the kitchen. John moved to the garden. Sandra travelled back to the office."
_SEEN = {"question": "Where is Mary?", "max_tokens": 8}


class _Faults:
    """What goes wrong with the answers to come.

    Attributes:
        lost: answers whose replica dies after `pieces` events.
        other: whether the next answer begins with other words than the model's.
        busy: whether no replica takes any.
    """

    def __init__(self) -> None:
        self.lost = 0
        self.pieces = 0
        self.other = False
        self.busy = False


class _Handle:
    """A deployment's handle, as far as the front uses it; its only replica is here."""

    def __init__(self, replica: Any, faults: _Faults) -> None:
        self._replica = replica
        self._faults = faults

    def options(self, *, stream: bool, multiplexed_model_id: str) -> _Handle:
        assert stream
        assert multiplexed_model_id.startswith("doc_")
        return self

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *arguments: Any) -> Any:
        if len(arguments) == 1:
            return self._replica.encode(*arguments)
        return _Events(self._replica.ask(*arguments), self._faults)


class _Events:
    """A response of several pieces, with faults in it."""

    def __init__(self, events: AsyncGenerator[Any, None], faults: _Faults) -> None:
        self._events = events
        self._faults = faults

    def cancel(self) -> None:
        """End it; what has ended already stays so."""

    async def __aiter__(self) -> AsyncIterator[Any]:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError

        from deploy.ray.wire import Piece

        if self._faults.busy:
            raise BackPressureError(num_queued_requests=9, max_queued_requests=9)
        count = 0
        async for event in self._events:
            if self._faults.lost and count == self._faults.pieces:
                self._faults.lost -= 1
                await self._events.aclose()
                raise RayActorError
            count += 1
            if self._faults.other and isinstance(event, Piece):
                self._faults.other = False
                yield Piece(type(event.delta)(0, "Otherwise. "), 1, 1, 0.0)
            yield event


class _Front:
    """A front with its replicas, and a client."""

    def __init__(self, portal: BlockingPortal, client: httpx.AsyncClient, faults: _Faults) -> None:
        self._portal = portal
        self._client = client
        self.faults = faults

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._portal.call(partial(self._client.request, method, path, **options))

    def encode(self, text: str) -> str:
        response = self.send("POST", "/documents", json={"text": text}, headers={"Prefer": "wait=120"})
        assert response.json().get("status") == "ready", response.text
        return str(response.json()["id"])

    def ask(self, document_id: str, **body: Any) -> httpx.Response:
        return self.send("POST", f"/documents/{document_id}/ask", json=_SEEN | body)


@asynccontextmanager
async def _running(faults: _Faults) -> AsyncIterator[httpx.AsyncClient]:
    from deploy.ray.encoder_calls import EncoderCalls
    from deploy.ray.remote_questions import RemoteQuestions
    from deploy.ray.replicas import Answerer, Encoder

    async def start(kind: type[Any]) -> Any:
        replica = kind.__new__(kind)
        await replica.__init__()
        return replica

    encoder, answerer = await start(Encoder), await start(Answerer)
    fingerprint = await encoder.fingerprint()
    app = create_app(
        load_settings(),
        load_model=lambda settings: PerkModel.load_outline(settings.checkpoint, fingerprint),
        replaced=EngineParts(
            leases=lambda _: EncoderCalls(_Handle(encoder, faults), limit=8),
            questions=partial(RemoteQuestions, answerers=_Handle(answerer, faults), queue_limit=64),
        ),
    )
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://front", timeout=200) as client,
    ):
        await app.state.engine.ready()
        yield client
    for replica in (answerer, encoder):
        await replica.stop()


@pytest.fixture(scope="module")
def front(tiny_checkpoint: Path, redis_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Front]:
    """A front for all tests of this file."""
    faults = _Faults()
    with pytest.MonkeyPatch.context() as patch, start_blocking_portal() as portal:
        patch.setenv("PERK_CHECKPOINT", str(tiny_checkpoint))
        patch.setenv("PERK_DEVICE", "cpu")
        patch.setenv("PERK_DATA_DIR", str(tmp_path_factory.mktemp("data")))
        patch.setenv("PERK_REDIS_URL", redis_server.url)
        patch.setattr("deploy.ray.replicas.configure_logs", lambda: None)
        with portal.wrap_async_context_manager(_running(faults)) as client:
            yield _Front(portal, client, faults)


@pytest.fixture
def document(front: _Front) -> str:
    """A document that is ready."""
    return front.encode(_STORY)


@pytest.mark.parametrize("pieces", [0, 1, 4])
def test_a_lost_answerer_costs_time_and_no_answer(front: _Front, document: str, pieces: int) -> None:
    expected = front.ask(document).json()["answer"]
    front.faults.lost, front.faults.pieces = 2, pieces

    response = front.ask(document)

    assert front.faults.lost == 0
    assert response.status_code == 200
    assert response.json()["answer"] == expected
    assert response.json()["usage"]["completion_tokens"] == _SEEN["max_tokens"]
    assert min(response.json()["timings"].values()) >= 0


def test_a_client_that_has_had_a_part_gets_the_rest_of_the_same_answer(front: _Front, document: str) -> None:
    front.faults.lost, front.faults.pieces = 1, 4

    # No seed: the front draws one, and the second answerer must not draw another. An answer drawn so may end before the
    # piece at which the answerer is lost; then another is asked for.
    for _ in range(20):
        lines = front.ask(document, stream=True, temperature=1.5).text.splitlines()
        if front.faults.lost == 0:
            break

    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    assert front.faults.lost == 0
    assert "".join(piece["text"] for piece in data[:-1]) == data[-1]["answer"]


def test_another_answer_than_the_one_begun_is_an_error(front: _Front, document: str) -> None:
    front.faults.other, front.faults.lost, front.faults.pieces = True, 1, 2

    text = front.ask(document, stream=True).text

    assert "an answerer was lost, and another began otherwise" in text
    assert "event: done" not in text


def test_a_question_that_every_answerer_dies_of_is_given_up(front: _Front, document: str) -> None:
    front.faults.lost, front.faults.pieces = 9, 0

    response = front.ask(document)
    front.faults.lost = 0

    assert response.status_code == 503
    assert "one answerer after the other" in response.json()["detail"]


def test_too_many_questions_are_told_to_come_back(front: _Front, document: str) -> None:
    front.faults.busy = True
    response = front.ask(document)
    front.faults.busy = False

    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) > 0


def test_what_an_answerer_refuses_is_said_as_the_service_says_it(front: _Front, document: str) -> None:
    unknown = front.ask("doc_" + "1" * 32)
    too_long = front.ask(document, question="Where is Mary? " * 400)

    assert unknown.status_code == 404
    assert too_long.status_code == 422
    assert too_long.json()["errors"][0]["field"] == "question"


def test_an_adapter_that_is_gone_is_encoded_again(front: _Front, document: str, redis_server: Any) -> None:
    expected = front.ask(document).json()["answer"]
    other = front.encode("Ada went to the school.")
    (name,) = redis_server.client.keys(f"*:doc:{other}:adapter")
    redis_server.client.delete(name)

    # Of `document` the answerer has a copy in memory, of the other none.
    assert front.ask(other).status_code == 200
    assert front.ask(document).json()["answer"] == expected


def test_the_front_writes_peft_folders_and_forgets_documents(front: _Front) -> None:
    document = front.encode("Tom went to the office.")
    assert front.ask(document).status_code == 200

    archive = front.send("GET", f"/documents/{document}/adapter")
    deleted = front.send("DELETE", f"/documents/{document}")

    assert archive.content.startswith(b"PK")
    assert deleted.status_code == 204
    assert front.ask(document).status_code == 404
