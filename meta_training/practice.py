"""Practice: a reader, learned from supports that are given, by ordinary gradient steps (`perk.readers`).

Which entry of a document to recall next, when to stop, and what follows from those that were recalled is the same for
all documents; so is which paragraph a question is about, and where in it the answer stands. It is learned without any:
nothing is encoded, and the many examples that a small model wants are cheap. What documents are written from, and with
it what an adapter recalls, stays as it is.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
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
from meta_training.run_state import RunState, has_state
from meta_training.running_mean import RunningMean
from meta_training.settings import TrainSettings
from meta_training.stop_signals import stop_signals
from meta_training.trainer import DivergenceError
from meta_training.training_log import TrainingLog
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

# Of the log.
_COLUMNS = ("step", "seconds", "loss", "exact", "chosen", "gradient_norm")


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
    report: Callable[[int, PracticeStep], None] | None = None,
    processes: Processes | None = None,
    folder: Path | None = None,
    resume: bool = False,
) -> Checkpoint:
    """Learn a reader; ends early on a SIGTERM or SIGINT, with what is learned so far.

    Args:
        model: with the checkpoint to begin with. If that has this reader, it goes on learning; if not, it begins as
            the other one, or as the adapter of no document where there is none either.
        settings: of a run, whose seed and stages say what is asked, a document after the other; over how many of the
            last steps the result is a mean (`mean_steps`); after how many steps it is saved (`save_every`); and which
            segments documents are read in, if that is to change.
        reads: which reader: of a document's entries (`meta_training.reading_segment`), or of its parts, which it reads
            (`meta_training.part_segment`) and chooses (`meta_training.choice_example`).
        steps: of AdamW; its rate rises over the first ten and falls by a cosine.
        questions: of each step, each about a document of its own.
        rate: at its highest.
        report: called after each step with its number and what was seen.
        processes: each of which asks that many questions of its own; the gradient is the mean over all of them. None:
            this one is alone.
        folder: where the checkpoint, ``log.csv`` and the state to resume from go; None: nothing is written.
        resume: go on from the state in `folder`, as if the run had never stopped.

    Returns:
        The checkpoint with another ``reader`` or ``part_reader``.

    Raises:
        InvalidInput: the checkpoint answers without telling a support first, or parts are to be read and a task has
            none; or the folder has a state and is not to be resumed, or has none, or that of another run.
        DivergenceError: the loss or its gradient is not finite.
    """
    practice = _Practice(model, settings, reads, steps, questions, rate, processes or Processes(), folder)
    if resume:
        practice.resume()
    elif folder is not None and has_state(folder):
        raise InvalidInput("out", str(folder), "a folder without a saved state, or --resume")
    practice.run(report)
    return practice.checkpoint()


class _Practice:
    """One run. All randomness of a step comes from (seed, step), so that a resumed run goes on as if never stopped."""

    def __init__(
        self,
        model: PerkModel,
        settings: TrainSettings,
        reads: Reads,
        steps: int,
        questions: int,
        rate: float,
        processes: Processes,
        folder: Path | None,
    ) -> None:
        templates = model.settings.templates
        if templates.support is None:
            raise InvalidInput(
                "checkpoint", repr(model.checkpoint.name), "one that tells the support before the answer"
            )
        self._checkpoint = model.checkpoint
        self._settings = settings
        self._name = _NAMES[reads]
        self._steps, self._rate = steps, rate
        self._processes = processes
        self._folder = folder
        self._log = None if folder is None else TrainingLog(folder, _COLUMNS, tensorboard=settings.tensorboard)
        self._step = 0
        self._seconds = 0.0
        tensors = model.checkpoint.tensors
        begun = next(tensors[start] for start in (self._name, *READERS, "initial") if start in tensors)
        self._reader = begun.to(model.base.device).clone().requires_grad_()
        self._mean = RunningMean({self._name: self._reader}, settings.outer.mean_steps or 1)
        self._optimiser = torch.optim.AdamW([self._reader], lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
        self._lesson = _Lesson(model, reads, settings.seed)
        self._curriculum = Curriculum(settings, count_tokens=model.count_tokens, documents=questions * processes.count)

    def run(self, report: Callable[[int, PracticeStep], None] | None) -> None:
        """Learn to the last step or a signal, and save where there is a folder."""
        with stop_signals() as stop:
            # Signals do not reach all processes in the same step.
            while self._step < self._steps and not self._processes.any(bool(stop)):
                seen = self._learn()
                if report is not None:
                    report(self._step, seen)
                if self._step % self._settings.save_every == 0:
                    self._save()
        self._save()
        if self._log is not None:
            self._log.close()

    def resume(self) -> None:
        """Take over the saved state."""
        if self._folder is None:
            raise InvalidInput("resume", "no folder", "the folder of an earlier run")
        state = RunState.read(self._folder)
        if state.metadata.get("learns") != self._name:
            learns = state.metadata.get("learns", "no reader")
            raise InvalidInput(
                "resume", f"the state of a run that learns {learns}", f"that of one that learns {self._name}"
            )
        state.restore_parameters([self._reader])
        state.restore_mean(self._mean.tensors, {self._name: self._reader})
        state.restore_optimiser([self._reader], self._optimiser)
        self._step = int(state.metadata["step"])
        self._seconds = float(state.metadata["seconds"])
        if self._processes.main and self._log is not None:
            self._log.cut(self._step)

    def checkpoint(self) -> Checkpoint:
        """The one begun with, and what is learned so far."""
        read = self._checkpoint.settings
        if "segments" in self._settings.model_fields_set:
            read = read.model_copy(update={"segments": self._settings.segments})
        learned = {name: mean.cpu() for name, mean in self._mean.tensors.items()}
        return replace(self._checkpoint, settings=read, tensors=self._checkpoint.tensors | learned)

    def _learn(self) -> PracticeStep:
        """One step; all processes take the same."""
        started = time.perf_counter()
        documents = self._curriculum.draw(self._step).documents
        seen, gradient = self._lesson.learn(self._reader.detach()[None], documents, self._processes, self._step)
        self._reader.grad = self._processes.total(gradient[0]) / self._processes.count
        norm = torch.nn.utils.clip_grad_norm_([self._reader], 1.0)
        if not (math.isfinite(seen.loss) and bool(norm.isfinite())):
            step = f"step {self._step + 1} of {self._steps}"
            raise DivergenceError(f"{step}: loss {seen.loss} at rate {self._rate}: try a smaller one")
        share = rate_share(self._step, self._steps, warmup=_WARMUP, least=_LEAST_RATE)
        for group in self._optimiser.param_groups:
            group["lr"] = self._rate * share
        self._optimiser.step()
        self._step += 1
        self._mean.add({self._name: self._reader}, self._step)
        self._seconds += time.perf_counter() - started
        if self._processes.main and self._log is not None:
            chosen = "" if seen.chosen is None else f"{seen.chosen:.3f}"
            row = (self._step, f"{self._seconds:.1f}", f"{seen.loss:.4f}", f"{seen.exact:.3f}", chosen, f"{norm:.4f}")
            self._log.step(dict(zip(_COLUMNS, map(str, row), strict=True)))
        return seen

    def _save(self) -> None:
        """Write the checkpoint and the state to resume from."""
        if self._folder is None or not self._processes.main:
            return
        self.checkpoint().save(self._folder)
        metadata = {"step": str(self._step), "seconds": repr(self._seconds), "learns": self._name}
        RunState.of([self._reader], self._optimiser, mean=self._mean.tensors, metadata=metadata).write(self._folder)


class _Lesson:
    """The questions of a step, one a document, and what the reader makes of them."""

    def __init__(self, model: PerkModel, reads: Reads, seed: int) -> None:
        self._base = model.base
        self._templates = model.settings.templates
        self._reads = reads
        self._seed = seed
        self._answers = AnswerLoss(model.adapted, token_limit=_TOKEN_LIMIT)
        self._choices = ChoiceLoss(model.adapted)
        can_merge = model.adapted.merged_bytes is not None
        self._merged = model.adapted.start_merging(model.base.dtype) if can_merge else None

    def learn(
        self, theta: Tensor, documents: Sequence[Document], processes: Processes, step: int
    ) -> tuple[PracticeStep, Tensor]:
        """What was seen, and the gradient ``[1, P]``, of this process's share of a step's documents."""
        rng = random.Random(f"{self._seed}-practice-{step}")
        drawn = self._draw(documents, rng)
        # All are made, so that every process draws the same numbers.
        asked = [self._segment(question, rng) for question in drawn]
        choices = [choice_example(question, self._base, rng) for question in drawn if self._reads == "parts"]
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

    def _draw(self, documents: Sequence[Document], rng: random.Random) -> list[Question]:
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
        return [rng.choice(questions) for questions in asked]

    def _segment(self, question: Question, rng: random.Random) -> Segment:
        """A question whose loss weighs one in all, however long it is."""
        if self._reads == "parts":
            segment = part_segment(question, self._base, self._templates, rng)
        else:
            segment = reading_segment(question, self._base, self._templates)
        weights = segment.weights or (1.0,) * segment.loss_tokens
        return replace(segment, weights=tuple(weight / segment.loss_weight for weight in weights))
