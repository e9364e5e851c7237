"""A question as the reader learns it: what it writes itself carries loss, what is recalled for it does not."""

from __future__ import annotations

from meta_training.document import Question
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
    prompt = tuple(base.tokenizer.encode(templates.prompt.format(question=question.question), verbose=False))
    if not question.support or not is_series_line(question.support[0]):
        return Segment(ids=(*prompt, base.eos_id), prefix_tokens=len(prompt))
    text = templates.target(question.answer, question.grounds)
    encoded = base.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    # Where a recalled stretch of the text begins and ends: behind the colon, with the line break.
    recalled: list[tuple[int, int]] = []
    start = templates.support.index("{support}")
    for line in question.support:
        cue = line.partition(":")[0] + ":"
        if is_entry_cue(cue):
            recalled.append((start + len(cue), start + len(line) + 1))
        start += len(line) + 1
    weights = [
        0.0 if any(begin < last <= end for begin, end in recalled) else 1.0 for _, last in encoded["offset_mapping"]
    ]
    return Segment(
        ids=(*prompt, *encoded["input_ids"], base.eos_id), prefix_tokens=len(prompt), weights=(*weights, 1.0)
    )
