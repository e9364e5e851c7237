"""A question as the reader of parts learns it: behind the part that answers it, which carries no loss."""

from __future__ import annotations

import random
from dataclasses import replace

from meta_training.document import Question
from meta_training.question_segment import weighed_segment
from meta_training.tasks.sentences import split_title
from perk.base_model import BaseModel
from perk.errors import InvalidInput
from perk.segment import Segment
from perk.sentences import sentences
from perk.settings import TemplateSettings

__all__ = ["part_segment"]

# Share of paragraphs that are shortened: parts of a document differ in length, and few begin with its title.
_SHORTENED = 0.5
_TITLED = 0.3


def part_segment(question: Question, base: BaseModel, templates: TemplateSettings, rng: random.Random) -> Segment:
    """The prompt and a paragraph without loss, then the answer and the end token.

    Where the paragraph holds an accepted answer word for word, that is the one; and every other such paragraph is cut
    in two between two of its sentences, and the half with the answer taken.

    Args:
        question: whose support is the paragraph.
        base: whose tokeniser is used.
        templates: around all of it.
        rng: of the cuts.

    Raises:
        InvalidInput: the question has no support.
        ValueError: the templates have no place for one.
    """
    if templates.support is None:
        raise ValueError("templates: no support to read")
    if not question.support:
        raise InvalidInput("tasks", repr(question.task), "tasks whose questions come with their support")
    part = question.paragraph
    literal = next((answer for answer in (question.answer, *question.answers) if answer in part), None)
    answer = question.answer if literal is None else literal
    if literal is not None and rng.random() < _SHORTENED:
        part = _half(part, literal, rng)
    asked = replace(question, answer=answer, support=(part,), derivation="")
    read = len(templates.target(answer, (part,))) - len(templates.answer.format(answer=answer))
    return weighed_segment(asked, base, templates, lambda last: 1.0 if last > read else 0.0)


def _half(paragraph: str, answer: str, rng: random.Random) -> str:
    title, text = split_title(paragraph)
    every = sentences(text, shortest=0)
    if len(every) < 2:
        return paragraph
    cut = rng.randrange(1, len(every))
    halves = [half for half in (" ".join(every[:cut]), " ".join(every[cut:])) if answer in half]
    if not halves:
        return paragraph
    half = rng.choice(halves)
    return f"{title}. {half}" if title and rng.random() < _TITLED else half
