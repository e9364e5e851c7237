"""BabiLong (PERK section 4.1): the facts of a bAbI story hidden in a book's prose.

Kind ``events`` gives each fact its actor's running number and shuffles them; kind ``raw`` keeps the story's order,
which then is the only trace of time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from meta_training.document import Document, Question
from meta_training.tasks.babi_stories import Asked, Story, read_stories
from meta_training.tasks.babi_words import renaming
from meta_training.tasks.background import Background, as_passages
from meta_training.tasks.recount import Rename, recount_actor, recount_thing
from meta_training.tasks.shared_data import data_file
from meta_training.tasks.story_teller import tell_story
from meta_training.tasks.task import CountTokens, Split
from meta_training.tasks.whereabouts import derive_questions
from perk.errors import InvalidInput
from perk.series import numbered_series

__all__ = ["BabiLong"]

Kind = Literal["events", "raw"]

_DEV_SHARE = 0.1
# Sentences of a passage that has facts among them.
_INLINE = 12
# Facts of an invented story, by those that support a question; and the most that they may take of a document.
_FEWEST, _MOST = {1: 2, 2: 4, 3: 5}, {1: 10, 2: 26, 3: 60}
_FACTS_SHARE = 0.8
_LONG_FACT = "Mary Event 10: Mary journeyed to the bathroom."


class BabiLong:
    """Stories with one, two or three supporting facts among background prose."""

    def __init__(
        self,
        *,
        split: Split,
        count_tokens: CountTokens,
        facts: int = 1,
        kind: Kind = "events",
        inline_share: float = 0.0,
        min_facts: int = 2,
        renamed_share: float = 0.0,
        invented_share: float = 0.0,
        recount: bool = False,
    ) -> None:
        """Choose stories.

        Args:
            split: the last tenth of the stories and of the book's chapters is for development.
            count_tokens: of the base's tokeniser.
            facts: supporting facts of a question: 1, 2 or 3 (QA1, QA2, QA3).
            kind: ``events`` or ``raw``.
            inline_share: share of the documents whose facts stand between the sentences of a passage instead of on
                lines of their own.
            min_facts: fewest facts of a document, where its story has as many.
            renamed_share: share of the documents whose actors, places and things get other names than bAbI's, which has
                four actors and six places only.
            invented_share: share of the documents for training whose stories are told anew by bAbI's rules, with no
                more facts than fit: bAbI has 200 stories of QA3, and half of its questions there follow over 40 facts.
            recount: whether everyone's facts are told before the answer (see `recount`), not those alone that support
                it; segments then have to hold the document's series (`SegmentSettings.series`).

        Raises:
            InvalidInput: an unknown kind, a number out of range, or no data.
        """
        if facts not in (1, 2, 3):
            raise InvalidInput("facts", str(facts), "1, 2 or 3")
        if kind not in ("events", "raw"):
            raise InvalidInput("kind", repr(kind), "events or raw")
        if recount and kind == "raw":
            raise InvalidInput("recount", "true with kind raw", "facts with event numbers")
        shares = {"inline_share": inline_share, "renamed_share": renamed_share, "invented_share": invented_share}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise InvalidInput(name, str(share), "from 0 to 1")
        stories = read_stories(data_file(f"babi/qa{facts}_train.txt"))
        first_dev = round(len(stories) * (1 - _DEV_SHARE))
        self._stories = stories[first_dev:] if split == "dev" else stories[:first_dev]
        self._background = Background(split=split, count_tokens=count_tokens)
        self._count_tokens = count_tokens
        self._facts = facts
        self._kind: Kind = kind
        self._inline_share = inline_share
        self._min_facts = min_facts
        self._renamed_share = renamed_share
        # Development asks the data set's own stories.
        self._invented_share = invented_share if split == "train" else 0.0
        self._recount = recount
        self.name = f"babilong-qa{facts}" + ("-raw" if kind == "raw" else "")

    def draw(self, rng: random.Random, *, tokens: int, position: float | None = None) -> Document:
        """A story up to one of its questions; `position` places the facts that support it together, and asks only it.

        A raw story tells time by its order alone: there `position` places all its facts together.
        """
        story = self._story(rng, tokens)
        asked = rng.choice(story.questions)
        if asked.facts < self._min_facts:
            asked = story.questions[-1]
        facts = story.facts[: asked.facts]
        lines = _numbered(facts) if self._kind == "events" else list(facts)
        questions = [asked]
        if position is None:
            seen = {asked.question}
            for also in derive_questions(facts, self._facts, in_order=self._kind == "raw"):
                if also.question not in seen:
                    questions.append(also)
            rng.shuffle(questions)
        rename = renaming(rng) if rng.random() < self._renamed_share else str
        lines = [rename(line) for line in lines]
        fact_tokens = sum(self._count_tokens(line) + 1 for line in lines)
        prose = self._background.sentences(rng, max(tokens - fact_tokens, 0))
        if position is not None:
            placed = sorted(asked.support) if self._kind == "events" else range(len(lines))
            context = _placed(lines, placed, prose, position)
        else:
            told = list(lines)
            if self._kind == "events":
                rng.shuffle(told)
            context = _hidden(rng, told, prose, inline=rng.random() < self._inline_share)
            # A heading of the book right before a fact hides where the fact begins.
            if (
                self._kind == "events"
                and not numbered_series("\n".join(lines)).items() <= numbered_series(context).items()
            ):
                context = _hidden(rng, told, prose, inline=False)
        series = numbered_series(context) if self._recount else {}
        return Document(context, tuple(self._question(asked, facts, lines, rename, series) for asked in questions))

    def _story(self, rng: random.Random, tokens: int) -> Story:
        if not self._invented_share or rng.random() >= self._invented_share:
            return rng.choice(self._stories)
        fewest, most = max(_FEWEST[self._facts], self._min_facts), _MOST[self._facts]
        room = int(_FACTS_SHARE * tokens) // (self._count_tokens(_LONG_FACT) + 1)
        count = rng.randint(fewest, max(min(most, room), fewest))
        return tell_story(rng, facts=count, supporting=self._facts, in_order=self._kind == "raw")

    def _question(
        self, asked: Asked, facts: Sequence[str], lines: Sequence[str], rename: Rename, series: dict[str, int]
    ) -> Question:
        needed = tuple(lines[index] for index in asked.support)
        told = Question(rename(asked.question), rename(asked.answer), support=needed, task=self.name)
        if not self._recount:
            return told
        if self._facts == 1:
            actor = needed[0].partition(" Event ")[0]
            return replace(told, support=recount_actor(lines, actor, series=series))
        _, _, _, thing, *before = asked.question.rstrip("?").split()
        recounted = recount_thing(facts, lines, thing, rename=rename, series=series)
        carried = recounted.carried[facts[asked.support[0]].split()[0]]
        step = f"{thing}: {before[-1]}, from {asked.answer}" if before else carried[-1]
        assert step in carried
        return replace(told, support=recounted.lines, derivation=rename(step))


def _numbered(facts: tuple[str, ...]) -> list[str]:
    counts: Counter[str] = Counter()
    lines = []
    for fact in facts:
        actor = fact.split()[0]
        counts[actor] += 1
        lines.append(f"{actor} Event {counts[actor]}: {fact}")
    return lines


def _hidden(rng: random.Random, lines: list[str], prose: list[str], *, inline: bool) -> str:
    """Facts, in the order given, at random places of the prose."""
    parts = list(prose) if inline else as_passages(prose, least=len(lines) + 1)
    places = sorted(rng.randint(0, len(parts)) for _ in lines)
    # From the end, so that the places before stay what they were.
    for place, line in zip(reversed(places), reversed(lines), strict=True):
        parts.insert(place, line)
    if inline:
        parts = [" ".join(parts[start : start + _INLINE]) for start in range(0, len(parts), _INLINE)]
    return "\n".join(parts)


def _placed(lines: list[str], placed: Sequence[int], prose: list[str], position: float) -> str:
    """The facts `placed` together at `position` of the prose; the others spread evenly."""
    passages = as_passages(prose, least=len(lines) + 1)
    others = [line for index, line in enumerate(lines) if index not in placed]
    for number, line in enumerate(others):
        passages.insert(round((number + 1) * len(passages) / (len(others) + 1)), line)
    at = round(position * len(passages))
    passages[at:at] = [lines[index] for index in placed]
    return "\n".join(passages)
