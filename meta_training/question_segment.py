"""A question as the outer loss sees it."""

from __future__ import annotations

from meta_training.document import Question
from perk.base_model import BaseModel
from perk.segment import Segment
from perk.settings import TemplateSettings

__all__ = ["question_segment"]


def question_segment(
    question: Question, base: BaseModel, templates: TemplateSettings, *, answer_weight: float = 1.0
) -> Segment:
    """The prompt without loss, then the support, the answer and the end token.

    Tokens of the derivation, of the mark that ends the support and of the answer, the end token among them, weigh
    `answer_weight` times as much as those of the support.
    """
    prompt = base.tokenizer.encode(templates.prompt.format(question=question.question), verbose=False)
    text = templates.target(question.answer, question.grounds)
    target = base.tokenizer.encode(text, add_special_tokens=False)
    end = (templates.support_end or "") + templates.answer.format(answer=question.answer)
    if question.derivation and templates.support is not None:
        end = text[text.rindex(question.derivation) :]
    stressed = base.tokenizer.encode(end, add_special_tokens=False)
    return Segment(
        ids=(*prompt, *target, base.eos_id),
        prefix_tokens=len(prompt),
        stressed_tokens=min(len(stressed), len(target)) + 1,
        stress=answer_weight,
    )
