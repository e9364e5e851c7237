"""Names of the formats of adapters; apart from the formats, so that reading settings does not load torch."""

from __future__ import annotations

from typing import Literal

__all__ = ["FormatName"]

FormatName = Literal["float32", "bf16", "int8-delta"]
