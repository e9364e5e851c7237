"""An experiment trains its runs, scores them on the same data and reports; what is finished is not done again."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

import meta_training
from meta_training import experiment as module
from meta_training.experiment import Experiment, StoppedError, read_experiment, run_experiment
from meta_training.outer_loop import OuterResult
from meta_training.settings import read_settings
from meta_training.trainer import Trainer
from perk.checkpoint import load_checkpoint
from perk.errors import InvalidInput

FOLDER = Path(meta_training.__file__ or "").parent / "experiments"
FILES = sorted(FOLDER.glob("*.yaml"))


def _small(name: str, output: Path) -> Experiment:
    """The experiment itself, on data that a tiny base reads in no time."""
    experiment = read_experiment(FOLDER / f"{name}.yaml")
    data = tuple(
        d.model_copy(update={"tokens": (100,), "positions": d.positions[:1], "count": 1}) for d in experiment.data
    )
    return experiment.model_copy(update={"output": output, "data": data})


def _overrides(base: Path) -> list[str]:
    settings = ("lora.first_layer=2", "stages.0.steps=1", "stages.0.tasks.0.tokens=[60, 90]", "inner.candidates=64")
    return [f"base={base}", *settings, "templates.max_support_tokens=8"]


def test_there_are_the_papers_first_experiments() -> None:
    by_length, truncation, rank = (
        read_experiment(FOLDER / f"{name}.yaml") for name in ("qa1-length", "truncation", "rank")
    )
    assert {data.task for data in by_length.data} == {"babilong-qa1"}
    assert {variant.name: variant.scored_steps for variant in by_length.variants} == {"perk": 12, "ft-icr": None}
    assert [variant.tags for variant in truncation.variants] == [{"T of 4": t} for t in range(4)]
    assert [variant.tags for variant in rank.variants] == [{"rank": 16}, {"rank": 256}]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_runs_differ_in_what_their_tags_say(path: Path) -> None:
    experiment = read_experiment(path)
    makefile = (FOLDER.parent.parent / "Makefile").read_text()
    assert f"experiment meta_training/experiments/{path.name}" in makefile
    for variant in experiment.variants:
        chosen = [f"{key}={json.dumps(value)}" for key, value in variant.set.items()]
        settings = read_settings(module.CONFIGS / experiment.config, chosen)
        assert variant.tags.get("rank", settings.lora.rank) == settings.lora.rank
        assert settings.lora.scale == pytest.approx(2.0)
        assert variant.tags.get("T of 4", settings.outer.unrolled) == settings.outer.unrolled
        assert settings.inner.steps == 4


@pytest.mark.usefixtures("data_root")
def test_by_length_it_scores_both_methods_and_the_base(tiny_llama: Path, tmp_path: Path) -> None:
    experiment = _small("qa1-length", tmp_path / "out")
    page = run_experiment(experiment, _overrides(tiny_llama))
    text = page.read_text()
    for method in ("perk", "ft-icr", "in-context", "retrieval", "base"):
        assert f"| {method} |" in text
    assert "Accuracy by position of the needle" in text
    assert {path.name for path in page.parent.glob("*.svg")} >= {"accuracy.svg", "positions.svg"}

    trained = load_checkpoint(tmp_path / "out" / "perk")
    scored = load_checkpoint(tmp_path / "out" / "perk" / "steps-12")
    assert (trained.settings.inner.steps, scored.settings.inner.steps) == (4, 12)
    assert scored.tensors["log_step_sizes"][:4].equal(trained.tensors["log_step_sizes"])

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "scores").iterdir()}
    next(iter(sorted(before))).unlink()
    assert run_experiment(experiment, _overrides(tiny_llama)).read_text().count("| perk |") == text.count("| perk |")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "scores").iterdir()}
    assert before.keys() == after.keys()
    assert sum(before[path] != after[path] for path in before) == 1, "only what was missing is done again"


@pytest.mark.usefixtures("data_root")
@pytest.mark.parametrize(
    ("name", "values"),
    [("truncation", ["T of 4 0", "T of 4 1", "T of 4 2", "T of 4 3"]), ("rank", ["rank 16", "rank 256"])],
)
def test_an_ablation_lists_its_runs_by_their_tags(
    name: str, values: list[str], tiny_llama: Path, tmp_path: Path
) -> None:
    experiment = _small(name, tmp_path / "out")
    experiment = experiment.model_copy(update={"data": experiment.data[:1]})
    page = run_experiment(experiment, _overrides(tiny_llama))
    for value in values:
        assert f"| {value} | babilong-qa1 |" in page.read_text()
    assert (page.parent / "ablations.svg").exists()


@pytest.mark.usefixtures("data_root")
def test_a_run_that_a_signal_stopped_is_not_scored(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = _small("rank", tmp_path / "out")
    overrides = [*_overrides(tiny_llama), "stages.0.steps=1000"]
    taken = Trainer.train_step

    def then_stop(trainer: Trainer) -> OuterResult:
        result = taken(trainer)
        signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(Trainer, "train_step", then_stop)
    with pytest.raises(StoppedError, match="rank-16: stopped at step 1 of 1000; call again to go on"):
        run_experiment(experiment, overrides)
    assert not (tmp_path / "out" / "scores").exists()


@pytest.mark.parametrize(("change", "steps"), [({}, 3), ({"method": "ft-icr"}, 12)])
def test_steps_that_a_run_cannot_be_scored_with_are_refused_before_it_begins(
    change: dict[str, str], steps: int, tiny_llama: Path, tmp_path: Path
) -> None:
    experiment = _small("qa1-length", tmp_path / "out")
    variant = experiment.variants[0].model_copy(update={"set": change, "scored_steps": steps})
    experiment = experiment.model_copy(update={"variants": (variant,)})
    with pytest.raises(InvalidInput, match=rf"perk: scored_steps: got {steps}, expected at least the 4 inner steps"):
        run_experiment(experiment, _overrides(tiny_llama))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("variants: []", "variants: got"),
        ("variants: [{name: a}, {name: a}]", "each needs a name of its own"),
        ("variants: [{name: ../a}]", "name"),
        ("seeds: 3", "seeds"),
    ],
)
def test_a_bad_experiment_is_refused_by_name(change: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    lines = [line for line in FILES[0].read_text().splitlines() if not line.startswith(("variants", "  - {name"))]
    path.write_text("\n".join([*lines, *([] if "variants" in change else ["variants: [{name: a}]"]), change]) + "\n")
    with pytest.raises(InvalidInput, match=message):
        read_experiment(path)
    with pytest.raises(InvalidInput, match=r"experiment: got nowhere\.yaml"):
        read_experiment(tmp_path / "nowhere.yaml")
