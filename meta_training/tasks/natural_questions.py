"""Natural Questions: search questions, each with the Wikipedia paragraph that answers it; several make a document."""

from __future__ import annotations

import random
from dataclasses import replace

from meta_training.document import Document, Question
from meta_training.exchange import read_documents
from meta_training.tasks.sentences import supporting_sentence
from meta_training.tasks.shared_data import data_file
from meta_training.tasks.task import CountTokens, Split
from perk.segments import join_passages

__all__ = ["NaturalQuestions"]


class NaturalQuestions:
    """One paragraph with its questions, or as many as fill the asked length."""

    def __init__(self, *, split: Split, count_tokens: CountTokens) -> None:
        """Read the paragraphs of a split; the study's own two files are the splits."""
        self.name = "nq"
        self._paragraphs: list[tuple[str, tuple[Question, ...], int]] = []
        for document in read_documents(data_file(f"nq/{split}.jsonl")):
            text = document.context if isinstance(document.context, str) else join_passages(document.context)
            questions = tuple(_as_asked(question, text) for question in document.questions)
            self._paragraphs.append((text, questions, count_tokens(text)))

    def draw(self, rng: random.Random, *, tokens: int, position: float | None = None) -> Document:
        """At least one paragraph, then as many as fit; `position` pins the first one drawn, and asks about it alone."""
        chosen: list[tuple[str, tuple[Question, ...]]] = []
        used = 0
        for text, questions, length in rng.sample(self._paragraphs, len(self._paragraphs)):
            if chosen and used + length > tokens:
                break
            chosen.append((text, questions))
            used += length
        texts = [text for text, _ in chosen]
        if position is None:
            return Document(tuple(texts), tuple(question for _, questions in chosen for question in questions))
        first, *others = texts
        others.insert(round(position * len(others)), first)
        return Document(tuple(others), chosen[0][1])


def _as_asked(question: Question, paragraph: str) -> Question:
    """Typed into a search box, without capital or question mark: put both; and the sentence that answers it."""
    text = question.question.strip().rstrip("?")
    asked = f"{text[:1].upper()}{text[1:]}?"
    support = question.support or supporting_sentence(paragraph, (question.answer, *question.answers))
    return replace(question, question=asked, support=support, task="nq")
