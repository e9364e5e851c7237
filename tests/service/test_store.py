"""The tiers: what is kept comes back whole or not at all."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.errors import DamagedText, StorageFull, StoreError
from service.metrics import Metrics
from service.store.disk import DataDirectory, DiskStore
from service.store.protocol import Place, Readiness
from tests.service.records import ADAPTER_SIZE, FINGERPRINT, SUMMARY, make_record


def _is_same(found: Tensor | None, expected: Tensor) -> bool:
    return found is not None and torch.equal(found, expected)


class Opened:
    """A disk store that can be closed and opened again, as by a restart."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = Metrics()
        self.store = self._open(FINGERPRINT)

    def _open(self, fingerprint: str, size: int = ADAPTER_SIZE) -> DiskStore:
        self.directory = DataDirectory(self.path)
        return DiskStore(self.directory, fingerprint=fingerprint, adapter_size=size, metrics=self.metrics)

    def close(self) -> None:
        self.store.close()
        self.directory.close()

    def reopen(self, fingerprint: str = FINGERPRINT, size: int = ADAPTER_SIZE) -> DiskStore:
        self.close()
        self.store = self._open(fingerprint, size)
        return self.store

    def file(self, number: int = 0) -> Path:
        return self.path / "adapters" / f"doc_{number:032x}.safetensors"

    def dropped(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("perk_adapters_dropped_total", {"reason": reason}) or 0.0


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    opened = Opened(tmp_path / "data")
    yield opened
    opened.close()


def test_records_and_texts_survive_a_restart(opened: Opened) -> None:
    async def write(store: DiskStore) -> None:
        assert await store.add(make_record(1), "text one α") == (make_record(1), True)
        await store.add(make_record(2), "text two")
        await store.add(make_record(3), "text three")
        await store.mark_ready(make_record(2).id, Readiness(3, 1, 200.0, 300.0, SUMMARY))
        await store.mark_failed(make_record(3).id, "for a reason")

    async def read(store: DiskStore) -> None:
        assert await store.find(make_record(1).id) == make_record(1)
        assert await store.text(make_record(1).id) == "text one α"
        ready = make_record(2, status="ready", tokens=3, segments=1, ready_at=200.0, expires_at=300.0, encode=SUMMARY)
        failed = make_record(3, status="failed", error="for a reason")
        assert await store.page(10, None) == [failed, ready, make_record(1)]
        assert await store.page(10, Place(failed.created_at, failed.id)) == [ready, make_record(1)]
        assert await store.queued() == [make_record(1).id]
        assert await store.counts() == {"queued": 1, "ready": 1, "failed": 1}
        await store.mark_queued(ready.id)
        assert await store.find(ready.id) == make_record(2, tokens=3)

    asyncio.run(write(opened.store))
    asyncio.run(read(opened.reopen()))


def test_a_document_is_kept_once(opened: Opened) -> None:
    async def scenario(store: DiskStore) -> None:
        await store.add(make_record(), "text")
        again = make_record(title="another", created_at=999.0)
        assert await store.add(again, "text") == (make_record(), False)

    asyncio.run(scenario(opened.store))


def test_a_failed_document_is_queued_again_with_the_text_just_sent(opened: Opened) -> None:
    async def scenario(store: DiskStore) -> None:
        await store.add(make_record(), "text")
        with sqlite3.connect(opened.path / "documents.sqlite") as index:
            index.execute("UPDATE texts SET compressed = x'00'")
        with pytest.raises(DamagedText):
            await store.text(make_record().id)
        await store.mark_failed(make_record().id, "damaged")

        kept, is_new = await store.add(make_record(), "text")

        assert (kept.status, kept.error, is_new) == ("queued", None, False)
        assert await store.text(make_record().id) == "text"

    asyncio.run(scenario(opened.store))


def test_what_is_deleted_leaves_no_trace_in_any_file(opened: Opened) -> None:
    # Random, so that compression keeps it recognisable.
    text = "".join(chr(33 + int(value)) for value in torch.randint(90, (3000,)))
    needle = zlib.compress(text.encode())[20:60]

    async def scenario(store: DiskStore) -> None:
        await store.add(make_record(), text)
        await store.put(make_record().id, torch.zeros(ADAPTER_SIZE))
        assert any(needle in path.read_bytes() for path in opened.path.iterdir() if path.is_file())

        assert await store.delete(make_record().id)

        assert not await store.delete(make_record().id)
        assert await store.find(make_record().id) is None
        assert await store.text(make_record().id) is None
        assert await store.get(make_record().id) is None

    asyncio.run(scenario(opened.store))
    assert not any(needle in path.read_bytes() for path in opened.path.iterdir() if path.is_file())
    assert not opened.file().exists()


def test_an_adapter_comes_back_bit_for_bit(opened: Opened, adapter: Tensor) -> None:
    async def write(store: DiskStore) -> None:
        await store.add(make_record(), "text")
        await store.put(make_record().id, adapter)

    async def read(store: DiskStore) -> Tensor | None:
        return await store.get(make_record().id)

    asyncio.run(write(opened.store))
    assert _is_same(asyncio.run(read(opened.reopen())), adapter)
    assert torch.equal(load_file(opened.file())["adapter"], adapter), "the file is plain safetensors"


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_flip, "checksum"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "checksum"),
        (lambda path: path.write_bytes(b""), "checksum"),
        (lambda path: save_file({"adapter": torch.zeros(ADAPTER_SIZE)}, path), "checksum"),
        (Path.unlink, "missing"),
    ],
    ids=["flipped bit", "cut short", "empty", "another", "missing"],
)
def test_a_damaged_adapter_is_dropped_and_counted(
    opened: Opened, adapter: Tensor, damage: Callable[[Path], None], reason: str
) -> None:
    async def scenario(store: DiskStore) -> None:
        await store.add(make_record(), "text")
        await store.put(make_record().id, adapter)
        damage(opened.file())

        assert await store.get(make_record().id) is None
        assert opened.dropped(reason) == 1
        assert not opened.file().exists()
        assert await store.get(make_record().id) is None, "once dropped, it is simply not there"
        assert opened.dropped(reason) == 1
        assert await store.text(make_record().id) == "text"

        await store.put(make_record().id, adapter)
        assert _is_same(await store.get(make_record().id), adapter)

    asyncio.run(scenario(opened.store))


