"""The OpenAPI document is what the service does: a stranger's tool reads the one and tries the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_KEY = "open-sesame"
_EXAMPLES = 10
_SECONDS = 280


def test_the_service_does_what_its_openapi_document_says(start_service: Callable[..., Any], tmp_path: Path) -> None:
    # A question and an answer of these sizes fit into the positions of the tiny model, whatever characters it has.
    service = start_service(api_keys=_KEY, max_question_chars=200, max_answer_tokens=8, queue_limit=1000).until_ready()
    operations = [
        method for methods in service.client.get("/openapi.json").json()["paths"].values() for method in methods
    ]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PERK_")}
    command = [
        Path(sys.executable).with_name("schemathesis"),
        "run",
        f"{service.address}/openapi.json",
        *("--header", f"Authorization: Bearer {_KEY}"),
        *("--checks", "all"),
        *("--phases", "examples,coverage,fuzzing,stateful"),
        *("--max-examples", str(_EXAMPLES)),
        *("--seed", "0"),
        "--generation-deterministic",
        "--continue-on-failure",
        "--no-color",
    ]

    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=inherited | {"PYTHONPATH": str(Path(__file__).parent), "SCHEMATHESIS_HOOKS": "schemathesis_hooks"},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout
    assert re.search(rf"Tested: {len(operations)}\b", done.stdout), done.stdout
    assert service.client.get("/ready").status_code == 200
    assert service.metric('perk_rejected_total{reason="internal"}') == 0
