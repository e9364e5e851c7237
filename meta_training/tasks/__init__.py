"""Tasks: documents with questions, generated or read, by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from meta_training.document import Document, Question
from meta_training.tasks.babilong import BabiLong
from meta_training.tasks.hotpot_qa import HotpotQA
from meta_training.tasks.json_lines import JsonLines
from meta_training.tasks.key_value import KeyValue
from meta_training.tasks.natural_questions import NaturalQuestions
from meta_training.tasks.squad import Squad
from meta_training.tasks.student_records import StudentRecords
from meta_training.tasks.task import CountTokens, Split, Task
from meta_training.tasks.trivia_qa import TriviaQA
from perk.errors import InvalidInput

__all__ = ["TASK_NAMES", "CountTokens", "Document", "Question", "Split", "Task", "build_task"]

_PRESETS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "student-recall": (StudentRecords, {"kinds": ("recall",)}),
    "student-relation": (StudentRecords, {"kinds": ("relation",)}),
    "student-aggregate": (StudentRecords, {"kinds": ("aggregate",)}),
    "babilong-qa1": (BabiLong, {"facts": 1}),
    "babilong-qa2": (BabiLong, {"facts": 2}),
    "babilong-qa3": (BabiLong, {"facts": 3}),
    "babilong-qa1-raw": (BabiLong, {"facts": 1, "kind": "raw"}),
    "babilong-qa2-raw": (BabiLong, {"facts": 2, "kind": "raw"}),
    "babilong-qa3-raw": (BabiLong, {"facts": 3, "kind": "raw"}),
    "key-value": (KeyValue, {}),
    "nq": (NaturalQuestions, {}),
    "hotpot-qa": (HotpotQA, {}),
    "trivia-qa": (TriviaQA, {}),
    "squad": (Squad, {}),
    "json-lines": (JsonLines, {}),
}

TASK_NAMES = tuple(_PRESETS)


def build_task(name: str, *, split: Split, count_tokens: CountTokens, options: Mapping[str, Any] | None = None) -> Task:
    """A task by its name.

    Args:
        name: one of `TASK_NAMES`.
        split: which half of its data.
        count_tokens: of the base's tokeniser.
        options: of the task's own, on top of the name's.

    Raises:
        InvalidInput: an unknown name or option, an option missing, or a value that the task refuses.
    """
    if name not in _PRESETS:
        raise InvalidInput("task", repr(name), f"one of {', '.join(TASK_NAMES)}")
    kind, preset = _PRESETS[name]
    own = dict(options or {})
    arguments = {**preset, **own}
    try:
        bound = inspect.signature(kind).bind(split=split, count_tokens=count_tokens, **arguments)
    except TypeError as error:
        given = ", ".join(sorted(own)) or "none"
        raise InvalidInput("options", given, f"those of task {name} ({error})") from error
    task: Task = kind(**bound.arguments)
    return task
