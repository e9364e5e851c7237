"""What goes wrong in a job is told to whoever waits for it, and to no one else."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from perk.answer import AnswerRequest
from perk.answer_batch import AnswerBatch
from perk.answer_row import AnswerRow
from perk.errors import InvalidInput
from perk.perk_model import PerkModel
from service.engine.answer_job import AnswerJob
from service.engine.jobs import CallJob, EncodeJob, EncodeProgress, EncodeRequest, Question
from service.engine.model_thread import ModelThread
from service.errors import NotReady, TookTooLong
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


def _answers(*questions: Question) -> AnswerJob:
    answers = AnswerJob()
    for question in questions:
        answers.add(question)
    return answers


def _run(answers: AnswerJob, model: PerkModel) -> None:
    while not answers.done:
        answers.advance(model)


def test_a_bad_question_fails_and_its_neighbours_are_answered(model: PerkModel, adapter: Tensor) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        good = AnswerRequest("Where is Mary?", adapter, max_tokens=6)
        bad = AnswerRequest("Where is Mary?", adapter, max_tokens=5000)
        questions = [Question(request, loop) for request in (good, bad, good)]

        _run(_answers(*questions), model)

        alone = model.answer(adapter, "Where is Mary?", max_tokens=6).text
        assert await _whole(questions[0]) == await _whole(questions[2]) == alone
        with pytest.raises(InvalidInput):
            await _whole(questions[1])

    asyncio.run(scenario())


def test_a_question_joins_answers_that_are_under_way(model: PerkModel, adapter: Tensor) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        first = Question(AnswerRequest("Where is Mary?", adapter, max_tokens=12), loop)
        second = Question(AnswerRequest("Where is John?", max_tokens=4), loop)
        answers = _answers(first)
        for _ in range(4):
            answers.advance(model)
        answers.add(second)
        _run(answers, model)

        assert await _whole(first) == model.answer(adapter, "Where is Mary?", max_tokens=12).text
        assert await _whole(second) == model.answer(None, "Where is John?", max_tokens=4).text
        assert (first.completion_tokens, second.completion_tokens) == (12, 4)

    asyncio.run(scenario())


def test_after_an_error_in_a_batch_its_questions_are_tried_one_by_one(
    model: PerkModel, adapter: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = AnswerBatch.add

    def add(self: AnswerBatch, request: AnswerRequest) -> AnswerRow:
        if request.question == "boom":
            raise MemoryError
        return real(self, request)

    monkeypatch.setattr(AnswerBatch, "add", add)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        texts = ("Where is Mary?", "boom", "Where is John?")
        questions = [Question(AnswerRequest(text, adapter, max_tokens=4), loop) for text in texts]
        together = _answers(*questions)
        _run(together, model)
        assert together.to_retry == questions
        assert all(question.alone for question in questions)

        for question in together.to_retry:
            _run(_answers(question), model)

        assert await _whole(questions[0])
        assert await _whole(questions[2])
        with pytest.raises(MemoryError):
            await _whole(questions[1])

    asyncio.run(scenario())


def test_cancelled_questions_free_their_places_at_once(model: PerkModel, adapter: Tensor) -> None:
    async def scenario() -> None:
        question = Question(AnswerRequest("Who?", adapter, max_tokens=50), asyncio.get_running_loop())
        answers = _answers(question)
        answers.advance(model)
        question.cancel()
        answers.advance(model)
        assert answers.done
        assert question.completion_tokens == 1

    asyncio.run(scenario())


def test_an_answer_ends_at_its_deadline(model: PerkModel, adapter: Tensor) -> None:
    async def scenario() -> None:
        question = Question(AnswerRequest("Who?", adapter, max_tokens=50), asyncio.get_running_loop())
        answers = _answers(question)
        answers.advance(model)
        question.deadline = time.monotonic()
        answers.advance(model)
        assert answers.done
        with pytest.raises(TookTooLong):
            await _whole(question)

    asyncio.run(scenario())


def test_an_encode_reports_its_progress_and_then_its_result(model: PerkModel, story: str) -> None:
    progress: list[EncodeProgress] = []
    request = EncodeRequest(story, progress.append)
    job = EncodeJob([request], memory_budget=1 << 20)

    while not job.done:
        job.advance(model)

    encoded = request.future.result()
    assert encoded.tokens == progress[0].tokens[0]
    assert [step.done for step in progress] == sorted(step.done for step in progress)
    assert progress[0].done == 0
    assert progress[-1].done == 1
    assert progress[-1].step == progress[-1].steps == encoded.steps
    assert progress[-1].segments_done == progress[-1].segments
    assert progress[0].loss == ()
    assert progress[-1].loss[0] == pytest.approx(encoded.loss_after)


def test_documents_encoded_together_get_the_adapters_they_get_alone(model: PerkModel, story: str) -> None:
    texts = [story, "The train to the north leaves at seven in the morning.", story * 3]
    progress: list[list[EncodeProgress]] = [[] for _ in texts]
    requests = [EncodeRequest(text, steps.append) for text, steps in zip(texts, progress, strict=True)]
    job = EncodeJob(requests, memory_budget=1 << 20)

    while not job.done:
        job.advance(model)

    for request, steps in zip(requests, progress, strict=True):
        alone, encoded = model.encode(request.text), request.future.result()
        assert (encoded.tokens, encoded.segments) == (alone.tokens, alone.segments)
        assert steps[-1].tokens == (alone.tokens,)
        torch.testing.assert_close(encoded.adapter, alone.adapter, atol=1e-5, rtol=1e-3)


def test_a_bad_document_fails_and_its_neighbours_are_encoded(model: PerkModel, story: str) -> None:
    good, bad = (EncodeRequest(text, lambda _: None) for text in (story, ""))
    together = EncodeJob([good, bad], memory_budget=1 << 20)
    together.advance(model)
    assert together.done
    assert together.to_retry == [good, bad]
    assert good.alone

    for request in together.to_retry:
        job = EncodeJob([request], memory_budget=1 << 20)
        while not job.done:
            job.advance(model)

    assert good.future.result().steps > 0
    assert isinstance(bad.future.exception(timeout=0), InvalidInput)


def test_errors_reach_the_caller(model: PerkModel) -> None:
    request = EncodeRequest("", lambda _: None)
    EncodeJob([request], memory_budget=1).advance(model)
    called: Future[Any] = Future()
    CallJob(lambda _: 1 / 0, called).advance(model)

    assert isinstance(request.future.exception(timeout=0), InvalidInput)
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
