"""The `perk` command against a running service."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from service.cli import app

Perk = Callable[..., Result]


@pytest.fixture
def perk(service: Any, monkeypatch: pytest.MonkeyPatch) -> Perk:
    """Runs the command with the service as its server."""
    monkeypatch.setenv("PERK_SERVER", service.address)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def files(tmp_path: Path, story: str) -> list[Path]:
    """Two text files."""
    paths = [tmp_path / "story.txt", tmp_path / "register.txt"]
    paths[0].write_text(story)
    paths[1].write_text("Student <3109998>, Name: Ada Young, Grade: 72")
    return paths


def test_commands_that_talk_to_a_service_do_not_wait_for_torch_to_load() -> None:
    script = "import sys, service.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_encode_prints_one_object_a_line(perk: Perk, files: list[Path]) -> None:
    result = perk("encode", *files, "--json")

    assert result.exit_code == 0, result.output
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert [document["title"] for document in documents] == ["story.txt", "register.txt"]
    assert [document["status"] for document in documents] == ["ready", "ready"]


def test_encode_prints_a_table_for_people(perk: Perk, files: list[Path]) -> None:
    result = perk("encode", *files)

    assert result.exit_code == 0
    assert "story.txt" in result.stdout
    assert "doc_" in result.stdout
    assert result.stdout.count("ready") == 2


def test_a_folder_is_encoded_and_a_second_time_is_known(perk: Perk, service: Any, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "deep").mkdir(parents=True)
    for number in range(11):
        (corpus / f"{number:02}.txt").write_text(f"Student <{4000000 + number}>, Grade: 72")
    (corpus / "deep" / "er.txt").write_text("Mary is deep within.")
    (corpus / "notes.md").write_text("Not asked for.")
    service.encode((corpus / "03.txt").read_text())

    first = perk("encode", corpus, corpus / "00.txt", "--json")
    second = perk("encode", corpus, "--json")
    markdown = perk("encode", corpus, "--glob", "*.md", "--json")

    documents = [json.loads(line) for line in first.stdout.splitlines()]
    titles = [f"{number:02}.txt" for number in range(11) if number != 3]
    assert [document["title"] for document in documents if document["title"]] == [*titles, "deep/er.txt"]
    assert {document["status"] for document in documents} == {"ready"}
    assert "12 files: 11 encoded, 1 known, 0 failed" in first.stderr
    assert "12 files: 0 encoded, 12 known, 0 failed" in second.stderr
    assert [json.loads(line)["id"] for line in second.stdout.splitlines()] == [line["id"] for line in documents]
    assert json.loads(markdown.stdout)["title"] == "notes.md"


def test_a_file_that_is_refused_stops_no_other(perk: Perk, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" ")
    (tmp_path / "b.txt").write_bytes("Käthe".encode("latin-1"))
    (tmp_path / "c.txt").write_text("This one is fine.")

    result = perk("encode", tmp_path, "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["title"] == "c.txt"
    assert "a.txt: text: got" in result.stderr
    assert "b.txt: not UTF-8" in result.stderr
    assert "3 files: 1 encoded, 0 known, 2 failed" in result.stderr


def test_more_files_than_the_queue_takes_wait_for_their_turn(start_service: Callable[..., Any], tmp_path: Path) -> None:
    service = start_service(queue_limit=1).until_ready()
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(f"Student <{5000000 + number}>, Grade: 72")

    result = CliRunner().invoke(app, ["encode", str(tmp_path), "--glob", "*.txt", "--server", service.address])

    assert result.exit_code == 0, result.output
    assert result.stdout.count("ready") == 6


def test_a_folder_without_matches_is_an_error(perk: Perk, tmp_path: Path) -> None:
    result = perk("encode", tmp_path)

    assert result.exit_code == 1
    assert "no file matches **/*.txt" in result.stderr


def test_ask_prints_the_answer(perk: Perk, service: Any, story: str) -> None:
    document = service.encode(story)

    streamed = perk("ask", document["id"], "Where is Mary?", "--max-tokens", 9)
    whole = perk("ask", document["id"], "Where is Mary?", "--max-tokens", 9, "--json")

    answer = json.loads(whole.stdout)
    assert streamed.stdout == f"{answer['answer']}\n"
    assert answer["usage"]["completion_tokens"] == 9


def test_documents_are_listed_shown_and_deleted(perk: Perk, service: Any) -> None:
    document = service.encode("A document for the command line.")

    listed = [json.loads(line) for line in perk("documents", "--json").stdout.splitlines()]
    assert document in listed
    assert document["id"] in perk("documents").stdout
    assert json.loads(perk("documents", "show", document["id"]).stdout) == document
    assert perk("documents", "delete", document["id"]).exit_code == 0
    gone = perk("documents", "show", document["id"])
    assert gone.exit_code == 1
    assert f"there is no document {document['id']}" in gone.stderr


def test_export_writes_a_peft_folder(perk: Perk, service: Any, story: str, tmp_path: Path) -> None:
    document = service.encode(story)
    folder = tmp_path / "new" / "adapter"

    result = perk("export", document["id"], folder)

    assert result.exit_code == 0
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert all(Path(line).is_file() for line in result.stdout.splitlines())
    assert load_file(folder / "adapter_model.safetensors")


def test_what_the_service_refuses_is_said_in_its_own_words(
    perk: Perk, service: Any, story: str, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" ")
    document = service.encode(story)

    for result in (perk("encode", empty), perk("ask", document["id"], " ")):
        assert result.exit_code == 1
        assert "expected at least one visible character" in result.stderr


def test_a_file_that_is_not_utf_8_is_named(perk: Perk, tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Käthe".encode("latin-1"))

    result = perk("encode", latin)

    assert result.exit_code == 1
    assert "latin.txt: not UTF-8 at byte 1" in result.stderr


def test_a_document_that_fails_fails_the_command(
    perk: Perk, files: list[Path], service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.client.delete(f"/documents/{service.encode(files[0].read_text())['id']}")

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("perk.perk_model.PerkModel.start_encoding", fail)
    result = perk("encode", files[0], "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "failed"
    monkeypatch.undo()
    service.encode(files[0].read_text())


def test_no_server_is_an_error_and_no_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for server in (f"http://127.0.0.1:{port}", "nonsense"):
        result = CliRunner().invoke(app, ["documents", "--server", server])
        assert result.exit_code == 1
        assert f"perk documents: {server} " in result.stderr
        assert "Traceback" not in result.output


def test_a_key_goes_with_every_command(start_service: Callable[..., Any]) -> None:
    service = start_service(api_keys="the-key").until_ready()

    without = CliRunner().invoke(app, ["documents", "--server", service.address])
    with_key = CliRunner().invoke(app, ["documents", "--server", service.address, "--key", "the-key"])

    assert without.exit_code == 1
    assert "API key" in without.stderr
    assert with_key.exit_code == 0


def test_serve_names_its_settings() -> None:
    printed = CliRunner().invoke(app, ["serve", "--help"]).output

    for name in ("PERK_CHECKPOINT", "PERK_DATA_DIR", "PERK_API_KEYS", "PERK_MEMORY_BUDGET"):
        assert name in printed


def test_serve_does_not_start_with_a_bad_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERK_QUEUE_LIMIT", "none")

    result = CliRunner().invoke(app, ["serve"])

    assert result.exit_code == 1
    assert "PERK_QUEUE_LIMIT: got 'none'" in result.stderr


def test_bench_runs_the_benchmarks(tiny_checkpoint: Path) -> None:
    other_adapter = ["--all-layers", "--rank", "3", "--memory-budget", "64MiB", "--repeats", "1"]
    encode = CliRunner().invoke(
        app, ["bench", "encode", "--tokens", "64", "--checkpoint", str(tiny_checkpoint), *other_adapter, "--json"]
    )
    ask = CliRunner().invoke(app, ["bench", "ask", "--checkpoint", str(tiny_checkpoint), "--json"])

    assert encode.exit_code == 0, encode.output
    assert {"tokens", "encode_seconds", "peft_seconds", "ratio", "gemm_fraction", "peak_mb"} <= set(
        json.loads(encode.stdout)
    )
    assert ask.exit_code == 0, ask.output
    assert json.loads(ask.stdout)


def test_a_memory_budget_that_is_no_size_is_named() -> None:
    result = CliRunner().invoke(app, ["bench", "encode", "--memory-budget", "lots"])
    assert result.exit_code == 2
    assert "'lots'" in result.output
