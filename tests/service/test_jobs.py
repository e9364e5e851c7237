"""What goes wrong in a job is told to whoever waits for it, and to no one else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from perk.answer import Answering, AnswerRequest
from perk.errors import InvalidInput
from perk.perk_model import PerkModel
from service.engine.jobs import AnswerRound, CallJob, EncodeJob, EncodeProgress, Question
from service.engine.model_thread import ModelThread
from service.errors import NotReady
from service.metrics import Metrics


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> PerkModel:
    """A tiny model, owned by the test."""
    return PerkModel.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def adapter(model: PerkModel, story: str) -> Tensor:
    """Adapter of the story."""
    return model.encode(story).adapter


async def _whole(question: Question) -> str:
    text = ""
    while True:
        delta = await question.next_delta()
        text += delta.text
        if delta.finish_reason is not None:
            return text


def _run(answer_round: AnswerRound, model: PerkModel) -> None:
    while not answer_round.done:
        answer_round.advance(model)


def test_a_bad_question_fails_and_its_neighbours_are_answered(model: PerkModel, adapter: Tensor) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        good = AnswerRequest("Where is Mary?", adapter, max_tokens=6)
        bad = AnswerRequest("Where is Mary?", adapter, max_tokens=5000)
        questions = [Question(request, loop) for request in (good, bad, good)]

        _run(AnswerRound(questions), model)

        alone = model.answer(adapter, "Where is Mary?", max_tokens=6).text
        assert await _whole(questions[0]) == await _whole(questions[2]) == alone
        with pytest.raises(InvalidInput):
            await _whole(questions[1])

    asyncio.run(scenario())


def test_after_an_error_in_a_batch_its_questions_are_tried_one_by_one(
    model: PerkModel, adapter: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PerkModel.start_answer

    def start(self: PerkModel, requests: Sequence[AnswerRequest]) -> Answering:
        if any(request.question == "boom" for request in requests):
            raise MemoryError
        return real(self, requests)

    monkeypatch.setattr(PerkModel, "start_answer", start)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        texts = ("Where is Mary?", "boom", "Where is John?")
        questions = [Question(AnswerRequest(text, adapter, max_tokens=4), loop) for text in texts]
        together = AnswerRound(questions)
        _run(together, model)
        assert together.to_retry == questions
        assert all(question.alone for question in questions)

        for question in together.to_retry:
            _run(AnswerRound([question]), model)

        assert await _whole(questions[0])
        assert await _whole(questions[2])
        with pytest.raises(MemoryError):
            await _whole(questions[1])

    asyncio.run(scenario())


def test_a_round_of_cancelled_questions_ends_at_once(model: PerkModel, adapter: Tensor) -> None:
    async def scenario() -> None:
        question = Question(AnswerRequest("Who?", adapter, max_tokens=50), asyncio.get_running_loop())
        answer_round = AnswerRound([question])
        answer_round.advance(model)
        question.cancel()
        answer_round.advance(model)
        assert answer_round.done
        assert question.completion_tokens <= 2

    asyncio.run(scenario())


def test_an_encode_reports_its_progress_and_then_its_result(model: PerkModel, story: str) -> None:
    future: Future[Any] = Future()
    progress: list[EncodeProgress] = []
    job = EncodeJob([story], memory_budget=1 << 20, report=progress.append, future=future)

    while not job.done:
        job.advance(model)

    (encoded,) = future.result()
    assert encoded.tokens == progress[0].tokens[0]
    assert [step.done for step in progress] == sorted(step.done for step in progress)
    assert progress[0].done == 0
    assert progress[-1].done == 1
    assert progress[-1].step == encoded.steps


def test_errors_reach_the_caller(model: PerkModel) -> None:
    encoded: Future[Any] = Future()
    EncodeJob([""], memory_budget=1, report=lambda _: None, future=encoded).advance(model)
    called: Future[Any] = Future()
    CallJob(lambda _: 1 / 0, called).advance(model)

    assert isinstance(encoded.exception(timeout=0), InvalidInput)
    assert isinstance(called.exception(timeout=0), ZeroDivisionError)


def test_a_call_that_was_cancelled_is_not_made(model: PerkModel) -> None:
    future: Future[Any] = Future()
    future.cancel()
    made: list[int] = []

    CallJob(lambda _: made.append(1), future).advance(model)

    assert not made


def test_a_thread_that_stops_ends_the_answer_it_is_giving_and_takes_no_more(
    tiny_checkpoint: Path, adapter: Tensor
) -> None:
    async def scenario() -> None:
        thread = ModelThread(memory_budget=1 << 30, question_limit=8, metrics=Metrics())
        await thread.start(lambda: PerkModel.load(tiny_checkpoint, device="cpu"))
        question = thread.ask(AnswerRequest("Where is Mary?", adapter, max_tokens=8))

        await thread.stop(grace=60)

        assert await _whole(question)
        assert not thread.alive
        with pytest.raises(NotReady):
            thread.ask(AnswerRequest("Where is Mary?", adapter))
        with pytest.raises(NotReady):
            await thread.call(lambda model: model.name)

    asyncio.run(scenario())


def test_an_answer_that_takes_longer_than_the_grace_ends_with_an_error(tiny_checkpoint: Path, adapter: Tensor) -> None:
    async def scenario() -> None:
        thread = ModelThread(memory_budget=1 << 30, question_limit=8, metrics=Metrics())
        await thread.start(lambda: PerkModel.load(tiny_checkpoint, device="cpu"))
        question = thread.ask(AnswerRequest("Where is Mary?", adapter, max_tokens=900))
        await question.next_delta()

        await thread.stop(grace=0)

        with pytest.raises(NotReady):
            await _whole(question)

    asyncio.run(scenario())


def test_a_thread_that_stops_hands_its_encode_back(tiny_checkpoint: Path, long_text: str) -> None:
    async def scenario() -> None:
        thread = ModelThread(memory_budget=1 << 30, question_limit=8, metrics=Metrics())
        await thread.start(lambda: PerkModel.load(tiny_checkpoint, device="cpu"))
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def report(_: EncodeProgress) -> None:
            loop.call_soon_threadsafe(begun.set)

        encode = asyncio.create_task(thread.encode([long_text], report))
        await begun.wait()

        await thread.stop(grace=60)

        with pytest.raises(NotReady):
            await encode

    asyncio.run(scenario())
