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
    stands: Callable[[str], bool] | None = None,
    recall_weight: float = 1.0,
) -> Segment:
    """The prompt without loss, then the support, the answer and the end token.

    Args:
        question: with its answer.
        base: whose tokeniser is used.
        templates: around both.
        answer_weight: what a token of the derivation, of the mark that ends the support and of the answer weighs, the
            end token among them.
        stands: which lines of the support stand in the document. What follows from them weighs as the derivation does:
            the other lines, and if there are any, of each line behind the first its first token, which says that it
            comes next and not one of those. None: all of them stand there.
        recall_weight: what the other tokens of the support weigh: 0 where they are given.
    """
    prompt = base.tokenizer.encode(templates.prompt.format(question=question.question), verbose=False)
    text = templates.target(question.answer, question.grounds)
    encoded = base.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    end = (templates.support_end or "") + templates.answer.format(answer=question.answer)
    stressed = len(text) - len(end)
    if question.derivation and templates.support is not None:
        stressed = text.rindex(question.derivation)
    weights = [answer_weight if last > stressed else recall_weight for _, last in encoded["offset_mapping"]]
    if stands is not None and templates.support is not None:
        standing = [stands(line) for line in question.support]
        start = templates.support.index("{support}")
        for number, (line, stands_there) in enumerate(zip(question.support, standing, strict=True)):
            stop = min(start + len(line) + 1, stressed)
            inside = [i for i, (_, last) in enumerate(encoded["offset_mapping"]) if start < last <= stop]
            if stands_there:
                inside = [] if all(standing) or number == 0 else inside[:1]
            for index in inside:
                weights[index] = answer_weight
            start += len(line) + 1
    return Segment(
        ids=(*prompt, *encoded["input_ids"], base.eos_id),
        prefix_tokens=len(prompt),
        weights=(*weights, answer_weight),
    )
