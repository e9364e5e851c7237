"""Practice in comparing changes the initialisation and nothing else, and lowers the loss of verdicts never seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from meta_training.__main__ import application
from meta_training.comparison_practice import practise_comparisons
from meta_training.trainer import DivergenceError
from perk import PerkModel
from perk.checkpoint import Checkpoint, load_checkpoint
from perk.errors import InvalidInput
from perk.settings import TemplateSettings

_TEMPLATES = TemplateSettings(prompt="{question}\nSupport:", support=" {support}\nAnswer:", answer=" {answer}")


@pytest.fixture
def model(tiny_checkpoint: Path) -> PerkModel:
    loaded = PerkModel.load(tiny_checkpoint)
    settings = loaded.settings.model_copy(update={"templates": _TEMPLATES})
    return PerkModel(loaded.base, Checkpoint("tiny", settings, loaded.checkpoint.tensors), adapted=loaded.adapted)


def test_fresh_comparisons_become_likelier_and_only_the_initialisation_changes(model: PerkModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.checkpoint.tensors.items()}
    losses: list[float] = []
    learned = practise_comparisons(
        model, steps=30, comparisons=16, rate=1e-2, report=lambda loss, _exact: losses.append(loss)
    )
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert learned.settings == model.settings
    for name, tensor in before.items():
        assert torch.equal(model.checkpoint.tensors[name], tensor), "the checkpoint begun with has changed"
        assert torch.equal(learned.tensors[name], tensor) == (name != "initial")


def test_the_same_seed_gives_the_same_checkpoint(model: PerkModel) -> None:
    one, same, other = (practise_comparisons(model, steps=2, comparisons=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.tensors["initial"], same.tensors["initial"])
    assert not torch.equal(one.tensors["initial"], other.tensors["initial"])


def test_a_rate_that_is_too_high_is_told(model: PerkModel) -> None:
    with pytest.raises(DivergenceError, match=r"step 2 of 3: loss nan at rate 1e\+30: try a smaller one"):
        practise_comparisons(model, steps=3, comparisons=2, rate=1e30)


def test_answers_without_support_have_no_place_for_a_comparison(model: PerkModel) -> None:
    settings = model.settings.model_copy(update={"templates": TemplateSettings()})
    bare = PerkModel(model.base, replace(model.checkpoint, settings=settings), adapted=model.adapted)
    with pytest.raises(InvalidInput, match="checkpoint: got 'tiny', expected one that tells the support"):
        practise_comparisons(bare, steps=1)


def test_the_command_writes_a_checkpoint(model: PerkModel, tmp_path: Path) -> None:
    model.checkpoint.save(tmp_path / "start")
    arguments = ["practise-comparisons", "--checkpoint", str(tmp_path / "start"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(application, [*arguments, "--steps", "1", "--comparisons", "2"])
    assert result.exit_code == 0, result.output
    assert not torch.equal(
        load_checkpoint(tmp_path / "out").tensors["initial"], load_checkpoint(tmp_path / "start").tensors["initial"]
    )
