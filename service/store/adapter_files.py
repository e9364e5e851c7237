"""Adapters as safetensors files, each whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from shutil import disk_usage

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from service.errors import StorageFull, StoreError, is_disk_full

__all__ = ["AdapterFiles", "DamagedAdapter"]

_SUFFIX = ".safetensors"
_SCRATCH_SUFFIX = ".partial"
_TENSOR = "adapter"
_BYTES_PER_ELEMENT = 4


class DamagedAdapter(StoreError):
    """The file of an adapter is not what was written.

    Attributes:
        reason: what does not fit, a word for the metrics.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the file of an adapter is damaged: {reason}")
        self.reason = reason


class AdapterFiles:
    """A folder with one file a document, named by its id. May be called from any thread."""

    def __init__(self, directory: Path, adapter_size: int) -> None:
        """Make the folder where there is none.

        Args:
            directory: the folder.
            adapter_size: P, the number of elements that an adapter must have.
        """
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._adapter_size = adapter_size

    @property
    def has_space(self) -> bool:
        """Whether an adapter more would fit on the disk."""
        return disk_usage(self._directory).free >= self._adapter_size * _BYTES_PER_ELEMENT

    @property
    def bytes(self) -> int:
        """Of all adapters."""
        with os.scandir(self._directory) as entries:
            count = sum(entry.name.endswith(_SUFFIX) for entry in entries)
        return count * self._adapter_size * _BYTES_PER_ELEMENT

    def clean(self, keep: set[str]) -> None:
        """Remove what a process that was killed has left: files half-written, or of no document in `keep`."""
        for path in self._directory.iterdir():
            if path.suffix == _SCRATCH_SUFFIX or (path.suffix == _SUFFIX and path.stem not in keep):
                path.unlink()

    def write(self, document_id: str, adapter: Tensor, fingerprint: str) -> str:
        """Write an adapter ``[P]``; returns the SHA-256 of the file in hex.

        Raises:
            StorageFull: the disk has no space left; an older file of the document stays.
            StoreError: the file cannot be written.
        """
        content = save({_TENSOR: adapter}, metadata={"fingerprint": fingerprint})
        path = self._path(document_id)
        try:
            _write_whole(path, content)
        except OSError as error:
            if is_disk_full(error):
                raise StorageFull from error
            raise StoreError(f"an adapter cannot be written: {error.strerror}") from error
        return hashlib.sha256(content).hexdigest()

    def read(self, document_id: str, sha256: str, fingerprint: str) -> Tensor:
        """Read an adapter ``[P]`` and check it.

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
        try:
            tensors = load(content)
        except SafetensorError:
            raise DamagedAdapter("format") from None
        if _metadata(content).get("fingerprint") != fingerprint:
            raise DamagedAdapter("fingerprint")
        adapter = tensors.get(_TENSOR)
        if adapter is None or adapter.shape != (self._adapter_size,):
            raise DamagedAdapter("shape")
        return adapter

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


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata in the header of a safetensors file, which `load` does not give."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return metadata
