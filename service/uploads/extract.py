"""The text of a file, read in a child process that has limits."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress

from service.errors import ExtractionFailed, QueueFull
from service.settings import Settings
from service.uploads import extractor
from service.uploads.kinds import Kind

__all__ = ["TextExtraction"]

_PROBLEMS = {
    extractor.DAMAGED: ("a file that cannot be read", "an undamaged file"),
    extractor.ENCRYPTED: ("an encrypted file", "a file without a password"),
}
_CHUNK = 64 * 1024


class TextExtraction:
    """Reads files, one at a time for each core but one. One event loop owns it."""

    def __init__(self, settings: Settings) -> None:
        """Take the limits from the settings."""
        self._memory = int(settings.upload_memory)
        self._seconds = settings.upload_seconds
        self._most = int(settings.max_document_bytes)
        self._waiting_limit = settings.queue_limit
        self._waiting = 0
        self._places = asyncio.Semaphore(max(1, (os.cpu_count() or 1) - 1))

    async def text(self, kind: Kind, content: bytes) -> str:
        """The text of a file that is no plain text.

        Raises:
            ExtractionFailed: there is none, or it takes more than the limits.
            QueueFull: too many files wait.
        """
        if self._waiting >= self._waiting_limit:
            raise QueueFull("files", self._waiting_limit, self._seconds)
        self._waiting += 1
        try:
            async with self._places:
                return await self._run(kind, content)
        finally:
            self._waiting -= 1

    async def _run(self, kind: Kind, content: bytes) -> str:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            extractor.__file__,
            kind,
            str(self._memory),
            str(self._seconds),
            str(self._most),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            # Not ours: it holds keys.
            env={"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
        )
        try:
            async with asyncio.timeout(self._seconds):
                text, _ = await asyncio.gather(_read(child, self._most), _write(child, content))
                status = await child.wait()
        except TimeoutError:
            raise ExtractionFailed(
                "a file that takes too long to read", f"at most {self._seconds} seconds (PERK_UPLOAD_SECONDS)"
            ) from None
        finally:
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        self._check(status)
        return text.decode()

    def _check(self, status: int) -> None:
        if status == extractor.TOO_LONG:
            raise ExtractionFailed("a file with too much text", f"at most {self._most} bytes (PERK_MAX_DOCUMENT_BYTES)")
        if status in _PROBLEMS:
            raise ExtractionFailed(*_PROBLEMS[status])
        if status != 0:
            # Out of memory by its own word, or killed at one of its limits.
            limit = f"at most {self._memory} bytes and {self._seconds} seconds of computing (PERK_UPLOAD_MEMORY)"
            raise ExtractionFailed("a file that takes too much to read", limit)


async def _write(child: asyncio.subprocess.Process, content: bytes) -> None:
    assert child.stdin is not None
    # It may end before it has read all.
    with suppress(BrokenPipeError, ConnectionResetError):
        child.stdin.write(content)
        await child.stdin.drain()
    child.stdin.close()


async def _read(child: asyncio.subprocess.Process, most: int) -> bytes:
    assert child.stdout is not None
    text = bytearray()
    while len(text) <= most:
        chunk = await child.stdout.read(_CHUNK)
        if not chunk:
            break
        text += chunk
    return bytes(text)
