"""A batch that questions join and leave: to the bit, none of them notices the others."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels import RowAdapters
from perk import AnswerRequest, PerkModel
from perk.answer_batch import AnswerBatch
from perk.answer_row import AnswerRow
from perk.packed_linear import PackedLinear, can_pack
from perk.readers import Readers
from perk.row_cache import RowCaches
from perk.settings import SegmentSettings, TemplateSettings

QUESTIONS = ("Where is Mary?", "What is the grade of the student with ID 3109998?", "Why?", "Who has the apple?")

MakeAdapter = Callable[[PerkModel, int], Tensor]


def _requests(model: PerkModel, make_adapter: MakeAdapter, count: int) -> list[AnswerRequest]:
    adapters = [None, *(make_adapter(model, seed) for seed in range(3))]
    return [
        AnswerRequest(QUESTIONS[index % 4], adapters[(index // 4) % 4], max_tokens=2 + 5 * index % 11)
        for index in range(count)
    ]


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Tensor]]:
    """All logits that each row was given from here on, by the identity of its request."""
    seen: dict[int, list[Tensor]] = {}
    real = AnswerRow.take

    def take(self: AnswerRow, row_logits: Tensor) -> Any:
        seen.setdefault(id(self.request), []).append(row_logits.clone())
        return real(self, row_logits)

    monkeypatch.setattr(AnswerRow, "take", take)
    return seen


def _alone(model: PerkModel, request: AnswerRequest) -> None:
    batch = model.start_batch()
    batch.add(request)
    while batch.rows:
        batch.advance()


def test_in_triton_each_row_decodes_under_its_own_adapter(
    make_model: Callable[..., PerkModel],
    make_adapter: MakeAdapter,
    tiny_qwen2: Path,
    logits: dict[int, list[Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Interpreted: what a GPU runs, three rows together, one of them without an adapter."""
    multi_adapter = pytest.importorskip("kernels.triton_ops.multi_adapter")
    model = make_model(tiny_qwen2)
    adapters = [make_adapter(model, 0), None, make_adapter(model, 1)]
    ranks: list[list[int]] = []
    real = multi_adapter.multi_adapter

    def note(y: Tensor, x: Tensor, rows: RowAdapters) -> Tensor:
        ranks.append(rows.ranks.tolist())
        result: Tensor = real(y, x, rows)
        return result

    asked: list[AnswerRequest] = []
    for kernels in ("torch", "triton"):
        with monkeypatch.context() as patch:
            patch.setenv("PERK_KERNELS", kernels)
            patch.setattr(multi_adapter, "multi_adapter", note)
            requests = [AnswerRequest("Where?", adapter, max_tokens=2) for adapter in adapters]
            batch = model.start_batch()
            for request in requests:
                batch.add(request)
            while batch.rows:
                batch.advance()
            asked += requests

    rank = model.settings.lora.rank
    assert [rank, 0, rank] in ranks, "the rows were decoded together"
    for by_torch, by_triton in zip(asked[:3], asked[3:], strict=True):
        for one, other in zip(logits[id(by_triton)], logits[id(by_torch)], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2])
def test_logits_do_not_depend_on_the_company(
    make_model: Callable[..., PerkModel],
    make_adapter: MakeAdapter,
    family: Path,
    logits: dict[int, list[Tensor]],
    threads: int,
) -> None:
    model = make_model(family)
    requests = _requests(model, make_adapter, 14)
    chance, before = random.Random(0), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        batch, coming = model.start_batch(), list(requests)
        while batch.rows or coming:
            while coming and batch.rows < 6 and chance.random() < 0.5:
                batch.add(coming.pop(0))
            batch.advance()
        together = dict(logits)
        logits.clear()
        for request in requests:
            _alone(model, request)
    finally:
        torch.set_num_threads(before)

    for request in requests:
        assert torch.equal(torch.stack(together[id(request)]), torch.stack(logits[id(request)]))


def test_a_cancelled_row_leaves_the_others_as_they_are(
    make_model: Callable[..., PerkModel], make_adapter: MakeAdapter
) -> None:
    model = make_model()
    requests = [AnswerRequest(QUESTIONS[seed], make_adapter(model, seed), max_tokens=9) for seed in range(4)]
    batch = model.start_batch()
    rows = [batch.add(request) for request in requests]
    texts = {row.number: "" for row in rows}
    batch.cancel(rows[3])
    for _ in range(5):
        batch.advance()
    batch.cancel(rows[0])
    assert batch.rows == 2
    late = batch.add(requests[3])
    texts[late.number] = ""
    while batch.rows:
        batch.advance()

    assert late.number not in {row.number for row in rows}
    for row in (rows[1], rows[2], late):
        alone = model.answer(row.request.adapter, row.request.question, max_tokens=9)
        assert (row.sent, len(row.ids)) == (alone.text, alone.completion_tokens)
    assert rows[3].ids == []


def test_rows_that_recall_stand_beside_rows_that_do_not(
    make_model: Callable[..., PerkModel], make_adapter: MakeAdapter
) -> None:
    templates = TemplateSettings(prompt="{question}\nSupport:", support=" {support}\nAnswer:", max_support_tokens=7)
    model = make_model(templates=templates)
    batch = model.start_batch()
    rows = [batch.add(request) for request in _requests(model, make_adapter, 8)]
    while batch.rows:
        batch.advance()

    for row in rows:
        alone = model.answer(row.request.adapter, row.request.question, max_tokens=row.request.max_tokens)
        assert (row.sent, row.support) == (alone.text, alone.support)


