"""A question as the outer loss sees it."""

from __future__ import annotations

from meta_training.document import Question
from perk.base_model import BaseModel
from perk.segment import Segment
from perk.settings import TemplateSettings

__all__ = ["question_segment"]


def question_segment(
    question: Question,
    base: BaseModel,
    templates: TemplateSettings,
    *,
    answer_weight: float = 1.0,
) -> Segment:
    """The prompt without loss, then the support, the answer and the end token.

    Args:
        question: with its answer.
        base: whose tokeniser is used.
        templates: around both.
        answer_weight: what a token of the derivation, of the mark that ends the support and of the answer weighs, the
            end token among them; those of the support weigh one.
    """
    prompt = base.tokenizer.encode(templates.prompt.format(question=question.question), verbose=False)
    text = templates.target(question.answer, question.grounds)
    encoded = base.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    end = (templates.support_end or "") + templates.answer.format(answer=question.answer)
    stressed = len(text) - len(end)
    if question.derivation and templates.support is not None:
        stressed = text.rindex(question.derivation)
    weights = [answer_weight if last > stressed else 1.0 for _, last in encoded["offset_mapping"]]
    return Segment(
        ids=(*prompt, *encoded["input_ids"], base.eos_id),
        prefix_tokens=len(prompt),
        weights=(*weights, answer_weight),
    )
