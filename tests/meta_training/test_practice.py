"""Practice learns what is added to adapters and nothing else; answers to questions never seen become likelier."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from meta_training.__main__ import application
from meta_training.answer_loss import AnswerLoss
from meta_training.practice import practise
from meta_training.processes import Processes
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


def _changed(learned: Checkpoint, begun: Checkpoint) -> set[str]:
    return {
        name
        for name, tensor in learned.tensors.items()
        if name not in begun.tensors or not tensor.equal(begun.tensors[name])
    }


def _watch(model: PerkModel, settings: TrainSettings, **options: Any) -> tuple[Checkpoint, list[float]]:
    """What was learned, and the loss before each step."""
    losses: list[float] = []
    learned = practise(model, settings, report_step=lambda loss, _exact: losses.append(loss), **options)
    return learned, losses


def test_answers_become_likelier_and_how_documents_are_written_stays(model: PerkModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.checkpoint.tensors.items()}
    learned, losses = _watch(model, _settings(), documents=2, steps=30, recalled=0, given=8, rate=1e-2)
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert learned.settings == model.settings
    assert _changed(learned, model.checkpoint) == {"answering"}
    for name, tensor in before.items():
        assert torch.equal(model.checkpoint.tensors[name], tensor), "the checkpoint begun with has changed"


def test_what_is_given_carries_no_loss(model: PerkModel) -> None:
    """Untrained, a token of a byte-level alphabet costs what chance costs, however long the support before it."""
    losses = [
        _watch(model, _settings(records=records), documents=1, steps=1, recalled=0, given=6)[1][0] for records in (2, 6)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_the_same_seed_gives_the_same_checkpoint(model: PerkModel) -> None:
    one, same, other = (practise(model, _settings(seed), documents=2, steps=2, recalled=2) for seed in (1, 1, 2))
    assert torch.equal(one.tensors["answering"], same.tensors["answering"])
    assert not torch.equal(one.tensors["answering"], other.tensors["answering"])


def test_from_memory_whole_answers_become_likelier_under_each_documents_own_adapter(model: PerkModel) -> None:
    learned, losses = _watch(model, _settings(), documents=3, steps=12, recalled=8, given=0, rate=1e-2)
    assert losses[-1] < 0.85 * losses[0]
    assert _changed(learned, model.checkpoint) == {"answering"}


def test_documents_are_encoded_once_and_asked_about_in_every_step(
    model: PerkModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[torch.Tensor] = []
    asked: list[torch.Tensor] = []
    numbers: list[int] = []
    encode, loss = PerkModel.encode, AnswerLoss.__call__

    def note_encoding(self: PerkModel, text: str) -> EncodedDocument:
        document = encode(self, text)
        encoded.append(document.adapter)
        return document

    def note_questions(
        self: AnswerLoss, theta: torch.Tensor, questions: Sequence[Sequence[Segment]]
    ) -> tuple[float, float, torch.Tensor]:
        asked.append(theta[0].clone())
        numbers.append(len(questions[0]))
        return loss(self, theta, questions)

    monkeypatch.setattr(PerkModel, "encode", note_encoding)
    monkeypatch.setattr(AnswerLoss, "__call__", note_questions)
    counts: list[int] = []
    begun = practise(model, _settings(), documents=3, steps=1, recalled=4, given=2, report=counts.append)
    assert counts == [1, 2, 3]
    assert len(encoded) == 3
    # In the first step nothing is added yet.
    assert all(any(theta.equal(adapter) for adapter in encoded) for theta in asked)
    assert numbers == [1, 1, 1, 1, 2]

    plain = [tensor.clone() for tensor in encoded]
    more = PerkModel(model.base, begun, adapted=model.adapted)
    encoded.clear()
    asked.clear()
    practise(more, _settings(), documents=3, steps=1, recalled=4, given=2)
    torch.testing.assert_close(encoded, plain, rtol=0, atol=0)
    added = [adapter + begun.tensors["answering"] for adapter in plain]
    assert all(any(theta.equal(adapter) for adapter in added) for theta in asked), "what was learned is gone"


def test_an_adapter_ends_with_what_was_learned(model: PerkModel) -> None:
    learned = PerkModel(
        model.base, practise(model, _settings(), documents=2, steps=3, rate=1e-2), adapted=model.adapted
    )
    text = "The code of amber acorn is 12345."
    addition = learned.checkpoint.tensors["answering"]
    torch.testing.assert_close(learned.encode(text).adapter, model.encode(text).adapter + addition, rtol=0, atol=0)
    torch.testing.assert_close(learned.initial, model.initial + addition, rtol=0, atol=0)
    assert learned.fingerprint != model.fingerprint


def test_a_configuration_may_change_how_documents_are_read(model: PerkModel) -> None:
    segments = model.settings.segments.model_copy(update={"series": True})
    kept = practise(model, _settings(), documents=1, steps=1)
    other = TrainSettings.model_validate(_run() | {"segments": segments})
    changed = practise(model, other, documents=1, steps=1)
    assert kept.settings == model.settings
    assert changed.settings == model.settings.model_copy(update={"segments": segments})


def test_what_is_learned_is_a_mean_of_the_last_steps(model: PerkModel) -> None:
    def learned(mean_steps: int) -> torch.Tensor:
        settings = TrainSettings.model_validate(_run() | {"outer": {"mean_steps": mean_steps}})
        return practise(model, settings, documents=1, steps=2).tensors["answering"]

    last, mean = learned(0), learned(5)
    assert 0 < mean.norm() < last.norm()


def test_a_stop_ends_it_with_what_is_learned(model: PerkModel) -> None:
    steps: list[float] = []

    def stop(loss: float, _exact: float) -> None:
        steps.append(loss)
        signal.raise_signal(signal.SIGTERM)

    learned = practise(model, _settings(), documents=1, steps=9, report_step=stop)
    assert len(steps) == 1
    assert float(learned.tensors["answering"].norm()) > 0

    def stop_early(encoded: int) -> None:
        assert encoded == 1, "another document was encoded after the stop"
        signal.raise_signal(signal.SIGTERM)

    learned = practise(model, _settings(), documents=3, steps=9, report=stop_early)
    assert float(learned.tensors["answering"].norm()) == 0


def test_each_process_needs_a_document(model: PerkModel) -> None:
    with pytest.raises(InvalidInput, match="documents: got 2, expected at least one for each of 3 processes"):
        practise(model, _settings(), documents=2, steps=1, processes=Processes(count=3))


def test_nothing_to_ask_is_told(model: PerkModel) -> None:
    with pytest.raises(InvalidInput, match="recalled: got 0, expected at least one"):
        practise(model, _settings(), documents=1, steps=1, recalled=0, given=0)


def test_a_rate_that_is_too_high_is_told(model: PerkModel) -> None:
    with pytest.raises(DivergenceError, match=r"step 2 of 3: loss nan at rate 1e\+30: try a smaller one"):
        practise(model, _settings(), documents=1, steps=3, rate=1e30)


def test_answers_without_support_leave_nothing_to_practise(model: PerkModel) -> None:
    settings = model.settings.model_copy(update={"templates": TemplateSettings()})
    bare = PerkModel(model.base, replace(model.checkpoint, settings=settings), adapted=model.adapted)
    with pytest.raises(InvalidInput, match="checkpoint: got 'tiny', expected one that tells the support"):
        practise(bare, _settings(), documents=1, steps=1)


def test_the_command_writes_a_checkpoint(model: PerkModel, tmp_path: Path) -> None:
    model.checkpoint.save(tmp_path / "start")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(_run()))
    arguments = ["practise", "--config", str(tmp_path / "run.yaml"), "--checkpoint", str(tmp_path / "start")]
    arguments += ["--out", str(tmp_path / "out"), "--documents", "1", "--steps", "1"]
    result = CliRunner().invoke(application, arguments)
    assert result.exit_code == 0, result.output
    written = load_checkpoint(tmp_path / "out")
    assert _changed(written, model.checkpoint) == {"answering"}
    assert written.fingerprint == practise(model, _settings(), documents=1, steps=1).fingerprint


def test_two_processes_ask_different_questions_and_one_writes_what_both_learned(
    model: PerkModel, tmp_path: Path
) -> None:
    model.checkpoint.save(tmp_path / "start")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(_run()))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["-m", "meta_training", "practise", "--config", str(tmp_path / "run.yaml")]
    arguments += ["--checkpoint", str(tmp_path / "start"), "--documents", "4", "--steps", "2"]
    done = subprocess.run(
        [*launcher, *arguments, "--out", str(tmp_path / "two")],
        check=True,
        timeout=200,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.stdout.count("100%") == 2, "one process shows the progress of both"
    one = practise(model, _settings(), documents=4, steps=2).tensors["answering"]
    learned = load_checkpoint(tmp_path / "two").tensors["answering"]
    assert float(learned.norm()) > 0
    assert not torch.equal(learned, one), "more was asked than one process asks"
