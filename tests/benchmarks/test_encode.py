"""`perk bench encode`: both sides do the same work, and the result is the contract's object."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import encode, flops
from benchmarks.document import generate_document
from benchmarks.peft_fine_tuning import PeftFineTuning
from perk.errors import CheckpointError, InvalidInput
from perk.inner_loop import Encoding
from perk.perk_model import PerkModel
from perk.settings import InnerSettings, RepeatSettings

pytestmark = pytest.mark.usefixtures("float32_products")

_EXTRA = {"full_vocabulary_seconds", "gflops"}
_CONTRACT = {"tokens", "encode_seconds", "peft_seconds", "ratio", "gemm_fraction", "peak_mb"}


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> PerkModel:
    return PerkModel.load(tiny_checkpoint, device="cpu")


def _finish(encoding: Encoding) -> Encoding:
    while not encoding.done:
        encoding.advance()
    return encoding


def test_the_result_holds_what_the_contract_names(tiny_checkpoint: Path) -> None:
    result = encode.run(tokens=150, checkpoint=str(tiny_checkpoint), repeats=1)

    assert set(result) == _CONTRACT | _EXTRA
    assert result["tokens"] == 150
    assert result["ratio"] == result["peft_seconds"] / result["encode_seconds"]
    assert 0 < result["gemm_fraction"] < 1
    assert result["peak_mb"] > 100, "torch alone takes more"
    assert min(result.values()) > 0


def test_where_products_are_in_bfloat16_so_is_the_other_side_once(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERK_PRODUCTS", "bfloat16")
    # A CPU without instructions for it takes minutes for the large product that rates are measured by.
    monkeypatch.setattr(flops, "_PRODUCT_SIZE", 64)
    result = encode.run(tokens=60, checkpoint=str(tiny_checkpoint), repeats=1)
    assert set(result) == _CONTRACT | _EXTRA | {"peft_bfloat16_seconds"}
    assert min(result.values()) > 0


def test_other_adapters_and_less_memory_are_measured_too(tiny_checkpoint: Path) -> None:
    options = {"tokens": 60, "checkpoint": str(tiny_checkpoint), "repeats": 1}
    result = encode.run(**options, all_layers=True, rank=3, memory_budget=1 << 20)
    assert set(result) == _CONTRACT | _EXTRA
    with pytest.raises(ValueError, match="rank"):
        encode.run(**options, rank=0)


def test_fewer_steps_are_the_first_ones(tiny_checkpoint: Path) -> None:
    options = {"tokens": 60, "checkpoint": str(tiny_checkpoint), "repeats": 1}
    assert set(encode.run(**options, steps=1)) == _CONTRACT | _EXTRA
    with pytest.raises(InvalidInput, match="steps"):
        encode.run(**options, steps=65)


def test_what_comes_with_the_steps_that_are_left_out_is_left_out(model: PerkModel) -> None:
    few = model.settings.inner.model_copy(update={"candidates": 8})
    later = few.steps + 1
    cut = few.model_copy(
        update={"rivals": (later,), "repeat": RepeatSettings(step=later, most=5, loss=1e-9)},
    )
    segments = model.split(generate_document(model, 60))
    expected, found = (_finish(encode.start_encoding(model, segments, inner)).results()[0] for inner in (few, cut))
    assert found.adapter.equal(expected.adapter)


def test_the_command_prints_one_json_object(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode.main(tokens=20, checkpoint=str(tiny_checkpoint), as_json=True)

    (line,) = capsys.readouterr().out.splitlines()
    assert set(json.loads(line)) >= _CONTRACT


def test_the_command_prints_a_table_for_people(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode.main(tokens=20, checkpoint=str(tiny_checkpoint), as_json=False)

    assert "encode_seconds" in capsys.readouterr().out


def test_what_is_measured_is_what_the_model_does(model: PerkModel) -> None:
    text = generate_document(model, 900)

    measured = _finish(encode.start_encoding(model, model.split(text), model.settings.inner))
    ours = model.start_encoding([text])
    ours.advance()
    slices = round(1 / ours.progress)
    ours = _finish(ours)

    batches = encode.plan_batches(model, model.split(text), packed=True)
    assert slices == len(batches) * (ours.steps + 1) > ours.steps + 1, "the same micro-batches, more than one"
    assert measured.results()[0].adapter.equal(ours.results()[0].adapter)


def test_peft_trains_the_same_adapter_on_the_same_loss(model: PerkModel) -> None:
    segments = model.split(generate_document(model, 700))
    fine_tuning = PeftFineTuning.of(model, encode.plan_batches(model, segments, packed=False))

    losses = fine_tuning.run()

    assert fine_tuning.trainable == model.adapter_size
    assert len(losses) == model.settings.inner.steps
    # Before meta-training all tokens weigh ln(2)/3, and the tiny checkpoint's inner loss has the whole vocabulary.
    (ours,) = _finish(encode.start_encoding(model, segments, model.settings.inner)).results()
    equal_weight = 0.6931472 / 3
    assert losses[0] == pytest.approx(ours.loss_before / equal_weight, rel=1e-4)
    assert losses == fine_tuning.run(), "every run starts afresh"
    assert losses[-1] < losses[0]


def test_fewer_candidates_are_other_work_than_the_whole_vocabulary(model: PerkModel) -> None:
    segments = model.split(generate_document(model, 100))

    few = _finish(encode.start_encoding(model, segments, InnerSettings(rule="rms", steps=2, candidates=16)))
    whole = _finish(encode.start_encoding(model, segments, InnerSettings(rule="rms", steps=2)))

    assert few.results()[0].loss_before < whole.results()[0].loss_before


def test_bad_arguments_are_named(tiny_checkpoint: Path) -> None:
    with pytest.raises(InvalidInput, match="repeats: got 0, expected at least 1"):
        encode.run(tokens=20, checkpoint=str(tiny_checkpoint), repeats=0)
    with pytest.raises(InvalidInput, match="tokens: got -5, expected at least 1"):
        encode.run(tokens=-5, checkpoint=str(tiny_checkpoint))
    with pytest.raises(CheckpointError, match="no-such-checkpoint"):
        encode.run(checkpoint="no-such-checkpoint")
