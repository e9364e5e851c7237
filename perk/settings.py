"""What determines an adapter besides weights: the settings that a checkpoint carries."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "BaseSettings",
    "InnerSettings",
    "LoraSettings",
    "PerkSettings",
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
    token_weighting: bool = True
    weighting_hidden: int = Field(default=128, ge=1)


class SegmentSettings(_Settings):
    """How a document becomes a batch of short segments."""

    max_tokens: int = Field(default=128, ge=8)
    """Longest segment, its prefix not counted."""
    prefix: str = "doc_{index}: "
    """Names the segment; carries no loss. ``{index}`` is the segment's running number, from 1."""

    @model_validator(mode="after")
    def _prefix_formats(self) -> SegmentSettings:
        _require_format("prefix", self.prefix, "index")
        return self


class TemplateSettings(_Settings):
    """The texts around a question and its answer."""

    prompt: str = "{question}\nAnswer:"
    answer: str = " {answer}"

    @model_validator(mode="after")
    def _templates_format(self) -> TemplateSettings:
        for name, template, field in (("prompt", self.prompt, "question"), ("answer", self.answer, "answer")):
            if f"{{{field}}}" not in template:
                raise ValueError(f"{name}: must contain {{{field}}}")
            _require_format(name, template, field)
        return self


class PerkSettings(_Settings):
    """All settings of a checkpoint."""

    format: Literal[1] = 1
    base: BaseSettings = BaseSettings()
    lora: LoraSettings = LoraSettings()
    inner: InnerSettings = InnerSettings()
    segments: SegmentSettings = SegmentSettings()
    templates: TemplateSettings = TemplateSettings()
