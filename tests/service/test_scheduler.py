"""Whose slice is next: calls first, questions before encodes, and no one for ever last."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from perk.answer import AnswerRequest
from perk.inner_loop import EncodedDocument
from service.engine.jobs import AnswerRound, CallJob, EncodeJob, Question
from service.engine.scheduler import Scheduler
from service.errors import NotReady


def _encode() -> tuple[EncodeJob, Future[list[EncodedDocument]]]:
    future: Future[list[EncodedDocument]] = Future()
    return EncodeJob(["text"], memory_budget=1, report=lambda _: None, future=future), future


def _questions(count: int, loop: asyncio.AbstractEventLoop) -> list[Question]:
    return [Question(AnswerRequest(f"Question {number}?"), loop) for number in range(count)]


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that is never run: what is sent to it stays there."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def test_with_nothing_to_do_there_is_no_job() -> None:
    assert Scheduler().next_job() is None


def test_a_call_goes_first_and_once(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = Scheduler()
    encode, _ = _encode()
    scheduler.add_encode(encode)
    (question,) = _questions(1, loop)
    scheduler.add_question(question)
    call = CallJob(lambda _: None, Future())
    scheduler.add_call(call)

    assert scheduler.next_job() is call
    assert scheduler.next_job() is not call


def test_questions_that_wait_share_a_round_of_eight_rows(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = Scheduler()
    questions = _questions(11, loop)
    for question in questions:
        scheduler.add_question(question)

    first = scheduler.next_job()

    assert isinstance(first, AnswerRound)
    assert list(first.questions) == questions[:8]
    assert scheduler.waiting_questions == 3


def test_two_rounds_take_turns(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = Scheduler()
    for question in _questions(24, loop):
        scheduler.add_question(question)

    jobs = [scheduler.next_job() for _ in range(6)]

    assert jobs[0] is not jobs[1]
    assert jobs[2:] in ([jobs[0], jobs[1]] * 2, [jobs[1], jobs[0]] * 2)
    assert scheduler.waiting_questions == 8


def test_answers_leave_an_encode_a_third_of_the_time(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = Scheduler()
    encode, _ = _encode()
    scheduler.add_encode(encode)
    for question in _questions(16, loop):
        scheduler.add_question(question)
    spent = {"answer": 0.0, "encode": 0.0}

    for _ in range(3000):
        job = scheduler.next_job()
        assert job is not None
        seconds = 0.5 if job is encode else 0.02
        spent[job.kind] += seconds
        scheduler.note(job, seconds)

    assert spent["encode"] / (spent["answer"] + spent["encode"]) == pytest.approx(1 / 3, abs=0.02)


def test_a_question_goes_before_an_encode(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = Scheduler()
    encode, _ = _encode()
    scheduler.add_encode(encode)
    assert scheduler.next_job() is encode
    scheduler.note(encode, 0.5)
    scheduler.add_question(*_questions(1, loop))

    assert isinstance(scheduler.next_job(), AnswerRound)


def test_what_no_one_wants_any_more_has_no_slice(loop: asyncio.AbstractEventLoop) -> None:
    scheduler = Scheduler()
    encode, future = _encode()
    scheduler.add_encode(encode)
    (question,) = _questions(1, loop)
    scheduler.add_question(question)

    future.cancel()
    question.cancel()

    assert scheduler.next_job() is None
    assert scheduler.waiting_questions == 0


def test_encodes_go_in_order() -> None:
    scheduler = Scheduler()
    (first, first_future), (second, _) = _encode(), _encode()
    scheduler.add_encode(first)
    scheduler.add_encode(second)

    assert scheduler.next_job() is first
    assert scheduler.next_job() is first
    first_future.set_result([])
    assert scheduler.next_job() is second


def test_abandoned_encodes_are_handed_back() -> None:
    scheduler = Scheduler()
    encode, future = _encode()
    scheduler.add_encode(encode)

    scheduler.abandon_encodes()

    assert scheduler.next_job() is None
    assert isinstance(future.exception(timeout=0), NotReady)
