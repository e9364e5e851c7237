"""A question as the outer loss sees it."""

from __future__ import annotations

from collections.abc import Callable

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
    given: Callable[[str], bool] | None = None,
) -> Segment:
    """The prompt without loss, then the support, the answer and the end token.

    Args:
        question: with its answer.
        base: whose tokeniser is used.
        templates: around both.
        answer_weight: what a token of the derivation, of the mark that ends the support and of the answer weighs, the
            end token among them; those of the support weigh one.
        given: which lines of the support need not be recalled. They carry no loss, but for the first token of each
            behind the first if others have to be told between them: that it comes next, and not one of those.
    """
    prompt = base.tokenizer.encode(templates.prompt.format(question=question.question), verbose=False)
    text = templates.target(question.answer, question.grounds)
    encoded = base.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    end = (templates.support_end or "") + templates.answer.format(answer=question.answer)
    stressed = len(text) - len(end)
    if question.derivation and templates.support is not None:
        stressed = text.rindex(question.derivation)
    weights = [answer_weight if last > stressed else 1.0 for _, last in encoded["offset_mapping"]]
    if given is not None and templates.support is not None:
        are_given = [given(line) for line in question.support]
        start = templates.support.index("{support}")
        for number, (line, is_given) in enumerate(zip(question.support, are_given, strict=True)):
            stop = min(start + len(line) + 1, stressed)
            if is_given:
                inside = [i for i, (_, last) in enumerate(encoded["offset_mapping"]) if start < last <= stop]
                for index in inside if all(are_given) or number == 0 else inside[1:]:
                    weights[index] = 0.0
            start += len(line) + 1
    return Segment(
        ids=(*prompt, *encoded["input_ids"], base.eos_id),
        prefix_tokens=len(prompt),
        weights=(*weights, answer_weight),
    )
