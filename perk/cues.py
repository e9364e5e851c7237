"""A document as questions about itself: some words of a sentence ask for it, and it is what to recall.

What was read from its beginning is recalled from its beginning, and not found by a word in its middle; what was asked
for in several ways is found by any of them. (Allen-Zhu and Li 2023, arXiv 2309.14316: knowledge can be extracted where
training showed it in many forms; Berglund et al. 2023, arXiv 2309.12288: what "A is B" teaches does not tell what is
B.) So inner steps may ask for every sentence by other words of it, in the template that questions come in.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from perk.segment import Segment
from perk.settings import TemplateSettings

__all__ = ["LINE_WORDS", "SENTENCE_WORDS", "cue_segments"]

# Fewest and most words of a cue for a sentence of prose, and for a line that stands alone: a question about a fact has
# one word of it, or two.
SENTENCE_WORDS, LINE_WORDS = (3, 7), (1, 3)
# Beside them, in some, words from the paragraph's beginning, which often names what it speaks of.
_OPENING, _OPENING_SHARE, _FROM_OPENING = 10, 0.5, 2
_ORDERED_SHARE = 0.5
# Byte-pair encoders order their tokens by frequency: a word that is one of the first so many says little.
_COMMON, _COMMON_WEIGHT = 1000, 0.1
# A word weighs so much less each time that it has asked for its sentence, so that few turns still ask by most words.
_AGAIN = 0.1
_LEAST = sys.float_info.min


@dataclass(frozen=True)
class _Part:
    """A sentence, or a piece of a long one.

    Attributes:
        ids: its tokens, after what comes before a support.
        words: its words without punctuation.
        opening: the first words of its paragraph, where it is not the first itself.
    """

    ids: tuple[int, ...]
    words: tuple[str, ...]
    opening: tuple[str, ...]


def cue_segments(
    paragraphs: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    templates: TemplateSettings,
    *,
    turns: Sequence[int],
    words: tuple[int, int],
    max_tokens: int,
) -> list[Segment]:
    """Ask for each sentence in a way for each turn.

    Args:
        paragraphs: their sentences.
        tokenizer: of the base.
        templates: of the prompt and the support.
        turns: of the inner steps that ask.
        words: fewest and most of a cue.
        max_tokens: bounds what a cue asks for.

    Returns:
        Segments with a cue as prefix and a sentence as text, turn after turn; the same for the same paragraphs.
    """
    before = "" if templates.support is None else templates.support.partition("{support}")[0]
    parts = [part for given in paragraphs for part in _parts(given, tokenizer, before, max_tokens)]
    counts = Counter(word.lower() for part in parts for word in set(part.words))
    vocabulary = {word for part in parts for word in part.words}
    weights = {word: _rarity(word, tokenizer) / counts[word.lower()] for word in vocabulary}
    by_part = [{word: weights[word] for word in part.words} for part in parts]
    rng = random.Random("\n".join(sentence for given in paragraphs for sentence in given))
    segments = []
    for turn in turns:
        for part, own in zip(parts, by_part, strict=True):
            cue = _draw(part.words, own, rng.randint(*words), rng)
            for word in set(cue):
                own[word] *= _AGAIN
            if part.opening and rng.random() < _OPENING_SHARE:
                cue = _draw(part.opening, weights, rng.randint(1, _FROM_OPENING), rng) + cue
            prompt = templates.prompt.format(question=f"{' '.join(cue)}?")
            prefix = tokenizer.encode(prompt, verbose=False)
            segments.append(Segment(ids=(*prefix, *part.ids), prefix_tokens=len(prefix), turns=(turn,)))
    return segments


def _parts(sentences: Sequence[str], tokenizer: PreTrainedTokenizerBase, before: str, limit: int) -> list[_Part]:
    parts: list[_Part] = []
    for sentence in sentences:
        ids = tokenizer.encode(before + sentence, add_special_tokens=False, verbose=False)
        for start in range(0, len(ids), limit):
            piece = ids[start : start + limit]
            words = _words(sentence if len(ids) <= limit else str(tokenizer.decode(piece)))
            parts.append(_Part(tuple(piece), words, parts[0].words[:_OPENING] if parts else ()))
    return parts


def _words(text: str) -> tuple[str, ...]:
    bare = (word.strip(".,;:!?()<>[]\"'“”‘’") for word in text.split())
    return tuple(word for word in bare if word)


def _rarity(word: str, tokenizer: PreTrainedTokenizerBase) -> float:
    ids = tokenizer.encode(f" {word}", add_special_tokens=False, verbose=False)
    return _COMMON_WEIGHT if len(ids) == 1 and ids[0] < _COMMON else 1.0


def _draw(words: Sequence[str], weights: dict[str, float], count: int, rng: random.Random) -> list[str]:
    """So many of the words, the heavier the likelier; now and then in the order that they have."""
    # The largest of u^(1/w) are a weighted sample without replacement (Efraimidis and Spirakis 2006). As logarithms:
    # the powers of words that weigh little would all be zero, and their order that of the sentence.
    keys = [math.log(rng.random() or _LEAST) / weights[word] for word in words]
    drawn = sorted(range(len(words)), key=lambda index: -keys[index])[:count]
    return [words[index] for index in (sorted(drawn) if rng.random() < _ORDERED_SHARE else drawn)]
