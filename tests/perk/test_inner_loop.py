"""The inner loop writes the same adapter however its work is cut, and its loss is the one that it says it is.

In float64 on the tiny GPT-2, whose layer norm keeps that precision, with weights and adapters that are not at zero.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch

from perk import InvalidInput, PerkModel
from perk.inner_loss import InnerLoss
from perk.lora import AdaptedModel
from perk.merged_layers import MergedLayers
from perk.segment import Segment
from perk.settings import InnerSettings
from tests.perk.encoding_setup import (
    EVERYTHING,
    ONE_SEGMENT,
    RECOMPUTED,
    STEPS,
    Setup,
    assert_same,
    defined_loss,
    finish,
)


@pytest.mark.parametrize("token_limit", [ONE_SEGMENT, 30, 75])
@pytest.mark.parametrize("candidates", [None, 8])
@pytest.mark.parametrize("rule", ["rms", "adamw"])
def test_the_adapter_is_the_same_for_any_micro_batching(
    rule: Literal["rms", "adamw"],
    candidates: int | None,
    token_limit: int,
    setup: Setup,
    documents: list[list[Segment]],
) -> None:
    options = {"rule": rule, "candidates": candidates}
    cut = setup.encode(documents, token_limit=token_limit, **options)
    assert_same(cut, setup.encode(documents, token_limit=EVERYTHING, **options))
    moved = [(encoded.adapter - setup.initial).abs().max() for encoded in cut]
    assert min(moved) > 1e-3, "an encoding that does nothing is the same however it is cut"


@pytest.mark.parametrize("candidates", [None, 8])
@pytest.mark.parametrize("rule", ["rms", "adamw"])
def test_documents_together_have_the_adapters_they_have_one_by_one(
    rule: Literal["rms", "adamw"], candidates: int | None, setup: Setup, documents: list[list[Segment]]
) -> None:
    together = setup.encode(documents, rule=rule, candidates=candidates)
    alone = [setup.encode([document], rule=rule, candidates=candidates)[0] for document in documents]
    assert_same(together, alone)
    assert (together[0].adapter - together[1].adapter).abs().max() > 1e-3


def test_the_adapter_does_not_depend_on_the_order_of_the_segments(setup: Setup, documents: list[list[Segment]]) -> None:
    assert_same(setup.encode([documents[0][::-1]]), setup.encode(documents[:1]))


def test_activations_below_the_adapter_are_computed_once_or_recomputed_to_the_same_end(
    setup: Setup, documents: list[list[Segment]]
) -> None:
    batches = len(InnerLoss(setup.adapted, documents, token_limit=30).batches)
    assert batches > 1
    calls: list[None] = []
    lowest_layer = setup.adapted.base.backbone.get_submodule("h.0")
    with lowest_layer.register_forward_hook(lambda *_: calls.append(None)):
        kept = setup.encode(documents, token_limit=30)
        assert len(calls) == batches
        recomputed = setup.encode(documents, token_limit=30, state_limit=RECOMPUTED)
        assert len(calls) == batches + batches * (1 + STEPS)
    for one, other in zip(kept, recomputed, strict=True):
        torch.testing.assert_close(one.adapter, other.adapter, rtol=0, atol=0)


def test_it_runs_in_slices_from_nothing_to_all(setup: Setup, documents: list[list[Segment]]) -> None:
    encoding = setup.start(documents, token_limit=30)
    assert (encoding.progress, encoding.step, encoding.steps) == (0.0, 0, STEPS)
    assert encoding.segments == [5, 1, 3]
    assert encoding.tokens == [47, 4, 19]
    progress, steps = [0.0], [0]
    while not encoding.done:
        with pytest.raises(RuntimeError, match="not done"):
            encoding.results()
        encoding.advance()
        progress.append(encoding.progress)
        steps.append(encoding.step)
    assert progress == pytest.approx([index / (len(progress) - 1) for index in range(len(progress))])
    assert progress[-1] == 1.0
    assert sorted(steps) == steps
    assert set(steps) == set(range(STEPS + 1))
    for encoded, segments in zip(encoding.results(), (5, 1, 3), strict=True):
        assert encoded.adapter.shape == (setup.adapted.layout.size,)
        assert encoded.adapter.dtype == torch.float32
        assert (encoded.segments, encoded.steps) == (segments, STEPS)
        assert encoded.seconds > 0


def test_what_was_learned_is_not_changed(setup: Setup, documents: list[list[Segment]]) -> None:
    before = setup.initial.clone()
    setup.encode(documents[:1])
    torch.testing.assert_close(setup.initial, before, rtol=0, atol=0)


def test_each_tensor_moves_by_its_own_step_size_of_each_step(setup: Setup, documents: list[list[Segment]]) -> None:
    rates = torch.zeros_like(setup.log_step_sizes)
    rates[1, 3] = 0.05
    still = Setup(setup.adapted, setup.weighting, setup.initial, rates.log())
    (encoded,) = still.encode(documents[:1])
    moves = (encoded.adapter - setup.initial.float()).split(setup.adapted.layout.sizes)
    for index, move in enumerate(moves):
        length = float(move.square().mean().sqrt())
        assert length == (pytest.approx(0.05, rel=1e-4) if index == 3 else 0.0)


@pytest.mark.parametrize("candidates", [None, 8, 10_000])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_loss_is_the_weighted_mean_over_the_tokens_after_the_prefixes(
    weighted: bool, candidates: int | None, setup: Setup, documents: list[list[Segment]]
) -> None:
    results = setup.encode(documents, weighted=weighted, candidates=candidates)
    for encoded, segments in zip(results, documents, strict=True):
        competing = torch.arange(512)
        if candidates == 8:
            competing = torch.tensor(sorted({*range(8), *(token for s in segments for token in s.ids)}))
        assert encoded.tokens == sum(len(segment.ids) - segment.prefix_tokens for segment in segments)
        loss = defined_loss(setup, setup.initial, segments, competing, weighted=weighted)
        assert encoded.loss_before == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("rule", ["rms", "adamw"])
def test_the_adapter_is_what_the_optimiser_makes_of_the_initialisation(
    rule: Literal["rms", "adamw"], setup: Setup, documents: list[list[Segment]]
) -> None:
    sizes = setup.adapted.layout.sizes
    (encoded,) = setup.encode(documents[:1], rule=rule, epsilon=1e-12)
    tensors = [part.clone().requires_grad_() for part in setup.initial.split(sizes)]
    groups = [{"params": [tensor]} for tensor in tensors]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.01, eps=1e-12)
    for step in range(STEPS):
        optimiser.zero_grad()
        defined_loss(setup, torch.cat(tensors), documents[0], torch.arange(512), weighted=True).backward()
        for index, rate in enumerate(setup.log_step_sizes[step].exp().tolist()):
            optimiser.param_groups[index]["lr"] = rate
            gradient = tensors[index].grad
            assert gradient is not None
            if rule == "rms":
                tensors[index].data -= rate * gradient / gradient.square().mean().sqrt()
        if rule == "adamw":
            optimiser.step()
    torch.testing.assert_close(encoded.adapter, torch.cat(tensors).detach().float(), rtol=0, atol=1e-6)


def test_a_document_of_one_token_can_be_encoded(setup: Setup) -> None:
    for prefix_tokens in (0, 1):
        ids = (5, 6)[1 - prefix_tokens :]
        (encoded,) = setup.encode([[Segment(ids, prefix_tokens)]])
        assert encoded.adapter.isfinite().all()
        assert encoded.tokens == prefix_tokens


def test_the_loss_of_a_small_text_falls(make_model: Callable[..., PerkModel], family: Path, register: str) -> None:
    for rule, step_size in (("rms", 2e-2), ("adamw", 2e-2)):
        model = make_model(family, inner=InnerSettings(rule=rule, steps=6, step_size=step_size))
        encoded = model.encode(register)
        assert encoded.loss_after < 0.8 * encoded.loss_before, rule


def test_in_triton_kernels_a_step_has_the_gradient_that_it_has_in_torch(
    setup: Setup, documents: list[list[Segment]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interpreted: the operations that a GPU runs, in the model, with the gradient added to one flat buffer."""
    pytest.importorskip("triton")
    inner = InnerLoss(setup.adapted, [documents[0][:1]], token_limit=EVERYTHING)
    prepared = inner.prepare(inner.batches[0])
    weights = inner.weights(prepared)
    theta = setup.initial[None]
    gradient, in_triton = torch.zeros_like(theta), torch.zeros_like(theta)
    loss = inner.add_gradient(theta, prepared, weights, gradient)

    monkeypatch.setenv("PERK_KERNELS", "triton")
    loss_in_triton = inner.add_gradient(theta, prepared, weights, in_triton)

    torch.testing.assert_close(loss_in_triton, loss)
    torch.testing.assert_close(in_triton, gradient)


