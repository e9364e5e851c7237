"""A meta-training run: resumed bit for bit, stopped by a signal without loss, and refused where it is set up wrong."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import meta_training.__main__ as command
from meta_training.outer_loop import OuterLoop, OuterResult
from meta_training.settings import TrainSettings, read_settings
from meta_training.trainer import DivergenceError, Trainer, run_training
from perk import BaseMismatch, CheckpointError, InvalidInput, PerkModel
from perk.base_model import load_base_model
from perk.checkpoint import load_checkpoint
from perk.readers import READERS

# A second stage begins within the run, and all that is learned is learned.
CONFIG: dict[str, Any] = {
    "seed": 3,
    "lora": {"rank": 2, "first_layer": 2},
    "inner": {"rule": "rms", "steps": 2, "step_size": 0.01, "weighting_hidden": 8},
    "outer": {"unrolled": 1, "documents": 2, "warmup": 2, "rate": 0.01},
    "stages": [
        {"steps": 2, "tasks": [{"task": "student-recall", "options": {"records": 1, "questions": 2}}]},
        {
            "steps": 2,
            "tasks": [
                {"task": "student-recall", "tokens": [60, 160], "options": {"questions": 1}},
                {"task": "key-value", "tokens": [30, 60], "options": {"questions": 1}},
            ],
        },
    ],
}
COLUMNS = [
    *("step", "seconds", "stage", "task", "tokens", "questions", "answer_loss", "exact"),
    *("inner_loss_before", "inner_loss_after", "gradient_norm", "mean_step_size"),
]


@pytest.fixture
def make_trainer(tiny_llama: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """Makes trainers that write into a folder of that name; other arguments are settings over `CONFIG`."""

    def make(name: str = "run", *, base: Path = tiny_llama, **settings: Any) -> Trainer:
        chosen = {**CONFIG, "base": str(base), "output": tmp_path / name, **settings}
        return Trainer(TrainSettings.model_validate(chosen), load_base_model(str(base), device="cpu"))

    return make


@pytest.fixture
def config(tiny_llama: Path, tmp_path: Path) -> Path:
    """File with `CONFIG`; its run writes into the folder ``out`` beside it."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "base": str(tiny_llama), "output": str(tmp_path / "out")}))
    return path


def _log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _without_seconds(folder: Path) -> list[dict[str, str]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in _log(folder)]


def _values(trainer: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.meta.tensors().items()}


