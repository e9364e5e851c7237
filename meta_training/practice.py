"""Practice: a reader, learned from supports that are given, by ordinary gradient steps (`perk.readers`).

Which entry of a document to recall next, when to stop, and what follows from those that were recalled is the same for
all documents; so is which paragraph a question is about, and where in it the answer stands. It is learned without any:
nothing is encoded, and the many examples that a small model wants are cheap. What documents are written from, and with
it what an adapter recalls, stays as it is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from meta_training.answer_loss import AnswerLoss
from meta_training.choice_example import choice_example
from meta_training.choice_loss import ChoiceLoss
from meta_training.curriculum import Curriculum
from meta_training.document import Document, Question
from meta_training.part_segment import part_segment
from meta_training.processes import Processes
from meta_training.rate_schedule import rate_share
from meta_training.reading_segment import reading_segment
from meta_training.running_mean import RunningMean
from meta_training.settings import TrainSettings
from meta_training.stop_signals import stop_signals
from meta_training.trainer import DivergenceError
from perk.checkpoint import Checkpoint
from perk.errors import InvalidInput
from perk.perk_model import PerkModel
from perk.readers import READERS
from perk.segment import Segment

__all__ = ["PracticeStep", "Reads", "practise"]

Reads = Literal["entries", "parts"]

_NAMES: dict[Reads, str] = dict(zip(get_args(Reads), READERS, strict=True))

_TOKEN_LIMIT = 2048
_WARMUP = 10
_LEAST_RATE = 0.05


@dataclass(frozen=True)
class PracticeStep:
    """What a step saw before it, of the questions of this process.

    Attributes:
        loss: mean NLL of a token, in nats.
        exact: share of questions whose every token was the likeliest.
        chosen: share of choices that were right; None where there were none.
    """

    loss: float
    exact: float
    chosen: float | None = None


def practise(
    model: PerkModel,
    settings: TrainSettings,
    *,
    steps: int,
    reads: Reads = "entries",
    questions: int = 4,
    rate: float = 4e-4,
    report: Callable[[PracticeStep], None] | None = None,
    processes: Processes | None = None,
) -> Checkpoint:
    """Learn a reader; ends early on a SIGTERM or SIGINT, with what is learned so far.

    Args:
        model: with the checkpoint to begin with. If that has this reader, it goes on learning; if not, it begins as
            the other one, or as the adapter of no document where there is none either.
        settings: of a run, whose seed and stages say what is asked, a document after the other; over how many of the
            last steps the result is a mean (`mean_steps`); and which segments documents are read in, if that is to
            change.
        reads: which reader: of a document's entries (`meta_training.reading_segment`), or of its parts, which it reads
            (`meta_training.part_segment`) and chooses (`meta_training.choice_example`).
        steps: of AdamW; its rate rises over the first ten and falls by a cosine.
        questions: of each step, each about a document of its own.
        rate: at its highest.
        report: called after each step.
        processes: each of which asks that many questions of its own; the gradient is the mean over all of them. None:
            this one is alone.

    Returns:
        The checkpoint with another ``reader`` or ``part_reader``.

    Raises:
        InvalidInput: the checkpoint answers without telling a support first, or parts are to be read and a task has
            none.
        DivergenceError: the loss or its gradient is not finite.
    """
    templates = model.settings.templates
    if templates.support is None:
        raise InvalidInput("checkpoint", repr(model.checkpoint.name), "one that tells the support before the answer")
    processes = processes or Processes()
    tensors, name = model.checkpoint.tensors, _NAMES[reads]
    begun = next(tensors[start] for start in (name, *READERS, "initial") if start in tensors)
    reader = begun.to(model.base.device).clone().requires_grad_()
    mean = RunningMean({name: reader}, settings.outer.mean_steps or 1)
    lesson = _Lesson(model, reads, random.Random(f"{settings.seed}-practice"))
    optimiser = torch.optim.AdamW([reader], lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    share = partial(rate_share, total=steps, warmup=_WARMUP, least=_LEAST_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
    curriculum = Curriculum(settings, count_tokens=model.count_tokens, documents=questions * processes.count)
    with stop_signals() as stop:
        for step in range(steps):
            documents = curriculum.draw(step).documents
            seen, gradient = lesson.learn(reader.detach()[None], documents, processes)
            reader.grad = processes.total(gradient[0]) / processes.count
            norm = torch.nn.utils.clip_grad_norm_([reader], 1.0)
            if not (math.isfinite(seen.loss) and bool(norm.isfinite())):
                raise DivergenceError(f"step {step + 1} of {steps}: loss {seen.loss} at rate {rate}: try a smaller one")
            optimiser.step()
            schedule.step()
            mean.add({name: reader}, step + 1)
            if report is not None:
                report(seen)
            # Signals do not reach all processes in the same step.
            if processes.any(bool(stop)):
                break
    read = model.settings
    if "segments" in settings.model_fields_set:
        read = read.model_copy(update={"segments": settings.segments})
    return replace(model.checkpoint, settings=read, tensors=tensors | {name: mean.tensors[name].cpu()})


class _Lesson:
    """The questions of a step, one a document, and what the reader makes of them."""

    def __init__(self, model: PerkModel, reads: Reads, rng: random.Random) -> None:
        self._base = model.base
        self._templates = model.settings.templates
        self._reads = reads
        self._rng = rng
        self._answers = AnswerLoss(model.adapted, token_limit=_TOKEN_LIMIT)
        self._choices = ChoiceLoss(model.adapted)
        can_merge = model.adapted.merged_bytes is not None
        self._merged = model.adapted.start_merging(model.base.dtype) if can_merge else None

    def learn(self, theta: Tensor, documents: Sequence[Document], processes: Processes) -> tuple[PracticeStep, Tensor]:
        """What was seen, and the gradient ``[1, P]``, of this process's share of the documents."""
        drawn = self._draw(documents)
        # All are made, so that every process draws the same numbers.
        asked = [self._segment(question) for question in drawn]
        choices = [choice_example(question, self._base, self._rng) for question in drawn if self._reads == "parts"]
        # Of fewer questions than processes, some are asked more than once.
        own = slice(processes.index % len(drawn), None, processes.count)
        if self._merged is not None:
            self._merged.merge(theta)
        asked = asked[own]
        loss, exact, gradient = self._answers(theta, [asked], self._merged)
        told = [choice for choice in choices[own] if choice is not None]
        if not told:
            return PracticeStep(loss, exact), gradient
        _, chosen, choice_gradient = self._choices(theta, told, self._merged)
        return PracticeStep(loss, exact, chosen / len(told)), gradient + choice_gradient / len(asked)

    def _draw(self, documents: Sequence[Document]) -> list[Question]:
        """A question of each document; for a reader of parts of those that have one with a support.

        Raises:
            InvalidInput: no document has one.
        """
        asked = [document.questions for document in documents]
        if self._reads == "parts":
            supported = (tuple(question for question in questions if question.support) for questions in asked)
            asked = [questions for questions in supported if questions]
        if not asked:
            tasks = sorted({repr(question.task) for document in documents for question in document.questions})
            raise InvalidInput("tasks", ", ".join(tasks), "tasks whose questions come with their support")
        return [self._rng.choice(questions) for questions in asked]

    def _segment(self, question: Question) -> Segment:
        """A question whose loss weighs one in all, however long it is."""
        if self._reads == "parts":
            segment = part_segment(question, self._base, self._templates, self._rng)
        else:
            segment = reading_segment(question, self._base, self._templates)
        weights = segment.weights or (1.0,) * segment.loss_tokens
        return replace(segment, weights=tuple(weight / segment.loss_weight for weight in weights))
