"""A packed folder holds its files, and is the same bytes whenever they were written."""

from __future__ import annotations

import asyncio
import io
import os
import zipfile
from pathlib import Path

from service.engine.archive import pack_folder


def _pack(written: float) -> bytes:
    async def fill(folder: Path) -> None:
        (folder / "inner").mkdir()
        for name, content in [("b.json", b"{}"), ("inner/a.bin", bytes(1000))]:
            (folder / name).write_bytes(content)
            os.utime(folder / name, (written, written))

    return asyncio.run(pack_folder(fill))


def test_the_same_files_are_the_same_archive_whenever_they_were_written() -> None:
    assert _pack(written=1_000_000_000) == _pack(written=1_700_000_003)


def test_the_files_come_out_as_they_went_in_and_can_be_read() -> None:
    with zipfile.ZipFile(io.BytesIO(_pack(written=1_000_000_000))) as archive:
        assert archive.namelist() == ["b.json", "inner/a.bin"]
        assert archive.read("inner/a.bin") == bytes(1000)
        assert {info.external_attr >> 16 for info in archive.infolist()} == {0o644}
