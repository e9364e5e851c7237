"""``perk encode --store``: a corpus is encoded without a service, goes on after a kill, and is there for a service."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

# Each command loads torch: on a busy machine that takes its time.
pytestmark = pytest.mark.timeout(900)

_PATIENCE_SECONDS = 280.0


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder of six documents."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"Student <{4000000 + number}>, Name: Ada Young, Grade: 72")
    return folder


@pytest.fixture
def begin(corpus: Path, patient_checkpoint: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the command on the corpus; keyword arguments are settings."""

    def start(*words: str, **settings: object) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PERK_")}
        settings = {"device": "cpu", "checkpoint": patient_checkpoint, "data_dir": tmp_path / "data", **settings}
        return subprocess.Popen(
            [sys.executable, "-m", "service", "encode", str(corpus), "--store", "--json", *words],
            cwd=tmp_path,
            env=inherited | {f"PERK_{name.upper()}": str(value) for name, value in settings.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def _written(data: Path) -> dict[str, int]:
    """When the adapter of each document that is ready was written."""
    if not (data / "documents.sqlite").is_file():
        return {}
    try:
        with closing(sqlite3.connect(data / "documents.sqlite")) as index:
            ready = [name for (name,) in index.execute("SELECT id FROM documents WHERE status = 'ready'")]
    except sqlite3.OperationalError:
        # It is being made.
        return {}
    return {name: (data / "adapters" / f"{name}.safetensors").stat().st_mtime_ns for name in ready}


def test_a_killed_command_goes_on_and_a_service_answers_from_what_it_made(
    begin: Callable[..., subprocess.Popen[str]], start_service: Callable[..., Any], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    first = begin()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not _written(data):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline, "no document was encoded"
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=_PATIENCE_SECONDS)
    before = _written(data)

    output, errors = begin().communicate(timeout=_PATIENCE_SECONDS)

    documents = [json.loads(line) for line in output.splitlines()]
    assert [document["title"] for document in documents] == [f"{number}.txt" for number in range(6)]
    assert {document["status"] for document in documents} == {"ready"}
    assert before.items() <= _written(data).items(), "nothing was encoded twice"
    summary = errors.splitlines()[-1]
    assert summary.startswith("perk encode: 6 files: ")
    assert summary.endswith(" 0 failed")
    service = start_service().until_ready()
    assert {document["id"] for document in service.documents()} == {document["id"] for document in documents}
    assert service.ask(documents[0], "What is the grade?")


def test_what_stops_the_command_is_said_in_one_line(
    begin: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for words, settings, reason in (
        ((), {"data_dir": tmp_path / "file" / "data"}, "perk encode: PERK_DATA_DIR: "),
        ((), {"api_keys": "a-key"}, "perk encode: PERK_API_KEYS is set, and --key"),
        (("--server", "http://127.0.0.1:1"), {}, "give --store or --server"),
    ):
        command = begin(*words, **settings)
        _, errors = command.communicate(timeout=_PATIENCE_SECONDS)
        assert command.returncode in (1, 2)
        assert reason in errors
        assert "Traceback" not in errors
