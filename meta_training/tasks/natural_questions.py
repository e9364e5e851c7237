"""Natural Questions: search questions with the Wikipedia paragraph that answers each; several joined make a document."""

from __future__ import annotations

import json
import random

from meta_training.tasks.document import CountTokens, Document, Question, Split
from meta_training.tasks.shared_data import data_file

__all__ = ["NaturalQuestions"]


class NaturalQuestions:
    """One paragraph and its question, or as many as fill the asked length."""

    def __init__(self, *, split: Split, count_tokens: CountTokens) -> None:
        self.name = "nq"
        rows = [json.loads(line) for line in data_file(f"nq/{split}.jsonl").read_text().splitlines()]
        self._rows = [(row, count_tokens(row["context"])) for row in rows]

    def draw(self, rng: random.Random, *, tokens: int, position: float | None = None) -> Document:
        """Paragraphs in random order; `position` pins the first one's place, and leaves its question alone."""
        chosen = [rng.choice(self._rows)]
        used = chosen[0][1]
        while used < tokens:
            row = rng.choice(self._rows)
            if used + row[1] > tokens or any(row[0]["context"] == other["context"] for other, _ in chosen):
                break
            chosen.append(row)
            used += row[1]
        paragraphs = [str(row["context"]) for row, _ in chosen]
        questions = [_question(row) for row, _ in chosen]
        if position is None:
            return Document(tuple(paragraphs), tuple(questions))
        others = paragraphs[1:]
        others.insert(round(position * len(others)), paragraphs[0])
        return Document(tuple(others), (questions[0],))


def _question(row: dict[str, object]) -> Question:
    text = str(row["question"]).strip().rstrip("?")
    answers = row.get("answers")
    return Question(
        # Typed into a search box: without capital or question mark.
        question=f"{text[:1].upper()}{text[1:]}?",
        answer=str(row["answer"]),
        answers=tuple(str(answer) for answer in answers) if isinstance(answers, list) else (),
        task="nq",
    )
