"""How many programs a launch is cut into."""

from __future__ import annotations

__all__ = ["PROGRAMS"]

# Programs that fill the multiprocessors of the GPUs in question (an A100 has 108, an H100 132) about once.
PROGRAMS = 128
