"""Exact match and F1 under the SQuAD normalisation (Rajpurkar et al., arXiv 1606.05250, section 6.1).

Both the evaluation of a checkpoint and the demo score answers; they must agree to the letter, so the rule is here once.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation and English articles, words separated by single spaces."""
    without_punctuation = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", without_punctuation).split())


def exact_match(prediction: str, answers: Iterable[str]) -> bool:
    """Whether `prediction` equals one of the accepted `answers` after normalisation.

    An answer that normalises to nothing (for example "the") is matched by a prediction that does so too, as in SQuAD.
    """
    predicted = normalise_answer(prediction)
    return any(predicted == normalise_answer(answer) for answer in answers)


def f1(prediction: str, answers: Iterable[str]) -> float:
    """The best harmonic mean of word precision and recall (0..1) of `prediction` over the accepted `answers`.

    Words count with their multiplicity; where either side has no words, the score is 1 if both have none, else 0.
    """
    return max((_f1_with(prediction, answer) for answer in answers), default=0.0)


def _f1_with(prediction: str, answer: str) -> float:
    predicted, expected = normalise_answer(prediction).split(), normalise_answer(answer).split()
    if not predicted or not expected:
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    return 2 * shared / (len(predicted) + len(expected))
