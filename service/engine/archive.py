"""A folder as a zip archive."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from service.errors import StorageFull, is_disk_full

__all__ = ["pack_folder"]

# Mode of the files that come out of the archive.
_READABLE = 0o644


async def pack_folder(fill: Callable[[Path], Awaitable[None]]) -> bytes:
    """Let `fill` write files into an empty folder, and return them as a zip archive.

    Raises:
        StorageFull: there is no space for the files.
    """
    try:
        with TemporaryDirectory(prefix="perk-export-") as scratch:
            folder = Path(scratch)
            await fill(folder)
            return await asyncio.to_thread(_zip, folder)
    except OSError as error:
        if is_disk_full(error):
            raise StorageFull from error
        raise


def _zip(folder: Path) -> bytes:
    buffer = io.BytesIO()
    # Stored, not compressed: weights hardly shrink.
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                # Without the time of writing: the same files are the same archive, whenever and wherever it is made.
                entry = zipfile.ZipInfo(path.relative_to(folder).as_posix())
                entry.external_attr = _READABLE << 16
                archive.writestr(entry, path.read_bytes())
    return buffer.getvalue()
