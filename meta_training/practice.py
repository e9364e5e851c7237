"""Practice: how to answer from adapters, learned behind the inner loop by ordinary gradient steps.

The inner loop writes what a document says; in which order to recall it, when to stop and what follows from it is the
same for all documents. That is learned as one more adapter, which is added to each encoded one. As it has no say in how
documents are written, they are encoded once, asked about in step after step under the same adapters, and the gradient
is exact without a derivative of the inner loop: what an adapter holds stays as well written as it was. (First-order
steps on the initialisation itself, which writing begins with, cost recall: docs/results.md.)

What follows from words already recalled (how two values compare, which words of a paragraph answer) needs no document
of its own: its support is given, and the many examples that a small model wants are cheap.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice

import torch
from torch import Tensor

from meta_training.answer_loss import AnswerLoss
from meta_training.curriculum import Curriculum
from meta_training.document import Document
from meta_training.processes import Processes
from meta_training.question_segment import question_segment
from meta_training.rate_schedule import rate_share
from meta_training.running_mean import RunningMean
from meta_training.settings import TrainSettings
from meta_training.stop_signals import stop_signals
from meta_training.trainer import DivergenceError
from perk.checkpoint import Checkpoint
from perk.errors import InvalidInput
from perk.perk_model import PerkModel
from perk.segment import Segment
from perk.series import series_lines

__all__ = ["practise"]

_TOKEN_LIMIT = 2048
_WARMUP = 10
_LEAST_RATE = 0.05


@dataclass(frozen=True)
class _Encoded:
    """A document's adapter, ``[P]`` on the CPU, to which nothing is added yet; and the questions about it."""

    adapter: Tensor
    questions: list[Segment]


