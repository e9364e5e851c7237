"""An experiment: runs that differ in a few settings, scored on the same data, and reported together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from meta_training.enlargement import enlarge
from meta_training.evaluate import Method, evaluate
from meta_training.make_data import make_data
from meta_training.report import report
from meta_training.settings import TrainSettings, read_settings, wrong_setting
from meta_training.trainer import run_training
from perk import PerkModel
from perk.errors import InvalidInput, PerkError

__all__ = ["Experiment", "StoppedError", "read_experiment", "run_experiment"]

CONFIGS = Path(__file__).resolve().parent / "configs"


class StoppedError(PerkError):
    """A signal stopped a run before its last step; its state is saved."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Settings):
    """One of the runs that are compared."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    """Its folder, inside the experiment's."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings over the configuration's, by dotted names."""
    tags: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """What the report lists it by as an ablation; none: by its method."""
    scored_steps: PositiveInt | None = None
    """Inner steps to score it with, more than it learned to take (`enlarge`); None: those it learned."""


class ScoredData(_Settings):
    """What all runs are scored on: one file for each length and position."""

    task: str
    tokens: tuple[PositiveInt, ...] = Field(min_length=1)
    positions: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """Places of the needle; none: anywhere."""
    count: PositiveInt
    """Documents of each file."""
    questions: PositiveInt | None = None
    """As in ``make-data``."""


class Experiment(_Settings):
    """What to train and what to score."""

    config: str
    """Configuration of all runs: a file of ``meta_training/configs``."""
    output: Path
    variants: tuple[Variant, ...] = Field(min_length=1)
    baselines: tuple[Method, ...] = ()
    """Methods that need no training of their own; asked of the first variant's base."""
    data: tuple[ScoredData, ...] = Field(min_length=1)
    seed: int = 1
    """Of the data; the runs have their own."""

    @model_validator(mode="after")
    def _names_differ(self) -> Experiment:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("variants: each needs a name of its own")
        return self


@dataclass(frozen=True)
class _File:
    path: Path
    position: float | None


def read_experiment(path: Path) -> Experiment:
    """Read a YAML file.

    Raises:
        InvalidInput: it cannot be read, or a key or value is wrong.
    """
    try:
        return Experiment.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput("experiment", path.name, f"a readable YAML file ({error})") from error
    except ValidationError as error:
        raise wrong_setting(error, otherwise="experiment") from error


def run_experiment(experiment: Experiment, overrides: Sequence[str] = ()) -> Path:
    """Train every variant, score all of them, write the report; returns its page.

    What an earlier call has finished is not done again: a run goes on from its saved state, and a score that is there
    stays. So an interrupted experiment is called again, and one whose settings change needs another `output`.

    Args:
        experiment: what to do.
        overrides: ``key=value`` settings on top of every run's.

    Raises:
        StoppedError: a run was stopped by a signal.
        InvalidInput: a variant's `scored_steps` are not what its run can be scored with.
        PerkError: as training and scoring raise.
    """
    config = CONFIGS / experiment.config
    runs = []
    for variant in experiment.variants:
        chosen = _overrides(experiment, variant, overrides)
        settings = read_settings(config, chosen)
        _require_steps(variant, settings)
        runs.append((variant, chosen, settings))
    first, _, settings = runs[0]
    files = list(_make_files(experiment, settings.base))
    scores: list[Path] = []
    for variant, chosen, settings in runs:
        resume = (settings.output / "state.safetensors").exists()
        step = run_training(config, chosen, resume=resume)
        if step < settings.total_steps:
            raise StoppedError(f"{variant.name}: stopped at step {step} of {settings.total_steps}; call again to go on")
        checkpoint = _scored(settings.output, variant)
        methods: list[Method] = [settings.method]
        if variant is first:
            methods += experiment.baselines
        for method in methods:
            tags = variant.tags if method == settings.method else {}
            scores += [_score(experiment, variant, checkpoint, file, method, tags) for file in files]
    page = experiment.output / "report.md"
    report(scores, page)
    return page


def _make_files(experiment: Experiment, base: str) -> Iterator[_File]:
    for data in experiment.data:
        for tokens in data.tokens:
            for position in data.positions or (None,):
                place = "" if position is None else f"-at-{position:g}"
                path = experiment.output / "data" / f"{data.task}-{tokens}{place}.jsonl"
                if not path.exists():
                    make_data(
                        data.task,
                        path,
                        tokens=tokens,
                        count=data.count,
                        seed=experiment.seed,
                        position=position,
                        base=base,
                        options={} if data.questions is None else {"questions": data.questions},
                    )
                yield _File(path, position)


def _require_steps(variant: Variant, settings: TrainSettings) -> None:
    """Refuse steps that a run could not be scored with, before hours of training."""
    steps = variant.scored_steps
    if steps is not None and (settings.method != "perk" or steps < settings.inner.steps):
        limit = f"at least the {settings.inner.steps} inner steps of a run by the method perk"
        raise InvalidInput(f"{variant.name}: scored_steps", str(steps), limit)


def _scored(trained: Path, variant: Variant) -> Path:
    """The checkpoint of a run as it is scored."""
    if variant.scored_steps is None:
        return trained
    prolonged = trained / f"steps-{variant.scored_steps}"
    model = PerkModel.load(trained)
    enlarge(model.checkpoint, model.adapted.layout, steps=variant.scored_steps).save(prolonged)
    return prolonged


def _score(
    experiment: Experiment,
    variant: Variant,
    checkpoint: Path,
    file: _File,
    method: Method,
    tags: dict[str, str | int | float | bool],
) -> Path:
    path = experiment.output / "scores" / f"{variant.name}-{method}-{file.path.stem}.json"
    if not path.exists():
        scores = evaluate(str(checkpoint), file.path, method=method)
        # By its name alone: where the run lies says nothing about it.
        scores["checkpoint"] = variant.name
        marks = {"position": file.position, "ablation": tags}
        scores |= {name: value for name, value in marks.items() if value not in (None, {})}
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(scores) + "\n", encoding="utf-8")
        scratch.replace(path)
    return path


def _overrides(experiment: Experiment, variant: Variant, further: Sequence[str]) -> list[str]:
    chosen = [f"{key}={json.dumps(value)}" for key, value in variant.set.items()]
    return [*chosen, *further, f"output={experiment.output / variant.name}"]
