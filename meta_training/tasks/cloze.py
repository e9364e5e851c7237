"""Questions made of a passage's own sentences: a name, a date or a number is taken out and asked for.

After unsupervised question answering by cloze translation (Lewis et al. 2019, arXiv 1906.04980, section 2.3, noisy
cloze): first comes the question word of what was taken out, then the rest of the sentence, with words left out and
moved.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from meta_training.document import Question
from meta_training.tasks.sentences import passage_sentences, split_title

__all__ = ["cloze_questions"]

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_DAYS = rf"(?:\d{{1,2}} (?:{_MONTHS})|(?:{_MONTHS})(?: \d{{1,2}})?)(?:,? \d{{4}})?"
_SPANS = re.compile(
    rf"(?P<when>\b(?:{_DAYS}|1[0-9]{{3}}|20[0-9]{{2}})\b)"
    r"|(?P<amount>\b\d[\d,.]*\b)"
    r"|(?P<name>\b[A-Z][\w'’-]*(?: (?:(?:of|the|de|von|van|and|for) )*[A-Z][\w'’-]*)*)"
)
_QUESTION_WORDS = {
    "when": ("When", "In what year", "On what date"),
    "amount": ("How many", "How much", "What number"),
    "name": ("Who", "What", "Which", "Where"),
}
# Words of a question, and how far one may move.
_FEWEST, _MOST, _MOVE = 4, 16, 2.0
# Longest answer, in words.
_LONGEST = 6
_TITLE_SHARE = 0.3


def cloze_questions(passage: str, rng: random.Random, *, count: int) -> list[Question]:
    """At most `count` questions about a passage, each on a sentence and span of its own.

    A passage that begins with its title, as an encyclopedia's, is asked about under that title now and then.
    """
    title, _ = split_title(passage)
    spans = [(sentence, span) for sentence, start in passage_sentences(passage) for span in _spans(sentence, start)]
    rng.shuffle(spans)
    asked: dict[tuple[str, str], Question] = {}
    for sentence, span in spans:
        if len(asked) == count:
            break
        if (sentence, span[0]) in asked or (question := _question(sentence, span, rng)) is None:
            continue
        if title and rng.random() < _TITLE_SHARE:
            question = f"{title}: {question[0].lower()}{question[1:]}"
        asked[sentence, span[0]] = Question(question, span[0], support=(sentence,))
    return list(asked.values())


def _spans(sentence: str, start: int) -> Iterator[re.Match[str]]:
    for span in _SPANS.finditer(sentence, start):
        before = sentence[start : span.start()].rstrip()
        # Every sentence begins with a capital: what stands first is a name only where a second word says so.
        stands_first = not before or before[-1] in ".!?"
        if (not stands_first or " " in span[0]) and len(span[0].split()) <= _LONGEST:
            yield span


def _question(sentence: str, span: re.Match[str], rng: random.Random) -> str | None:
    """The question that the rest of the sentence makes, or None where too little is left."""
    before, after = sentence[: span.start()].split(), sentence[span.end() :].split()
    # Words near the gap say most about it.
    near = min(len(before), rng.randint(_FEWEST, _MOST // 2))
    behind = rng.randint(_FEWEST, _MOST) - near if near < _FEWEST else _MOST // 2
    words = before[len(before) - near :] + after[:behind]
    dropped = rng.uniform(0, 0.25)
    bare = (word.strip('.,;:()"“”') for word in words if rng.random() >= dropped)
    kept = [word for word in bare if word]
    if len(kept) < _FEWEST:
        return None
    if rng.random() < 0.3:
        kept = [word for _, word in sorted((index + rng.uniform(0, _MOVE), word) for index, word in enumerate(kept))]
    kind = span.lastgroup or "name"
    return f"{rng.choice(_QUESTION_WORDS[kind])} {' '.join(kept)}?"