@pytest.mark.parametrize(
    ("products", "expected"), [("float32", [torch.float32]), ("bfloat16", [torch.float32, torch.bfloat16])]
)
def test_only_the_first_steps_have_products_in_the_type_of_the_base(
    products: str,
    expected: list[torch.dtype],
    make_model: Callable[..., PerkModel],
    register: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PERK_PRODUCTS", products)
    model = make_model(inner={"steps": 7})
    started: list[tuple[int, torch.dtype]] = []
    _watch_merging(monkeypatch, lambda merged: started.append((encoding.step, merged.dtype)))
    encoding = model.start_encoding([register])
    (document,) = finish(encoding)

    assert started == list(zip([0, 2], expected, strict=False))
    assert document.adapter.dtype == torch.float32
    assert document.loss_after < document.loss_before


def _watch_merging(monkeypatch: pytest.MonkeyPatch, note: Callable[[MergedLayers], None]) -> None:
    """Call that with the layers of every copy of the weights that an encoding makes."""
    start_merging = AdaptedModel.start_merging

    def start(adapted: AdaptedModel, dtype: torch.dtype) -> MergedLayers:
        merged = start_merging(adapted, dtype)
        note(merged)
        return merged

    monkeypatch.setattr(AdaptedModel, "start_merging", start)


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_merged_weights_do_not_wait_for_the_garbage_collector(
    products: str, make_model: Callable[..., PerkModel], register: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERK_PRODUCTS", products)
    model = make_model(inner={"steps": 7})
    made: list[weakref.ref[MergedLayers]] = []

    def note(merged: MergedLayers) -> None:
        assert all(layers() is None for layers in made), "one copy at a time"
        made.append(weakref.ref(merged))

    _watch_merging(monkeypatch, note)
    gc.collect()
    gc.disable()
    try:
        model.encode(register)
        assert made
        assert all(layers() is None for layers in made)
    finally:
        gc.enable()


def test_an_encoding_that_is_done_says_so(make_model: Callable[..., PerkModel]) -> None:
    model = make_model()
    encoding = model.start_encoding(["Mary went to the kitchen."])
    while not encoding.done:
        encoding.advance()
    with pytest.raises(RuntimeError, match="encoding is done"):
        encoding.advance()


def test_there_must_be_a_document(make_model: Callable[..., PerkModel]) -> None:
    with pytest.raises(InvalidInput, match="texts: got none"):
        make_model().start_encoding([])
