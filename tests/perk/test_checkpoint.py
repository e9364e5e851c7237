"""A checkpoint is read as it was written, or refused with what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from perk import BaseMismatch, CheckpointError, PerkModel
from perk.base_model import load_base_model
from perk.checkpoint import SHIPPED, Checkpoint, load_checkpoint, new_checkpoint
from perk.lora import AdaptedModel
from perk.readers import READERS
from perk.settings import InnerSettings, LoraSettings, PerkSettings

SETTINGS = PerkSettings(lora=LoraSettings(rank=2, first_layer=2), inner=InnerSettings(rule="rms", steps=3))


@pytest.fixture
def adapted(tiny_llama: Path) -> AdaptedModel:
    return AdaptedModel(load_base_model(str(tiny_llama), device="cpu"), SETTINGS.lora)


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint's folder that a test may damage."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "mine")


def _change(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    path = folder / "perk.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_a_new_one_changes_nothing_yet(adapted: AdaptedModel) -> None:
    checkpoint = new_checkpoint(adapted, SETTINGS, seed=0)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = adapted.base.model(ids).logits
        with adapted.bind(checkpoint.tensors["initial"][None]):
            torch.testing.assert_close(adapted.base.model(ids).logits, expected)
    assert checkpoint.tensors["log_step_sizes"].shape == (3, len(adapted.layout.shapes))
    torch.testing.assert_close(
        checkpoint.tensors["log_step_sizes"].exp().unique(), torch.tensor([SETTINGS.inner.step_size])
    )
    checkpoint.require_base(adapted.base)
    checkpoint.require_layout(adapted.layout)


def test_a_new_one_comes_from_its_seed_and_leaves_the_callers_random_numbers_alone(adapted: AdaptedModel) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    one, same, other = (new_checkpoint(adapted, SETTINGS, seed=seed) for seed in (1, 1, 2))
    torch.testing.assert_close(torch.rand(3), expected)
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_it_is_read_as_it_was_written(adapted: AdaptedModel, tmp_path: Path) -> None:
    written = new_checkpoint(adapted, SETTINGS, seed=0)
    written.save(tmp_path / "some" / "folder")
    read = load_checkpoint(tmp_path / "some" / "folder")
    assert (read.name, read.settings, read.fingerprint) == ("folder", written.settings, written.fingerprint)
    torch.testing.assert_close(read.tensors, written.tensors, rtol=0, atol=0)
    assert {path.name for path in (tmp_path / "some" / "folder").iterdir()} == {"perk.json", "perk.safetensors"}


def test_it_can_be_written_over(adapted: AdaptedModel, tmp_path: Path) -> None:
    for seed in (0, 1):
        new_checkpoint(adapted, SETTINGS, seed=seed).save(tmp_path)
    assert load_checkpoint(tmp_path).fingerprint == new_checkpoint(adapted, SETTINGS, seed=1).fingerprint


def test_tensors_shipped_in_half_precision_are_computed_with_in_full(folder: Path) -> None:
    _change(folder, lambda tensors: tensors.update({name: t.half() for name, t in tensors.items()}))
    assert {tensor.dtype for tensor in load_checkpoint(folder).tensors.values()} == {torch.float32}
    PerkModel.load(folder, device="cpu")


def test_the_fingerprint_changes_with_every_setting_and_tensor(adapted: AdaptedModel) -> None:
    checkpoint = new_checkpoint(adapted, SETTINGS, seed=0)
    found = {checkpoint.fingerprint}
    inner = SETTINGS.inner.model_copy(update={"steps": 4})
    for update in ({"inner": inner}, {"lora": SETTINGS.lora.model_copy(update={"alpha": 3.0})}):
        changed = checkpoint.settings.model_copy(update=update)
        found.add(Checkpoint(checkpoint.name, changed, checkpoint.tensors).fingerprint)
    for name, tensor in checkpoint.tensors.items():
        tensors = {**checkpoint.tensors, name: tensor.clone()}
        tensors[name].view(-1)[0] += 1e-3
        found.add(Checkpoint(checkpoint.name, checkpoint.settings, tensors).fingerprint)
    assert len(found) == 3 + len(checkpoint.tensors)
    assert Checkpoint("another name", checkpoint.settings, checkpoint.tensors).fingerprint == checkpoint.fingerprint


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'no-such-checkpoint': cannot read"):
        load_checkpoint("no-such-checkpoint")
    with pytest.raises(CheckpointError, match="cannot read"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["perk.json", "perk.safetensors"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"cannot read .*{name}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda _: b"", lambda data: b"\xff" + data])
@pytest.mark.parametrize("name", ["perk.json", "perk.safetensors"])
def test_a_damaged_file_is_named(name: str, damage: Callable[[bytes], bytes], folder: Path) -> None:
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"mine': {name} is (damaged|not valid)"):
        load_checkpoint(folder)


def test_a_setting_that_no_one_knows_is_named(folder: Path) -> None:
    path = folder / "perk.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dropout": 0.1}))
    with pytest.raises(CheckpointError, match=r"perk\.json is not valid: (.|\n)*dropout"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["initial", "log_step_sizes"])
def test_a_missing_tensor_is_named(name: str, folder: Path) -> None:
    _change(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=f"tensor '{name}' has nothing, expected shape"):
        PerkModel.load(folder, device="cpu")


@pytest.mark.parametrize("name", ["initial", "log_step_sizes"])
def test_a_tensor_of_another_shape_is_named(name: str, folder: Path) -> None:
    _change(folder, lambda tensors: tensors.update({name: tensors[name][..., :-1].clone()}))
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' has shape \(.*\), expected shape \("):
        PerkModel.load(folder, device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["initial", "log_step_sizes", "token_weighting.up.weight"])
def test_a_tensor_with_values_that_are_not_finite_is_named(name: str, value: float, folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[3] = value

    _change(folder, change)
    with pytest.raises(CheckpointError, match=f"tensor '{name}' holds values that are not finite"):
        PerkModel.load(folder, device="cpu")


@pytest.mark.parametrize("name", READERS)
def test_a_reader_is_part_of_it_and_must_fit(folder: Path, name: str) -> None:
    plain = load_checkpoint(folder)
    _change(folder, lambda tensors: tensors.update({name: torch.ones_like(tensors["initial"])}))
    assert load_checkpoint(folder).fingerprint != plain.fingerprint
    _change(folder, lambda tensors: tensors.update({name: tensors[name][1:]}))
    with pytest.raises(CheckpointError, match=f"tensor '{name}' has shape"):
        PerkModel.load(folder)


def test_a_token_weighting_that_is_missing_or_of_another_shape_is_an_error(folder: Path) -> None:
    _change(folder, lambda tensors: tensors.update({"token_weighting.up.bias": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match="token weighting"):
        PerkModel.load(folder, device="cpu")
    _change(folder, lambda tensors: tensors.pop("token_weighting.up.bias"))
    with pytest.raises(CheckpointError, match=r"token weighting.*token_weighting\.up\.bias"):
        PerkModel.load(folder, device="cpu")


def test_another_base_is_refused_with_both_names(folder: Path, tiny_llama: Path, tiny_qwen2: Path) -> None:
    checkpoint = load_checkpoint(folder)
    with pytest.raises(BaseMismatch) as caught:
        PerkModel.load(folder, device="cpu", base=str(tiny_qwen2))
    message = str(caught.value)
    for part in ("'mine'", str(tiny_llama), "'tiny-qwen2'", checkpoint.settings.base.fingerprint[:16]):
        assert part in message
    assert isinstance(caught.value, CheckpointError)


@pytest.mark.parametrize("name", [path.name for path in sorted(SHIPPED.iterdir())])
def test_a_shipped_checkpoint_is_found_by_its_name_and_fits_the_default_base(name: str) -> None:
    base = load_base_model("default", device="cpu")
    checkpoint = load_checkpoint(name)
    assert checkpoint.name == name
    checkpoint.require_base(base)
    PerkModel(base, checkpoint)
