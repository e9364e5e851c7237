"""SQuAD (Rajpurkar et al., arXiv 1606.05250): several questions about each Wikipedia paragraph."""

from __future__ import annotations

from meta_training.document import Question
from meta_training.tasks.multi_document import MultiDocument, Sample
from meta_training.tasks.sentences import sentence_at, whole_lines

__all__ = ["Squad"]


class Squad(MultiDocument):
    """A paragraph with all its questions, which it supports."""

    name = "squad"
    published = "rajpurkar/squad"

    def read(self, index: int) -> Sample | None:
        """All answerable questions about the paragraph of a row: they are neighbours in the set."""
        context = self.rows[index]["context"]
        first, end = index, index + 1
        while first > 0 and self.rows[first - 1]["context"] == context:
            first -= 1
        while end < len(self.rows) and self.rows[end]["context"] == context:
            end += 1
        questions = tuple(
            Question(
                row["question"].strip(),
                texts[0],
                tuple(dict.fromkeys(texts[1:])),
                whole_lines(context, sentence_at(context, starts[0])),
            )
            for row in (self.rows[number] for number in range(first, end))
            # The second edition has questions without an answer.
            if (texts := row["answers"]["text"]) and (starts := row["answers"]["answer_start"])
        )
        return Sample(questions, relevant=(context,)) if questions else None