def test_lines_that_come_next_take_no_more_room_than_rows_leave(
    make_model: Callable[..., PerkModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told what to say: five rows name an entry, whose line and the next three are recalled without an end."""
    templates = TemplateSettings(prompt="{question}", support=" {support}\nAnswer:")
    model = make_model(templates=templates)
    reader, document = torch.zeros(model.adapter_size), torch.ones(model.adapter_size)
    script = model.base.tokenizer.encode(" Series 1:")
    widths: list[int] = []

    def decode(ids: Tensor, caches: RowCaches, adapters: list[Tensor], _places: Any, *, last: int) -> Tensor:
        widths.append(len(adapters))
        caches.grow(ids.shape[1])
        written = caches.get_seq_length() - len(prompt)
        token = script[written] if adapters[0] is reader else ids[0, -1]
        return torch.nn.functional.one_hot(torch.full((len(adapters), last), token), len(model.base.tokenizer)).float()

    monkeypatch.setattr(model.adapted, "decode", decode)
    batch = AnswerBatch(model.adapted, templates, Readers(SegmentSettings(max_tokens=30), reader))
    prompt = batch.add(AnswerRequest("Why?", document)).prompt
    for _ in range(4):
        batch.add(AnswerRequest("Why?", document))
    while len(widths) < 40:
        batch.advance()

    assert widths[:5] == [1] * 5, "prompts are read one by one"
    assert max(widths) == 16
    assert 4 in widths, "lines of a row are read together"


def _told(model: PerkModel, texts: list[str], read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model go on as the first of the texts that begins as a row does, or end; `read` is what it was given."""
    tokenizer = model.base.tokenizer
    so_far: dict[int, str] = {}

    def next_token(text: str) -> int:
        rest = next((whole.removeprefix(text) for whole in texts if whole.startswith(text)), "")
        return tokenizer.encode(rest)[0] if rest else model.base.eos_id

    def decode(ids: Tensor, caches: RowCaches, _adapters: Any, _places: Any, *, last: int) -> Tensor:
        tokens = []
        for row, cache in zip(ids, caches._rows, strict=True):
            read.append(str(tokenizer.decode(row)))
            so_far[id(cache)] = so_far.get(id(cache), "") * (cache.length > 0) + read[-1]
            tokens.append(next_token(so_far[id(cache)]))
        caches.grow(ids.shape[1])
        logits = torch.nn.functional.one_hot(torch.tensor(tokens), len(tokenizer)) * 100.0
        return logits[:, None].expand(-1, last, -1)

    monkeypatch.setattr(model.adapted, "decode", decode)


@pytest.mark.parametrize("cancelled", [None, 0, 1])
def test_questions_about_one_document_have_its_parts_recalled_once(
    cancelled: int | None, make_model: Callable[..., PerkModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SegmentSettings(max_tokens=40, prefix="doc_{index}?\nSupport:", end="\n", parts=True)
    templates = TemplateSettings(prompt="{question}\nSupport:", support=" {support}\nAnswer:", answer=" {answer}")
    model = make_model(templates=templates)
    said = ["doc_1?\nSupport: Part 1 of 2: Ann built it.\n", "doc_2?\nSupport: Part 2 of 2: Bob slept.\n"]
    answers = [f"{question}\nSupport: Ann built it.\nAnswer: Ann" for question in QUESTIONS[:3]]
    read: list[str] = []
    _told(model, [*said, *answers], read, monkeypatch)
    batch = AnswerBatch(model.adapted, templates, Readers(settings))
    adapter = torch.ones(model.adapter_size)
    rows = [batch.add(AnswerRequest(question, adapter)) for question in QUESTIONS[:3]]
    for _ in range(9):
        batch.advance()
    if cancelled is not None:
        batch.cancel(rows.pop(cancelled))
    while batch.rows:
        batch.advance()

    assert [row.sent for row in rows] == ["Ann"] * len(rows)
    begun = [text for text in read if text.startswith("doc_") and "Question:" not in text]
    assert begun == ["doc_1?\nSupport: Part 1 of", *(text[: text.index(":", 20) + 1] for text in said)]


@pytest.mark.parametrize(("outputs", "inputs"), [(49, 33), (576, 576), (960, 576), (3072, 576), (192, 1536)])
def test_a_packed_product_of_a_row_is_the_same_in_any_batch(outputs: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)
    x = torch.randn(64, inputs, generator=generator)
    with torch.inference_mode():
        packed = PackedLinear(weight, bias)
        whole = packed(x)
        torch.testing.assert_close(whole, torch.nn.functional.linear(x, weight, bias), atol=1e-3, rtol=1e-4)
        for rows in (1, 2, 3, 5, 8, 16, 31):
            assert torch.equal(packed(x[:rows]), whole[:rows])
            assert torch.equal(packed(x[64 - rows :]), whole[64 - rows :])


@pytest.mark.parametrize("missing", [True, False], ids=["gone", "other arguments"])
def test_where_torch_has_no_such_operators_answers_come_from_plain_products(
    make_model: Callable[..., PerkModel], make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    model = make_model()
    request = AnswerRequest(QUESTIONS[0], make_adapter(model, 1), max_tokens=8)
    packed = model.answer(request.adapter, request.question, max_tokens=8)
    assert can_pack(model.adapted.base.head)
    arguments = [SimpleNamespace(name=name) for name in ("X", "W", "attr")]
    other = SimpleNamespace(default=SimpleNamespace(_schema=SimpleNamespace(arguments=arguments)))
    operators = SimpleNamespace() if missing else SimpleNamespace(_linear_pointwise=other, _reorder_linear_weight=other)
    monkeypatch.setattr(torch.ops, "mkldnn", operators)

    assert not can_pack(model.adapted.base.head)
    plain = make_model().answer(request.adapter, request.question, max_tokens=8)
    assert (plain.text, plain.completion_tokens) == (packed.text, packed.completion_tokens)
