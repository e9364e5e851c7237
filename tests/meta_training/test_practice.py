"""Practice changes the initialisation and nothing else, and lowers the loss of answers to questions never seen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from meta_training.__main__ import application
from meta_training.answer_loss import AnswerLoss
from meta_training.practice import practise
from meta_training.settings import TrainSettings
from meta_training.trainer import DivergenceError
from perk import PerkModel
from perk.checkpoint import Checkpoint, load_checkpoint
from perk.errors import InvalidInput
from perk.inner_loop import EncodedDocument
from perk.segment import Segment
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


def test_from_memory_whole_answers_become_likelier_under_each_documents_own_adapter(model: PerkModel) -> None:
    losses: list[float] = []
    learned = practise(
        model,
        _settings(),
        steps=12,
        questions=0,
        recalled=8,
        rate=1e-2,
        report=lambda loss, _exact: losses.append(loss),
    )
    assert losses[-1] < 0.85 * losses[0]
    assert {name for name, tensor in learned.tensors.items() if not tensor.equal(model.checkpoint.tensors[name])} == {
        "initial"
    }


def test_a_document_is_encoded_in_each_step_and_asked_about_again(
    model: PerkModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[torch.Tensor] = []
    asked: list[int] = []
    encode, loss = PerkModel.encode, AnswerLoss.__call__

    def note_encoding(self: PerkModel, text: str) -> EncodedDocument:
        encoded.append(self.initial)
        return encode(self, text)

    def note_questions(
        self: AnswerLoss, theta: torch.Tensor, questions: Sequence[Sequence[Segment]]
    ) -> tuple[float, float, torch.Tensor]:
        asked.append(sum(map(len, questions)))
        return loss(self, theta, questions)

    monkeypatch.setattr(PerkModel, "encode", note_encoding)
    monkeypatch.setattr(AnswerLoss, "__call__", note_questions)
    practise(model, _settings(questions=4), steps=5, questions=3, recalled=8)
    assert len(encoded) == 5
    assert not any(torch.equal(one, other) for one, other in pairwise(encoded)), "from what is learned so far"
    # The new one, and up to three of those before; then those whose supports are given.
    assert asked == [2, 3, 2, 2, 3, 2, 2, 2, 3, *[2, 2, 2, 2, 3] * 2]


def test_a_configuration_may_change_how_documents_are_read(model: PerkModel) -> None:
    segments = model.settings.segments.model_copy(update={"series": True})
    kept = practise(model, _settings(), steps=1, questions=2)
    changed = practise(model, TrainSettings.model_validate(_run() | {"segments": segments}), steps=1, questions=2)
    assert kept.settings == model.settings
    assert changed.settings == model.settings.model_copy(update={"segments": segments})


def test_what_is_learned_is_a_mean_of_the_last_steps(model: PerkModel) -> None:
    def learned(mean_steps: int) -> torch.Tensor:
        settings = TrainSettings.model_validate(_run() | {"outer": {"mean_steps": mean_steps}})
        return practise(model, settings, steps=2, questions=2).tensors["initial"]

    begun, last, mean = model.checkpoint.tensors["initial"], learned(0), learned(5)
    assert 0 < (mean - begun).norm() < (last - begun).norm()


def test_a_stop_ends_it_with_what_is_learned(model: PerkModel) -> None:
    steps: list[float] = []

    def stop(loss: float, _exact: float) -> None:
        steps.append(loss)
        signal.raise_signal(signal.SIGTERM)

    learned = practise(model, _settings(), steps=9, questions=2, report=stop)
    assert len(steps) == 1
    assert not torch.equal(learned.tensors["initial"], model.checkpoint.tensors["initial"])


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


def test_two_processes_ask_different_questions_and_one_writes_what_both_learned(
    model: PerkModel, tmp_path: Path
) -> None:
    model.checkpoint.save(tmp_path / "start")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(_run()))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["-m", "meta_training", "practise", "--config", str(tmp_path / "run.yaml")]
    arguments += ["--checkpoint", str(tmp_path / "start"), "--steps", "2", "--questions", "2", "--recalled", "4"]
    done = subprocess.run(
        [*launcher, *arguments, "--out", str(tmp_path / "two")],
        check=True,
        timeout=200,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.stdout.count("100%") == 1, "one process shows the progress of both"
    one = practise(model, _settings(), steps=2, questions=2, recalled=4)
    learned = load_checkpoint(tmp_path / "two").tensors["initial"]
    assert not torch.equal(learned, model.checkpoint.tensors["initial"])
    assert not torch.equal(learned, one.tensors["initial"]), "more was asked than one process asks"
