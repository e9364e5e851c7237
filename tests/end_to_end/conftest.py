"""The service as users start it: a process of its own on a free port, driven over HTTP and by the ``perk`` command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

_PATIENCE_SECONDS = 120.0


def _environment(**settings: object) -> dict[str, str]:
    """This process' environment without settings of the service but `settings`, such as ``checkpoint``."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PERK_")}
    return inherited | {"PERK_DEVICE": "cpu"} | {f"PERK_{name.upper()}": str(value) for name, value in settings.items()}


class ServiceProcess:
    """``python -m service serve`` with a client for it.

    Attributes:
        folder: where it was started and its log is.
        client: an `httpx.Client` of its address, once that is known.
    """

    client: httpx.Client

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # From a folder of its own, so that no one's .env is read.
        with (folder / "service.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve", "--port", "0"],
                cwd=folder,
                env=_environment(**settings),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        """What it has printed so far."""
        return (self.folder / "service.log").read_text(encoding="utf-8", errors="replace")

    @property
    def address(self) -> str:
        """Its URL."""
        return str(self.client.base_url).rstrip("/")

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition, two minutes at most."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"waited in vain; the log:\n{self.log}"
            assert self._process.poll() is None, f"the service has ended; the log:\n{self.log}"
            time.sleep(0.05)

    def until_ready(self) -> ServiceProcess:
        """Wait until it can encode and answer."""
        self.until(lambda: self._port() is not None)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self._port()}", timeout=_PATIENCE_SECONDS)
        self.until(lambda: self.client.get("/ready").status_code == 200)
        return self

    def _port(self) -> int | None:
        for line in self.log.splitlines():
            if '"listening"' in line:
                port: int = json.loads(line)["port"]
                return port
        return None

    def send(self, text: str) -> dict[str, Any]:
        """Send a document; returns it as it is queued."""
        response = self.client.post("/documents", json={"text": text})
        assert response.status_code == 202, response.text
        document: dict[str, Any] = response.json()
        return document

    def encode(self, text: str) -> dict[str, Any]:
        """Send a document and wait until it is ready."""
        response = self.client.post("/documents", json={"text": text}, headers={"Prefer": "wait=60"})
        document: dict[str, Any] = response.json()
        assert document.get("status") == "ready", document
        return document

    def show(self, document: dict[str, Any]) -> dict[str, Any]:
        """A document as it stands."""
        shown: dict[str, Any] = self.client.get(f"/documents/{document['id']}").json()
        return shown

    def documents(self) -> list[dict[str, Any]]:
        """All documents, the newest first."""
        listed: list[dict[str, Any]] = self.client.get("/documents").json()["data"]
        return listed

    def ask(self, document: dict[str, Any], question: str) -> str:
        """The likeliest answer of 16 tokens."""
        body = {"question": question, "max_tokens": 16}
        response = self.client.post(f"/documents/{document['id']}/ask", json=body)
        assert response.status_code == 200, response.text
        answer: str = response.json()["answer"]
        return answer

    def metric(self, line: str) -> float:
        """Value of a line of the metrics; 0 where there is none."""
        for found in self.client.get("/metrics").text.splitlines():
            name, _, value = found.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0

    def end(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end; returns the exit status, negative where the signal has killed it."""
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; returns the exit status."""
        return self._process.wait(_PATIENCE_SECONDS)

    def close(self) -> None:
        """End it, if it still runs."""
        if self._process.poll() is None:
            self.end(signal.SIGTERM)
        if hasattr(self, "client"):
            self.client.close()


@pytest.fixture(scope="session")
def patient_checkpoint(save_checkpoint: Callable[..., Path]) -> Path:
    """Folder of a checkpoint with many and large inner steps: an encode takes a while, and changes the answers."""
    return save_checkpoint("patient", rank=4, steps=64, step_size=3e-3)


@pytest.fixture
def start_service(patient_checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Starts services; each argument is a setting. By default they share a data folder."""
    started: list[ServiceProcess] = []

    def start(**settings: object) -> ServiceProcess:
        settings = {"checkpoint": patient_checkpoint, "data_dir": tmp_path / "data", **settings}
        service = ServiceProcess(tmp_path / f"service-{len(started)}", **settings)
        started.append(service)
        return service

    yield start
    for service in started:
        service.close()


@pytest.fixture(scope="session")
def service(patient_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service for all tests that do not disturb it; it wants the key ``open-sesame``."""
    folder = tmp_path_factory.mktemp("service")
    running = ServiceProcess(
        folder, checkpoint=patient_checkpoint, data_dir=folder / "data", api_keys="another-key,open-sesame"
    )
    try:
        running.until_ready().client.headers["Authorization"] = "Bearer open-sesame"
        yield running
    finally:
        running.close()


@pytest.fixture
def perk(service: ServiceProcess, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the ``perk`` command on `service`; keyword arguments are further variables of the environment."""

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "service", *map(str, arguments)],
            cwd=tmp_path,
            env=_environment(server=service.address, api_key="open-sesame") | variables,
            capture_output=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        # Read as text, a carriage return in an answer would be taken for the end of a line.
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture(scope="session")
def story() -> str:
    """A short document."""
    return "Mary went to the kitchen. John moved to the garden. Sandra travelled back to the office."


@pytest.fixture(scope="session")
def register() -> str:
    """A document whose encode can be interrupted."""
    return "\n".join(f"Student <{3000000 + number}>, Name: Ada Young, Year: Senior, Grade: 72" for number in range(24))
