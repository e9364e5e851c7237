"""A question behind each part of a paragraph, as a reader of parts learns to choose the one with the answer."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from meta_training.document import Question
from meta_training.tasks.sentences import split_title
from perk.base_model import BaseModel
from perk.part_choice import question_behind
from perk.parts import told_apart
from perk.segment import Segment
from perk.sentences import sentences

__all__ = ["ChoiceExample", "choice_example"]

_MOST_PARTS = 3
# Some cuts part the answer from all other words, others leave it in every part.
_CUTS = 4


@dataclass(frozen=True)
class ChoiceExample:
    """One question and the parts that it might be about.

    Attributes:
        segments: one a part: the part as prefix, the question as text, which is the same behind all.
        right: for each of them, whether it holds the answer; some do and some do not.
    """

    segments: tuple[Segment, ...]
    right: tuple[bool, ...]


def choice_example(question: Question, base: BaseModel, rng: random.Random) -> ChoiceExample | None:
    """Cut a question's support into parts, and put the question behind each.

    Args:
        question: whose support is a paragraph.
        base: whose tokeniser is used.
        rng: of the cuts.

    Returns:
        None where no cut was found by which some parts hold an accepted answer word for word and others do not.
    """
    answers = [answer.lower() for answer in (question.answer, *question.answers)]
    for _ in range(_CUTS):
        parts = _cut_parts(question.paragraph, rng)
        right = tuple(any(answer in part.lower() for answer in answers) for part in parts)
        if any(right) and not all(right):
            before, asked = question_behind(question.question, base)
            prefixes = [[*base.encode(text), *before] for text in told_apart(parts)]
            segments = (Segment(ids=(*prefix, *asked), prefix_tokens=len(prefix)) for prefix in prefixes)
            return ChoiceExample(tuple(segments), right)
    return None


def _cut_parts(paragraph: str, rng: random.Random) -> list[str]:
    """Two or three parts of some sentences each, the title before the first; of a single sentence there is one part."""
    title, text = split_title(paragraph)
    every = sentences(text, shortest=0)
    count = min(len(every), rng.randint(2, _MOST_PARTS))
    cuts = [0, *sorted(rng.sample(range(1, len(every)), count - 1)), len(every)]
    first, *others = [" ".join(every[start:end]) for start, end in pairwise(cuts)]
    return [f"{title}. {first}" if title else first, *others]