def test_an_adapter_of_another_size_is_not_used(opened: Opened, adapter: Tensor) -> None:
    async def write(store: DiskStore) -> None:
        await store.add(make_record(), "text")
        await store.put(make_record().id, adapter)

    asyncio.run(write(opened.store))
    assert asyncio.run(opened.reopen(size=ADAPTER_SIZE + 1).get(make_record().id)) is None
    assert opened.dropped("shape") == 1


def test_documents_of_another_configuration_lie_unseen_until_it_comes_back(opened: Opened) -> None:
    async def scenario(store: DiskStore) -> None:
        assert await store.find(make_record().id) is None
        assert await store.page(10, None) == []
        assert await store.queued() == []
        assert await store.counts() == {}

    asyncio.run(opened.store.add(make_record(), "text"))
    asyncio.run(scenario(opened.reopen("e" * 64)))
    assert asyncio.run(opened.reopen().queued()) == [make_record().id]


def test_an_adapter_that_arrives_after_its_document_was_deleted_is_not_kept(opened: Opened, adapter: Tensor) -> None:
    asyncio.run(opened.store.put(make_record().id, adapter))

    assert list((opened.path / "adapters").iterdir()) == []


def test_what_a_killed_process_left_half_written_is_removed_at_the_next_start(opened: Opened, adapter: Tensor) -> None:
    async def write(store: DiskStore) -> None:
        await store.add(make_record(), "text")
        await store.put(make_record().id, adapter)

    asyncio.run(write(opened.store))
    half = opened.path / "adapters" / f"{make_record(1).id}.abc.partial"
    half.write_bytes(b"half")
    opened.file(2).write_bytes(b"of a document that is in no index")

    opened.reopen()

    assert list((opened.path / "adapters").iterdir()) == [opened.file()]


def test_expired_adapters_are_found(opened: Opened, adapter: Tensor) -> None:
    async def scenario(store: DiskStore) -> None:
        for number, expires_at in enumerate([150.0, 250.0, None]):
            await store.add(make_record(number), "text")
            await store.put(make_record(number).id, adapter)
            await store.mark_ready(make_record(number).id, Readiness(2, 1, 100.0, expires_at, SUMMARY))

        assert await store.expired(now=200.0) == [make_record(0).id]
        await store.drop(make_record(0).id, "expired")
        assert await store.expired(now=200.0) == []
        assert opened.dropped("expired") == 1

    asyncio.run(scenario(opened.store))


