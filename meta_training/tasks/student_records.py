"""Student Records (PERK section 4.1): one line a student; questions recall, relate or aggregate them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from meta_training.tasks.document import CountTokens, Document, Question, Split
from perk.errors import InvalidInput

__all__ = ["QuestionKind", "StudentRecords"]

QuestionKind = Literal["recall", "relation", "aggregate"]

_FIRST = [
    "Aaliyah",
    "Adam",
    "Aiko",
    "Alejandro",
    "Alice",
    "Amara",
    "Amir",
    "Ana",
    "Anders",
    "Andrea",
    "Anika",
    "Anton",
    "Arjun",
    "Astrid",
    "Ayesha",
    "Beatriz",
    "Benjamin",
    "Bianca",
    "Boris",
    "Brandon",
    "Camila",
    "Carlos",
    "Carmen",
    "Caroline",
    "Cecilia",
    "Charles",
    "Chloe",
    "Christopher",
    "Clara",
    "Connor",
    "Daisuke",
    "Damian",
    "Daniela",
    "Darius",
    "David",
    "Deepa",
    "Diana",
    "Diego",
    "Dmitri",
    "Edward",
    "Elena",
    "Elias",
    "Elizabeth",
    "Emeka",
    "Emily",
    "Emma",
    "Erik",
    "Esther",
    "Ethan",
    "Fatima",
    "Felix",
    "Fiona",
    "Francisco",
    "Freya",
    "Gabriel",
    "George",
    "Grace",
    "Gustavo",
    "Hannah",
    "Haruto",
    "Hassan",
    "Helena",
    "Henry",
    "Hugo",
    "Ibrahim",
    "Ingrid",
    "Isabella",
    "Ivan",
    "Jack",
    "Jamal",
    "James",
    "Jasmine",
    "Javier",
    "Jessica",
    "Joao",
    "Jonas",
    "Julia",
    "Kaito",
    "Karim",
    "Katarina",
    "Kenji",
    "Kevin",
    "Kofi",
    "Lars",
    "Laura",
    "Layla",
    "Leila",
    "Leo",
    "Liam",
    "Lina",
    "Lucas",
    "Lucia",
    "Maja",
    "Manuel",
    "Marco",
    "Maria",
    "Marta",
    "Mateo",
    "Matthew",
    "Maya",
    "Mei",
    "Michael",
    "Mina",
    "Mohammed",
    "Nadia",
    "Naomi",
    "Natalia",
    "Nicholas",
    "Nina",
    "Noah",
    "Olga",
    "Oliver",
    "Olivia",
    "Omar",
    "Oscar",
    "Pablo",
    "Patricia",
    "Paul",
    "Pedro",
    "Peter",
    "Priya",
    "Rachel",
    "Rafael",
    "Raj",
    "Rebecca",
    "Renata",
    "Robert",
    "Rosa",
    "Ryan",
    "Samira",
    "Samuel",
    "Sara",
    "Sebastian",
    "Simone",
    "Sofia",
    "Sven",
    "Tariq",
    "Thomas",
    "Tomas",
    "Valentina",
    "Victor",
    "Wei",
    "William",
    "Xavier",
    "Yara",
    "Yuki",
    "Yusuf",
    "Zainab",
    "Zoe",
]
_LAST = [
    "Abbott",
    "Adeyemi",
    "Ahmed",
    "Ali",
    "Alvarez",
    "Andersen",
    "Baker",
    "Bauer",
    "Becker",
    "Bennett",
    "Berg",
    "Bianchi",
    "Brooks",
    "Brown",
    "Campbell",
    "Carter",
    "Castillo",
    "Chang",
    "Chen",
    "Chowdhury",
    "Clark",
    "Cohen",
    "Collins",
    "Cooper",
    "Costa",
    "Cruz",
    "Davis",
    "Diaz",
    "Dubois",
    "Edwards",
    "Evans",
    "Farah",
    "Fernandez",
    "Fischer",
    "Fleming",
    "Foster",
    "Fujita",
    "Garcia",
    "Gomez",
    "Gonzalez",
    "Gray",
    "Green",
    "Gupta",
    "Haddad",
    "Hall",
    "Hansen",
    "Harris",
    "Hayashi",
    "Hernandez",
    "Hill",
    "Hoffmann",
    "Hughes",
    "Hussain",
    "Ivanova",
    "Jackson",
    "Jansen",
    "Jensen",
    "Johnson",
    "Jones",
    "Kapoor",
    "Kelly",
    "Khan",
    "Kim",
    "Klein",
    "Kowalski",
    "Kumar",
    "Lange",
    "Larsen",
    "Lee",
    "Lewis",
    "Lindberg",
    "Lopez",
    "Mahmoud",
    "Martin",
    "Martinez",
    "Mendes",
    "Meyer",
    "Miller",
    "Mitchell",
    "Moore",
    "Morales",
    "Mori",
    "Morris",
    "Müller",
    "Murphy",
    "Nakamura",
    "Nelson",
    "Nguyen",
    "Nielsen",
    "Novak",
    "Okafor",
    "Oliveira",
    "Olsen",
    "Ortiz",
    "Osei",
    "Park",
    "Parker",
    "Patel",
    "Perez",
    "Petrov",
    "Popescu",
    "Price",
    "Ramirez",
    "Reed",
    "Reyes",
    "Rivera",
    "Roberts",
    "Robinson",
    "Rossi",
    "Russell",
    "Sanchez",
    "Santos",
    "Sato",
    "Schmidt",
    "Schneider",
    "Sharma",
    "Silva",
    "Singh",
    "Smith",
    "Sokolov",
    "Stewart",
    "Suzuki",
    "Tanaka",
    "Taylor",
    "Thompson",
    "Torres",
    "Turner",
    "Usman",
    "Vargas",
    "Vasquez",
    "Walker",
    "Wang",
    "Watanabe",
    "Weber",
    "White",
    "Williams",
    "Wilson",
    "Wong",
    "Wright",
    "Yamamoto",
    "Yang",
    "Young",
    "Zhang",
    "Zimmermann",
]
_YEARS = ("Freshman", "Sophomore", "Junior", "Senior")
_SCHOOLS = (
    "School of Engineering",
    "School of Business",
    "School of Law",
    "School of Medicine",
    "School of Education",
    "School of Arts",
    "School of Sciences",
    "School of Humanities",
    "School of Public Health",
    "School of Social Sciences",
    "School of Nursing",
    "School of Architecture",
    "School of Music",
    "School of Information",
    "School of Agriculture",
    "School of Journalism",
    "College of Liberal Arts",
    "College of Natural Sciences",
    "Graduate School of Management",
    "Institute of Technology",
)
_MAJORS = (
    "Accounting",
    "Anthropology",
    "Architecture",
    "Art History",
    "Astronomy",
    "Biochemistry",
    "Biology",
    "Business Administration",
    "Chemical Engineering",
    "Chemistry",
    "Civil Engineering",
    "Communications",
    "Computer Science",
    "Dance",
    "Data Science",
    "Economics",
    "Electrical Engineering",
    "English Literature",
    "Environmental Science",
    "Film Studies",
    "Finance",
    "Geography",
    "Geology",
    "Graphic Design",
    "History",
    "International Relations",
    "Journalism",
    "Linguistics",
    "Marketing",
    "Mathematics",
    "Mechanical Engineering",
    "Music",
    "Neuroscience",
    "Nursing",
    "Philosophy",
    "Physics",
    "Political Science",
    "Psychology",
    "Sociology",
    "Spanish",
    "Statistics",
    "Theater",
)
_FIELDS = ("name", "year", "school", "major", "grade")


@dataclass(frozen=True)
class _Student:
    number: int
    name: str
    year: str
    school: str
    major: str
    grade: int

    def line(self) -> str:
        return (
            f"Student <{self.number}>, Name: {self.name}, Year: {self.year}, School: {self.school}, "
            f"Major: {self.major}, Grade: {self.grade}"
        )


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
    ) -> None:
        """Set the questions.

        Args:
            split: identity numbers of the two splits never meet: dev has those that end in 0.
            count_tokens: of the base's tokeniser.
            kinds: of questions, drawn with equal shares.
            questions: at most, for each document.
            records: exact number of students; None: as many as fit the asked number of tokens.
        """
        for kind in kinds:
            if kind not in get_args(QuestionKind):
                raise InvalidInput("kinds", repr(kind), f"one of {', '.join(get_args(QuestionKind))}")
        self.name = f"student-{kinds[0]}" if len(kinds) == 1 else "student"
        self._dev = split == "dev"
        self._count_tokens = count_tokens
        self._kinds = tuple(kinds)
        self._questions = questions
        self._records = records

    def draw(self, rng: random.Random, *, tokens: int, position: float | None = None) -> Document:
        """A register; `position` pins the student asked about, and leaves one question."""
        students = self._students(rng, tokens)
        if position is None:
            asked = self._ask(rng, students)
        else:
            student = students[min(int(position * len(students)), len(students) - 1)]
            asked = [_recall(student, rng.choice(_FIELDS))]
        return Document("\n".join(student.line() for student in students), tuple(asked))

    def _students(self, rng: random.Random, tokens: int) -> list[_Student]:
        students: list[_Student] = []
        numbers: set[int] = set()
        used = 0
        while len(students) < self._records if self._records is not None else used < tokens or not students:
            number = rng.randrange(100_000, 1_000_000) * 10 + (0 if self._dev else rng.randrange(1, 10))
            if number in numbers:
                continue
            numbers.add(number)
            student = _Student(
                number,
                f"{rng.choice(_FIRST)} {rng.choice(_LAST)}",
                rng.choice(_YEARS),
                rng.choice(_SCHOOLS),
                rng.choice(_MAJORS),
                rng.randrange(0, 101),
            )
            line = self._count_tokens(student.line()) + 1 if self._records is None else 0
            if students and used + line > tokens and self._records is None:
                break
            used += line
            students.append(student)
        return students

    def _ask(self, rng: random.Random, students: list[_Student]) -> list[Question]:
        recalls = [(student, field) for student in students for field in _FIELDS]
        rng.shuffle(recalls)
        asked: dict[str, Question] = {}
        for index in range(4 * self._questions):
            kind = self._kinds[index % len(self._kinds)]
            if kind == "recall" and recalls:
                question = _recall(*recalls.pop())
            elif kind == "relation" and len(students) > 1:
                question = _relation(rng, students)
            elif kind == "aggregate":
                question = _aggregate(rng, students)
            else:
                continue
            asked.setdefault(question.question, question)
            if len(asked) == self._questions:
                break
        return list(asked.values())


def _recall(student: _Student, field: str) -> Question:
    return Question(
        question=f"What is the {field} of the student with ID {student.number}?",
        answer=str(getattr(student, field)),
        support=(student.line(),),
        task="student-recall",
    )


def _relation(rng: random.Random, students: list[_Student]) -> Question:
    first, second = rng.sample(students, 2)
    kind = rng.choice(("grade", "major", "school", "year"))
    # Two students seldom share a field: look for a pair that does in half of the questions.
    if kind != "grade" and rng.random() < 0.5:
        twins = [s for s in students if s is not first and getattr(s, kind) == getattr(first, kind)]
        second = rng.choice(twins) if twins else second
    if kind == "grade":
        text = f"Does student {first.number} has a higher grade than student {second.number}?"
        holds = first.grade > second.grade
    else:
        where = {"major": "have the same major", "school": "study at the same school", "year": "study in the same year"}
        text = f"Do student {first.number} and student {second.number} {where[kind]}?"
        holds = getattr(first, kind) == getattr(second, kind)
    return Question(
        question=text,
        answer="Yes" if holds else "No",
        support=(first.line(), second.line()),
        task="student-relation",
    )


def _aggregate(rng: random.Random, students: list[_Student]) -> Question:
    grades = [student.grade for student in students]
    kind = rng.choice(("highest", "lowest", "average"))
    value = {"highest": max(grades), "lowest": min(grades), "average": round(sum(grades) / len(grades))}[kind]
    return Question(
        question=f"What is the {kind} grade of all students?",
        answer=str(value),
        support=tuple(student.line() for student in students),
        task="student-aggregate",
    )
