"""A question as the outer loss sees it."""

from __future__ import annotations

from collections.abc import Callable

from meta_training.document import Question
from perk.base_model import BaseModel
from perk.segment import Segment
from perk.settings import TemplateSettings

__all__ = ["question_segment", "weighed_segment"]


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
    text = templates.target(question.answer, question.grounds)
    end = (templates.support_end or "") + templates.answer.format(answer=question.answer)
    stressed = len(text) - len(end)
    if question.derivation and templates.support is not None:
        stressed = text.rindex(question.derivation)
    return weighed_segment(question, base, templates, lambda last: answer_weight if last > stressed else 1.0)


def weighed_segment(
    question: Question, base: BaseModel, templates: TemplateSettings, weight: Callable[[int], float]
) -> Segment:
    """The prompt without loss, then the target and the end token.

    Args:
        question: with its answer.
        base: whose tokeniser is used.
        templates: around both.
        weight: of a token, by where it ends in the target; the end token weighs what the last one does.
    """
    prompt = base.tokenizer.encode(templates.prompt.format(question=question.question), verbose=False)
    text = templates.target(question.answer, question.grounds)
    encoded = base.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    weights = [weight(last) for _, last in encoded["offset_mapping"]]
    return Segment(
        ids=(*prompt, *encoded["input_ids"], base.eos_id),
        prefix_tokens=len(prompt),
        weights=(*weights, weight(len(text))),
    )
