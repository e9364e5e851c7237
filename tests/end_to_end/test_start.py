"""A service that cannot start ends at once, and says why in words that name what is wrong."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from perk.checkpoint import Checkpoint, load_checkpoint
from service.server import serve
from service.settings import Settings


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    """Undoes what a service that is started within this process does to its logs."""
    root = logging.getLogger()
    handlers, level = root.handlers.copy(), root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_bad_settings_stop_the_start(start_service: Callable[..., Any]) -> None:
    misspelt = start_service(quue_limit=8)
    bad = start_service(queue_limit="many", device="abacus")

    assert misspelt.wait() == bad.wait() == 1
    assert "perk serve: PERK_QUUE_LIMIT is not a setting" in misspelt.log
    assert "perk serve: PERK_DEVICE: got 'abacus'" in bad.log
    assert "PERK_QUEUE_LIMIT: got 'many'" in bad.log
    assert "Traceback" not in misspelt.log + bad.log


def test_a_checkpoint_of_another_base_stops_the_start(
    start_service: Callable[..., Any], tiny_checkpoint: Path, tiny_qwen2: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    base = checkpoint.settings.base.model_copy(update={"source": str(tiny_qwen2)})
    settings = checkpoint.settings.model_copy(update={"base": base})
    Checkpoint("moved", settings, checkpoint.tensors).save(tmp_path / "moved")

    service = start_service(checkpoint=tmp_path / "moved")

    assert service.wait() == 1
    last = service.log.splitlines()[-1]
    assert last.startswith("perk serve: checkpoint 'moved' belongs to base")
    assert "but 'tiny-qwen2' has fingerprint" in last
    assert "Traceback" not in service.log


@pytest.mark.usefixtures("logs_as_before")
def test_a_data_folder_that_cannot_be_made_stops_the_start(
    tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    data_dir = tmp_path / "file" / "data"

    status = serve(Settings(checkpoint=str(tiny_checkpoint), device="cpu", data_dir=data_dir), "127.0.0.1", 0)

    assert status == 1
    assert f"perk serve: PERK_DATA_DIR: '{data_dir}' cannot be written: Not a directory" in capfd.readouterr().err


@pytest.mark.usefixtures("logs_as_before")
def test_a_port_that_is_taken_stops_the_start(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status = serve(Settings(device="cpu", data_dir=tmp_path), "127.0.0.1", port)

    assert status == 1
    assert f"perk serve: cannot listen on 127.0.0.1 port {port}: " in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
