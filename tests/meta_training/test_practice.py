"""Practice learns the reader and nothing else: what it writes becomes likelier."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from meta_training.__main__ import application
from meta_training.practice import PracticeStep, Reads, practise
from meta_training.settings import TrainSettings
from meta_training.trainer import DivergenceError
from perk import PerkModel
from perk.checkpoint import Checkpoint, load_checkpoint
from perk.errors import InvalidInput
from perk.settings import TemplateSettings

pytestmark = pytest.mark.usefixtures("data_root")

_TEMPLATES = TemplateSettings(prompt="{question}\nSupport:", support=" {support}\nAnswer:", answer=" {answer}")


def _run(seed: int = 1) -> dict[str, Any]:
    tasks = [
        {"task": "student-relation", "tokens": [80, 120], "options": {"questions": 4}},
        {"task": "babilong-qa2", "tokens": [80, 120], "options": {"recount": True, "invented_share": 1}, "weight": 2},
    ]
    return {"seed": seed, "base": "tiny", "output": "run", "stages": [{"steps": 1, "tasks": tasks}]}


def _settings(seed: int = 1, **changes: Any) -> TrainSettings:
    return TrainSettings.model_validate(_run(seed) | changes)


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
    learned = practise(model, settings, report=lambda _, seen: losses.append(seen.loss), **options)
    return learned, losses


def test_what_the_reader_writes_becomes_likelier_and_all_else_stays(model: PerkModel) -> None:
    before = {name: tensor.clone() for name, tensor in model.checkpoint.tensors.items()}
    learned, losses = _watch(model, _settings(), steps=30, questions=3, rate=1e-2)
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert learned.settings == model.settings
    assert _changed(learned, model.checkpoint) == {"reader"}
    for name, tensor in before.items():
        assert torch.equal(model.checkpoint.tensors[name], tensor), "the checkpoint begun with has changed"


def test_the_same_seed_gives_the_same_checkpoint(model: PerkModel) -> None:
    one, same, other = (practise(model, _settings(seed), steps=2, questions=2) for seed in (1, 1, 2))
    assert torch.equal(one.tensors["reader"], same.tensors["reader"])
    assert not torch.equal(one.tensors["reader"], other.tensors["reader"])


def test_a_reader_that_is_there_goes_on_learning(model: PerkModel) -> None:
    learned, losses = _watch(model, _settings(), steps=12, questions=2, rate=1e-2)
    more = PerkModel(model.base, learned, adapted=model.adapted)
    _, further = _watch(more, _settings(), steps=1, questions=2)
    assert further[0] < losses[0]


def test_it_begins_as_the_adapter_of_no_document(model: PerkModel) -> None:
    learned = practise(model, _settings(), steps=1, questions=1, rate=0)
    assert torch.equal(learned.tensors["reader"], model.checkpoint.tensors["initial"])


def test_a_reader_of_parts_is_another(model: PerkModel) -> None:
    entries = practise(model, _settings(), steps=2, questions=1)
    begun = PerkModel(model.base, entries, adapted=model.adapted)
    parts = practise(begun, _settings(), steps=1, questions=1, reads="parts", rate=0)
    assert _changed(parts, entries) == {"part_reader"}
    assert torch.equal(parts.tensors["part_reader"], entries.tensors["reader"]), "it begins as the one that is there"
    # Each step is of reading and of choosing.
    _, losses = _watch(begun, _settings(), steps=40, questions=3, reads="parts", rate=1e-2)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def _chosen(steps: list[PracticeStep]) -> float:
    """Mean share of right choices."""
    assert all(step.chosen is not None for step in steps)
    return sum(step.chosen or 0.0 for step in steps) / len(steps)


def _own_file(folder: Path, rows: list[dict[str, Any]]) -> TrainSettings:
    """Settings of a run on a file of one's own."""
    (folder / "own.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    own = {"task": "json-lines", "tokens": [99, 99], "options": {"path": str(folder / "own.jsonl")}}
    return _settings(stages=[{"steps": 1, "tasks": [own]}])


def test_a_reader_of_parts_learns_to_choose_one(model: PerkModel, tmp_path: Path) -> None:
    rows = []
    for name in ("Ann", "Bob", "Cy", "Di", "Ed", "Flo"):
        support = f"The Mill. {name} built it in spring. The wheel is made of oak."
        asked = {"Who was the builder?": name, "What was used for it?": "oak"}
        rows += [
            {"context": support, "question": question, "answer": answer, "support": [support]}
            for question, answer in asked.items()
        ]
    settings = _own_file(tmp_path, rows)
    before: list[PracticeStep] = []
    seen: list[PracticeStep] = []
    practise(model, settings, steps=10, questions=4, reads="parts", rate=0, report=lambda _, step: before.append(step))
    practise(model, settings, steps=40, questions=4, reads="parts", rate=1e-2, report=lambda _, step: seen.append(step))
    assert _chosen(before) < 0.6 < 0.9 < _chosen(seen[-10:])
    practise(model, settings, steps=1, questions=4, report=lambda _, step: seen.append(step))
    assert seen[-1].chosen is None, "entries are not chosen"


def test_of_questions_without_support_no_part_is_read(model: PerkModel, tmp_path: Path) -> None:
    bare = {"context": "Ann built it.", "question": "Who built it?", "answer": "Ann"}
    supported = {"context": "Bob built it.", "question": "Who built it?", "answer": "Bob", "support": ["Bob built it."]}
    settings = _own_file(tmp_path, [bare, supported, bare | {"context": "It was built by Ann."}])
    learned, losses = _watch(model, settings, steps=1, questions=8, reads="parts")
    assert len(losses) == 1
    assert _changed(learned, model.checkpoint) == {"part_reader"}
    with pytest.raises(InvalidInput, match="tasks: got '', expected tasks whose questions come with their support"):
        practise(model, _own_file(tmp_path, [bare] * 2), steps=1, reads="parts")


def test_a_configuration_may_change_how_documents_are_read(model: PerkModel) -> None:
    segments = model.settings.segments.model_copy(update={"series": True})
    kept = practise(model, _settings(), steps=1, questions=1)
    changed = practise(model, _settings(segments=segments), steps=1, questions=1)
    assert kept.settings == model.settings
    assert changed.settings == model.settings.model_copy(update={"segments": segments})


def test_what_is_learned_is_a_mean_of_the_last_steps(model: PerkModel) -> None:
    def moved(mean_steps: int) -> float:
        learned = practise(model, _settings(outer={"mean_steps": mean_steps}), steps=2, questions=1)
        return float((learned.tensors["reader"] - model.initial).norm())

    assert 0 < moved(5) < moved(0)


def test_a_stop_ends_it_with_what_is_learned(model: PerkModel) -> None:
    steps: list[PracticeStep] = []

    def stop(_: int, seen: PracticeStep) -> None:
        steps.append(seen)
        signal.raise_signal(signal.SIGTERM)

    learned = practise(model, _settings(), steps=9, questions=1, report=stop)
    assert len(steps) == 1
    assert not torch.equal(learned.tensors["reader"], model.initial)


@pytest.mark.parametrize(("reads", "name"), [("entries", "reader"), ("parts", "part_reader")])
def test_a_stopped_run_resumes_as_if_it_had_gone_on(model: PerkModel, tmp_path: Path, reads: Reads, name: str) -> None:
    settings = _settings(outer={"mean_steps": 3}, save_every=2)
    options: dict[str, Any] = {"steps": 5, "questions": 2, "reads": reads, "rate": 1e-2}

    def stop(step: int, _: PracticeStep) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    whole = practise(model, settings, **options, folder=tmp_path / "whole")
    practise(model, settings, **options, folder=tmp_path / "stopped", report=stop)
    further: list[int] = []
    resumed = practise(
        model,
        settings,
        **options,
        folder=tmp_path / "stopped",
        resume=True,
        report=lambda step, _: further.append(step),
    )
    assert further == [4, 5]
    assert torch.equal(resumed.tensors[name], whole.tensors[name])
    assert load_checkpoint(tmp_path / "stopped").fingerprint == resumed.fingerprint
    assert _log(tmp_path / "stopped") == _log(tmp_path / "whole")


def _log(folder: Path) -> list[dict[str, str]]:
    """Rows of a run's log, without what depends on the clock."""
    with (folder / "log.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_a_killed_run_resumes_from_the_last_state_it_saved(model: PerkModel, tmp_path: Path) -> None:
    settings = _settings(save_every=2)

    class KilledError(Exception):
        pass

    def kill(step: int, _: PracticeStep) -> None:
        if step == 3:
            raise KilledError

    with pytest.raises(KilledError):
        practise(model, settings, steps=4, questions=1, folder=tmp_path, report=kill)
    assert [row["step"] for row in _log(tmp_path)] == ["1", "2", "3"]
    resumed = practise(model, settings, steps=4, questions=1, folder=tmp_path, resume=True)
    assert [row["step"] for row in _log(tmp_path)] == ["1", "2", "3", "4"]
    assert torch.equal(resumed.tensors["reader"], practise(model, settings, steps=4, questions=1).tensors["reader"])


def test_a_state_is_neither_overwritten_nor_taken_for_another_run_s(model: PerkModel, tmp_path: Path) -> None:
    def run(**options: Any) -> Checkpoint:
        return practise(model, _settings(), steps=1, questions=1, folder=tmp_path, **options)

    with pytest.raises(InvalidInput, match=r"resume: got .*expected a state saved by an earlier run"):
        run(resume=True)
    run()
    with pytest.raises(InvalidInput, match=r"out: got .* expected a folder without a saved state, or --resume"):
        run()
    with pytest.raises(
        InvalidInput, match=r"resume: got the state of a run that learns reader, expected .*part_reader"
    ):
        run(resume=True, reads="parts")


def test_a_rate_that_is_too_high_is_told(model: PerkModel) -> None:
    with pytest.raises(DivergenceError, match=r"step 2 of 3: loss nan at rate 1e\+30: try a smaller one"):
        practise(model, _settings(), steps=3, questions=1, rate=1e30)


def test_answers_without_support_leave_nothing_to_practise(model: PerkModel) -> None:
    settings = model.settings.model_copy(update={"templates": TemplateSettings()})
    bare = PerkModel(model.base, replace(model.checkpoint, settings=settings), adapted=model.adapted)
    with pytest.raises(InvalidInput, match="checkpoint: got 'tiny', expected one that tells the support"):
        practise(bare, _settings(), steps=1)


@pytest.mark.parametrize(("reads", "name"), [("entries", "reader"), ("parts", "part_reader")])
def test_the_command_writes_a_checkpoint(model: PerkModel, tmp_path: Path, reads: Reads, name: str) -> None:
    model.checkpoint.save(tmp_path / "start")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(_run()))
    arguments = ["practise", "--config", str(tmp_path / "run.yaml"), "--checkpoint", str(tmp_path / "start")]
    arguments += ["--out", str(tmp_path / "out"), "--steps", "1", "--reads", reads]
    result = CliRunner().invoke(application, arguments)
    assert result.exit_code == 0, result.output
    written = load_checkpoint(tmp_path / "out")
    assert _changed(written, model.checkpoint) == {name}
    assert written.fingerprint == practise(model, _settings(), steps=1, reads=reads).fingerprint


def test_two_processes_learn_from_the_questions_that_one_would_ask_in_twice_the_time(
    model: PerkModel, tmp_path: Path
) -> None:
    model.checkpoint.save(tmp_path / "start")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(_run()))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["-m", "meta_training", "practise", "--config", str(tmp_path / "run.yaml")]
    arguments += ["--checkpoint", str(tmp_path / "start"), "--steps", "2", "--questions", "2"]
    done = subprocess.run(
        [*launcher, *arguments, "--out", str(tmp_path / "two")],
        check=True,
        timeout=200,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.stdout.count("100%") == 1, "one process shows the progress of both"
    one = practise(model, _settings(), steps=2, questions=4).tensors["reader"]
    learned = load_checkpoint(tmp_path / "two").tensors["reader"]
    torch.testing.assert_close(learned, one, rtol=1e-3, atol=1e-5)
