"""A base with a checkpoint: documents in, adapters out; questions in, answers out."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from perk import InvalidInput, PerkModel
from perk.errors import BaseMismatch
from perk.settings import InnerSettings, LoraSettings, SegmentSettings, TemplateSettings

# Steps so large that after encoding the adapter says something else than the base.
STRONG = InnerSettings(rule="rms", steps=3, step_size=3e-2)


@pytest.fixture
def model(make_model: Callable[..., PerkModel]) -> PerkModel:
    return make_model(inner=STRONG)


def test_it_names_its_parts(tiny_checkpoint: Path) -> None:
    model = PerkModel.load(tiny_checkpoint, device="cpu")
    assert (model.name, model.checkpoint_name) == ("tiny-llama", "tiny")
    assert model.adapter_size == model.checkpoint.tensors["initial"].numel()


def test_a_copy_of_its_base_serves_as_well(tiny_checkpoint: Path, tiny_llama: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_llama, tmp_path / "copy")
    moved = PerkModel.load(tiny_checkpoint, device="cpu", base=str(copy))
    assert moved.fingerprint == PerkModel.load(tiny_checkpoint, device="cpu").fingerprint
    assert moved.name == "copy"


def test_a_documents_id_is_that_of_its_text(model: PerkModel, register: str) -> None:
    document_id = model.document_id(register)
    assert re.fullmatch(r"doc_[0-9a-f]{32}", document_id)
    assert model.document_id(f"\r\n {register}\n".replace("\n", "\r\n")) == document_id
    assert model.document_id(register.replace("72", "73")) != document_id
    assert model.document_id("cafe\u0301") == model.document_id("café")


def test_a_documents_id_is_that_of_its_configuration_too(
    make_model: Callable[..., PerkModel], tiny_qwen2: Path, register: str
) -> None:
    same = {make_model(inner=STRONG).document_id(register) for _ in range(2)}
    assert len(same) == 1
    changed: list[dict[str, Any]] = [
        {"inner": STRONG.model_copy(update={"steps": 2})},
        {"inner": STRONG.model_copy(update={"step_size": 1e-2})},
        {"inner": STRONG.model_copy(update={"candidates": 9})},
        {"inner": STRONG, "lora": LoraSettings(rank=4, alpha=5, first_layer=1)},
        {"inner": STRONG, "segments": SegmentSettings(max_tokens=64)},
        {"inner": STRONG, "segments": SegmentSettings(prefix="{index}: ")},
        {"inner": STRONG, "templates": TemplateSettings(prompt="{question}")},
        {"inner": STRONG, "folder": tiny_qwen2},
    ]
    ids = {make_model(**settings).document_id(register) for settings in changed}
    assert len(ids | same) == len(changed) + 1


@pytest.mark.parametrize("text", ["", " \n ", "Mary\x00"])
def test_a_text_that_cannot_be_read_is_refused_before_any_work(text: str, model: PerkModel) -> None:
    for use in (model.document_id, model.encode, model.split, lambda t: model.start_encoding([t])):
        with pytest.raises(InvalidInput, match="text: got"):
            use(text)


def test_tokens_are_counted_without_prefixes(model: PerkModel, register: str) -> None:
    segments = model.split(register)
    without_line_ends = sum(len(segment.ids) - segment.prefix_tokens for segment in segments)
    assert model.count_tokens(register) == without_line_ends + register.count("\n")
    assert model.encode(register).tokens == without_line_ends


def test_the_same_text_gives_the_same_adapter(make_model: Callable[..., PerkModel], register: str) -> None:
    adapters = [make_model(inner=STRONG).encode(text).adapter for text in (register, f"{register}\r\n")]
    torch.testing.assert_close(*adapters, rtol=0, atol=0)


def test_less_memory_means_more_slices_and_the_same_adapter(
    make_model: Callable[..., PerkModel], family: Path, register: str
) -> None:
    model = make_model(family, inner=STRONG)
    text = "\n".join([register] * 6)
    found = {}
    for budget in (None, 1):
        encoding = model.start_encoding([text, register], memory_budget=budget)
        slices = 0
        while not encoding.done:
            encoding.advance()
            slices += 1
        found[budget] = (slices, encoding.results())
    assert found[1][0] > found[None][0]
    for plenty, little in zip(found[None][1], found[1][1], strict=True):
        torch.testing.assert_close(little.adapter, plenty.adapter, rtol=0, atol=2e-3)
        moved = plenty.adapter - model.checkpoint.tensors["initial"]
        assert moved.square().mean().sqrt() > 1e-2


def test_after_encoding_the_answers_change(model: PerkModel, register: str) -> None:
    encoded = model.encode(register)
    question = "Where is Mary?"
    assert model.answer(encoded.adapter, question).text != model.answer(None, question).text
    # The initialisation alone says what the base says.
    assert model.answer(model.checkpoint.tensors["initial"], question) == model.answer(None, question)


def test_the_adapter_makes_the_document_likelier(model: PerkModel, register: str) -> None:
    encoded = model.encode(register)
    assert encoded.loss_after < encoded.loss_before
    ids = torch.tensor([model.split(register)[0].ids])
    with torch.no_grad():
        before = model.base.model(ids, labels=ids).loss
        with model.adapted.bind(encoded.adapter[None]):
            after = model.base.model(ids, labels=ids).loss
    assert after < before


def test_an_adapter_exported_to_peft_answers_the_same(
    make_model: Callable[..., PerkModel], family: Path, register: str, tmp_path: Path
) -> None:
    model = make_model(family, inner=STRONG)
    adapter = model.encode(register).adapter
    model.export_peft(adapter, tmp_path / "adapter")
    by_peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(family, dtype=torch.float32).eval(), str(tmp_path / "adapter")
    )
    for question in ("Where is Mary?", "What is the grade of the student with ID 3109998?"):
        answer = model.answer(adapter, question, max_tokens=12)
        assert answer.text == _greedy(by_peft, model, question)
        assert answer.text != model.answer(None, question, max_tokens=12).text


def _greedy(by_peft: Any, model: PerkModel, question: str) -> str:
    tokenizer = model.base.tokenizer
    ids: Tensor = torch.tensor([tokenizer.encode(model.settings.templates.prompt.format(question=question))])
    generated = by_peft.generate(input_ids=ids, max_new_tokens=12, do_sample=False, pad_token_id=model.base.eos_id)
    return str(tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_an_outline_names_counts_and_exports_as_the_model_does(
    tiny_checkpoint: Path, register: str, tmp_path: Path
) -> None:
    model = PerkModel.load(tiny_checkpoint, device="cpu")

    outline = PerkModel.load_outline(tiny_checkpoint, model.fingerprint)

    assert all(parameter.is_meta for parameter in outline.base.model.parameters())
    assert outline.document_id(register) == model.document_id(register)
    assert outline.count_tokens(register) == model.count_tokens(register)
    adapter = model.checkpoint.tensors["initial"]
    for name, one in (("model", model), ("outline", outline)):
        one.export_peft(adapter, tmp_path / name)
    for path in (tmp_path / "model").iterdir():
        assert path.read_bytes() == (tmp_path / "outline" / path.name).read_bytes()


def test_an_outline_of_other_models_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(BaseMismatch, match="is not the one of the models with fingerprint 0000"):
        PerkModel.load_outline(tiny_checkpoint, "0" * 64)
