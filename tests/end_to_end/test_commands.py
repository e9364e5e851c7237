"""The ``perk`` command as a user types it, against a service that wants a key."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

Perk = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def other_service() -> Iterator[str]:
    """Address of a web server that is not ours and answers everything with a page."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>It works!</html>")

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def _lines(result: subprocess.CompletedProcess[str]) -> list[Any]:
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def _refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The one line in which a command says why it failed."""
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("perk ")]
    assert "Traceback" not in result.stderr
    return line


def test_files_become_documents_that_answer_until_they_are_deleted(perk: Perk, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text("Mary went to the kitchen. She has the apple.")
    (tmp_path / "train.txt").write_text("The train to the north leaves at seven in the morning.")

    encoded = _lines(perk("encode", "story.txt", "train.txt", "--json"))
    assert [(document["title"], document["status"]) for document in encoded] == [
        ("story.txt", "ready"),
        ("train.txt", "ready"),
    ]
    document_id = encoded[0]["id"]
    listed = perk("documents")
    assert all(document["id"] in listed.stdout for document in encoded), "ids are not folded in a pipe"
    assert _lines(perk("documents", "--json"))[:2] == encoded[::-1], "the newest first"

    (answer,) = _lines(perk("ask", document_id, "Where is Mary?", "--max-tokens", 9, "--json"))
    streamed = perk("ask", document_id, "Where is Mary?", "--max-tokens", 9)
    assert streamed.stdout == f"{answer['answer']}\n"
    sampled = {perk("ask", document_id, "Where is Mary?", "--temperature", 2).stdout for _ in range(2)}
    assert len(sampled) == 2, "at a temperature of 2, hardly an answer comes twice"

    assert perk("documents", "delete", document_id).returncode == 0
    assert f"there is no document {document_id}" in _refusal(perk("ask", document_id, "Where is Mary?"))
    left = _lines(perk("documents", "--json"))
    assert encoded[1] in left
    assert encoded[0] not in left


def test_a_file_that_is_refused_takes_nothing_from_those_before_it(perk: Perk, story: str, tmp_path: Path) -> None:
    (tmp_path / "story.txt").write_text(story)
    (tmp_path / "blank.txt").write_text(" \n")

    result = perk("encode", "story.txt", "blank.txt", "--json")

    assert result.returncode == 1
    refusal, summary = (line for line in result.stderr.splitlines() if line.startswith("perk "))
    assert "text: got no visible character, expected at least one" in refusal
    assert summary == "perk encode: 2 files: 1 encoded, 0 known, 1 failed"
    assert [json.loads(line)["title"] for line in result.stdout.splitlines()] == ["story.txt"]


def test_without_the_key_nothing_is_told(perk: Perk) -> None:
    result = perk("documents", PERK_API_KEY="wrong")

    assert "API key" in _refusal(result)
    assert result.stdout == ""


def test_a_server_that_is_not_there_or_is_another_is_no_traceback(perk: Perk, other_service: str) -> None:
    assert "`perk serve` starts a service" in _refusal(perk("documents", "--server", "http://127.0.0.1:1"))
    assert "is it this service?" in _refusal(perk("documents", "--server", other_service))
    assert "is it this service?" in _refusal(perk("export", "doc_0", "adapter", "--server", other_service))


def test_an_option_in_the_wrong_place_is_not_ignored(perk: Perk) -> None:
    result = perk("documents", "--server", "http://127.0.0.1:1", "show", "doc_0")

    assert result.returncode == 2
    assert "give the options after 'show'" in result.stderr
