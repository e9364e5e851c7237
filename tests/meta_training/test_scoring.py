"""Scores: every answer counts for its task and for the whole."""

from __future__ import annotations

import pytest

from meta_training.document import Question
from meta_training.scoring import Scores, extract_output


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("kitchen", "kitchen"),
        ("<support>Mary went to the kitchen.</support>\n<output>kitchen</output>", "kitchen"),
        ("<output> kitchen ", "kitchen"),
        ("<output>garden</output> no: <output>kitchen</output>", "kitchen"),
        ("kitchen</output>", "kitchen</output>"),
        ("<output></output>", ""),
        ("", ""),
    ],
)
def test_a_marked_output_is_the_answer(text: str, answer: str) -> None:
    assert extract_output(text) == answer


def test_a_summary_is_the_object_of_the_contract() -> None:
    scores = Scores()
    scores.add(Question("Where?", "kitchen", task="babilong-qa1"), "The kitchen.")
    scores.add(Question("Where?", "garden", task="babilong-qa1"), "kitchen")
    scores.add(Question("Who?", "Ada", answers=("Ada Young",), task="nq"), "<output>Ada Young</output>")
    scores.add(Question("Who?", "Ada Young", task="nq"), "Ada")
    scores.tokens += [100, 300]
    scores.encode_seconds += [1.0, 3.0]
    scores.ask_seconds += [0.5, 0.5, 0.5, 2.5]

    assert scores.summary("default", "perk") == {
        "checkpoint": "default",
        "method": "perk",
        "documents": 2,
        "questions": 4,
        "exact_match": 0.5,
        "f1": pytest.approx((1 + 0 + 1 + 2 / 3) / 4),
        "by_task": {
            "babilong-qa1": {"questions": 2, "exact_match": 0.5, "f1": 0.5},
            "nq": {"questions": 2, "exact_match": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2)},
        },
        "tokens": {"mean": 200.0, "max": 300},
        "encode_seconds": {"mean": 2.0, "per_1k_tokens": 10.0},
        "ask_seconds": {"mean": 1.0},
    }


def test_without_encoding_its_times_are_zero() -> None:
    scores = Scores(tokens=[100])
    assert scores.summary("default", "base")["encode_seconds"] == {"mean": 0.0, "per_1k_tokens": 0.0}
