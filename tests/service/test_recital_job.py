"""Parts are recalled before anyone asks, while there is nothing else to do, and for nobody's document that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from perk import PerkModel
from perk.answer_batch import AnswerBatch
from perk.answer_request import AnswerRequest
from perk.answer_row import AnswerDelta, AnswerRow
from perk.part_recital import PartRecital
from perk.settings import SegmentSettings, TemplateSettings
from service.engine.jobs import EncodeRequest
from service.engine.model_thread import ModelThread
from service.engine.recital_job import RecitalJob
from service.engine.scheduler import Scheduler
from service.metrics import Metrics

_SEGMENTS = SegmentSettings(max_tokens=40, prefix="doc_{index}?\nSupport:", end="\n", parts=True)
_TEMPLATES = TemplateSettings(prompt="{question}\nSupport:", support=" {support}\nAnswer:", answer=" {answer}")
_DOCUMENT = "doc_1"
_SLICES = 'perk_slice_seconds_count{kind="recital"}'


@pytest.fixture
def model(make_model: Callable[..., PerkModel]) -> PerkModel:
    return make_model(segments=_SEGMENTS, templates=_TEMPLATES)


@pytest.fixture
def adapter(model: PerkModel) -> Tensor:
    """Of a document that tells of no parts."""
    return torch.zeros(model.adapter_size)


@pytest.fixture
def three_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an adapter says, it has three parts."""

    def count(recital: PartRecital, *_: object) -> None:
        recital._name = None
        recital._begin_parts(3)

    monkeypatch.setattr(PartRecital, "_take_count", count)


@pytest.mark.usefixtures("three_parts")
def test_a_question_has_what_was_recalled_before(model: PerkModel, adapter: Tensor) -> None:
    recital = RecitalJob(_DOCUMENT, adapter)
    while not recital.done:
        recital.advance(model)
    said = model.readers.recalled.get(adapter)
    other = adapter.clone()
    asked = model.answer(other, "Who?", max_tokens=3)
    assert said is not None
    assert len(said) == 3
    assert model.readers.recalled.get(other) == said
    assert model.answer(adapter, "Who?", max_tokens=3) == asked


@pytest.mark.usefixtures("three_parts")
def test_a_question_that_comes_meanwhile_waits_for_the_same_recital(model: PerkModel, adapter: Tensor) -> None:
    recital = RecitalJob(_DOCUMENT, adapter)
    for _ in range(4):
        recital.advance(model)
    batch = model.start_batch()
    row = batch.add(AnswerRequest("Who?", adapter, max_tokens=3))
    deltas: list[AnswerDelta] = []
    # Neither ends the other's work: they take turns.
    while not recital.done:
        recital.advance(model)
        deltas += batch.advance()
    while batch.rows:
        deltas += batch.advance()
    expected = model.answer(adapter.clone(), "Who?", max_tokens=3)
    assert "".join(delta.text for delta in deltas) == expected.text
    assert row.support == expected.support


@pytest.mark.usefixtures("three_parts")
def test_it_ends_where_a_question_has_recalled_the_rest(model: PerkModel, adapter: Tensor) -> None:
    recital = RecitalJob(_DOCUMENT, adapter)
    recital.advance(model)
    recital.advance(model)
    model.answer(adapter, "Who?", max_tokens=3)
    recital.advance(model)
    assert recital.done


def test_a_document_whose_adapter_is_gone_is_not_recalled(model: PerkModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnswerBatch, "add_recital", pytest.fail)
    recital = RecitalJob(_DOCUMENT, torch.zeros(model.adapter_size))
    recital.advance(model)
    assert recital.done


def test_without_parts_nothing_is_recalled(make_model: Callable[..., PerkModel], adapter: Tensor) -> None:
    model = make_model(segments=_SEGMENTS.model_copy(update={"parts": False}))
    recital = RecitalJob(_DOCUMENT, adapter)
    recital.advance(model)
    assert recital.done
    assert model.readers.recalled.count == 0


def test_an_error_ends_it_and_nothing_else(model: PerkModel, adapter: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: AnswerBatch) -> None:
        raise MemoryError

    monkeypatch.setattr(AnswerBatch, "advance", fail)
    recital = RecitalJob(_DOCUMENT, adapter)
    with capture_logs() as logs:
        recital.advance(model)
    assert recital.done
    assert [(log["event"], log["document_id"]) for log in logs] == [("recital failed", _DOCUMENT)]


def test_it_comes_after_everything_else_and_one_at_a_time() -> None:
    scheduler = Scheduler(memory_budget=1 << 20)
    adapters = torch.zeros(3, 4).unbind()
    first, second, third = (RecitalJob(f"doc_{number}", own) for number, own in enumerate(adapters))
    for recital in (first, second, third):
        scheduler.add_recital(recital)
    encode = EncodeRequest("a text", lambda _: None)
    scheduler.add_encode(encode)
    job = scheduler.next_job()
    assert job is not None
    assert job.kind == "encode"
    encode.future.cancel()
    assert [scheduler.next_job(), scheduler.next_job()] == [first, first]
    scheduler.drop_recital("doc_1")
    first.done = True
    assert scheduler.next_job() is third
    scheduler.abandon_recitals()
    assert scheduler.next_job() is None


def test_the_model_thread_recalls_when_it_is_idle_and_stops_at_once(model: PerkModel, adapter: Tensor) -> None:
    async def scenario() -> None:
        thread = ModelThread(memory_budget=1 << 24, question_limit=4, metrics=Metrics())
        await thread.start(lambda: model)
        thread.recite(_DOCUMENT, adapter)
        while await thread.call(lambda model: model.readers.recalled.get(adapter)) is None:
            await asyncio.sleep(0)
        await thread.stop(1)
        thread.recite(_DOCUMENT, adapter)

    asyncio.run(scenario())
    assert model.readers.recalled.count == 1


def test_a_service_recalls_what_it_has_encoded_and_what_it_has_read(
    model: PerkModel, tmp_path: Path, start_service: Callable[..., Any]
) -> None:
    folder = tmp_path / "parts"
    model.checkpoint.save(folder)
    first = start_service(checkpoint=folder).until_ready()
    document = first.encode("Ann built it. She was a mason.")
    first.until(lambda: first.metric(_SLICES) > 0)
    first.stop()
    # Another one, on what the first has left.
    second = start_service(checkpoint=folder).until_ready()
    assert second.metric(_SLICES) == 0, "nothing is at hand yet"
    second.client.post(f"/documents/{document['id']}/ask", json={"question": "Who?", "max_tokens": 2})
    second.until(lambda: second.metric(_SLICES) > 0)


def test_what_is_recalled_has_a_place(model: PerkModel, adapter: Tensor) -> None:
    batch = AnswerBatch(model.adapted, model.settings.templates)
    with pytest.raises(ValueError, match="readers: none"):
        batch.add_recital(adapter)


def test_a_row_that_recalls_can_stand_beside_questions(model: PerkModel, adapter: Tensor) -> None:
    batch = model.start_batch()
    recital = batch.add_recital(adapter)
    row: AnswerRow = batch.add(AnswerRequest("Who?", max_tokens=3))
    while batch.rows:
        batch.advance()
    assert row.finished
    assert recital.finished
