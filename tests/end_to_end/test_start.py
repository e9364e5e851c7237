"""A service that cannot start ends at once, and says why in one line that names what is wrong."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perk.checkpoint import load_checkpoint
from perk.settings import BaseSettings
from service.settings import Settings


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quue_limit": "8"}, ["PERK_QUUE_LIMIT", "PERK_QUEUE_LIMIT"]),
        ({"queue_limit": "many", "device": "abacus"}, ["PERK_QUEUE_LIMIT", "'many'", "PERK_DEVICE", "'abacus'"]),
        ({"checkpoint": "no-such-folder"}, ["no-such-folder"]),
        ({"redis_url": "redis://127.0.0.1:6379"}, ["PERK_REDIS_URL", "not supported yet"]),
    ],
    ids=["unknown name", "bad values", "no checkpoint", "no Redis yet"],
)
def test_a_bad_setting_stops_the_start(
    start_service: Callable[..., Any], settings: dict[str, str], named: list[str]
) -> None:
    service = start_service(**settings)

    assert service.wait() == 1
    assert "perk serve: " in service.log
    assert "Traceback" not in service.log
    for words in named:
        assert words in service.log


def test_a_checkpoint_of_another_base_stops_the_start(
    start_service: Callable[..., Any], tiny_checkpoint: Path, tiny_qwen2: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    base = BaseSettings(source=str(tiny_qwen2), fingerprint=checkpoint.settings.base.fingerprint)
    settings = checkpoint.settings.model_copy(update={"base": base})
    type(checkpoint)("moved", settings, checkpoint.tensors).save(tmp_path / "moved")

    service = start_service(checkpoint=tmp_path / "moved")

    assert service.wait() == 1
    (line,) = [line for line in service.log.splitlines() if line.startswith("perk serve: ")]
    assert "'moved' belongs to base" in line
    assert checkpoint.settings.base.fingerprint[:16] in line


def test_a_data_folder_that_another_service_uses_stops_the_start(start_service: Callable[..., Any]) -> None:
    start_service().until_ready()

    second = start_service()

    assert second.wait() == 1
    assert "PERK_DATA_DIR" in second.log
    assert "in use by another process" in second.log


def test_a_data_folder_that_cannot_be_made_stops_the_start(start_service: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    service = start_service(data_dir=tmp_path / "file" / "data")

    assert service.wait() == 1
    assert "PERK_DATA_DIR" in service.log
    assert "Traceback" not in service.log


def test_a_port_that_is_taken_stops_the_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 1
    assert f"perk serve: cannot listen on 127.0.0.1 port {port}" in ended.stderr


def test_the_help_of_serve_lists_every_setting() -> None:
    command = [sys.executable, "-m", "service", "serve", "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    for name in Settings.model_fields:
        assert f"PERK_{name.upper()}" in printed
