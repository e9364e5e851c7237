"""bAbI's stories as their files hold them: facts in order, and questions that some of the facts answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["Asked", "Story", "read_stories"]


@dataclass(frozen=True)
class Asked:
    """A question of a story.

    Attributes:
        facts: how many facts precede it.
        question: its text.
        answer: one word.
        support: indices of the facts that answer it, in the order in which they are recalled.
    """

    facts: int
    question: str
    answer: str
    support: tuple[int, ...]


@dataclass(frozen=True)
class Story:
    """Facts in the order in which they happened, and questions asked on the way."""

    facts: tuple[str, ...]
    questions: tuple[Asked, ...]


@cache
def read_stories(path: Path) -> tuple[Story, ...]:
    """Stories of a bAbI file: lines are ``N fact`` or ``N question<TAB>answer<TAB>supporting N``; N = 1 starts one."""
    stories: list[Story] = []
    statements: list[str] = []
    number_of: dict[int, int] = {}
    questions: list[Asked] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        number_text, _, rest = line.partition(" ")
        if number_text == "1" and statements:
            stories.append(Story(tuple(statements), tuple(questions)))
            statements, number_of, questions = [], {}, []
        if "\t" in rest:
            text, answer, support = rest.split("\t")
            indices = tuple(number_of[int(number)] for number in support.split())
            questions.append(Asked(len(statements), text.strip(), answer.strip(), indices))
        else:
            number_of[int(number_text)] = len(statements)
            statements.append(rest.strip())
    stories.append(Story(tuple(statements), tuple(questions)))
    return tuple(story for story in stories if story.questions)
