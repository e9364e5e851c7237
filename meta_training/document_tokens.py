"""A document of a step with its questions, as the model reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from meta_training.document import Document, Question
from meta_training.in_context import in_context_question
from meta_training.question_segment import question_segment
from meta_training.settings import TrainSettings
from perk.base_model import BaseModel
from perk.segment import Segment
from perk.segments import normalise, split_segments

__all__ = ["DocumentTokens"]


@dataclass(frozen=True)
class DocumentTokens:
    """Token ids of a document and of what is asked about it.

    Attributes:
        segments: what the inner loop reads.
        questions: prompt as prefix, answer as text; with `ft-icr` the document is part of the prompt.
    """

    segments: list[Segment]
    questions: list[Segment]

    @classmethod
    def of(cls, document: Document, base: BaseModel, settings: TrainSettings) -> DocumentTokens:
        """Read a document as a run of these settings does."""

        def segment(question: Question) -> Segment:
            if settings.method == "ft-icr":
                asked = in_context_question(question.question, document, base, settings.templates)
                question = replace(question, question=asked)
            return question_segment(question, base, settings.templates, answer_weight=settings.outer.answer_weight)

        segments = split_segments(normalise(document.text), base.tokenizer, settings.segments)
        return cls(segments, [segment(question) for question in document.questions])

    @property
    def longest_question(self) -> int:
        """Tokens of the longest question; 0 without any."""
        return max((len(question.ids) for question in self.questions), default=0)
