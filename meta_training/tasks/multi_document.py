"""Multi-document question answering (PERK section 4.2): a question's passages among those of others, or of a book."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from meta_training.document import Document, Question
from meta_training.tasks.background import Background, as_passages
from meta_training.tasks.question_rows import QuestionRows
from meta_training.tasks.task import CountTokens, Split
from perk.errors import InvalidInput

__all__ = ["MultiDocument", "Sample"]

# Rows without a usable passage (an answer that stands nowhere literally) are passed over, up to so many in a row.
_TRIES = 200
_CLOSED = frozenset({"yes", "no"})


@dataclass(frozen=True)
class Sample:
    """What a row of a question set is worth.

    Attributes:
        questions: at least one, about the same passages.
        relevant: passages that answer them.
        others: passages that come with them and do not.
    """

    questions: tuple[Question, ...]
    relevant: tuple[str, ...]
    others: tuple[str, ...] = ()


class MultiDocument(ABC):
    """Questions of a published set, several to a document, whose passages lie shuffled among distractors.

    A set is a subclass that names its source and reads one row.
    """

    name: str
    published: str
    """Hub id."""
    configuration: str | None = None

    def __init__(
        self,
        *,
        split: Split,
        count_tokens: CountTokens,
        source: str | None = None,
        config: str | None = None,
        questions: int = 4,
        background_share: float = 0.0,
    ) -> None:
        """Open the set.

        Args:
            split: the set's own rows for training or for validation.
            count_tokens: of the base's tokeniser.
            source: hub id or folder of a set in the same columns; None: the published one.
            config: configuration of `source`; None: the published one's, or the only one of another source.
            questions: at most, for each document.
            background_share: share of the documents whose distractors are a book's prose instead of other passages.

        Raises:
            InvalidInput: a number out of range, ``datasets`` is not installed, or there is no such set.
        """
        if questions < 1:
            raise InvalidInput("questions", str(questions), "at least 1")
        if not 0 <= background_share <= 1:
            raise InvalidInput("background_share", str(background_share), "from 0 to 1")
        if source is None:
            source, config = self.published, config or self.configuration
        self.rows = QuestionRows(source, config=config, split=split)
        self._background = Background(split=split, count_tokens=count_tokens) if background_share else None
        self._background_share = background_share
        self._count_tokens = count_tokens
        self._questions = questions

    @abstractmethod
    def read(self, index: int) -> Sample | None:
        """The row at an index, or None where no passage of it answers its question.

        Raises:
            KeyError, TypeError: the set has other columns.
        """

    def draw(self, rng: random.Random, *, tokens: int, position: float | None = None) -> Document:
        """The passages of a question, then of further ones as long as they fit, then distractors to the asked length.

        `position` places the passages of one question together, and asks it alone.
        """
        first = self._sample(rng)
        relevant = dict.fromkeys(first.relevant)
        others = list(first.others)
        asked = rng.sample(first.questions, min(len(first.questions), self._questions if position is None else 1))
        used = self._length(relevant)
        while position is None and len(asked) < self._questions:
            more = self._sample(rng)
            fresh = [passage for passage in more.relevant if passage not in relevant]
            length = self._length(fresh)
            if not fresh or used + length > tokens:
                break
            used += length
            relevant.update(dict.fromkeys(fresh))
            others += more.others
            asked += rng.sample(more.questions, min(len(more.questions), self._questions - len(asked)))
        rng.shuffle(others)
        distractors = self._distractors(rng, relevant, others, asked, tokens - used)
        if position is None:
            passages = [*relevant, *distractors]
            rng.shuffle(passages)
        else:
            passages = distractors
            at = round(position * len(passages))
            passages[at:at] = relevant
        return Document(tuple(passages), tuple(replace(question, task=self.name) for question in asked))

    def _distractors(
        self,
        rng: random.Random,
        relevant: dict[str, None],
        own: Sequence[str],
        asked: Sequence[Question],
        tokens: int,
    ) -> list[str]:
        if self._background is not None and rng.random() < self._background_share:
            return as_passages(self._background.sentences(rng, max(tokens, 0)))
        chosen: dict[str, None] = {}
        for passage in chain(own, self._foreign(rng, asked)):
            if passage in relevant or passage in chosen:
                continue
            tokens -= self._length([passage])
            if tokens < 0:
                break
            chosen[passage] = None
        return list(chosen)

    def _foreign(self, rng: random.Random, asked: Sequence[Question]) -> Iterator[str]:
        """Passages of other rows, from a random one on, without those that hold an answer themselves."""
        answers = {answer.lower() for question in asked for answer in (question.answer, *question.answers)} - _CLOSED
        answering = re.compile("|".join(rf"\b{re.escape(answer)}\b" for answer in sorted(answers)) or r"(?!)")
        start = rng.randrange(len(self.rows))
        for offset in range(len(self.rows)):
            sample = self._read((start + offset) % len(self.rows))
            for passage in () if sample is None else (*sample.relevant, *sample.others):
                if not answering.search(passage.lower()):
                    yield passage

    def _sample(self, rng: random.Random) -> Sample:
        for _ in range(_TRIES):
            sample = self._read(rng.randrange(len(self.rows)))
            if sample is not None:
                return sample
        raise InvalidInput("source", self.rows.source, "a question set whose passages hold the answers")

    def _read(self, index: int) -> Sample | None:
        try:
            return self.read(index)
        except (KeyError, TypeError) as error:
            limit = f"a question set with the columns of {self.published} ({type(error).__name__}: {error})"
            raise InvalidInput("source", self.rows.source, limit) from error

    def _length(self, passages: Iterable[str]) -> int:
        return sum(self._count_tokens(passage) for passage in passages)
