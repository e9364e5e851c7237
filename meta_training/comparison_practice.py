"""Practice in comparing: what of a relation needs no document, learned by the initialisation alone.

A relation is answered by recalling two values and saying how they compare. In meta-training each such word comes after
a hundred tokens of recalled records, and after an inner loop; here it costs a dozen tokens, and the thousands of
examples that a small model wants (docs/results.md) take minutes. Meta-training goes on from what this leaves: recall
has suffered by it, and comes back.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch

from meta_training.answer_loss import AnswerLoss
from meta_training.tasks.comparison import draw_comparison
from meta_training.tasks.student_records import StudentRecords
from meta_training.trainer import DivergenceError
from perk.base_model import BaseModel
from perk.checkpoint import Checkpoint
from perk.errors import InvalidInput
from perk.perk_model import PerkModel
from perk.segment import Segment
from perk.settings import TemplateSettings

__all__ = ["practise_comparisons"]

# The rest stand alone, a dozen tokens each: with the question it takes four times as many.
_QUESTION_SHARE = 0.2
# Registers whose adapters' changes are added in turn: what is learned must hold under any document's.
_REGISTERS, _REGISTER_TOKENS = 5, 220
_TOKEN_LIMIT = 2048
_WARMUP = 10
_LEAST_RATE = 0.05


def practise_comparisons(
    model: PerkModel,
    *,
    steps: int,
    comparisons: int = 128,
    rate: float = 1e-3,
    seed: int = 0,
    report: Callable[[float, float], None] | None = None,
) -> Checkpoint:
    """Learn how two values compare.

    Args:
        model: with the checkpoint to begin with.
        steps: of AdamW on the initialisation; its rate falls over the second half.
        comparisons: fresh ones of each step.
        rate: at its highest.
        seed: of comparisons and registers.
        report: called after each step with the mean NLL of a token before it, in nats, and the share of comparisons
            whose every token was the likeliest.

    Returns:
        The checkpoint with another initialisation.

    Raises:
        InvalidInput: the checkpoint answers without telling a support first.
        DivergenceError: the loss or its gradient is not finite.
    """
    if model.settings.templates.support is None:
        raise InvalidInput("checkpoint", repr(model.checkpoint.name), "one that tells the support before the answer")
    rng = random.Random(seed)
    initial = model.checkpoint.tensors["initial"]
    registers = StudentRecords(split="train", count_tokens=model.count_tokens)
    documents = [registers.draw(rng, tokens=_REGISTER_TOKENS).context for _ in range(_REGISTERS)]
    changes = [model.encode(str(text)).adapter - initial for text in documents]
    loss_of = AnswerLoss(model.adapted, token_limit=_TOKEN_LIMIT)
    theta = initial.to(model.base.device).clone().requires_grad_()
    optimizer = torch.optim.AdamW([theta], lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, steps))
    for step in range(steps):
        batch = [_segment(rng, model.base, model.settings.templates) for _ in range(comparisons)]
        adapter = theta.detach() + changes[step % _REGISTERS].to(theta.device)
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


def _share_of_rate(step: int, steps: int) -> float:
    rising = (step + 1) / _WARMUP
    falling = 2 * (1 - step / steps)
    return min(1.0, rising, max(_LEAST_RATE, falling))


def _segment(rng: random.Random, base: BaseModel, templates: TemplateSettings) -> Segment:
    """A comparison whose values are given; the verdict carries loss, and where a relation is asked, the answer too."""
    comparison = draw_comparison(rng)
    prompt, rest, end = f"\n{comparison.values}", f" {comparison.verdict}", []
    if rng.random() < _QUESTION_SHARE:
        question = comparison.question(rng.randrange(10**6, 10**7), rng.randrange(10**6, 10**7))
        before, values, rest = templates.target(comparison.answer, (comparison.line(),)).partition(comparison.values)
        prompt, end = templates.prompt.format(question=question) + before + values, [base.eos_id]
    given = base.tokenizer.encode(prompt, verbose=False)
    asked = base.tokenizer.encode(rest, add_special_tokens=False)
    return Segment(ids=(*given, *asked, *end), prefix_tokens=len(given))
