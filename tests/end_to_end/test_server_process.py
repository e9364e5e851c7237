"""The service as a process: it is killed, stopped and started wrongly, and loses nothing."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from perk.base_model import load_base_model
from perk.checkpoint import load_checkpoint, new_checkpoint
from perk.lora import AdaptedModel
from perk.settings import BaseSettings, InnerSettings, LoraSettings, PerkSettings

_PATIENCE_SECONDS = 120.0

TEXT = "\n".join(f"Student <{3000000 + number}>, Name: Ada Young, Year: Senior, Grade: 72" for number in range(40))


@pytest.fixture(scope="module")
def slow_checkpoint(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a checkpoint whose inner loop takes so many steps that a process can be killed in its middle."""
    settings = PerkSettings(
        base=BaseSettings(source=str(tiny_llama)), lora=LoraSettings(rank=4), inner=InnerSettings(rule="rms", steps=64)
    )
    adapted = AdaptedModel(load_base_model(str(tiny_llama), device="cpu"), settings.lora)
    folder = tmp_path_factory.mktemp("checkpoints") / "slow"
    new_checkpoint(adapted, settings, seed=0, name="slow").save(folder)
    return folder


class ServerProcess:
    """`perk serve` on a free port."""

    def __init__(self, data_dir: Path, checkpoint: Path, **environment: str) -> None:
        variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PERK_")},
            "PERK_DATA_DIR": str(data_dir),
            "PERK_CHECKPOINT": str(checkpoint),
            "PERK_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
            **environment,
        }
        command = [sys.executable, "-m", "service", "serve", "--port", "0"]
        self.process = subprocess.Popen(command, env=variables, stderr=subprocess.PIPE)
        self.log = ""

    def read_log(self, until: str) -> re.Match[str]:
        """Read its log until a pattern appears."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (found := re.search(until, self.log)) is None:
            left = deadline - time.monotonic()
            assert left > 0, self.log
            if select.select([self.process.stderr], [], [], left)[0]:
                read = os.read(self.process.stderr.fileno(), 65536)
                assert read, f"the server has ended:\n{self.log}"
                self.log += read.decode()
        return found

    def client(self) -> httpx.Client:
        """A client, once it is ready."""
        port = self.read_log(r'"port": (\d+)')[1]
        self.read_log('"event": "ready"')
        return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_PATIENCE_SECONDS)

    def end(self) -> int:
        """Wait for its end and read the rest of its log; returns the exit status."""
        _, rest = self.process.communicate(timeout=_PATIENCE_SECONDS)
        self.log += rest.decode()
        return self.process.returncode


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers that share a data folder."""
    servers: list[ServerProcess] = []

    def start(checkpoint: Path, **environment: str) -> ServerProcess:
        server = ServerProcess(tmp_path / "data", checkpoint, **environment)
        servers.append(server)
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        assert server.process.stderr is not None
        server.process.stderr.close()


def _until_encoding(client: httpx.Client, document: dict[str, Any]) -> None:
    with client.stream("GET", f"/documents/{document['id']}/events") as response:
        for line in response.iter_lines():
            if line.startswith("data: ") and json.loads(line.removeprefix("data: "))["progress"] > 0:
                return
    raise AssertionError("it was ready before it could be disturbed")


def test_a_server_killed_in_the_middle_of_an_encode_finishes_it_after_the_restart(
    start: Callable[..., ServerProcess], slow_checkpoint: Path
) -> None:
    first = start(slow_checkpoint)
    with first.client() as client:
        story = {"text": "Mary went to the kitchen."}
        ready = client.post("/documents", json=story, headers={"Prefer": "wait=60"}).json()
        question = {"question": "Where is Mary?", "max_tokens": 8}
        answer = client.post(f"/documents/{ready['id']}/ask", json=question).json()["answer"]
        interrupted = client.post("/documents", json={"text": TEXT, "title": "register"}).json()
        waiting = client.post("/documents", json={"text": "The apple is in the garden."}).json()
        _until_encoding(client, interrupted)
    first.process.kill()
    assert first.end() == -signal.SIGKILL

    second = start(slow_checkpoint)
    with second.client() as client:
        asked = client.post(f"/documents/{ready['id']}/ask", json=question)
        assert asked.json()["answer"] == answer, "what was ready answers at once"
        for document in (interrupted, waiting):
            events = client.get(f"/documents/{document['id']}/events").text
            assert "event: ready" in events
        finished = client.get(f"/documents/{interrupted['id']}").json()
        assert finished["title"] == "register"
        assert finished["created_at"] == interrupted["created_at"]
        assert client.post(f"/documents/{interrupted['id']}/ask", json=question).status_code == 200


def test_a_signal_stops_the_server_after_its_slice_and_leaves_documents_queued(
    start: Callable[..., ServerProcess], slow_checkpoint: Path
) -> None:
    server = start(slow_checkpoint)
    with server.client() as client:
        document = client.post("/documents", json={"text": TEXT * 5}).json()
        _until_encoding(client, document)
        with client.stream("GET", f"/documents/{document['id']}/events") as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            started = time.monotonic()
            assert "stopping" in "\n".join(lines), "whoever follows is told, and the stream ends"
    status = server.end()

    assert status in (0, -signal.SIGTERM)
    assert time.monotonic() - started < 10
    assert "handed back" in server.log
    assert "Traceback" not in server.log

    restarted = start(slow_checkpoint)
    with restarted.client() as client:
        assert client.get(f"/documents/{document['id']}").json()["status"] in ("queued", "encoding")


def test_a_signal_lets_the_running_answer_end(start: Callable[..., ServerProcess], tiny_checkpoint: Path) -> None:
    server = start(tiny_checkpoint)
    with server.client() as client:
        text = {"text": "Mary went to the kitchen."}
        document = client.post("/documents", json=text, headers={"Prefer": "wait=60"}).json()
        question = {"question": "Where is Mary?", "max_tokens": 200, "stream": True}
        with client.stream("POST", f"/documents/{document['id']}/ask", json=question) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            answered = "\n".join(lines)
    server.end()

    assert "event: done" in answered


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PERK_QUEUE_LIMITS": "3"}, "PERK_QUEUE_LIMITS is not a setting"),
        ({"PERK_QUEUE_LIMIT": "-3"}, "PERK_QUEUE_LIMIT: got '-3'"),
        ({"PERK_REDIS_URL": "redis://localhost"}, "PERK_REDIS_URL"),
        ({"PERK_CHECKPOINT": "no-such-checkpoint"}, "no-such-checkpoint"),
    ],
)
def test_a_wrong_start_stops_with_a_message_that_names_what_is_wrong(
    start: Callable[..., ServerProcess], tiny_checkpoint: Path, environment: dict[str, str], message: str
) -> None:
    server = start(tiny_checkpoint, **environment)

    assert server.end() == 1
    assert message in server.log
    assert "Traceback" not in server.log


def test_a_checkpoint_of_another_base_stops_the_start(
    start: Callable[..., ServerProcess], tiny_checkpoint: Path, tiny_gpt2: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    base = checkpoint.settings.base.model_copy(update={"source": str(tiny_gpt2)})
    settings = checkpoint.settings.model_copy(update={"base": base})
    type(checkpoint)(name="moved", settings=settings, tensors=checkpoint.tensors).save(tmp_path / "moved")

    server = start(tmp_path / "moved")

    assert server.end() == 1
    last = server.log.strip().splitlines()[-1]
    assert last.startswith("perk serve: checkpoint 'moved' belongs to base")
    assert "tiny-gpt2" in last
    assert "Traceback" not in server.log
