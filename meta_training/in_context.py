"""Fine-tuning for in-context reasoning (FT-ICR, PERK section 4): what the method is measured against.

The same adapter on the same base, trained on the same documents and questions to the same targets, with the document in
the prompt instead of in the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence

from meta_training.answer_loss import AnswerLoss
from meta_training.document import Document
from meta_training.outer_loop import MetaParameters, OuterResult
from perk.base_model import BaseModel
from perk.lora import AdaptedModel
from perk.segment import Segment
from perk.settings import TemplateSettings

__all__ = ["MAX_ANSWER_TOKENS", "InContextLoop", "in_context_question"]

MAX_ANSWER_TOKENS = 48
# Cutting a text in the middle and encoding it again may take a few tokens more than were kept.
_SLACK_TOKENS = 8


class InContextLoop:
    """Stands for the outer loop: the gradient of the answers under one adapter for all documents."""

    def __init__(self, adapted: AdaptedModel, *, token_limit: int) -> None:
        """Take at most `token_limit` tokens at a time, unless one question with its document has more."""
        self._answers = AnswerLoss(adapted, token_limit=token_limit)

    def backward(
        self, meta: MetaParameters, _documents: Sequence[Sequence[Segment]], questions: Sequence[Sequence[Segment]]
    ) -> OuterResult:
        """Add the gradient of D documents' questions, averaged over documents, to that of the adapter.

        Args:
            meta: its adapter is what is learned.
            _documents: their segments, which nobody writes into an adapter here.
            questions: for each document, its questions: document and prompt as prefix, answer as text.

        Returns:
            What was measured; there are no inner losses, and they are given as 0.
        """
        count = len(questions)
        theta = meta.initial.detach().expand(count, -1).contiguous()
        answer_loss, exact, gradient = self._answers(theta, questions)
        mean = gradient.mean(0)
        meta.initial.grad = mean if meta.initial.grad is None else meta.initial.grad + mean
        return OuterResult(answer_loss, exact, loss_before=0.0, loss_after=0.0)


def in_context_question(question: str, document: Document | str, base: BaseModel, templates: TemplateSettings) -> str:
    """Document and question as one question, the document's beginning dropped where both do not fit."""
    context = document if isinstance(document, str) else document.text
    tokenizer = base.tokenizer
    rest = len(tokenizer.encode(templates.prompt.format(question=f"\n\n{question}"), verbose=False))
    room = base.max_positions - MAX_ANSWER_TOKENS - _SLACK_TOKENS - rest
    if templates.support_end is not None:
        mark = tokenizer.encode(templates.support_end, add_special_tokens=False, verbose=False)
        room -= templates.max_support_tokens + len(mark)
    ids = tokenizer.encode(context, add_special_tokens=False, verbose=False)
    if len(ids) > room:
        context = str(tokenizer.decode(ids[len(ids) - max(room, 0) :]))
    # Asking strips a question, and training must see the same tokens.
    return f"{context}\n\n{question}".strip()
