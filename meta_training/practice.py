"""Practice: what an initialisation must know to answer, learned by first-order steps on it alone.

Two things are learned so. What follows from words already recalled (how two values compare, which words of a paragraph
answer, what is told between facts) needs no document: its support is given, and the thousands of examples that a small
model wants (docs/results.md) take minutes. And how to use what an adapter holds (in which order to recall it, when to
stop) needs documents, but the inner loop that reads them need not be differentiated: documents are encoded, and asked
about again in later steps while the initialisation moves on, as encoding takes longer than asking. Without documents,
recall suffers, and comes back when meta-training goes on.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, islice

import torch
from torch import Tensor

from meta_training.answer_loss import AnswerLoss
from meta_training.curriculum import Curriculum
from meta_training.document import Document, Question
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

# Documents whose adapters' changes are kept: without new ones, what is learned must hold under any of a few.
_ENCODED, _REMEMBERED = 5, 14
# Of those that were encoded before, so many are asked about again in each step.
_AGAIN = 3
_TOKEN_LIMIT = 2048
_WARMUP = 10
_LEAST_RATE = 0.05


@dataclass(frozen=True)
class _Batch:
    """Questions, and a document's change of the initialisation, ``[P]``, that they are asked under."""

    change: Tensor
    questions: list[Segment]


def practise(
    model: PerkModel,
    settings: TrainSettings,
    *,
    steps: int,
    questions: int = 64,
    recalled: int = 0,
    rate: float = 1e-3,
    report: Callable[[float, float], None] | None = None,
    processes: Processes | None = None,
) -> Checkpoint:
    """Learn to answer; ends early on a SIGTERM or SIGINT, with what is learned so far.

    Args:
        model: with the checkpoint to begin with.
        settings: of a run, whose seed and stages say what is asked, a document after the other; whose `answer_weight`
            holds; over how many of the last steps the result is a mean (`mean_steps`); and which segments documents are
            read in, if that is to change.
        steps: of AdamW on the initialisation; its rate rises over the first ten and falls by a cosine.
        questions: fresh ones of each step whose supports are given.
        recalled: at most so many more in each step whose supports are not given: about a document encoded for it, and
            three of those before. 0: nothing but the first five documents is encoded.
        rate: at its highest.
        report: called after each step with the mean NLL of a token before it, in nats, and the share of questions
            whose every token was the likeliest, of this process.
        processes: each of which asks other questions, the gradient being the mean over all of them; None: this one is
            alone.

    Returns:
        The checkpoint with another initialisation.

    Raises:
        InvalidInput: the checkpoint answers without telling a support first, or nothing is to be asked.
        DivergenceError: the loss or its gradient is not finite.
    """
    if model.settings.templates.support is None:
        raise InvalidInput("checkpoint", repr(model.checkpoint.name), "one that tells the support before the answer")
    if questions + recalled < 1:
        raise InvalidInput("questions", str(questions), "at least one, or some that are recalled")
    if "segments" in settings.model_fields_set:
        read_otherwise = model.settings.model_copy(update={"segments": settings.segments})
        model = PerkModel(model.base, replace(model.checkpoint, settings=read_otherwise), adapted=model.adapted)
    processes = processes or Processes()
    theta = model.checkpoint.tensors["initial"].to(model.base.device).clone().requires_grad_()
    asked = _Asked(model, settings, theta, processes)
    loss_of = AnswerLoss(model.adapted, token_limit=_TOKEN_LIMIT)
    optimiser = torch.optim.AdamW([theta], lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    share = partial(rate_share, total=steps, warmup=_WARMUP, least=_LEAST_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
    mean = RunningMean({"initial": theta}, settings.outer.mean_steps or 1)
    with stop_signals() as stop:
        for step in range(steps):
            batches = asked.from_memory(recalled) if recalled else []
            if questions:
                batches += asked.with_support(questions, step)
            losses, exact, gradients = zip(
                *(loss_of((theta.detach() + batch.change)[None], [batch.questions]) for batch in batches), strict=True
            )
            theta.grad = processes.total(torch.cat(gradients).mean(0)) / processes.count
            norm = torch.nn.utils.clip_grad_norm_([theta], 1.0)
            loss = sum(losses) / len(batches)
            if not (math.isfinite(loss) and bool(norm.isfinite())):
                raise DivergenceError(f"step {step + 1} of {steps}: loss {loss} at rate {rate}: try a smaller one")
            optimiser.step()
            schedule.step()
            mean.add({"initial": theta}, step + 1)
            if report is not None:
                report(loss, sum(exact) / len(batches))
            # Signals do not reach all processes in the same step.
            if processes.total(torch.tensor(len(stop), device=theta.device)) > 0:
                break
    return _with_initial(model, mean.tensors["initial"]).checkpoint


class _Asked:
    """What is asked, step after step."""

    def __init__(self, model: PerkModel, settings: TrainSettings, theta: Tensor, processes: Processes) -> None:
        curriculum = Curriculum(settings, count_tokens=model.count_tokens, documents=processes.count)
        self._documents = (curriculum.draw(step).documents[processes.index] for step in count())
        self._model = model
        self._theta = theta
        self._answer_weight = settings.outer.answer_weight
        self._rng = random.Random(f"{settings.seed}-practice-{processes.index}")
        self._remembered: deque[_Batch] = deque(maxlen=_REMEMBERED)
        self._fresh = self._given()

    def from_memory(self, questions: int) -> list[_Batch]:
        """Encode a document from the present initialisation, and ask about it and some of those before."""
        earlier = self._rng.sample(self._remembered, min(_AGAIN, len(self._remembered)))
        self._encode(next(self._documents))
        each = max(questions // (1 + _AGAIN), 1)
        return [
            replace(known, questions=self._rng.sample(known.questions, min(each, len(known.questions))))
            for known in (self._remembered[-1], *earlier)
        ]

    def with_support(self, questions: int, step: int) -> list[_Batch]:
        """Ask about documents never encoded, with their supports, under the adapter of one that was."""
        if not self._remembered:
            for document in islice(self._documents, _ENCODED):
                self._encode(document)
        known = self._remembered[step % len(self._remembered)]
        return [_Batch(known.change, list(islice(self._fresh, questions)))]

    def _encode(self, document: Document) -> None:
        adapter = _with_initial(self._model, self._theta).encode(document.text).adapter.to(self._theta.device)
        questions = [self._segment(question) for question in document.questions]
        self._remembered.append(_Batch(adapter - self._theta.detach(), questions))

    def _given(self) -> Iterator[Segment]:
        for document in self._documents:
            text, series = document.text, set(series_lines(document.text))
            for question in document.questions:
                yield self._segment(question, given=partial(_stands, text, series))

    def _segment(self, question: Question, given: Callable[[str], bool] | None = None) -> Segment:
        return question_segment(
            question, self._model.base, self._model.settings.templates, answer_weight=self._answer_weight, given=given
        )


def _stands(text: str, series: set[str], line: str) -> bool:
    return line in text or line in series


def _with_initial(model: PerkModel, initial: Tensor) -> PerkModel:
    tensors: dict[str, Tensor] = model.checkpoint.tensors | {"initial": initial.detach().cpu().clone()}
    return PerkModel(model.base, replace(model.checkpoint, tensors=tensors), adapted=model.adapted)
