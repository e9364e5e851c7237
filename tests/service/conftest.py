"""Real servers on free ports, in a thread of the test process, over tiny models."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
import torch
import uvicorn
from torch import Tensor

from service.app import create_app
from service.engine.engine import Engine
from service.settings import Settings
from tests.service.records import ADAPTER_SIZE

_PATIENCE_SECONDS = 60.0

STORY = "Mary went to the kitchen. John moved to the garden. Sandra travelled back to the office."


@pytest.fixture(scope="session", autouse=True)
def logs_beside_the_output() -> None:
    """Services log as they do in a process of their own: not on standard output, which belongs to the command."""
    structlog.configure(logger_factory=structlog.stdlib.LoggerFactory())


class RunningService:
    """A service that listens on a free port, with a client for it.

    Attributes:
        client: an `httpx.Client` of its address.
        engine: the engine behind it, for faults to be put in.
    """

    def __init__(self, settings: Settings, load_model: Callable[[Settings], Any] | None = None) -> None:
        app = create_app(settings, load_model=load_model)
        self.settings = settings
        self.engine: Engine = app.state.engine
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=20,
            timeout_keep_alive=60,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        self._thread.start()
        self.client = httpx.Client(base_url=self.address, timeout=_PATIENCE_SECONDS)

    def until_ready(self) -> RunningService:
        """Wait until it can encode and answer."""
        self.until(lambda: self.client.get("/ready").status_code == 200)
        return self

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a condition, a minute at most."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, "waited in vain"
            assert self._thread.is_alive(), "the server has ended"
            time.sleep(0.01)

    def encode(self, text: str) -> dict[str, Any]:
        """Send a document and wait until it is ready."""
        response = self.client.post("/documents", json={"text": text}, headers={"Prefer": "wait=60"})
        document: dict[str, Any] = response.json()
        assert document.get("status") == "ready", document
        return document

    def metric(self, line: str) -> float:
        """Value of a line of the metrics, such as ``perk_encodes_total{outcome="ready"}``; 0 where there is none."""
        for found in self.client.get("/metrics").text.splitlines():
            name, _, value = found.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0

    def stop(self) -> None:
        """Stop it as a signal would."""
        self.client.close()
        self._server.should_exit = True
        self._thread.join(_PATIENCE_SECONDS)
        assert not self._thread.is_alive()


@pytest.fixture(scope="session")
def slow_checkpoint(save_checkpoint: Callable[..., Path]) -> Path:
    """Folder of a checkpoint whose inner loop takes so many steps that there is time to look at it."""
    return save_checkpoint("slow", rank=4, steps=64)


@pytest.fixture(scope="session")
def strong_checkpoint(save_checkpoint: Callable[..., Path]) -> Path:
    """Folder of a checkpoint whose adapters differ so much that most answers do too."""
    return save_checkpoint("strong", rank=16, steps=4, step_size=0.05)


@pytest.fixture(scope="session")
def long_text() -> str:
    """A document of a few thousand tokens."""
    return "\n".join(f"Student <{3000000 + number}>, Name: Ada Young, Year: Senior, Grade: 72" for number in range(200))


def _settings(checkpoint: Path, data_dir: Path, **options: Any) -> Settings:
    return Settings(checkpoint=str(checkpoint), device="cpu", data_dir=data_dir, **options)


@pytest.fixture
def start_service(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[Callable[..., RunningService]]:
    """Starts services; each argument is a setting, but `load_model`. By default they share a data folder."""
    running: list[RunningService] = []

    def start(*, load_model: Callable[[Settings], Any] | None = None, **options: Any) -> RunningService:
        options = {"checkpoint": tiny_checkpoint, "data_dir": tmp_path / "data", **options}
        service = RunningService(_settings(**options), load_model)
        running.append(service)
        return service

    yield start
    for service in running:
        service.stop()


@pytest.fixture(scope="module")
def service(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service for all tests of a file."""
    settings = _settings(tiny_checkpoint, tmp_path_factory.mktemp("data"), max_document_bytes=200_000)
    running = RunningService(settings).until_ready()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def story() -> str:
    """A short document."""
    return STORY


@pytest.fixture
def adapter() -> Tensor:
    """What the tests of the stores keep, ``[P]``."""
    return torch.randn(ADAPTER_SIZE, generator=torch.Generator().manual_seed(0))
