"""Bad input: refused with a problem document that names the field, the value and the limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

_PLAIN = {"Content-Type": "text/plain"}
_JSON = {"Content-Type": "application/json"}


@pytest.fixture
def place(service: Any, story: str) -> str:
    """Path of a ready document."""
    return f"/documents/{service.encode(story)['id']}"


def _check_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["type"].startswith("urn:perk:problem:")
    assert problem["title"]
    assert problem["status"] == status
    assert problem["detail"]
    assert problem["instance"] == response.request.url.path
    return problem


def _check_field(response: httpx.Response, field: str, status: int = 422) -> dict[str, str]:
    problem = _check_problem(response, status)
    (error,) = problem["errors"]
    assert set(error) == {"field", "value", "limit"}
    assert error["field"] == field
    assert error["value"] in problem["detail"]
    assert error["limit"] in problem["detail"]
    return dict(error)


@pytest.mark.parametrize("text", ["", " ", "\n\t \r\n", "Mary\x00went"], ids=["empty", "space", "lines", "NUL"])
def test_a_text_without_a_visible_character_or_with_nul_is_refused(service: Any, text: str) -> None:
    sent = [
        service.client.post("/documents", json={"text": text}),
        service.client.post("/documents", content=text.encode(), headers=_PLAIN),
        service.client.post("/documents", files={"file": ("empty.txt", text.encode())}),
    ]
    for response in sent:
        _check_field(response, "text")


def test_bytes_that_are_not_utf_8_are_refused(service: Any) -> None:
    latin = "Käthe ging in die Küche.".encode("latin-1")

    error = _check_field(service.client.post("/documents", content=latin, headers=_PLAIN), "text")
    assert "position 1" in error["value"]
    assert "UTF-8" in error["limit"]
    _check_field(service.client.post("/documents", files={"file": ("k.txt", latin)}), "file")
    _check_field(service.client.post("/documents", content=b'{"text": "K\xe4the"}', headers=_JSON), "body")


def test_a_body_of_100_megabytes_is_refused(service: Any) -> None:
    megabyte = b"a" * 1_000_000

    def body() -> Iterator[bytes]:
        for _ in range(100):
            yield megabyte

    declared = service.client.post("/documents", content=b"".join(body()), headers=_PLAIN)
    in_chunks = service.client.post("/documents", content=body(), headers=_PLAIN)
    in_a_form = service.client.post("/documents", files={"file": ("big.txt", b"".join(body()))})

    for response in (declared, in_chunks, in_a_form):
        error = _check_field(response, "body", 413)
        assert "200000 bytes" in error["limit"]


def test_a_document_of_too_many_tokens_is_refused(start_service: Callable[..., Any]) -> None:
    service = start_service(max_document_tokens=10).until_ready()

    error = _check_field(service.client.post("/documents", json={"text": "one two three " * 10}), "text", 413)

    assert "10 tokens" in error["limit"]
    assert service.client.get("/documents").json()["data"] == []


def test_a_document_of_one_token_is_a_document(service: Any) -> None:
    document = service.encode("a")

    assert document["tokens"] == 1
    assert document["encode"]["loss_before"] > 0
    asked = service.client.post(f"/documents/{document['id']}/ask", json={"question": "What?", "max_tokens": 2})
    assert asked.status_code == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("{}", "text"),
        ('{"text": 5}', "text"),
        ('{"text": null}', "text"),
        ('{"text": "x", "txet": "y"}', "txet"),
        ('{"text": "x", "title": 5}', "title"),
        ('{"text": "x", "metadata": [1]}', "metadata"),
        ('{"text": "x", "metadata": {"a": "' + "y" * 20_000 + '"}}', "metadata"),
        ('{"text": "x", "metadata": {"a": 1e999}}', "metadata.a"),
        ('{"text": "half a character: \\ud83d"}', "text"),
        ("[]", "body"),
        ('"text"', "body"),
    ],
)
def test_a_bad_field_is_named(service: Any, body: str, field: str) -> None:
    _check_field(service.client.post("/documents", content=body, headers=_JSON), field)


def test_every_bad_field_is_named(service: Any, place: str) -> None:
    body = {"question": "Who?", "max_tokens": 0, "temperature": -1, "unheard_of": True}

    problem = _check_problem(service.client.post(f"{place}/ask", json=body), 422)

    assert {error["field"] for error in problem["errors"]} == {"max_tokens", "temperature", "unheard_of"}


@pytest.mark.parametrize("body", ["", "{", "{'text': 'x'}", '{"text": NaN}', "[" * 100_000])
def test_a_body_that_is_no_json_is_malformed(service: Any, place: str, body: str) -> None:
    for path in ("/documents", f"{place}/ask"):
        _check_problem(service.client.post(path, content=body, headers=_JSON), 400)


@pytest.mark.parametrize(
    "kind", ["application/xml", "text/html", "text/plain; charset=utf-16", "application/json; charset=latin-1", ""]
)
def test_another_media_type_is_refused(service: Any, kind: str) -> None:
    problem = _check_problem(service.client.post("/documents", content=b"<a/>", headers={"Content-Type": kind}), 415)

    assert "application/json" in problem["detail"]


def test_a_question_is_json_only(service: Any, place: str) -> None:
    _check_problem(service.client.post(f"{place}/ask", content=b"Who?", headers=_PLAIN), 415)


def test_a_compressed_body_is_refused(service: Any) -> None:
    headers = {**_PLAIN, "Content-Encoding": "gzip"}
    _check_problem(service.client.post("/documents", content=b"\x1f\x8b", headers=headers), 415)


def test_a_form_has_one_file_and_no_other_fields_than_these(service: Any) -> None:
    file = ("a.txt", b"Mary went home.")

    _check_field(service.client.post("/documents", files={"flie": file, "file": file}), "flie")
    _check_field(service.client.post("/documents", files=[("file", file), ("file", file)]), "file")
    _check_field(service.client.post("/documents", files={"title": (None, "x")}), "file")
    _check_field(service.client.post("/documents", files={"file": file, "metadata": (None, "[1]")}), "metadata")
    broken = {"Content-Type": "multipart/form-data"}
    _check_problem(service.client.post("/documents", content=b"--x", headers=broken), 400)


@pytest.mark.parametrize("document_id", ["doc_" + "0" * 32, "doc_1", "x" * 300, "..%2F..%2Fetc%2Fpasswd", "%00"])
def test_an_unknown_id_is_not_found(service: Any, document_id: str) -> None:
    place = f"/documents/{document_id}"
    for method, path in [
        ("GET", place),
        ("DELETE", place),
        ("GET", f"{place}/events"),
        ("GET", f"{place}/adapter"),
    ]:
        assert service.client.request(method, path).status_code == 404
    assert service.client.post(f"{place}/ask", json={"question": "Who?"}).status_code == 404


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"question": ""}, "question"),
        ({"question": " \n"}, "question"),
        ({"question": "x" * 8193}, "question"),
        ({"question": "Where is the apple? " * 350}, "question"),
        ({"question": None}, "question"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 513}, "max_tokens"),
        ({"max_tokens": "8"}, "max_tokens"),
        ({"max_tokens": 2**80}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", ""]}, "stop.1"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"max_token": 8}, "max_token"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_question_is_refused(service: Any, place: str, options: dict[str, Any], field: str, stream: bool) -> None:
    body = {"question": "Where is Mary?", "stream": stream, **options}

    error = _check_field(
        service.client.post(f"{place}/ask", json=body), field if field != "stop" else error_field(body)
    )

    assert error["limit"]


def error_field(body: dict[str, Any]) -> str:
    """A single stop text is read as a list of one."""
    return "stop.0" if isinstance(body["stop"], str) else "stop"


def test_no_problem_quotes_a_text(service: Any, place: str) -> None:
    secret = "the apple is under the bed"
    responses = [
        service.client.post("/documents", json={"text": [secret]}),
        service.client.post("/documents", json={"text": secret + "\0"}),
        service.client.post("/documents", json={"text": "x", "title": {"a": secret}}),
        service.client.post(f"{place}/ask", json={"question": secret * 2000}),
        service.client.post(f"{place}/ask", json={"question": {"a": secret}}),
        service.client.post(f"{place}/ask", json={"question": "Who?", "stop": [secret * 20]}),
    ]
    for response in responses:
        assert response.status_code in (413, 422)
        assert "apple" not in response.text


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=many", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=", "cursor"),
    ],
)
def test_a_bad_page_is_refused(service: Any, query: str, field: str) -> None:
    _check_field(service.client.get(f"/documents?{query}"), field)


def test_an_unknown_path_or_method_is_a_problem_too(service: Any, place: str) -> None:
    _check_problem(service.client.get("/nothing"), 404)
    _check_problem(service.client.get("/documents/"), 404)
    problem = service.client.put(place)
    assert set(problem.headers["Allow"].split(", ")) == {"GET", "DELETE"}
    _check_problem(problem, 405)


def test_bad_input_is_counted_by_kind(start_service: Callable[..., Any], tmp_path: Path) -> None:
    service = start_service(data_dir=tmp_path / "other").until_ready()
    service.client.post("/documents", json={"text": ""})
    service.client.post("/documents", json={"text": ""})
    service.client.get("/nothing")

    assert service.metric('perk_rejected_total{reason="invalid-field"}') == 2
    assert service.metric('perk_rejected_total{reason="not-found"}') == 1
