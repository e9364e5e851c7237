"""The inner loop through merged layers is the inner loop through the base's modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from perk.base_model import load_base_model
from perk.inner_loss import InnerLoss
from perk.lora import AdaptedModel
from perk.segment import Segment
from perk.settings import LoraSettings
from perk.token_weights import TokenWeighting

ROWS = [[2, 9, 4, 100, 37, 8, 55], [3, 7, 300, 12], [8, 8, 1, 400, 20, 31], [5, 6, 12, 13]]
SEGMENTS = [Segment(tuple(ids), prefix_tokens=1) for ids in ROWS]
LORAS = [
    LoraSettings(rank=3, first_layer=2),
    LoraSettings(rank=3, first_layer=0),
    LoraSettings(rank=3, first_layer=1, targets=("up_proj", "down_proj")),
    LoraSettings(rank=3, first_layer=3, targets=("v_proj",)),
]


@pytest.fixture(params=["tiny_llama", "tiny_qwen2"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Of a tiny base whose layers can be merged."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(params=LORAS)
def lora(request: pytest.FixtureRequest) -> LoraSettings:
    """Adapters on different layers and maps."""
    settings: LoraSettings = request.param
    return settings


@pytest.mark.parametrize("packed", [False, True])
def test_loss_and_gradient_are_those_of_the_modules(folder: Path, lora: LoraSettings, packed: bool) -> None:
    loss, gradient = _differentiated(folder, lora, torch.float32, merged=torch.float32, packed=packed)
    expected_loss, expected = _differentiated(folder, lora, torch.float32, merged=None)
    torch.testing.assert_close(loss, expected_loss)
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("packed", [False, True])
def test_products_in_bfloat16_are_nearer_than_modules_in_bfloat16(
    folder: Path, lora: LoraSettings, packed: bool
) -> None:
    # Larger ones make a gradient that any rounding changes beyond recognition.
    loss, gradient = _differentiated(folder, lora, torch.float32, merged=torch.bfloat16, spread=0.05, packed=packed)
    _, narrow = _differentiated(folder, lora, torch.bfloat16, merged=None, spread=0.05)
    expected_loss, expected = _differentiated(folder, lora, torch.float64, merged=None, spread=0.05)
    assert loss.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(loss, expected_loss.float(), rtol=1e-2, atol=0)
    assert (gradient - expected).norm() < (narrow - expected).norm()


def _differentiated(
    folder: Path,
    lora: LoraSettings,
    dtype: torch.dtype,
    *,
    merged: torch.dtype | None,
    spread: float = 0.2,
    packed: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of the segments and its gradient, on a base in that type, through layers merged in `merged` or the modules.

    Adapters are normal, with `spread` as their standard deviation.
    """
    adapted = AdaptedModel(load_base_model(str(folder), device="cpu", dtype=dtype), lora)
    inner = InnerLoss(adapted, [SEGMENTS], token_limit=1000, packed=packed)
    theta = spread * torch.randn(1, adapted.layout.size, generator=torch.Generator().manual_seed(0))
    theta = theta.to(torch.promote_types(dtype, torch.float32))
    total, gradient = torch.zeros(1), torch.zeros_like(theta)
    layers = None if merged is None else adapted.start_merging(merged)
    if layers is not None:
        layers.merge(theta)
    for batch in inner.batches:
        prepared = inner.prepare(batch)
        weights = inner.weights(prepared)
        if layers is None:
            loss, added = inner.gradient(theta.requires_grad_(), prepared, weights)
            gradient += added.detach()
        else:
            loss = inner.add_gradient(theta, prepared, weights, gradient, merged=layers)
        total = total + loss.detach()
    return total, gradient