@pytest.mark.parametrize("mean_steps", [0, 3])
def test_a_resumed_run_continues_bit_for_bit(
    mean_steps: int, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    outer = {**CONFIG["outer"], "mean_steps": mean_steps}
    make_trainer("straight", outer=outer).run()

    first = make_trainer("resumed", outer=outer)
    for _ in range(2):
        first.train_step()
    first.save()
    # A killed run may have gone on after its last saved state: that work is done again.
    first.train_step()
    second = make_trainer("resumed", outer=outer)
    second.resume()
    assert second.step == 2
    second.run()

    straight, resumed = (load_file(tmp_path / name / "state.safetensors") for name in ("straight", "resumed"))
    assert any(name.startswith("optimiser.") for name in straight)
    torch.testing.assert_close(resumed, straight, rtol=0, atol=0)
    assert _without_seconds(tmp_path / "resumed") == _without_seconds(tmp_path / "straight")
    checkpoints = [load_checkpoint(tmp_path / name).fingerprint for name in ("straight", "resumed")]
    assert checkpoints[0] == checkpoints[1]


def test_a_terminated_run_saves_the_step_it_is_in_and_can_be_resumed(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--set", "stages.0.steps=100000", "--set", "save_every=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "meta_training", "train", "--config", str(config), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not ((out / "log.csv").exists() and len(_log(out)) >= 2):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, "the run does not begin"
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, output
    steps = [int(row["step"]) for row in _log(out)]
    assert steps == list(range(1, len(steps) + 1))

    settings = read_settings(config, arguments[1::2])
    trainer = Trainer(settings, load_base_model(settings.base, device="cpu"))
    trainer.resume()
    assert trainer.step == len(steps)
    trainer.train_step()
    assert [int(row["step"]) for row in _log(out)] == [*steps, len(steps) + 1]


def test_the_signals_mean_what_they_meant_before_once_a_run_is_over(make_trainer: Callable[..., Trainer]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    make_trainer().run()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_each_step_is_a_row_of_the_log(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    make_trainer().run()
    rows = _log(tmp_path / "run")
    assert list(rows[0]) == COLUMNS
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert [int(row["stage"]) for row in rows] == [0, 0, 1, 1]
    assert [row["questions"] for row in rows] == ["4", "4", "2", "2"]
    for row in rows:
        assert set(row["task"].split("+")) <= {"student-recall", "key-value"}
        assert int(row["tokens"]) > 20
        assert 0 <= float(row["exact"]) <= 1
        for name in ("answer_loss", "inner_loss_before", "inner_loss_after", "gradient_norm"):
            assert 0 < float(row[name]) < 100, name
        assert float(row["mean_step_size"]) == pytest.approx(0.01, rel=0.2)
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)


def test_a_run_leaves_a_checkpoint_that_encodes_and_answers(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer()
    before = _values(trainer)
    trainer.run()
    for name, tensor in trainer.meta.tensors().items():
        assert not torch.equal(tensor, before[name]), f"{name} has not learned"
    model = PerkModel.load(tmp_path / "run", device="cpu")
    assert model.checkpoint_name == "run"
    encoded = model.encode("The code of amber acorn is 12345.")
    assert model.answer(encoded.adapter, "What is the code of amber acorn?", max_tokens=3).completion_tokens <= 3


def test_the_mean_of_the_last_steps_is_what_a_run_leaves(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    earlier = make_trainer("earlier")
    earlier.train_step()
    trainer = make_trainer(outer={**CONFIG["outer"], "mean_steps": 3})
    trainer.start_from(earlier.checkpoint())
    expected = _values(earlier)
    torch.testing.assert_close(trainer.checkpoint().tensors, expected, rtol=0, atol=0)
    # All so far weigh the same until there are three, and a third is new from then on.
    for share in (1 / 2, 1 / 3, 1 / 3, 1 / 3):
        trainer.train_step()
        expected = {name: (1 - share) * expected[name] + share * value for name, value in _values(trainer).items()}
        torch.testing.assert_close(trainer.checkpoint().tensors, expected)
    trainer.save()
    assert load_checkpoint(tmp_path / "run").fingerprint == trainer.checkpoint().fingerprint

    # A run that took no mean before takes one from where it is.
    earlier.save()
    resumed = make_trainer("earlier", outer={**CONFIG["outer"], "mean_steps": 3})
    resumed.resume()
    torch.testing.assert_close(resumed.checkpoint().tensors, _values(earlier), rtol=0, atol=0)


def test_no_batch_adds_more_to_a_step_than_its_clip(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    outer = {**CONFIG["outer"], "documents": 1, "accumulation": 2, "clip": 100.0}
    for name, clip in (("free", None), ("wide", 100.0), ("narrow", 1e-2)):
        make_trainer(name, outer={**outer, "batch_clip": clip}).train_step()
    assert _without_seconds(tmp_path / "free") == _without_seconds(tmp_path / "wide")
    (free,), (narrow,) = _log(tmp_path / "free"), _log(tmp_path / "narrow")
    assert float(free["gradient_norm"]) > 0.1
    # Two gradients of the same size that are not the same have a smaller mean.
    assert 1e-3 < float(narrow["gradient_norm"]) < 1e-2

    make_trainer("alone", outer={**outer, "accumulation": 1, "batch_clip": 1e-2}).train_step()
    assert float(_log(tmp_path / "alone")[0]["gradient_norm"]) == pytest.approx(1e-2, rel=0.02)


def test_documents_with_long_supports_share_a_batch(
    make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[int]] = []
    backward = OuterLoop.backward

    def noted(*arguments: Any) -> OuterResult:
        batches.append([max(question.loss_tokens for question in questions) for questions in arguments[-1]])
        return backward(*arguments)

    monkeypatch.setattr(OuterLoop, "backward", noted)
    # A record is several times as long as a pair of a key and a value.
    trainer = make_trainer(outer={**CONFIG["outer"], "accumulation": 2}, stages=CONFIG["stages"][1:])
    trainer.train_step()
    pairs, records = batches
    assert len(pairs) == len(records) == 2
    assert max(pairs) < min(records)


def test_the_base_stays_as_it_is(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    before = {name: tensor.clone() for name, tensor in trainer.base.model.state_dict().items()}
    trainer.train_step()
    torch.testing.assert_close(dict(trainer.base.model.state_dict()), before, rtol=0, atol=0)


def test_a_step_draws_by_its_number_and_the_seed(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    drawn = [trainer.curriculum.draw(step) for step in range(4)]
    random.seed(1)
    assert [make_trainer().curriculum.draw(step) for step in reversed(range(4))] == drawn[::-1]
    assert make_trainer(seed=4).curriculum.draw(0) != drawn[0]
    assert len({draw.documents for draw in drawn}) == 4


@pytest.mark.parametrize(
    ("rate", "fixed"),
    [("step_size_rate", "log_step_sizes"), ("weighting_rate", "token_weighting.down.weight")],
)
def test_a_learning_rate_of_zero_keeps_a_part_as_it_is(
    rate: str, fixed: str, make_trainer: Callable[..., Trainer]
) -> None:
    trainer = make_trainer(outer={**CONFIG["outer"], rate: 0})
    before = _values(trainer)
    trainer.train_step()
    after = _values(trainer)
    torch.testing.assert_close(after[fixed], before[fixed], rtol=0, atol=0)
    assert not torch.equal(after["initial"], before["initial"])


def test_the_learning_rate_rises_then_falls(make_trainer: Callable[..., Trainer]) -> None:
    stages = [{"steps": 8, "tasks": CONFIG["stages"][0]["tasks"]}]
    trainer = make_trainer(stages=stages, outer={**CONFIG["outer"], "warmup": 4, "betas": (0, 0), "decay": 0.1})
    moves = []
    for _ in range(8):
        before = _values(trainer)["initial"]
        trainer.train_step()
        # Without memory, Adam moves every element by the learning rate.
        moves.append(float((trainer.meta.initial.detach() - before).abs().max()))
    assert moves[:5] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01], rel=0.01)
    assert moves[4:] == sorted(moves[4:], reverse=True)
    assert 0.001 < moves[-1] < 0.004


def test_a_run_that_diverges_ends_and_saves_what_it_diverged_on(
    make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = make_trainer(inner={**CONFIG["inner"], "step_size": 1e30})
    before = _values(trainer)
    with pytest.raises(DivergenceError, match=r"step 0: answer loss .* its data is in diverged-0\.json") as caught:
        trainer.run()
    torch.testing.assert_close(_values(trainer), before, rtol=0, atol=0)
    saved = json.loads((tmp_path / "run" / "diverged-0.json").read_text())
    drawn = trainer.curriculum.draw(0)
    assert [document["context"] for document in saved["documents"]] == [d.context for d in drawn.documents]
    assert saved["tasks"] == list(drawn.tasks)
    assert "Student" not in str(caught.value), "the text itself is in the file alone"
    assert not (tmp_path / "run" / "state.safetensors").exists()


def test_a_state_is_not_overwritten_unasked(config: Path, tmp_path: Path) -> None:
    run_training(config, ["stages.0.steps=1"])
    state = (tmp_path / "out" / "state.safetensors").read_bytes()
    with pytest.raises(InvalidInput, match="a folder without a saved state, or --resume"):
        run_training(config)
    assert (tmp_path / "out" / "state.safetensors").read_bytes() == state
    run_training(config, resume=True)
    assert len(_log(tmp_path / "out")) == 4


def test_there_must_be_a_state_to_resume_from(make_trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(InvalidInput, match=r"resume: got .*, expected a state saved by an earlier run"):
        make_trainer().resume()


def test_a_damaged_state_is_refused(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    make_trainer().save()
    path = tmp_path / "run" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidInput, match=r"resume: got a damaged state\.safetensors"):
        make_trainer().resume()


def test_a_state_of_another_adapter_is_refused(make_trainer: Callable[..., Trainer]) -> None:
    make_trainer().save()
    with pytest.raises(InvalidInput, match="expected the same settings"):
        make_trainer(lora={"rank": 3, "first_layer": 2}).resume()


def test_a_run_can_begin_with_another_checkpoint(config: Path, make_trainer: Callable[..., Trainer]) -> None:
    earlier = make_trainer("earlier")
    earlier.train_step()
    trainer = make_trainer()
    trainer.start_from(earlier.checkpoint())
    torch.testing.assert_close(_values(trainer), _values(earlier), rtol=0, atol=0)
    assert trainer.step == 0
    run_training(config, ["stages.0.steps=1"], start=earlier.checkpoint())


def test_readers_are_kept(make_trainer: Callable[..., Trainer]) -> None:
    begun = make_trainer("earlier").checkpoint()
    size = len(begun.tensors["initial"])
    readers = {name: torch.linspace(-0.1, 0.1 + place, size) for place, name in enumerate(READERS)}
    trainer = make_trainer(outer={**CONFIG["outer"], "mean_steps": 3})
    trainer.start_from(replace(begun, tensors=begun.tensors | readers))
    trainer.train_step()
    trainer.save()
    assert all(torch.equal(trainer.checkpoint().tensors[name], reader) for name, reader in readers.items())
    resumed = make_trainer(outer={**CONFIG["outer"], "mean_steps": 3})
    resumed.resume()
    assert resumed.checkpoint().fingerprint == trainer.checkpoint().fingerprint


def test_it_cannot_begin_with_a_checkpoint_that_does_not_fit(
    make_trainer: Callable[..., Trainer], tiny_qwen2: Path
) -> None:
    trainer = make_trainer()
    with pytest.raises(BaseMismatch):
        trainer.start_from(make_trainer(base=tiny_qwen2).checkpoint())
    with pytest.raises(CheckpointError, match="tensor 'initial' has shape"):
        trainer.start_from(make_trainer(lora={"rank": 3, "first_layer": 2}).checkpoint())
    incomplete = make_trainer().checkpoint()
    del incomplete.tensors["token_weighting.up.bias"]
    with pytest.raises(CheckpointError, match=r"token_weighting\.up\.bias"):
        trainer.start_from(incomplete)


def test_an_unknown_task_is_an_error_that_names_it(make_trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(InvalidInput, match="task: got 'student-recal'"):
        make_trainer(stages=[{"steps": 1, "tasks": [{"task": "student-recal"}]}])


def test_the_command_reports_an_error_in_one_line(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["meta_training", "train", "--config", str(config), "--set", "sede=1"])
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: sede: got 1, expected")
    assert error.count("\n") == 1


def test_the_command_trains(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["meta_training", "train", "--config", str(config), "--set", "stages.0.steps=1"])
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code == 0
    assert len(_log(tmp_path / "out")) == 3


def test_a_development_score_keeps_the_best_checkpoint(make_trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer = make_trainer(evaluate_every=2, evaluate_documents=2, tensorboard=True)
    trainer.run()
    with (tmp_path / "run" / "dev.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert trainer.best_score == max(float(row["exact_match"]) for row in rows)
    # Equal scores keep the earlier one.
    best = load_checkpoint(tmp_path / "run" / "best")
    assert best.fingerprint != load_checkpoint(tmp_path / "run").fingerprint
    assert list((tmp_path / "run" / "tensorboard").iterdir())

    resumed = make_trainer(evaluate_every=2, evaluate_documents=2)
    resumed.resume()
    assert resumed.best_score == trainer.best_score


def test_bfloat16_weights_train_float32_parameters(tiny_llama: Path, tmp_path: Path) -> None:
    settings = TrainSettings.model_validate({**CONFIG, "base": str(tiny_llama), "output": tmp_path / "run"})
    trainer = Trainer(settings, load_base_model(str(tiny_llama), device="cpu", dtype=torch.bfloat16))
    before = _values(trainer)
    # The weighting's last layer starts at zero: its first reaches the loss from the second step on.
    trainer.train_step()
    trainer.train_step()
    for name, tensor in trainer.meta.tensors().items():
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, before[name]), f"{name} has not learned"


def test_two_processes_train_as_one_with_twice_the_accumulation(config: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = ["-m", "meta_training", "train", "--config", str(config), "--set", f"output={tmp_path / 'two'}"]
    subprocess.run(
        [*launcher, *arguments, "--set", "outer.documents=1"],
        check=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    # As many threads as each of the two has: products split otherwise differ in their last digits.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_training(config, [f"output={tmp_path / 'one'}", "outer.documents=1", "outer.accumulation=2"])
    finally:
        torch.set_num_threads(threads)
    two, one = (load_file(tmp_path / name / "state.safetensors") for name in ("two", "one"))
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    assert _without_seconds(tmp_path / "two") == _without_seconds(tmp_path / "one")


def test_the_tiny_configuration_trains(tiny_llama: Path, tmp_path: Path) -> None:
    path = Path(command.__file__).parent / "configs" / "tiny-test.yaml"
    run_training(path, [f"base={tiny_llama}", f"output={tmp_path / 'tiny'}"])
    assert [row["step"] for row in _log(tmp_path / "tiny")] == ["1", "2"]
    assert (tmp_path / "tiny" / "best" / "perk.json").is_file()
