"""Practice: the step from a support to the answer, learned by the initialisation alone.

What follows from words already recalled (how two values compare, who has a thing, which words of a paragraph answer)
needs no document. In meta-training each example of it comes after an inner loop; here its support is given, and the
thousands of examples that a small model wants (docs/results.md) take minutes. Meta-training goes on from what this
leaves: recall has suffered by it, and comes back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import count, islice

import torch

from meta_training.answer_loss import AnswerLoss
from meta_training.curriculum import Curriculum
from meta_training.document import Document
from meta_training.question_segment import question_segment
from meta_training.rate_schedule import rate_share
from meta_training.settings import TrainSettings
from meta_training.trainer import DivergenceError
from perk.checkpoint import Checkpoint
from perk.errors import InvalidInput
from perk.perk_model import PerkModel
from perk.segment import Segment

__all__ = ["practise"]

# Documents whose adapters' changes are added in turn: what is learned must hold under any document's.
_ENCODED = 5
_TOKEN_LIMIT = 2048
_WARMUP = 10
_LEAST_RATE = 0.05


def practise(
    model: PerkModel,
    settings: TrainSettings,
    *,
    steps: int,
    questions: int = 64,
    rate: float = 1e-3,
    report: Callable[[float, float], None] | None = None,
) -> Checkpoint:
    """Learn to answer from a support that is given.

    Args:
        model: with the checkpoint to begin with.
        settings: of a run, whose seed and stages say what is asked, a document after the other.
        steps: of AdamW on the initialisation; its rate rises over the first ten and falls by a cosine.
        questions: fresh ones of each step.
        rate: at its highest.
        report: called after each step with the mean NLL of a token before it, in nats, and the share of questions
            whose every token was the likeliest.

    Returns:
        The checkpoint with another initialisation.

    Raises:
        InvalidInput: the checkpoint answers without telling a support first.
        DivergenceError: the loss or its gradient is not finite.
    """
    if model.settings.templates.support is None:
        raise InvalidInput("checkpoint", repr(model.checkpoint.name), "one that tells the support before the answer")
    curriculum = Curriculum(settings, count_tokens=model.count_tokens, documents=1)
    documents = (document for step in count() for document in curriculum.draw(step).documents)
    initial = model.checkpoint.tensors["initial"]
    changes = [model.encode(document.text).adapter - initial for document in islice(documents, _ENCODED)]
    asked = _asked(model, documents)
    loss_of = AnswerLoss(model.adapted, token_limit=_TOKEN_LIMIT)
    theta = initial.to(model.base.device).clone().requires_grad_()
    optimizer = torch.optim.AdamW([theta], lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    share = partial(rate_share, total=steps, warmup=_WARMUP, least=_LEAST_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for step in range(steps):
        batch = list(islice(asked, questions))
        adapter = theta.detach() + changes[step % _ENCODED].to(theta.device)
        loss, exact, gradient = loss_of(adapter[None], [batch])
        theta.grad = gradient[0]
        norm = torch.nn.utils.clip_grad_norm_([theta], 1.0)
        if not (math.isfinite(loss) and bool(norm.isfinite())):
            raise DivergenceError(f"step {step + 1} of {steps}: loss {loss} at rate {rate}: try a smaller one")
        optimizer.step()
        schedule.step()
        if report is not None:
            report(loss, exact)
    return Checkpoint(
        model.checkpoint.name, model.settings, model.checkpoint.tensors | {"initial": theta.detach().cpu()}
    )


def _asked(model: PerkModel, documents: Iterator[Document]) -> Iterator[Segment]:
    """Their questions, the support as prefix: what follows from it carries loss."""
    for document in documents:
        for question in document.questions:
            segment = question_segment(question, model.base, model.settings.templates)
            given = len(segment.ids) - segment.stressed_tokens
            yield replace(segment, prefix_tokens=given, stressed_tokens=0)
