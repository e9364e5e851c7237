"""Natural Questions: search questions, each with the Wikipedia paragraph that answers it; several make a document."""

from __future__ import annotations

import random
from dataclasses import replace

from meta_training.document import Document, Question
from meta_training.exchange import read_documents
from meta_training.tasks.cloze import cloze_questions
from meta_training.tasks.sentences import supporting_sentence, whole_lines
from meta_training.tasks.shared_data import data_file
from meta_training.tasks.task import CountTokens, Split
from perk.errors import InvalidInput

__all__ = ["NaturalQuestions"]


class NaturalQuestions:
    """One paragraph with its questions, or as many as fill the asked length."""

    def __init__(self, *, split: Split, count_tokens: CountTokens, cloze: int = 0) -> None:
        """Read the paragraphs of a split: the study's own two files; training leaves out those that both have.

        Args:
            split: which file.
            count_tokens: of the base's tokeniser.
            cloze: questions to make of each paragraph's own sentences (`cloze_questions`) beside those that people
                asked, which are one a paragraph, too few to learn from. Development asks the set's own alone.

        Raises:
            InvalidInput: a number out of range, or no data.
        """
        if cloze < 0:
            raise InvalidInput("cloze", str(cloze), "at least 0")
        self.name = "nq"
        self._cloze = cloze if split == "train" else 0
        self._paragraphs: list[tuple[str, tuple[Question, ...], int]] = []
        documents = read_documents(data_file(f"nq/{split}.jsonl"))
        if split == "train":
            held_out = {document.text for document in read_documents(data_file("nq/dev.jsonl"))}
            documents = [document for document in documents if document.text not in held_out]
        for document in documents:
            questions = tuple(_as_asked(question, document.text) for question in document.questions)
            self._paragraphs.append((document.text, questions, count_tokens(document.text)))

    def draw(self, rng: random.Random, *, tokens: int, position: float | None = None) -> Document:
        """At least one paragraph, then as many as fit; `position` pins the first one drawn, and asks about it alone."""
        chosen: list[tuple[str, tuple[Question, ...]]] = []
        used = 0
        for text, questions, length in rng.sample(self._paragraphs, len(self._paragraphs)):
            if chosen and used + length > tokens:
                break
            chosen.append((text, questions))
            used += length
        if self._cloze:
            chosen = [(text, (*asked, *self._made(text, rng))) for text, asked in chosen]
        texts = [text for text, _ in chosen]
        if position is None:
            return Document(tuple(texts), tuple(question for _, questions in chosen for question in questions))
        first, *others = texts
        others.insert(round(position * len(others)), first)
        return Document(tuple(others), chosen[0][1])

    def _made(self, paragraph: str, rng: random.Random) -> list[Question]:
        return [_recalled(q, paragraph) for q in cloze_questions(paragraph, rng, count=self._cloze)]


def _as_asked(question: Question, paragraph: str) -> Question:
    """Typed into a search box, without capital or question mark: put both; and the paragraph with the answer."""
    text = question.question.strip().rstrip("?")
    asked = f"{text[:1].upper()}{text[1:]}?"
    support = question.support or supporting_sentence(paragraph, (question.answer, *question.answers))
    return _recalled(replace(question, question=asked, support=support), paragraph)


def _recalled(question: Question, paragraph: str) -> Question:
    return replace(question, support=whole_lines(paragraph, question.support), task="nq")
