"""The operations counted by formula are those that torch sees being done."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.encode import count_candidates, plan_batches, start_encoding
from benchmarks.flops import count_encoding_flops, measure_product_rate
from perk.base_model import load_base_model
from perk.checkpoint import new_checkpoint
from perk.lora import AdaptedModel
from perk.perk_model import PerkModel
from perk.settings import BaseSettings, InnerSettings, LoraSettings, PerkSettings

pytestmark = pytest.mark.usefixtures("float32_products")

_TEXT = (
    "Student <3109998>, Name: Ada Young, Year: Senior, School: School of Engineering, Major: Physics, Grade: 72\n"
    "It is a truth universally acknowledged, that a single man in possession of a good fortune must want a wife.\n"
    "Mary went to the kitchen. John moved to the garden. Sandra travelled back to the office."
)


def _in_place_product(_buffer: list[int], left: list[int], right: list[int], **_others: object) -> int:
    batch, rows, inner = left
    return 2 * batch * rows * inner * right[-1]


def _in_place_sum(_buffer: list[int], left: list[int], right: list[int], **_others: object) -> int:
    return _in_place_product(_buffer, [1, *left], right)


# Adding a product to a buffer is a product like any other, which torch's own list of them lacks.
_IN_PLACE = {torch.ops.aten.baddbmm_: _in_place_product, torch.ops.aten.addmm_: _in_place_sum}


def _model(base: Path, lora: LoraSettings, inner: InnerSettings) -> PerkModel:
    settings = PerkSettings(base=BaseSettings(source=str(base)), lora=lora, inner=inner)
    adapted = AdaptedModel(load_base_model(str(base), device="cpu"), lora)
    checkpoint = new_checkpoint(adapted, settings, seed=0)
    return PerkModel(load_base_model(str(base), device="cpu"), checkpoint)


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_gpt2", "tiny_qwen2"])
@pytest.mark.parametrize(
    ("lora", "inner"),
    [
        (LoraSettings(rank=4), InnerSettings(rule="rms", steps=2)),
        (LoraSettings(rank=4, first_layer=2), InnerSettings(rule="rms", steps=3, candidates=64)),
        (LoraSettings(rank=4, first_layer=3), InnerSettings(steps=1, token_weighting=False)),
    ],
)
def test_counted_products_are_those_that_run(
    family: str, lora: LoraSettings, inner: InnerSettings, request: pytest.FixtureRequest
) -> None:
    model = _model(request.getfixturevalue(family), lora, inner)
    segments = model.split(_TEXT)
    encoding = start_encoding(model, segments, inner)

    with FlopCounterMode(display=False, custom_mapping=_IN_PLACE) as counter:  # it knows no attention on the CPU
        while not encoding.done:
            encoding.advance()
    counted = count_encoding_flops(
        model.adapted,
        model.weighting,
        plan_batches(model, segments, packed=encoding.merges),
        steps=inner.steps,
        candidates=count_candidates(model, segments),
        merged=encoding.merges,
    )

    # Rotary angles are a product too, of one row: too few to count.
    assert counted.products == pytest.approx(counter.get_total_flops(), rel=0.002)
    assert 0 < counted.attention < counted.products


def test_adapters_on_the_mlp_alone_need_no_gradient_in_the_first_attention(tiny_llama: Path) -> None:
    inner = InnerSettings(steps=2, token_weighting=False)
    model = _model(tiny_llama, LoraSettings(rank=4, first_layer=2, targets=("up_proj", "down_proj")), inner)
    segments = model.split(_TEXT)
    encoding = start_encoding(model, segments, inner)

    with FlopCounterMode(display=False, custom_mapping=_IN_PLACE) as counter:
        while not encoding.done:
            encoding.advance()
    counted = count_encoding_flops(
        model.adapted,
        None,
        plan_batches(model, segments, packed=encoding.merges),
        steps=inner.steps,
        candidates=count_candidates(model, segments),
        merged=encoding.merges,
    )

    assert counted.products == pytest.approx(counter.get_total_flops(), rel=0.002)


def test_a_matrix_product_runs_at_some_rate() -> None:
    assert measure_product_rate() > 1e8 * torch.get_num_threads()
