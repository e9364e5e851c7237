"""Whose slice is next: calls first, questions before encodes, and no one for ever last."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from perk.answer import AnswerRequest
from service.engine.answer_job import AnswerJob
from service.engine.jobs import CallJob, EncodeJob, EncodeRequest, Job, Question
from service.engine.scheduler import Scheduler
from service.errors import NotReady, TookTooLong

LONG = "text " * 2000


def _encode(text: str = LONG) -> EncodeRequest:
    return EncodeRequest(text, lambda _: None)


def _scheduler() -> Scheduler:
    return Scheduler(memory_budget=1 << 20)


def _texts(job: Job | None) -> list[str]:
    assert isinstance(job, EncodeJob)
    return [request.text for request in job.requests]


def _no_result(document: EncodeRequest) -> None:
    """End the encode of a document; what its result is makes no difference."""
    result: Any = None
    document.future.set_result(result)


def _questions(count: int, loop: asyncio.AbstractEventLoop) -> list[Question]:
    return [Question(AnswerRequest(f"Question {number}?"), loop) for number in range(count)]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that is never run: what is sent to it stays there."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_with_nothing_to_do_there_is_no_job() -> None:
    assert _scheduler().next_job() is None


def test_a_call_goes_first_and_once(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = _scheduler()
    scheduler.add_encode(_encode())
    (question,) = _questions(1, loop)
    scheduler.add_question(question)
    call = CallJob(lambda _: None, Future())
    scheduler.add_call(call)

    assert scheduler.next_job() is call
    assert scheduler.next_job() is not call


def test_questions_share_a_batch_of_sixteen_rows_and_take_the_places_that_become_free(
    loop: asyncio.AbstractEventLoop,
) -> None:
    scheduler = _scheduler()
    questions = _questions(19, loop)
    for question in questions:
        scheduler.add_question(question)

    batch = scheduler.next_job()

    assert isinstance(batch, AnswerJob)
    assert list(batch.questions) == questions[:16]
    assert scheduler.waiting_questions == 3


def test_no_key_fills_the_batch_while_another_waits(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = _scheduler()
    many, few = _questions(40, loop), _questions(3, loop)
    for question in many:
        scheduler.add_question(question, "many")
    for question in few:
        scheduler.add_question(question, "few")

    batch = scheduler.next_job()

    assert isinstance(batch, AnswerJob)
    assert set(few) < set(batch.questions)


@pytest.mark.parametrize("text", [LONG, "short"])
def test_answers_leave_an_encode_a_third_of_the_time(loop: asyncio.AbstractEventLoop, text: str) -> None:
    scheduler = _scheduler()
    scheduler.add_encode(_encode(text))
    for question in _questions(16, loop):
        scheduler.add_question(question)
    spent = {"answer": 0.0, "encode": 0.0}

    for _ in range(3000):
        job = scheduler.next_job()
        assert job is not None
        seconds = 0.5 if job.kind == "encode" else 0.02
        spent[job.kind] += seconds
        scheduler.note(job, seconds)

    assert spent["encode"] / (spent["answer"] + spent["encode"]) == pytest.approx(1 / 3, abs=0.02)


def test_a_question_goes_before_an_encode(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = _scheduler()
    scheduler.add_encode(_encode())
    encode = scheduler.next_job()
    assert isinstance(encode, EncodeJob)
    scheduler.note(encode, 0.5)
    scheduler.add_question(*_questions(1, loop))

    assert isinstance(scheduler.next_job(), AnswerJob)


def test_what_no_one_wants_any_more_has_no_slice(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = _scheduler()
    document = _encode()
    scheduler.add_encode(document)
    (question,) = _questions(1, loop)
    scheduler.add_question(question)

    document.future.cancel()
    question.cancel()

    assert scheduler.next_job() is None
    assert scheduler.waiting_questions == 0


def test_a_question_beyond_its_deadline_has_no_slice_and_is_told(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = _scheduler()
    question = Question(AnswerRequest("Who?"), loop, deadline=0.0)
    scheduler.add_question(question)

    assert scheduler.next_job() is None
    assert question.cancelled
    with pytest.raises(TookTooLong, match="PERK_ANSWER_DEADLINE_SECONDS"):
        loop.run_until_complete(question.next_delta())


def test_long_documents_are_encoded_one_by_one_in_order() -> None:
    scheduler = _scheduler()
    first, second = _encode(LONG + "1"), _encode(LONG + "2")
    scheduler.add_encode(first)
    scheduler.add_encode(second)

    assert _texts(scheduler.next_job()) == [first.text]
    assert _texts(scheduler.next_job()) == [first.text]
    _no_result(first)
    assert _texts(scheduler.next_job()) == [second.text]


def test_short_documents_are_encoded_together_as_many_as_fit_in_memory() -> None:
    scheduler = _scheduler()
    scheduler.most_together = 3
    for name in ("a", "b", LONG, "c", "d"):
        scheduler.add_encode(_encode(name))

    assert _texts(scheduler.next_job()) == ["a", "b", "c"]


def test_a_short_document_does_not_wait_for_the_end_of_a_long_one() -> None:
    scheduler = _scheduler()
    scheduler.add_encode(_encode(LONG))
    scheduler.next_job()
    for text in ("short", LONG):
        scheduler.add_encode(_encode(text))

    turns = [_texts(scheduler.next_job()) for _ in range(4)]

    assert sorted(turns[:2]) == sorted(turns[2:]) == [["short"], [LONG]]


def test_documents_of_different_keys_take_turns() -> None:
    scheduler = _scheduler()
    scheduler.most_together = 1
    documents = {name: _encode(name) for name in ("a1", "a2", "a3", "b1")}
    for name, document in documents.items():
        scheduler.add_encode(document, name[0])

    order = []
    for _ in range(4):
        (name,) = _texts(scheduler.next_job())
        order.append(name)
        _no_result(documents[name])

    assert order == ["a1", "b1", "a2", "a3"]


def test_abandoned_encodes_are_handed_back() -> None:
    scheduler = _scheduler()
    documents = [_encode(), _encode()]
    for document in documents:
        scheduler.add_encode(document)
    scheduler.next_job()

    scheduler.abandon_encodes()

    assert scheduler.next_job() is None
    for document in documents:
        assert isinstance(document.future.exception(timeout=0), NotReady)
