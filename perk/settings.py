"""What determines an adapter besides weights: the settings that a checkpoint carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "BaseSettings",
    "GroupSettings",
    "InnerSettings",
    "LoraSettings",
    "PerkSettings",
    "RepeatSettings",
    "SegmentSettings",
    "TemplateSettings",
]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _require_format(name: str, template: str, field: str) -> None:
    try:
        template.format(**{field: 1})
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: {template!r} may use no field but {{{field}}}") from error


class BaseSettings(_Settings):
    """Which base model a checkpoint belongs to."""

    source: str = "default"
    """Hub id, folder, or ``default``."""
    fingerprint: str = ""
    """Hex digest of the base model's weights; empty until the base is loaded."""


class LoraSettings(_Settings):
    """Shape of the adapter (PERK section 4.1: LoRA on all linear layers, rank-stabilised)."""

    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0)
    rank_stabilised: bool = True
    """Scale by alpha / sqrt(rank) instead of alpha / rank."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear modules inside a layer, or all of them."""
    first_layer: int = Field(default=0, ge=0)
    """Layers below this one carry no adapter: their activations are computed once a document."""

    @property
    def scale(self) -> float:
        """Factor in front of B A x."""
        return self.alpha / (self.rank**0.5 if self.rank_stabilised else self.rank)


class RepeatSettings(_Settings):
    """A step of the inner loop that is taken again while a document is not learned: a longer one takes more steps.

    Meta-training takes it once: what it learns from is not that long. So does a document of numbered entries (`series`
    of its segments): they weigh most and are recalled without it, and the text around them is not recalled.
    """

    step: int = Field(ge=1)
    """Number of the step, from 1."""
    most: int = Field(ge=1, le=256)
    """Times at most that it is taken again."""
    loss: float = Field(gt=0)
    """The document is learned where its loss, entering the step, is below this: nats per token, weighted."""


class GroupSettings(_Settings):
    """Groups of a long document's segments take turns in a step of the inner loop: the adapter moves behind each.

    So it is learned in fewer passes over it. A document of numbered entries (`RepeatSettings`) is read whole.
    """

    step: int = Field(ge=1)
    """The first step in which they do, from 1."""
    tokens: int = Field(ge=8)
    """Of a group, about: it has as many, or fewer."""
    above: int = Field(default=0, ge=0)
    """A document of so many tokens, its prefixes counted, or fewer is read whole."""
    stride: int = Field(default=1, ge=1)
    """Behind the step to repeat, a document of n groups takes every n-th step, in which it moves n times; if n is more
    than this, every one of this many."""


class InnerSettings(_Settings):
    """The inner loop: N steps of gradient descent on the adapter alone."""

    rule: Literal["adamw", "rms"] = "adamw"
    """``adamw`` as in the paper, or ``rms``: the gradient of a tensor divided by its root mean square."""
    steps: int = Field(default=4, ge=1, le=64)
    step_size: float = Field(default=5e-5, gt=0)
    """Step size of every tensor and step before meta-training."""
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.01, ge=0)
    epsilon: float = Field(default=1e-8, gt=0)
    """Floor of the divisor of either rule."""
    candidates: int | None = Field(default=None, ge=1)
    """Predict tokens among the document's own and this many of the vocabulary's first ids, which byte-pair encoders
    order by frequency, instead of the whole vocabulary. None: the whole, as in the paper. At small sizes the head is
    most of the arithmetic; the answer loss of meta-training always sees the whole vocabulary."""
    # Left out where there are none: fingerprints of the checkpoints without them do not change.
    rivals: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), exclude_if=lambda value: value == ())
    """Before these steps, from 1, the tokens that each place of a document comes closest to mistaking for its own join
    the candidates, wherever in the vocabulary they are: nothing else keeps those from becoming likely. Not in
    meta-training."""
    repeat: RepeatSettings | None = Field(default=None, exclude_if=lambda value: value is None)
    """The step to repeat. None: every step is taken once, as in the paper."""
    groups: GroupSettings | None = Field(default=None, exclude_if=lambda value: value is None)
    """Groups that take turns. None: each step is one of the whole document, as in the paper, and in meta-training."""
    token_weighting: bool = True
    weighting_hidden: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _named_steps_exist(self) -> InnerSettings:
        named = [("rivals", step) for step in self.rivals]
        named += [] if self.repeat is None else [("repeat.step", self.repeat.step)]
        named += [] if self.groups is None else [("groups.step", self.groups.step)]
        for name, step in named:
            if step > self.steps:
                raise ValueError(f"{name}: step {step} of {self.steps}")
        if self.groups is not None and self.groups.stride > 1 and self.repeat is None:
            raise ValueError(f"groups.stride: {self.groups.stride} without a step to repeat, which it begins behind")
        return self