def test_on_a_full_disk_an_adapter_is_refused_and_the_old_one_stays(
    opened: Opened, adapter: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(store: DiskStore) -> None:
        await store.add(make_record(), "text")
        await store.put(make_record().id, adapter)

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageFull):
            await store.put(make_record().id, torch.zeros(ADAPTER_SIZE))

        assert _is_same(await store.get(make_record().id), adapter)

    asyncio.run(scenario(opened.store))
    assert [path.suffix for path in (opened.path / "adapters").iterdir()] == [".safetensors"]


def test_on_a_full_disk_a_document_is_refused_and_nothing_of_it_stays(opened: Opened) -> None:
    async def scenario(store: DiskStore) -> None:
        connection = store._index._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        text = "".join(chr(33 + int(value)) for value in torch.randint(90, (30_000,)))

        with pytest.raises(StorageFull):
            await store.add(make_record(), text)
        assert await store.find(make_record().id) is None

        connection.execute("PRAGMA max_page_count = 1000000")
        _, is_new = await store.add(make_record(), text)
        assert is_new
        assert await store.text(make_record().id) == text

    asyncio.run(scenario(opened.store))


def test_a_damaged_index_stops_the_start(opened: Opened) -> None:
    asyncio.run(opened.store.add(make_record(), "text" * 1000))
    opened.close()
    path = opened.path / "documents.sqlite"
    path.write_bytes(b"no database" * 1000)
    try:
        with pytest.raises(StoreError, match=r"documents\.sqlite"):
            opened._open(FINGERPRINT)
    finally:
        path.unlink()
        opened.directory.close()
        opened.store = opened._open(FINGERPRINT)


def test_an_index_of_a_later_release_stops_the_start(opened: Opened) -> None:
    with sqlite3.connect(opened.path / "documents.sqlite") as index:
        index.execute("PRAGMA user_version = 99")

    opened.close()
    with pytest.raises(StoreError, match="format 99"):
        opened._open(FINGERPRINT)
    opened.directory.close()
    with sqlite3.connect(opened.path / "documents.sqlite") as index:
        index.execute("PRAGMA user_version = 2")
    opened.store = opened._open(FINGERPRINT)


def test_an_index_of_the_first_format_is_read_on_and_its_documents_have_no_owner(opened: Opened) -> None:
    asyncio.run(opened.store.add(make_record(), "text"))
    with sqlite3.connect(opened.path / "documents.sqlite") as index:
        index.executescript(
            "DROP INDEX documents_by_owner; ALTER TABLE documents DROP COLUMN owner;"
            "ALTER TABLE documents DROP COLUMN text_id; PRAGMA user_version = 1"
        )

    store = opened.reopen()

    assert asyncio.run(store.page(10, None)) == [make_record()]
    assert asyncio.run(store.text(make_record().id)) == "text"


def test_each_owner_has_pages_and_counts_of_its_own(opened: Opened) -> None:
    async def scenario(store: DiskStore) -> None:
        for number, owner in enumerate(["", "a", "b", "a"]):
            await store.add(make_record(number, owner=owner), "text")

        assert await store.page(10, None) == [make_record(0)]
        assert await store.page(10, None, owner="a") == [make_record(3, owner="a"), make_record(1, owner="a")]
        assert await store.page(10, Place(103.0, make_record(3).id), owner="a") == [make_record(1, owner="a")]
        assert await store.page(10, None, owner="c") == []
        assert await store.counts() == {"queued": 4}
        assert await store.counts(owner="a") == {"queued": 2}
        assert await store.queued() == [make_record(number).id for number in range(4)]
        assert not await store.delete(make_record(2).id, owner="a")
        assert await store.find(make_record(2).id) == make_record(2, owner="b")
        assert await store.delete(make_record(2).id, owner="b")

    asyncio.run(scenario(opened.store))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StoreError, match="PERK_DATA_DIR"):
        DataDirectory(tmp_path / "file")