def practise(
    model: PerkModel,
    settings: TrainSettings,
    *,
    documents: int,
    steps: int,
    recalled: int = 6,
    given: int = 1,
    rate: float = 4e-4,
    report: Callable[[int], None] | None = None,
    report_step: Callable[[float, float], None] | None = None,
    processes: Processes | None = None,
) -> Checkpoint:
    """Learn what to add to adapters; ends early on a SIGTERM or SIGINT, with what is learned so far.

    Args:
        model: with the checkpoint to begin with. If something is added to its adapters already, that goes on learning.
        settings: of a run, whose seed and stages say what is asked, a document after the other; whose `answer_weight`
            holds; over how many of the last steps the result is a mean (`mean_steps`); and which segments documents are
            read in, if that is to change.
        documents: to encode before the first step; their adapters stay in memory.
        steps: of AdamW; its rate rises over the first ten and falls by a cosine.
        recalled: questions of each step to be answered from memory, each about a document drawn anew.
        given: fresh questions of each step whose supports are given, under the adapter of one of the documents.
        rate: at its highest.
        report: called with the number of documents encoded so far, after each.
        report_step: called after each step with the mean NLL of a token before it, in nats, and the share of questions
            whose every token was the likeliest, of this process.
        processes: each of which encodes its share of the documents and asks about those; the gradient is the mean over
            all of them. None: this one is alone.

    Returns:
        The checkpoint with another ``answering``.

    Raises:
        InvalidInput: the checkpoint answers without telling a support first, or nothing is to be asked.
        DivergenceError: the loss or its gradient is not finite.
    """
    if model.settings.templates.support is None:
        raise InvalidInput("checkpoint", repr(model.checkpoint.name), "one that tells the support before the answer")
    if recalled + given < 1:
        raise InvalidInput("recalled", str(recalled), "at least one, or some questions that are given")
    processes = processes or Processes()
    if documents < processes.count:
        raise InvalidInput("documents", str(documents), f"at least one for each of {processes.count} processes")
    start = _to_learn(model.checkpoint, settings)
    answering = start.tensors["answering"].to(model.base.device).clone().requires_grad_()
    mean = RunningMean({"answering": answering}, settings.outer.mean_steps or 1)
    loss_of = AnswerLoss(model.adapted, token_limit=_TOKEN_LIMIT)
    optimiser = torch.optim.AdamW([answering], lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    share = partial(rate_share, total=steps, warmup=_WARMUP, least=_LEAST_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
    with stop_signals() as stop:
        asked = _Asked(_without_addition(model, start), settings, processes)
        for number in range(documents // processes.count):
            if processes.any(bool(stop)):
                return start
            asked.encode_one()
            if report is not None:
                report((number + 1) * processes.count)
        for step in range(steps):
            losses, exact, gradients = zip(
                *(
                    loss_of((known.adapter.to(answering) + answering.detach())[None], [known.questions])
                    for known in asked.draw(recalled, given)
                ),
                strict=True,
            )
            answering.grad = processes.total(torch.cat(gradients).mean(0)) / processes.count
            norm = torch.nn.utils.clip_grad_norm_([answering], 1.0)
            loss = sum(losses) / len(losses)
            if not (math.isfinite(loss) and bool(norm.isfinite())):
                raise DivergenceError(f"step {step + 1} of {steps}: loss {loss} at rate {rate}: try a smaller one")
            optimiser.step()
            schedule.step()
            mean.add({"answering": answering}, step + 1)
            if report_step is not None:
                report_step(loss, sum(exact) / len(exact))
            # Signals do not reach all processes in the same step.
            if processes.any(bool(stop)):
                break
    return replace(start, tensors=start.tensors | {"answering": mean.tensors["answering"].cpu()})


class _Asked:
    """What is asked, step after step."""

    def __init__(self, model: PerkModel, settings: TrainSettings, processes: Processes) -> None:
        curriculum = Curriculum(settings, count_tokens=model.count_tokens, documents=processes.count)
        self._documents = (curriculum.draw(step).documents[processes.index] for step in count())
        self._model = model
        self._answer_weight = settings.outer.answer_weight
        self._rng = random.Random(f"{settings.seed}-practice-{processes.index}")
        self._encoded: list[_Encoded] = []
        self._fresh = self._given()

    def encode_one(self) -> None:
        """Encode the next document."""
        document = next(self._documents)
        questions = list(self._segments(document, recall_weight=1.0))
        self._encoded.append(_Encoded(self._model.encode(document.text).adapter, questions))

    def draw(self, recalled: int, given: int) -> list[_Encoded]:
        """A question about each of some documents, and others with their supports under the adapter of one."""
        drawn = self._rng.choices(self._encoded, k=recalled)
        batches = [replace(known, questions=[self._rng.choice(known.questions)]) for known in drawn]
        if given:
            other = self._rng.choice(self._encoded)
            batches.append(replace(other, questions=list(islice(self._fresh, given))))
        return batches

    def _given(self) -> Iterator[Segment]:
        for document in self._documents:
            yield from self._segments(document, recall_weight=0.0)

    def _segments(self, document: Document, *, recall_weight: float) -> Iterator[Segment]:
        stands = partial(_stands, document.text, set(series_lines(document.text)))
        for question in document.questions:
            yield question_segment(
                question,
                self._model.base,
                self._model.settings.templates,
                answer_weight=self._answer_weight,
                stands=stands,
                recall_weight=recall_weight,
            )


def _stands(text: str, series: set[str], line: str) -> bool:
    return line in text or line in series


def _to_learn(checkpoint: Checkpoint, settings: TrainSettings) -> Checkpoint:
    """The checkpoint with something that is added to adapters, at first nothing, and the segments of the run."""
    tensors = {"answering": torch.zeros_like(checkpoint.tensors["initial"])} | checkpoint.tensors
    read = checkpoint.settings
    if "segments" in settings.model_fields_set:
        read = read.model_copy(update={"segments": settings.segments})
    return replace(checkpoint, settings=read, tensors=tensors)


def _without_addition(model: PerkModel, checkpoint: Checkpoint) -> PerkModel:
    """What encodes as the checkpoint does, but for what that adds in the end."""
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name != "answering"}
    return PerkModel(model.base, replace(checkpoint, tensors=tensors), adapted=model.adapted)
