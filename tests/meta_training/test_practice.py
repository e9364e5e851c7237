"""Practice changes the initialisation and nothing else, and lowers the loss of answers to questions never seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from meta_training.__main__ import application
from meta_training.practice import practise
from meta_training.settings import TrainSettings
from meta_training.trainer import DivergenceError
from perk import PerkModel
from perk.checkpoint import Checkpoint, load_checkpoint
from perk.errors import InvalidInput
from perk.settings import TemplateSettings

_TEMPLATES = TemplateSettings(prompt="{question}\nSupport:", support=" {support}\nAnswer:", answer=" {answer}")


def _run(seed: int = 1, **options: int) -> dict[str, Any]:
    task = {"task": "student-relation", "tokens": [80, 120], "options": options or {"questions": 4}}
    return {"seed": seed, "base": "tiny", "output": "run", "stages": [{"steps": 1, "tasks": [task]}]}


def _settings(seed: int = 1, **options: int) -> TrainSettings:
    return TrainSettings.model_validate(_run(seed, **options))


@pytest.fixture
def model(tiny_checkpoint: Path) -> PerkModel:
    loaded = PerkModel.load(tiny_checkpoint)
    settings = loaded.settings.model_copy(update={"templates": _TEMPLATES})
    return PerkModel(loaded.base, Checkpoint("tiny", settings, loaded.checkpoint.tensors), adapted=loaded.adapted)


def test_answers_become_likelier_and_only_the_initialisation_changes(model: PerkModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.checkpoint.tensors.items()}
    losses: list[float] = []
    learned = practise(
        model, _settings(), steps=30, questions=8, rate=1e-2, report=lambda loss, _exact: losses.append(loss)
    )
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert learned.settings == model.settings
    for name, tensor in before.items():
        assert torch.equal(model.checkpoint.tensors[name], tensor), "the checkpoint begun with has changed"
        assert torch.equal(learned.tensors[name], tensor) == (name != "initial")


def test_what_is_given_carries_no_loss(model: PerkModel) -> None:
    """Untrained, a token of a byte-level alphabet costs what chance costs, however long the support before it."""
    losses: list[float] = []
    for records in (2, 6):
        practise(
            model, _settings(records=records), steps=1, questions=6, report=lambda loss, _exact: losses.append(loss)
        )
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_the_same_seed_gives_the_same_checkpoint(model: PerkModel) -> None:
    one, same, other = (practise(model, _settings(seed), steps=2, questions=4) for seed in (1, 1, 2))
    assert torch.equal(one.tensors["initial"], same.tensors["initial"])
    assert not torch.equal(one.tensors["initial"], other.tensors["initial"])


def test_a_rate_that_is_too_high_is_told(model: PerkModel) -> None:
    with pytest.raises(DivergenceError, match=r"step 2 of 3: loss nan at rate 1e\+30: try a smaller one"):
        practise(model, _settings(), steps=3, questions=2, rate=1e30)


def test_answers_without_support_leave_nothing_to_practise(model: PerkModel) -> None:
    settings = model.settings.model_copy(update={"templates": TemplateSettings()})
    bare = PerkModel(model.base, replace(model.checkpoint, settings=settings), adapted=model.adapted)
    with pytest.raises(InvalidInput, match="checkpoint: got 'tiny', expected one that tells the support"):
        practise(bare, _settings(), steps=1)


def test_the_command_writes_a_checkpoint(model: PerkModel, tmp_path: Path) -> None:
    model.checkpoint.save(tmp_path / "start")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(_run()))
    arguments = ["practise", "--config", str(tmp_path / "run.yaml"), "--checkpoint", str(tmp_path / "start")]
    arguments += ["--out", str(tmp_path / "out"), "--steps", "1", "--questions", "2"]
    result = CliRunner().invoke(application, arguments)
    assert result.exit_code == 0, result.output
    assert not torch.equal(
        load_checkpoint(tmp_path / "out").tensors["initial"], load_checkpoint(tmp_path / "start").tensors["initial"]
    )
