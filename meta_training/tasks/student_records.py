"""Student Records (PERK section 4.1): one line a student; questions recall, relate or aggregate them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, get_args

from meta_training.document import Document, Question
from meta_training.tasks.comparison import Comparison, draw_relation_field
from meta_training.tasks.students import FIELDS, Student, draw_student
from meta_training.tasks.task import CountTokens, Split
from perk.errors import InvalidInput

__all__ = ["QuestionKind", "StudentRecords"]

QuestionKind = Literal["recall", "relation", "aggregate"]

# All seven-digit identity numbers. Divisibility tells the splits apart and shows in no single digit.
_NUMBERS = range(1_000_000, 10_000_000)
_DEV_DIVISOR = 7


class StudentRecords:
    """Registers of made-up students."""

    def __init__(
        self,
        *,
        split: Split,
        count_tokens: CountTokens,
        kinds: Sequence[QuestionKind] = ("recall",),
        questions: int = 8,
        records: int | None = None,
        near_share: float = 0.0,
    ) -> None:
        """Set the questions.

        Args:
            split: identity numbers of the two splits never meet: dev has the multiples of 7.
            count_tokens: of the base's tokeniser.
            kinds: of questions, drawn with equal shares.
            questions: at most, for each document.
            records: exact number of students; None: as many as fit the asked number of tokens.
            near_share: share of the identity numbers whose first two to five digits are those of one before: the hard
                cases of recall, which random numbers meet seldom.

        Raises:
            InvalidInput: an unknown kind, no kind, or a number out of range.
        """
        for kind in kinds:
            if kind not in get_args(QuestionKind):
                raise InvalidInput("kinds", repr(kind), f"one of {', '.join(get_args(QuestionKind))}")
        if not kinds:
            raise InvalidInput("kinds", "none", f"at least one of {', '.join(get_args(QuestionKind))}")
        # A relation needs two students.
        self._fewest = 2 if "relation" in kinds else 1
        # Beyond one number in ten of those free, drawing one that is not taken would take ever longer.
        most = len(_NUMBERS) // (10 * _DEV_DIVISOR)
        if records is not None and not self._fewest <= records <= most:
            raise InvalidInput("records", str(records), f"{self._fewest} to {most}")
        if not 0 <= near_share <= 1:
            raise InvalidInput("near_share", str(near_share), "from 0 to 1")
        if questions < 1:
            raise InvalidInput("questions", str(questions), "at least 1")
        self.name = f"student-{kinds[0]}" if len(kinds) == 1 else "student"
        self._dev = split == "dev"
        self._count_tokens = count_tokens
        self._kinds = tuple(kinds)
        self._questions = questions
        self._records = records
        self._near_share = near_share

    def draw(self, rng: random.Random, *, tokens: int, position: float | None = None) -> Document:
        """A register; `position` pins the student asked about, and leaves one question.

        Raises:
            InvalidInput: a position for questions that are about more than one student.
        """
        if position is not None and "recall" not in self._kinds:
            raise InvalidInput("position", str(position), f"none: questions of task {self.name} have no single place")
        students = self._students(rng, tokens)
        if position is None:
            asked = self._ask(rng, students)
        else:
            student = students[min(int(position * len(students)), len(students) - 1)]
            asked = [_recall(student, rng.choice(FIELDS))]
        return Document("\n".join(student.line() for student in students), tuple(asked))

    def _students(self, rng: random.Random, tokens: int) -> list[Student]:
        students: list[Student] = []
        numbers: set[int] = set()
        used = 0
        while self._records is None or len(students) < self._records:
            number = rng.choice(_NUMBERS)
            if students and rng.random() < self._near_share:
                differing = 10 ** rng.randint(2, 5)
                number = rng.choice(students).number // differing * differing + number % differing
            if number in numbers or (number % _DEV_DIVISOR == 0) != self._dev:
                continue
            numbers.add(number)
            student = draw_student(rng, number)
            if self._records is None:
                used += self._count_tokens(student.line()) + 1
                if len(students) >= self._fewest and used > tokens:
                    break
            students.append(student)
        return students

    def _ask(self, rng: random.Random, students: list[Student]) -> list[Question]:
        recalls = [(student, field) for student in students for field in FIELDS]
        rng.shuffle(recalls)
        asked: dict[str, Question] = {}
        # A kind may run out of new questions (there are three aggregates): give up after as many tries as this.
        for index in range(4 * self._questions):
            kind = self._kinds[index % len(self._kinds)]
            if kind == "recall" and recalls:
                question = _recall(*recalls.pop())
            elif kind == "relation":
                question = _relation(rng, students)
            elif kind == "aggregate":
                question = _aggregate(rng, students)
            else:
                continue
            asked.setdefault(question.question, question)
            if len(asked) == self._questions:
                break
        return list(asked.values())


def _recall(student: Student, field: str) -> Question:
    return Question(
        question=f"What is the {field} of the student with ID {student.number}?",
        answer=str(getattr(student, field)),
        support=(student.line(),),
        task="student-recall",
    )


def _relation(rng: random.Random, students: list[Student]) -> Question:
    first, second = rng.sample(students, 2)
    field = draw_relation_field(rng)
    # Two students seldom share a field: look for a pair that does in half of the questions.
    if field != "grade" and rng.random() < 0.5:
        twins = [s for s in students if s is not first and getattr(s, field) == getattr(first, field)]
        second = rng.choice(twins) if twins else second
    comparison = Comparison(field, getattr(first, field), getattr(second, field))
    return Question(
        question=comparison.question(first.number, second.number),
        answer=comparison.answer,
        support=(first.line(), second.line()),
        task="student-relation",
        derivation=comparison.line(),
    )


def _aggregate(rng: random.Random, students: list[Student]) -> Question:
    grades = [student.grade for student in students]
    kind = rng.choice(("highest", "lowest", "average"))
    value = {"highest": max(grades), "lowest": min(grades), "average": round(sum(grades) / len(grades))}[kind]
    # An average rests on every record, too many to recall; an extreme grade stands in one, the first of its equals.
    support = () if kind == "average" else (next(s.line() for s in students if s.grade == value),)
    return Question(
        question=f"What is the {kind} grade of all students?",
        answer=str(value),
        support=support,
        task="student-aggregate",
    )
