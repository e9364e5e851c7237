"""Where the adapter sits: cut where it begins, invisible unbound, W + s B A bound, one adapter a document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from perk.base_model import load_base_model
from perk.errors import BaseModelError, InvalidInput
from perk.lora import AdaptedModel
from perk.peft_export import export_peft
from perk.settings import LoraSettings

LORA = LoraSettings(rank=3, alpha=5, first_layer=1)
IDS = torch.randint(2, 512, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def adapted(family: Path) -> AdaptedModel:
    return AdaptedModel(load_base_model(str(family), device="cpu"), LORA)


def _untouched(folder: Path) -> Any:
    """The base as transformers alone loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _random(adapted: AdaptedModel, documents: int = 1) -> Tensor:
    return 0.2 * torch.randn(documents, adapted.layout.size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_unbound_it_is_the_untouched_base(adapted: AdaptedModel, family: Path) -> None:
    expected = _untouched(family)(IDS).logits
    torch.testing.assert_close(adapted.base.model(IDS).logits, expected, rtol=0, atol=0)
    with adapted.bind(_random(adapted)):
        assert not torch.allclose(adapted.base.model(IDS).logits, expected, atol=1e-2)
    torch.testing.assert_close(adapted.base.model(IDS).logits, expected, rtol=0, atol=0)
    with adapted.bind(None):
        torch.testing.assert_close(adapted.base.model(IDS).logits, expected, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("first_layer", [0, 1, 3])
def test_the_lower_part_and_the_upper_part_are_the_whole(first_layer: int, family: Path) -> None:
    settings = LORA.model_copy(update={"first_layer": first_layer})
    adapted = AdaptedModel(load_base_model(str(family), device="cpu"), settings)
    theta = _random(adapted)
    lower = adapted.lower_states(IDS)
    for adapter in (None, theta):
        with adapted.bind(adapter):
            whole = adapted.base.backbone(IDS).last_hidden_state
            torch.testing.assert_close(adapted.upper_states(lower), whole)
            torch.testing.assert_close(adapted.lower_states(IDS), lower, rtol=0, atol=0)


@torch.no_grad()
def test_bound_it_is_the_base_with_merged_weights(adapted: AdaptedModel, family: Path) -> None:
    theta = _random(adapted)
    merged = _untouched(family)
    for module, (a, b) in zip(adapted.layout.modules, adapted.layout.views(theta), strict=True):
        weight = merged.get_parameter(f"{module}.weight")
        change = 5 / 3**0.5 * b[0] @ a[0]
        weight += change.T if "gpt2" in family.name else change
    with adapted.bind(theta):
        torch.testing.assert_close(adapted.base.model(IDS).logits, merged(IDS).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_each_document_has_its_own_adapter(adapted: AdaptedModel) -> None:
    theta = _random(adapted, documents=2)
    # Two sequences of each of two documents.
    ids = torch.cat([IDS, IDS])
    with adapted.bind(theta):
        together = adapted.base.model(ids).logits
    for document in range(2):
        with adapted.bind(theta[document : document + 1]):
            alone = adapted.base.model(IDS).logits
        torch.testing.assert_close(together[2 * document : 2 * document + 2], alone, rtol=1e-4, atol=1e-4)


def test_an_error_inside_leaves_it_unbound(adapted: AdaptedModel, family: Path) -> None:
    with pytest.raises(ZeroDivisionError), adapted.bind(_random(adapted)):
        _ = 1 / 0
    with torch.no_grad():
        torch.testing.assert_close(adapted.base.model(IDS).logits, _untouched(family)(IDS).logits, rtol=0, atol=0)


def test_all_linear_modules_from_the_first_layer_on_carry_it(adapted: AdaptedModel, family: Path) -> None:
    per_layer = {
        "tiny-llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        "tiny-gpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    }
    per_layer["tiny-qwen2"] = per_layer["tiny-llama"]
    layout = adapted.layout
    for layer in (1, 2, 3):
        inside = [module for module in layout.modules if f".{layer}." in module]
        assert len(inside) == len(per_layer[family.name])
        assert all(any(module.endswith(name) for module in inside) for name in per_layer[family.name])
    assert not any(".0." in module for module in layout.modules)
    assert len(layout.names) == len(layout.shapes) == 2 * len(layout.modules)
    assert sum(layout.sizes) == layout.size


@torch.no_grad()
def test_a_fresh_adapter_changes_nothing_and_can_learn(adapted: AdaptedModel) -> None:
    theta = adapted.layout.initialise(torch.Generator().manual_seed(0))[None]
    expected = adapted.base.model(IDS).logits
    with adapted.bind(theta):
        torch.testing.assert_close(adapted.base.model(IDS).logits, expected)
    for a, b in adapted.layout.views(theta):
        assert (b == 0).all()
        assert float(a.std()) == pytest.approx(a.shape[-1] ** -0.5, rel=0.3)


def test_only_the_targets_named_carry_it(tiny_llama: Path) -> None:
    settings = LoraSettings(rank=2, targets=("q_proj", "down_proj"), first_layer=2)
    layout = AdaptedModel(load_base_model(str(tiny_llama), device="cpu"), settings).layout
    assert layout.modules == (
        "model.layers.2.self_attn.q_proj",
        "model.layers.2.mlp.down_proj",
        "model.layers.3.self_attn.q_proj",
        "model.layers.3.mlp.down_proj",
    )
    assert layout.shapes[:4] == ((2, 32), (32, 2), (2, 64), (32, 2))


@pytest.mark.parametrize(
    ("settings", "field", "limit"),
    [
        ({"first_layer": 4}, "lora.first_layer", "less than the base's 4 layers"),
        ({"targets": ("query",)}, "lora.targets", "names of linear modules of the base's layers"),
    ],
)
def test_settings_that_do_not_fit_the_base_are_refused_by_name(
    settings: dict[str, Any], field: str, limit: str, tiny_llama: Path
) -> None:
    with pytest.raises(InvalidInput) as caught:
        AdaptedModel(load_base_model(str(tiny_llama), device="cpu"), LoraSettings(**settings))
    assert (caught.value.field, caught.value.limit) == (field, limit)


def test_an_unknown_family_is_refused(tiny_llama: Path) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    base.model.config.model_type = "gemma"
    with pytest.raises(BaseModelError, match="model type 'gemma' is not supported, expected one of gpt2, llama, qwen2"):
        AdaptedModel(base, LoraSettings(rank=2))


def test_layers_that_attend_in_different_ways_are_refused(tiny_qwen2: Path) -> None:
    base = load_base_model(str(tiny_qwen2), device="cpu")
    base.model.config.layer_types = ["full_attention"] * 2 + ["sliding_attention"] * 2
    with pytest.raises(BaseModelError, match="layers of full_attention and sliding_attention mixed"):
        AdaptedModel(base, LoraSettings(rank=2))


def test_a_base_carries_one_adapter_only(adapted: AdaptedModel) -> None:
    with pytest.raises(ValueError, match="carries an adapter already"):
        AdaptedModel(adapted.base, LORA)


@torch.no_grad()
@pytest.mark.parametrize("stabilised", [True, False])
def test_peft_loads_an_exported_adapter_to_the_same_logits(stabilised: bool, family: Path, tmp_path: Path) -> None:
    settings = LORA.model_copy(update={"rank_stabilised": stabilised})
    adapted = AdaptedModel(load_base_model(str(family), device="cpu"), settings)
    theta = _random(adapted)
    export_peft(adapted, theta[0], tmp_path / "adapter", base_name=str(family))
    by_peft = PeftModel.from_pretrained(_untouched(family), str(tmp_path / "adapter"))
    with adapted.bind(theta):
        torch.testing.assert_close(by_peft(IDS).logits, adapted.base.model(IDS).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_peft_loads_an_adapter_of_few_targets(tiny_gpt2: Path, tmp_path: Path) -> None:
    # Of GPT-2's c_proj there are two in a layer.
    settings = LoraSettings(rank=2, targets=("c_proj",), first_layer=2)
    adapted = AdaptedModel(load_base_model(str(tiny_gpt2), device="cpu"), settings)
    theta = _random(adapted)
    export_peft(adapted, theta[0], tmp_path, base_name=str(tiny_gpt2))
    by_peft = PeftModel.from_pretrained(_untouched(tiny_gpt2), str(tmp_path))
    with adapted.bind(theta):
        torch.testing.assert_close(by_peft(IDS).logits, adapted.base.model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_the_same_adapter_is_exported_to_the_same_bytes(adapted: AdaptedModel, tmp_path: Path) -> None:
    theta = _random(adapted)[0]
    for name in ("one", "two"):
        export_peft(adapted, theta, tmp_path / name, base_name="base")
    one, two = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
