"""Practice: a reader, learned from supports that are given, by ordinary gradient steps (`perk.readers`).

Which entry of a document to recall next, when to stop, and what follows from those that were recalled is the same for
all documents; so is where in a paragraph the answer stands. It is learned without any: nothing is encoded, and the many
examples that a small model wants are cheap. What documents are written from, and with it what an adapter recalls, stays
as it is.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, get_args

import torch

from meta_training.answer_loss import AnswerLoss
from meta_training.curriculum import Curriculum
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

__all__ = ["Reads", "practise"]

Reads = Literal["entries", "parts"]

_NAMES: dict[Reads, str] = dict(zip(get_args(Reads), READERS, strict=True))

_TOKEN_LIMIT = 2048
_WARMUP = 10
_LEAST_RATE = 0.05


def practise(
    model: PerkModel,
    settings: TrainSettings,
    *,
    steps: int,
    reads: Reads = "entries",
    questions: int = 4,
    rate: float = 4e-4,
    report: Callable[[float, float], None] | None = None,
    processes: Processes | None = None,
) -> Checkpoint:
    """Learn a reader; ends early on a SIGTERM or SIGINT, with what is learned so far.

    Args:
        model: with the checkpoint to begin with. If that has this reader, it goes on learning; if not, it begins as
            the other one, or as the adapter of no document where there is none either.
        settings: of a run, whose seed and stages say what is asked, a document after the other; over how many of the
            last steps the result is a mean (`mean_steps`); and which segments documents are read in, if that is to
            change.
        reads: which reader: of a document's entries (`meta_training.reading_segment`), or of its parts
            (`meta_training.part_segment`).
        steps: of AdamW; its rate rises over the first ten and falls by a cosine.
        questions: of each step, each about a document of its own.
        rate: at its highest.
        report: called after each step with the mean NLL of a token before it, in nats, and the share of questions whose
            every token was the likeliest, of this process.
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
    loss_of = AnswerLoss(model.adapted, token_limit=_TOKEN_LIMIT)
    optimiser = torch.optim.AdamW([reader], lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    share = partial(rate_share, total=steps, warmup=_WARMUP, least=_LEAST_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, share)
    curriculum = Curriculum(settings, count_tokens=model.count_tokens, documents=questions * processes.count)
    rng = random.Random(f"{settings.seed}-practice")
    with stop_signals() as stop:
        for step in range(steps):
            drawn = [rng.choice(document.questions) for document in curriculum.draw(step).documents]
            asked = [
                part_segment(question, model.base, templates, rng)
                if reads == "parts"
                else reading_segment(question, model.base, templates)
                for question in drawn
            ]
            # One at a time: they differ in length by more than anything shared by a batch would spare.
            losses, exact, gradients = zip(
                *(loss_of(reader.detach()[None], [[one]]) for one in asked[processes.index :: processes.count]),
                strict=True,
            )
            reader.grad = processes.total(torch.cat(gradients).mean(0)) / processes.count
            norm = torch.nn.utils.clip_grad_norm_([reader], 1.0)
            loss = sum(losses) / len(losses)
            if not (math.isfinite(loss) and bool(norm.isfinite())):
                raise DivergenceError(f"step {step + 1} of {steps}: loss {loss} at rate {rate}: try a smaller one")
            optimiser.step()
            schedule.step()
            mean.add({name: reader}, step + 1)
            if report is not None:
                report(loss, sum(exact) / len(exact))
            # Signals do not reach all processes in the same step.
            if processes.any(bool(stop)):
                break
    read = model.settings
    if "segments" in settings.model_fields_set:
        read = read.model_copy(update={"segments": settings.segments})
    return replace(model.checkpoint, settings=read, tensors=tensors | {name: mean.tensors[name].cpu()})
