"""docs/api.md is what the OpenAPI document says now."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]


def test_the_api_reference_is_current(service: Any) -> None:
    script = runpy.run_path(str(_ROOT / "scripts" / "api_reference.py"))

    written = script["render"](service.client.get("/openapi.json").json())

    assert (_ROOT / "docs" / "api.md").read_text() == written, "run scripts/api_reference.py"
    for path in service.client.get("/openapi.json").json()["paths"]:
        assert f" {path}`" in written
