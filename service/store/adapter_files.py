"""Adapters as safetensors files, each whole or not there at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from shutil import disk_usage

from torch import Tensor

from service.errors import StorageFull, StoreError, is_disk_full
from service.store.adapter_format import AdapterFormat, DamagedAdapter

__all__ = ["AdapterFiles"]

_SUFFIX = ".safetensors"
_SCRATCH_SUFFIX = ".partial"


class AdapterFiles:
    """A folder with one file a document, named by its id. May be called from any thread."""

    def __init__(self, directory: Path, adapter_format: AdapterFormat) -> None:
        """Make the folder where there is none.

        Args:
            directory: the folder.
            adapter_format: how adapters are written.
        """
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._format = adapter_format

    @property
    def has_space(self) -> bool:
        """Whether an adapter more would fit on the disk."""
        return disk_usage(self._directory).free >= self._format.bytes_per_adapter

    @property
    def total_bytes(self) -> int:
        """Of all adapters."""
        with os.scandir(self._directory) as entries:
            count = sum(entry.name.endswith(_SUFFIX) for entry in entries)
        return count * self._format.bytes_per_adapter

    def clean(self, keep: set[str]) -> None:
        """Remove what a process that was killed has left: files half-written, or of no document in `keep`."""
        for path in self._directory.iterdir():
            if path.suffix == _SCRATCH_SUFFIX or (path.suffix == _SUFFIX and path.stem not in keep):
                path.unlink()

    def write(self, document_id: str, adapter: Tensor) -> str:
        """Write an adapter ``[P]``; returns the SHA-256 of the file in hex.

        Raises:
            StorageFull: the disk has no space left; an older file of the document stays.
            StoreError: the file cannot be written.
        """
        content = self._format.pack(adapter)
        path = self._path(document_id)
        try:
            _write_whole(path, content)
        except OSError as error:
            if is_disk_full(error):
                raise StorageFull from error
            raise StoreError(f"an adapter cannot be written: {error.strerror}") from error
        return hashlib.sha256(content).hexdigest()

    def read(self, document_id: str, sha256: str) -> Tensor:
        """Read an adapter ``[P]`` and check it; raises as `read_packed` does."""
        return self._format.unpack(self.read_packed(document_id, sha256))

    def read_packed(self, document_id: str, sha256: str) -> bytes:
        """Read an adapter as it was written, and check that it is that.

        Raises:
            DamagedAdapter: the file is missing or not what was written.
            StoreError: the file cannot be read.
        """
        try:
            content = self._path(document_id).read_bytes()
        except FileNotFoundError:
            raise DamagedAdapter("missing") from None
        except OSError as error:
            raise StoreError(f"an adapter cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DamagedAdapter("checksum")
        return content

    def remove(self, document_id: str) -> None:
        """Remove an adapter, if there is one."""
        self._path(document_id).unlink(missing_ok=True)

    def _path(self, document_id: str) -> Path:
        return self._directory / f"{document_id}{_SUFFIX}"


def _write_whole(path: Path, content: bytes) -> None:
    """Write a file so that, whenever the machine stops, it holds all of `content` or what it held before."""
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=_SCRATCH_SUFFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
    # The rename itself lasts only once the folder is on the disk.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
