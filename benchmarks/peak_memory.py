"""The largest resident memory of this process while something runs."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

__all__ = ["PeakMemory"]

_INTERVAL_SECONDS = 0.01


class PeakMemory:
    """Context manager that samples the resident set (Linux) until it is left.

    The kernel's own high-water mark would be that of the whole life of the process, loading included.
    """

    def __init__(self) -> None:
        self._peak = 0
        self._left = threading.Event()
        self._sampler = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    @property
    def megabytes(self) -> float:
        """Largest sample so far, in units of 10^6 bytes."""
        return self._peak / 1e6

    def __enter__(self) -> PeakMemory:
        self._peak = _resident_bytes()
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._left.wait(_INTERVAL_SECONDS):
            self._peak = max(self._peak, _resident_bytes())


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
