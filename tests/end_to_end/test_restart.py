"""What a service has taken outlives its process, however that ends."""

from __future__ import annotations

import io
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import load, load_file
from torch import Tensor

from perk.perk_model import PerkModel


def test_a_killed_service_goes_on_where_it_was(
    start_service: Callable[..., Any], patient_checkpoint: Path, story: str, register: str, tmp_path: Path
) -> None:
    killed = start_service().until_ready()
    ready = killed.encode(story)
    answer = killed.ask(ready, "Where is Mary?")
    interrupted = killed.send(register)
    waiting = killed.send("The train to the north leaves at seven in the morning.")
    killed.until(lambda: killed.show(interrupted)["progress"] > 0)

    assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    restarted = start_service().until_ready()

    assert restarted.ask(ready, "Where is Mary?") == answer
    assert restarted.show(interrupted)["progress"] < 1, "the answer did not wait for the encode"
    assert restarted.show(ready) == ready
    restarted.until(lambda: restarted.show(waiting)["status"] == "ready")
    newest_first = [waiting, interrupted, ready]
    assert [document["id"] for document in restarted.documents()] == [document["id"] for document in newest_first]
    assert [document["status"] for document in restarted.documents()] == ["ready"] * 3
    assert restarted.metric('perk_encodes_total{outcome="ready"}') == 2, "what was ready is not encoded again"

    model = PerkModel.load(patient_checkpoint, device="cpu")
    model.export_peft(model.encode(register).adapter, tmp_path / "whole")
    torch.testing.assert_close(
        _tensors(restarted.client, interrupted),
        load_file(tmp_path / "whole" / "adapter_model.safetensors"),
        msg=lambda difference: f"an interrupted encode leaves another adapter than a whole one: {difference}",
    )


def _tensors(client: httpx.Client, document: dict[str, Any]) -> dict[str, Tensor]:
    archive = zipfile.ZipFile(io.BytesIO(client.get(f"/documents/{document['id']}/adapter").content))
    return load(archive.read("adapter_model.safetensors"))


def test_a_stop_ends_an_encode_after_its_slice_and_lets_an_answer_end(
    start_service: Callable[..., Any], story: str, register: str
) -> None:
    service = start_service().until_ready()
    ready = service.encode(story)
    encoding = service.send(register)
    body = {"question": "Where is Mary?", "max_tokens": 200, "stream": True}

    with (
        service.client.stream("GET", f"/documents/{encoding['id']}/events") as events,
        service.client.stream("POST", f"/documents/{ready['id']}/ask", json=body) as answer,
    ):
        follower, reader = events.iter_lines(), answer.iter_lines()
        assert next(follower) == "event: progress"
        assert next(reader) == "event: token"
        stopped_at = time.monotonic()
        status = service.end(signal.SIGTERM)
        seconds = time.monotonic() - stopped_at
        followed, answered = "\n".join(follower), "\n".join(reader)

    assert status == 0
    assert seconds < 15
    assert "event: ready" not in followed
    assert followed.rstrip().splitlines()[-2] == "event: error"
    assert "the service is stopping" in followed
    assert answered.rstrip().splitlines()[-2] == "event: done"
    assert "Traceback" not in service.log
