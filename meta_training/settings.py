"""Settings of a meta-training run: a YAML file, checked; an unknown key is an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from perk.errors import InvalidInput
from perk.settings import InnerSettings, LoraSettings, SegmentSettings, TemplateSettings

__all__ = ["OuterSettings", "Stage", "TaskMix", "TrainSettings", "read_settings", "wrong_setting"]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OuterSettings(_Settings):
    """The outer loop (PERK section 3.3)."""

    unrolled: int = Field(default=2, ge=0)
    """T: inner steps at the end that the gradient goes through."""
    documents: int = Field(default=1, ge=1)
    """D: documents that one process differentiates together."""
    accumulation: int = Field(default=1, ge=1)
    """Batches of D documents that a process takes one after the other before each update, where memory bounds D."""
    questions: int | None = Field(default=None, ge=1)
    """Most questions of a document that a step asks, drawn anew each time; None: all that its task has. With `ft-icr`,
    which reads the document once a question, they decide what a step costs."""
    first_order: bool = False
    """Leave out the derivative of the inner gradients: cheaper, but the token weighting then learns nothing."""
    step_losses: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(1.0,), min_length=1)
    """Relative weights of the answer losses after each of the last inner steps, the final one last (MAML++,
    Antoniou et al., arXiv 1810.09502)."""
    rate: float = Field(default=1e-3, gt=0)
    """Learning rate of the initialisation."""
    step_size_rate: float = Field(default=1e-2, ge=0)
    """Learning rate of the logarithms of the inner step sizes; 0 keeps them fixed."""
    weighting_rate: float = Field(default=1e-3, ge=0)
    """Learning rate of the token weighting; 0 keeps it fixed."""
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=10, ge=0)
    """Outer steps over which the learning rates rise from zero."""
    decay: float = Field(default=0.1, ge=0, le=1)
    """Learning rates fall by a cosine to this share of their peak at the last step."""
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the meta-gradient."""
    batch_clip: float | None = Field(default=None, gt=0)
    """Largest norm of what each batch adds to the meta-gradient; None: any. Gradients of a task that is new can be ten
    times those of tasks long learned, which then are forgotten."""
    mean_steps: int = Field(default=0, ge=0)
    """Ship the exponential mean of the parameters over about so many outer steps, or over all while there are fewer; 0:
    ship the last ones. With few documents a step, much of each step is noise."""
    answer_weight: float = Field(default=1.0, gt=0)
    """How much a token of an answer, of the mark before it and of a derivation weighs in the loss against one of the
    support: a `Yes` after two whole records is a sixtieth of the tokens and all of the question."""
    token_limit: int = Field(default=1024, ge=64)
    """Most tokens of a micro-batch."""
    graph_tokens: int = Field(default=4096, ge=0)
    """Keep the unrolled graphs of documents up to T times this many tokens; rebuild them beyond."""

    @field_validator("step_losses")
    @classmethod
    def _some_loss(cls, weights: tuple[float, ...]) -> tuple[float, ...]:
        if weights and sum(weights) == 0:
            raise ValueError("one weight must be above zero")
        return weights


class TaskMix(_Settings):
    """One task of a stage."""

    task: str
    """Name as in ``make-data``."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the stage's documents, relative to the other tasks'."""
    tokens: tuple[PositiveInt, PositiveInt] = (256, 256)
    """Range of the documents' lengths."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the task."""

    @field_validator("tokens")
    @classmethod
    def _ordered(cls, tokens: tuple[int, int]) -> tuple[int, int]:
        if tokens[0] > tokens[1]:
            raise ValueError("the shortest length comes first")
        return tokens


class Stage(_Settings):
    """A stretch of the curriculum."""

    steps: int = Field(ge=1)
    tasks: tuple[TaskMix, ...] = Field(min_length=1)


class TrainSettings(_Settings):
    """A meta-training run, or one of what it is compared with."""

    method: Literal["perk", "ft-icr"] = "perk"
    """``ft-icr`` trains the same adapter to answer with the document in its prompt, without an inner loop: fine-tuning
    for in-context reasoning, the paper's baseline. `inner`, and what of `outer` is about inner steps and token weights,
    then has no effect."""
    seed: int = 0
    base: str = "default"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the base computes in; auto: float32 on CPUs, bfloat16 on GPUs. A service on CPUs answers in float32, which a
    GPU can train too, with products in TF32."""
    output: Path
    """Folder of the checkpoint, the state to resume from, and ``log.csv``."""
    lora: LoraSettings = LoraSettings()
    inner: InnerSettings = InnerSettings()
    segments: SegmentSettings = SegmentSettings()
    templates: TemplateSettings = TemplateSettings()
    outer: OuterSettings = OuterSettings()
    stages: tuple[Stage, ...] = Field(min_length=1)
    save_every: int = Field(default=20, ge=1)
    """Outer steps between two saved states."""
    evaluate_every: int = Field(default=0, ge=0)
    """Outer steps between two scores on development data; 0: none."""
    evaluate_documents: int = Field(default=16, ge=1)
    """Development documents of a score, drawn from the last stage's tasks in turn."""
    tensorboard: bool = False
    """Write the log for TensorBoard too."""

    @model_validator(mode="after")
    def _losses_follow_steps(self) -> TrainSettings:
        if len(self.outer.step_losses) > self.inner.steps:
            raise ValueError(f"outer.step_losses: at most one for each of the {self.inner.steps} inner steps")
        return self

    @property
    def total_steps(self) -> int:
        """Outer steps of all stages."""
        return self.stage_start(len(self.stages))

    def stage_at(self, step: int) -> tuple[int, Stage]:
        """The stage that an outer step belongs to, and its index; the last one's steps have no end."""
        for index, stage in enumerate(self.stages):
            if step < self.stage_start(index + 1):
                return index, stage
        return len(self.stages) - 1, self.stages[-1]

    def stage_start(self, index: int) -> int:
        """The first outer step of a stage; the end of all of them for the index after the last."""
        return sum(stage.steps for stage in self.stages[:index])


def read_settings(path: Path, overrides: Sequence[str] = ()) -> TrainSettings:
    """Read a YAML file and apply ``key.sub=value`` overrides, whose values are YAML too.

    Raises:
        InvalidInput: the file cannot be read, or a key or value is wrong.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidInput("config", str(path), f"a readable YAML file ({error})") from error
    if not isinstance(raw, dict):
        raise InvalidInput("config", type(raw).__name__, "a mapping of settings")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise InvalidInput("set", repr(override), "key=value")
        try:
            _put(raw, key.split("."), yaml.safe_load(value))
        except (LookupError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
            raise InvalidInput("set", repr(override), "the name of a setting, and a YAML value") from error
    try:
        return TrainSettings.model_validate(raw)
    except ValidationError as error:
        raise wrong_setting(error, otherwise="config") from error


def wrong_setting(error: ValidationError, *, otherwise: str) -> InvalidInput:
    """What pydantic found first, as an error of ours; `otherwise` names what has no field of its own."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return InvalidInput(field or otherwise, repr(first.get("input"))[:80], first["msg"])


def _put(place: Any, names: Sequence[str], value: Any) -> None:
    """Set a value inside nested mappings and lists."""
    *parents, leaf = names
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
    if isinstance(place, list):
        place[int(leaf)] = value
    else:
        place[leaf] = value
