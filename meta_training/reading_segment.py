"""A question as the reader learns it: what it writes itself carries loss, what is recalled for it does not."""

from __future__ import annotations

from meta_training.document import Question
from meta_training.question_segment import weighed_segment
from perk.base_model import BaseModel
from perk.segment import Segment
from perk.series import is_entry_cue, is_series_line
from perk.settings import TemplateSettings

__all__ = ["reading_segment"]


def reading_segment(question: Question, base: BaseModel, templates: TemplateSettings) -> Segment:
    """The prompt without loss, then what `perk.answer_row` has a reader write and read.

    A support that begins with a series of the document is told line by line: of the entries the names, by which they
    are recalled, and all that follows from them; then the answer and the end token. To any other question the reader
    writes the end token alone: the document's adapter answers it.

    Raises:
        ValueError: the templates have no place for a support.
    """
    if templates.support is None:
        raise ValueError("templates: no support to read")
    if not question.support or not is_series_line(question.support[0]):
        prompt = base.tokenizer.encode(templates.prompt.format(question=question.question), verbose=False)
        return Segment(ids=(*prompt, base.eos_id), prefix_tokens=len(prompt))
    # Where a recalled stretch of the target begins and ends: behind the colon, with the line break.
    recalled: list[tuple[int, int]] = []
    start = templates.support.index("{support}")
    for line in question.support:
        cue = line.partition(":")[0] + ":"
        if is_entry_cue(cue):
            recalled.append((start + len(cue), start + len(line) + 1))
        start += len(line) + 1
    return weighed_segment(
        question,
        base,
        templates,
        lambda last: 0.0 if any(begin < last <= end for begin, end in recalled) else 1.0,
    )