def test_the_layers_below_are_the_modules_own(tiny_qwen2: Path) -> None:
    adapted = AdaptedModel(load_base_model(str(tiny_qwen2), device="cpu"), LoraSettings(rank=2, first_layer=2))
    ids = torch.tensor([ROWS[0]])
    expected = adapted.lower(input_ids=ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(adapted.lower_states(ids), expected)


def test_weights_of_packed_tokens_are_those_of_padded_ones(tiny_qwen2: Path) -> None:
    adapted = AdaptedModel(load_base_model(str(tiny_qwen2), device="cpu"), LoraSettings(rank=2, first_layer=2))
    weighting = TokenWeighting(adapted.base.head.shape[1], 8)
    torch.nn.init.normal_(weighting.down.weight)
    weighed = []
    for packed in (False, True):
        inner = InnerLoss(adapted, [SEGMENTS], weighting=weighting, token_limit=1000, packed=packed)
        of_token: dict[int, float] = {}
        for batch in inner.batches:
            weights = inner.weights(inner.prepare(batch))[batch.shares > 0].tolist()
            of_token |= dict(zip(batch.targets[batch.shares > 0].tolist(), weights, strict=True))
        weighed.append(of_token)
    assert weighed[0] == pytest.approx(weighed[1])
    assert len(set(weighed[0].values())) > 2


def test_modules_refuse_packed_sequences(tiny_gpt2: Path) -> None:
    adapted = AdaptedModel(load_base_model(str(tiny_gpt2), device="cpu"), LoraSettings(rank=2, first_layer=2))
    inner = InnerLoss(adapted, [SEGMENTS], token_limit=1000, packed=True)
    with pytest.raises(RuntimeError, match="4 sequences in one row"):
        inner.prepare(inner.batches[0])


def test_modules_under_an_adapter_refuse_them_too(tiny_llama: Path) -> None:
    adapted = AdaptedModel(load_base_model(str(tiny_llama), device="cpu"), LoraSettings(rank=2, first_layer=2))
    inner = InnerLoss(adapted, [SEGMENTS], token_limit=1000, packed=True)
    prepared = inner.prepare(inner.batches[0])
    theta = torch.zeros(1, adapted.layout.size)
    with pytest.raises(RuntimeError, match="4 sequences in one row"):
        inner.add_gradient(theta, prepared, inner.weights(prepared), torch.zeros_like(theta))


def _merged_pass(folder: Path) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
    """Adapters, and a pass under them through the last layer, into a buffer."""
    adapted = AdaptedModel(load_base_model(str(folder), device="cpu"), LoraSettings(rank=2, first_layer=3))
    theta = torch.zeros(1, adapted.layout.size)
    merged = adapted.start_merging(torch.float32)
    merged.merge(theta)
    theta.requires_grad_()
    states = adapted.lower_states(torch.tensor([ROWS[0]]))
    return theta, lambda: adapted.merged_states(merged, states, theta, torch.zeros_like(theta))


def test_a_pass_that_adds_to_a_buffer_cannot_be_differentiated_again(tiny_llama: Path) -> None:
    theta, run = _merged_pass(tiny_llama)
    last = run()
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        torch.autograd.grad(last.sum(), theta, create_graph=True)


def test_other_bases_have_no_merged_layers(tiny_gpt2: Path, tiny_llama: Path) -> None:
    lora = LoraSettings(rank=2, first_layer=3)
    gpt2 = AdaptedModel(load_base_model(str(tiny_gpt2), device="cpu"), lora)
    assert gpt2.merged_bytes is None
    with pytest.raises(RuntimeError, match="cannot be merged"):
        gpt2.start_merging(torch.float32)
    double = AdaptedModel(load_base_model(str(tiny_llama), device="cpu", dtype=torch.float64), lora)
    assert double.merged_bytes is None


def test_the_way_back_of_a_pass_that_another_has_overwritten_is_refused(tiny_llama: Path) -> None:
    theta, run = _merged_pass(tiny_llama)
    first = run()
    run()
    with pytest.raises(RuntimeError, match="another pass through these layers has begun"):
        torch.autograd.grad(first.sum(), theta, allow_unused=True)


def test_states_of_the_layers_below_outlive_the_next_pass(tiny_llama: Path) -> None:
    adapted = AdaptedModel(load_base_model(str(tiny_llama), device="cpu"), LoraSettings(rank=2, first_layer=2))
    first, other = (adapted.lower_states(torch.tensor([row])) for row in (ROWS[0], ROWS[1]))
    again = first.clone()
    assert not torch.equal(other[:, :1], first[:, :1]) or other.shape != first.shape
    adapted.lower_states(torch.tensor([ROWS[1]]))
    assert torch.equal(first, again)