class SegmentSettings(_Settings):
    """How a document becomes a batch of short segments."""

    max_tokens: int = Field(default=128, ge=8)
    """Longest segment, its prefix and its number as a part not counted."""
    prefix: str = "doc_{index}: "
    """Names the segment; carries no loss. ``{index}`` is the segment's running number, from 1. Where it does not end in
    a space, the text begins with one: a text is recalled best in the form in which it was read, after a prompt."""

    # Left out where it is empty: fingerprints of the checkpoints without it do not change.
    end: str = Field(default="", exclude_if=lambda value: value == "")
    """Ends each segment's text, as part of it, so that recall learns where to stop: a line break, where one follows
    each support."""
    series: bool = Field(default=False, exclude_if=lambda value: value is False)
    """Whether the document's numbered series are read too, and where each ends (`perk.series`)."""
    parts: bool = Field(default=False, exclude_if=lambda value: value is False)
    """Whether paragraphs of a text without such series are numbered, so that each can be recalled (`perk.parts`)."""

    @model_validator(mode="after")
    def _prefix_formats(self) -> SegmentSettings:
        _require_format("prefix", self.prefix, "index")
        return self


class TemplateSettings(_Settings):
    """The texts around a question, what the model recalls of the document for it, and its answer."""

    prompt: str = "{question}\nAnswer:"
    support: str | None = None
    """What the model writes before the answer and not as part of it: ``{support}``, the document's own words that hold
    the answer, and the mark that ends them (PERK section 4.1, support-then-answer). None: it answers at once."""
    answer: str = " {answer}"
    max_support_tokens: int = Field(default=160, ge=1)
    """Most tokens to recall; beyond it the mark is put in and the answer must follow."""

    @property
    def support_end(self) -> str | None:
        """The mark that ends the support, or None where the model answers at once."""
        return None if self.support is None else self.support.partition("{support}")[2]

    def target(self, answer: str, support: Sequence[str]) -> str:
        """What the model is to write after a prompt; several supporting texts stand on lines of their own."""
        before = "" if self.support is None else self.support.format(support="\n".join(support))
        return before + self.answer.format(answer=answer)

    @model_validator(mode="after")
    def _templates_format(self) -> TemplateSettings:
        fields = [("prompt", self.prompt, "question"), ("answer", self.answer, "answer")]
        if self.support is not None:
            fields.append(("support", self.support, "support"))
        for name, template, field in fields:
            if template.count(f"{{{field}}}") != 1:
                raise ValueError(f"{name}: must contain {{{field}}} once")
            _require_format(name, template, field)
        if self.support_end is not None and not self.support_end.strip():
            raise ValueError("support: must end with a mark after {support}")
        return self


class PerkSettings(_Settings):
    """All settings of a checkpoint."""

    format: Literal[1] = 1
    # Left out where it is false, so that fingerprints of checkpoints, and with them ids of documents, do not change.
    in_context: bool = Field(default=False, exclude_if=lambda value: value is False)
    """Whether the adapter was trained to answer with the document in its prompt (FT-ICR): it encodes nothing."""
    base: BaseSettings = BaseSettings()
    lora: LoraSettings = LoraSettings()
    inner: InnerSettings = InnerSettings()
    segments: SegmentSettings = SegmentSettings()
    templates: TemplateSettings = TemplateSettings()
