"""TriviaQA (Joshi et al., arXiv 1705.03551): quiz questions, with pages found for them that need not say the answer."""

from __future__ import annotations

from collections.abc import Iterator

from meta_training.document import Question
from meta_training.tasks.multi_document import MultiDocument, Sample
from meta_training.tasks.sentences import supporting_sentence, whole_lines

__all__ = ["TriviaQA"]

# Pages are long: their paragraphs are joined up to so many words.
_PASSAGE_WORDS = 150
# More passages of the same pages would leave no room for other pages.
_OTHERS = 6


class TriviaQA(MultiDocument):
    """The reading setting: the first passage that holds an accepted answer literally is taken to support it."""

    name = "trivia-qa"
    published = "mandarjoshi/trivia_qa"
    configuration = "rc"

    def read(self, index: int) -> Sample | None:
        """One question, with passages of its encyclopedia pages, or of those that a search found."""
        row = self.rows[index]
        answer = row["answer"]
        accepted = tuple(dict.fromkeys((answer["value"], *answer["aliases"])))
        pages = [*row["entity_pages"]["wiki_context"], *row["search_results"]["search_context"]]
        passages = [passage for page in pages for passage in _passages(page)]
        supports = {passage: supporting_sentence(passage, accepted) for passage in passages}
        relevant = next((passage for passage, support in supports.items() if support), None)
        if relevant is None:
            return None
        support = whole_lines(relevant, supports[relevant])
        return Sample(
            questions=(Question(row["question"].strip(), accepted[0], accepted[1:], support),),
            relevant=(relevant,),
            others=tuple(passage for passage, support in supports.items() if not support)[:_OTHERS],
        )


def _passages(page: str) -> Iterator[str]:
    lines: list[str] = []
    for line in filter(None, map(str.strip, page.splitlines())):
        lines.append(line)
        if sum(len(part.split()) for part in lines) >= _PASSAGE_WORDS:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)
