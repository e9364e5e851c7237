"""The exchange format for evaluation data: JSON Lines, one question a line, equal contexts one document."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from meta_training.document import Document, Question
from perk.errors import InvalidInput
from perk.segments import join_passages, normalise

__all__ = ["read_documents", "write_documents"]


class _Row(BaseModel):
    """One line. Unknown keys are allowed: others add their own. A field's description is the limit its errors state."""

    model_config = ConfigDict(strict=True)

    context: str | list[str] = Field(description="a text or a list of texts")
    question: str = Field(description="a text")
    answer: str = Field(description="a text")
    answers: list[str] = Field(default_factory=list, description="a list of texts")
    support: list[str] = Field(default_factory=list, description="a list of texts")
    task: str = Field(default="", description="a text")


def read_documents(path: Path, *, limit: int | None = None) -> list[Document]:
    """Read documents in the order of their first line.

    Args:
        path: JSON Lines file in UTF-8.
        limit: most documents to return, each with all its questions, wherever in the file they stand.

    Raises:
        InvalidInput: the file cannot be read, or a line is wrong; names the line and the field.
    """
    documents: dict[str | tuple[str, ...], list[Question]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                row = _parse(line, number)
                context = row.context if isinstance(row.context, str) else tuple(row.context)
                if limit is not None and context not in documents and len(documents) == limit:
                    continue
                question = Question(row.question, row.answer, tuple(row.answers), tuple(row.support), task=row.task)
                documents.setdefault(context, []).append(question)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput("data", path.name, f"a readable file in UTF-8 ({error})") from error
    if not documents:
        raise InvalidInput("data", f"{path.name} without a line", "at least one question")
    return [Document(context, tuple(questions)) for context, questions in documents.items()]


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Write documents, a line a question; returns the number of lines.

    Raises:
        InvalidInput: the file cannot be written.
    """
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for document in documents:
                for question in document.questions:
                    file.write(json.dumps(_row(document, question), ensure_ascii=False) + "\n")
                    written += 1
    except OSError as error:
        raise InvalidInput("out", path.name, f"a file that can be written ({error.strerror})") from error
    return written


def _parse(line: str, number: int) -> _Row:
    try:
        row = _Row.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:
            raise InvalidInput(f"line {number}", "something else", "one JSON object") from error
        field = str(first["loc"][0])
        value = "nothing" if first["type"] == "missing" else f"{type(first['input']).__name__} in it"
        raise InvalidInput(f"line {number}, {field}", value, str(_Row.model_fields[field].description)) from error
    context = row.context if isinstance(row.context, str) else join_passages(row.context)
    for field, text in (("context", context), ("question", row.question)):
        try:
            normalise(text)
        except InvalidInput as error:
            raise InvalidInput(f"line {number}, {field}", error.value, error.limit) from error
    return row


def _row(document: Document, question: Question) -> dict[str, Any]:
    context = document.context if isinstance(document.context, str) else list(document.context)
    row: dict[str, Any] = {"context": context, "question": question.question, "answer": question.answer}
    optional = {"answers": list(question.answers), "support": list(question.grounds), "task": question.task}
    return row | {name: value for name, value in optional.items() if value}
