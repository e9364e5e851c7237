"""The exchange format: equal contexts are one document, and a bad line is named with its field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meta_training.document import Document, Question
from meta_training.exchange import read_documents, write_documents
from perk.errors import InvalidInput


def _write(folder: Path, *rows: object) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def _row(**changes: object) -> dict[str, object]:
    return {"context": "Mary is in the kitchen.", "question": "Where is Mary?", "answer": "kitchen", **changes}


def test_lines_with_an_equal_context_are_one_document_wherever_they_stand(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        _row(),
        _row(context="John left.", question="Who left?", answer="John"),
        "",
        _row(question="Who is in the kitchen?", answer="Mary", answers=["she"], support=["Mary is"], task="t"),
    )
    assert read_documents(path) == [
        Document(
            "Mary is in the kitchen.",
            (
                Question("Where is Mary?", "kitchen"),
                Question("Who is in the kitchen?", "Mary", ("she",), ("Mary is",), "t"),
            ),
        ),
        Document("John left.", (Question("Who left?", "John"),)),
    ]


def test_a_context_may_be_a_list_of_passages(tmp_path: Path) -> None:
    path = _write(tmp_path, _row(context=["One.", "Two."]), _row(context=["One.", "Two."], question="Why?"))
    (document,) = read_documents(path)
    assert document.context == ("One.", "Two.")
    assert len(document.questions) == 2


def test_a_limit_keeps_all_questions_of_the_first_documents(tmp_path: Path) -> None:
    rows = [_row(context=context, question=f"{number}?") for number in (1, 2) for context in ("A.", "B.", "C.")]
    documents = read_documents(_write(tmp_path, *rows), limit=2)
    assert [document.context for document in documents] == ["A.", "B."]
    assert [[question.question for question in document.questions] for document in documents] == [["1?", "2?"]] * 2


def test_unknown_keys_are_left_to_others(tmp_path: Path) -> None:
    assert len(read_documents(_write(tmp_path, _row(source="a book", id=4)))) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2: got something else, expected one JSON object"),
        ("[1, 2]", "line 2: got something else, expected one JSON object"),
        (_row(context=7), "line 2, context: got int in it, expected a text or a list of texts"),
        (_row(context=["One.", 2]), "line 2, context: got .* in it, expected a text or a list of texts"),
        (_row(context=" \n"), "line 2, context: got no visible character"),
        (_row(context=[]), "line 2, context: got an empty string"),
        (_row(context="a\0b"), "line 2, context: got a NUL character"),
        ({"context": "x", "answer": "y"}, "line 2, question: got nothing, expected a text"),
        (_row(question=""), "line 2, question: got an empty string"),
        (_row(answer=42), "line 2, answer: got int in it, expected a text"),
        (_row(answers="kitchen"), "line 2, answers: got str in it, expected a list of texts"),
        (_row(support=[None]), "line 2, support: got NoneType in it, expected a list of texts"),
        (_row(task=None), "line 2, task: got NoneType in it, expected a text"),
    ],
)
def test_a_bad_line_is_named_with_its_field_and_what_is_expected(line: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=message):
        read_documents(_write(tmp_path, _row(), line))


def test_errors_never_repeat_the_text(tmp_path: Path) -> None:
    path = _write(tmp_path, {"context": "my secret", "question": ["my secret"], "answer": "my secret"})
    with pytest.raises(InvalidInput) as caught:
        read_documents(path)
    assert "secret" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"data: got absent.jsonl, expected a readable file"):
        read_documents(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"context": "Zoë"}'.encode("latin-1"))
    with pytest.raises(InvalidInput, match=r"data: got latin.jsonl, expected a readable file in UTF-8"):
        read_documents(tmp_path / "latin.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InvalidInput, match=r"data: got empty.jsonl without a line, expected at least one question"):
        read_documents(tmp_path / "empty.jsonl")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InvalidInput, match=r"out: got data.jsonl, expected a file that can be written"):
        write_documents(tmp_path / "taken" / "data.jsonl", [])


_VISIBLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(lambda text: text.strip())
_QUESTIONS = st.builds(
    Question,
    question=_VISIBLE,
    answer=_VISIBLE,
    answers=st.lists(_VISIBLE, max_size=2).map(tuple),
    support=st.lists(_VISIBLE, max_size=2).map(tuple),
    task=st.sampled_from(["", "nq"]),
)
_DOCUMENTS = st.builds(
    Document,
    context=_VISIBLE | st.lists(_VISIBLE, min_size=1, max_size=3).map(tuple),
    questions=st.lists(_QUESTIONS, min_size=1, max_size=3).map(tuple),
)


@given(documents=st.lists(_DOCUMENTS, min_size=1, max_size=3, unique_by=lambda document: document.context))
def test_what_is_written_is_read_again(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("exchange") / "folder" / "data.jsonl"
    assert write_documents(path, documents) == sum(len(document.questions) for document in documents)
    assert read_documents(path) == documents
