"""The configurations are valid, and those for GPUs hold together: with a tiny base of their family they train."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import meta_training
from meta_training.settings import read_settings
from meta_training.trainer import Trainer
from perk.base_model import load_base_model

CONFIGS = Path(meta_training.__file__ or "").parent / "configs"
TASKS = ["student-recall", "student-relation", "babilong-qa1", "babilong-qa2", "babilong-qa3"]


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize(("config", "base"), [("gpt2-paper", "tiny_gpt2"), ("qwen2.5-0.5b-paper", "tiny_qwen2")])
def test_a_paper_configuration_takes_a_step_with_its_own_adapter_and_inner_loop(
    config: str, base: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue(base)
    overrides = [f"base={folder}", f"output={tmp_path / 'run'}", "outer.accumulation=1", "evaluate_documents=5"]
    overrides += [f"stages.0.tasks.{index}.tokens=[60, 90]" for index in range(len(TASKS))]
    overrides += [f"stages.0.tasks.{index}.options.questions=2" for index in range(2)]
    settings = read_settings(CONFIGS / f"{config}.yaml", overrides)
    assert [mix.task for mix in settings.stages[0].tasks] == TASKS
    assert (settings.lora.rank, settings.lora.targets, settings.lora.first_layer) == (256, "all-linear", 0)
    assert (settings.inner.rule, settings.inner.steps, settings.outer.unrolled) == ("adamw", 4, 2)

    trainer = Trainer(settings, load_base_model(str(folder), device="cpu"))
    layers = trainer.base.model.config.num_hidden_layers
    modules = trainer.checkpoint().tensors["log_step_sizes"].shape[1] // 2
    assert modules % layers == 0, "each layer has the same adapters"
    assert modules // layers == {"gpt2-paper": 4, "qwen2.5-0.5b-paper": 7}[config]
    before = {name: tensor.clone() for name, tensor in trainer.meta.tensors().items()}
    result = trainer.train_step()
    assert math.isfinite(result.answer_loss)
    for name in ("initial", "log_step_sizes"):
        assert not torch.equal(trainer.meta.tensors()[name], before[name])
    trainer.save()


def test_all_configurations_are_valid() -> None:
    paths = list(CONFIGS.glob("*.yaml"))
    assert paths
    for path in paths:
        assert read_settings(path).total_steps > 0
