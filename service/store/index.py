"""Records, texts and checksums in SQLite."""

from __future__ import annotations

import json
import sqlite3
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from shutil import disk_usage
from typing import Any

import structlog

from service.errors import DamagedText, StorageFull, StoreError
from service.store.protocol import Place, Readiness
from service.store.record import DocumentRecord, EncodeSummary

__all__ = ["DocumentIndex"]

_log = structlog.get_logger(__name__)

# A page of the index, with what the file system may need beside it.
_LEAST_FREE_BYTES = 64 * 1024

_SCHEMA = """
CREATE TABLE documents (
    id TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('queued', 'ready', 'failed')),
    title TEXT,
    metadata TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    created_at REAL NOT NULL,
    segments INTEGER,
    ready_at REAL,
    expires_at REAL,
    encode TEXT,
    error TEXT
) WITHOUT ROWID;
CREATE INDEX documents_by_age ON documents (fingerprint, created_at, id);
CREATE TABLE texts (
    document_id TEXT PRIMARY KEY REFERENCES documents ON DELETE CASCADE,
    compressed BLOB NOT NULL
);
CREATE TABLE adapters (
    document_id TEXT PRIMARY KEY REFERENCES documents ON DELETE CASCADE,
    sha256 TEXT NOT NULL
);
"""

# From each format to the next; a new file goes through all of them.
_UPGRADES = (
    _SCHEMA,
    """
ALTER TABLE documents ADD COLUMN text_id TEXT NOT NULL DEFAULT '';
ALTER TABLE documents ADD COLUMN owner TEXT NOT NULL DEFAULT '';
CREATE INDEX documents_by_owner ON documents (fingerprint, owner, created_at, id);
""",
)


class DocumentIndex:
    """One SQLite file, one connection, one caller at a time; may be called from any thread."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the file, or make it.

        Args:
            path: of the file.
            read_only: another process writes to it, and it must be there.

        Raises:
            StoreError: it is damaged, or of a later release; where it may not be written, also of an earlier one.
        """
        self._path = path
        self._lock = threading.Lock()
        with self._errors():
            # Transactions are ours: each `_transaction` is one.
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._connection.row_factory = sqlite3.Row
            if read_only:
                self._require_this_release()
            else:
                self._prepare()

    def _require_this_release(self) -> None:
        self._connection.execute("PRAGMA query_only = ON")
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version != len(_UPGRADES):
            raise StoreError(f"{self._path.name} has format {version}; this release reads {len(_UPGRADES)}")

    def _prepare(self) -> None:
        run = self._connection.execute
        run("PRAGMA journal_mode = WAL")
        # A document that was answered with 202 survives even a power cut.
        run("PRAGMA synchronous = FULL")
        run("PRAGMA foreign_keys = ON")
        # What is deleted is overwritten.
        run("PRAGMA secure_delete = ON")
        if (verdict := run("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise StoreError(f"{self._path.name} is damaged: {verdict}")
        version = run("PRAGMA user_version").fetchone()[0]
        if version > len(_UPGRADES):
            raise StoreError(f"{self._path.name} has format {version}; this release knows {len(_UPGRADES)}")
        for number, upgrade in enumerate(_UPGRADES[version:], start=version + 1):
            self._connection.executescript(f"BEGIN; {upgrade} PRAGMA user_version = {number}; COMMIT;")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def add(self, record: DocumentRecord, text: str) -> tuple[DocumentRecord, bool]:
        """As `DocumentStore.add`."""
        compressed = zlib.compress(text.encode())
        row = asdict(record) | {"metadata": json.dumps(record.metadata), "encode": None}
        columns = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        with self._transaction() as connection:
            inserted = connection.execute(
                f"INSERT INTO documents ({columns}) VALUES ({values}) ON CONFLICT DO NOTHING", row
            ).rowcount
            if inserted:
                connection.execute("INSERT INTO texts VALUES (?, ?)", (record.id, compressed))
                return record, True
            # What failed may have failed for its kept text: the text just sent takes its place.
            retried = connection.execute(
                "UPDATE documents SET status = 'queued', error = NULL WHERE id = ? AND status = 'failed'", (record.id,)
            ).rowcount
            if retried:
                connection.execute("REPLACE INTO texts VALUES (?, ?)", (record.id, compressed))
            kept = connection.execute("SELECT * FROM documents WHERE id = ?", (record.id,)).fetchone()
            return _record(kept), False

    def find(self, document_id: str) -> DocumentRecord | None:
        """The record of a document, under whatever fingerprint."""
        rows = self._read("SELECT * FROM documents WHERE id = ?", document_id)
        return _record(rows[0]) if rows else None

    def page(self, fingerprint: str, owner: str, limit: int, after: Place | None) -> list[DocumentRecord]:
        """As `DocumentStore.page`."""
        query = "SELECT * FROM documents WHERE fingerprint = ? AND owner = ?"
        parameters: list[Any] = [fingerprint, owner]
        if after is not None:
            query += " AND (created_at, id) < (?, ?)"
            parameters += [after.created_at, after.id]
        query += " ORDER BY created_at DESC, id DESC LIMIT ?"
        return [_record(row) for row in self._read(query, *parameters, limit)]

    def ids(self, fingerprint: str) -> list[str]:
        """Ids of all documents of a fingerprint."""
        return [row["id"] for row in self._read("SELECT id FROM documents WHERE fingerprint = ?", fingerprint)]

    def queued(self, fingerprint: str) -> list[str]:
        """As `DocumentStore.queued`."""
        query = "SELECT id FROM documents WHERE fingerprint = ? AND status = 'queued' ORDER BY created_at, id"
        return [row["id"] for row in self._read(query, fingerprint)]

    def text(self, document_id: str) -> str | None:
        """As `DocumentStore.text`."""
        rows = self._read("SELECT compressed FROM texts WHERE document_id = ?", document_id)
        if not rows:
            return None
        try:
            return zlib.decompress(rows[0]["compressed"]).decode()
        except (zlib.error, UnicodeDecodeError):
            raise DamagedText(document_id) from None

    def counts(self, fingerprint: str, owner: str | None) -> dict[str, int]:
        """As `DocumentStore.counts`."""
        query = (
            "SELECT status, count(*) AS count FROM documents"
            " WHERE fingerprint = ?1 AND (?2 IS NULL OR owner = ?2) GROUP BY status"
        )
        return {row["status"]: row["count"] for row in self._read(query, fingerprint, owner)}

    def mark_queued(self, document_id: str) -> None:
        """As `DocumentStore.mark_queued`."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE documents SET status = 'queued', error = NULL, segments = NULL, ready_at = NULL,"
                " expires_at = NULL, encode = NULL WHERE id = ?",
                (document_id,),
            )

    def mark_ready(self, document_id: str, readiness: Readiness) -> None:
        """As `DocumentStore.mark_ready`."""
        row = asdict(readiness) | {"encode": json.dumps(asdict(readiness.encode)), "id": document_id}
        with self._transaction() as connection:
            connection.execute(
                "UPDATE documents SET status = 'ready', error = NULL, tokens = :tokens, segments = :segments,"
                " ready_at = :ready_at, expires_at = :expires_at, encode = :encode WHERE id = :id",
                row,
            )

    def mark_failed(self, document_id: str, error: str) -> None:
        """As `DocumentStore.mark_failed`."""
        with self._transaction() as connection:
            connection.execute("UPDATE documents SET status = 'failed', error = ? WHERE id = ?", (error, document_id))

    def touch(self, document_id: str, expires_at: float) -> None:
        """As `DocumentStore.touch`."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE documents SET expires_at = :at WHERE id = :id AND status = 'ready' AND expires_at < :at",
                {"id": document_id, "at": expires_at},
            )

    def delete(self, document_id: str, owner: str) -> bool:
        """Forget a document, its text and its adapter's checksum; whether its owner had it."""
        with self._transaction() as connection:
            deleted = connection.execute(
                "DELETE FROM documents WHERE id = ? AND owner = ?", (document_id, owner)
            ).rowcount
        if deleted:
            self._truncate_log(document_id)
        return bool(deleted)

    def _truncate_log(self, document_id: str) -> None:
        """A deleted text must not live on in the write-ahead log."""
        try:
            self._read("PRAGMA wal_checkpoint(TRUNCATE)")
        except StoreError as error:
            # The document is gone all the same; the log is emptied by the next checkpoint that has the space.
            _log.warning("deleted text is still in the log of the index", document_id=document_id, problem=str(error))

    def expired(self, fingerprint: str, now: float) -> list[str]:
        """As `DocumentStore.expired`."""
        query = (
            "SELECT id FROM documents JOIN adapters ON document_id = id"
            " WHERE fingerprint = ? AND expires_at <= ? ORDER BY expires_at"
        )
        return [row["id"] for row in self._read(query, fingerprint, now)]

    def checksum(self, document_id: str) -> str | None:
        """SHA-256 of the file of an adapter, in hex; None where there is no adapter."""
        rows = self._read("SELECT sha256 FROM adapters WHERE document_id = ?", document_id)
        return str(rows[0]["sha256"]) if rows else None

    def set_checksum(self, document_id: str, sha256: str) -> bool:
        """Keep the checksum of an adapter's file; False where the document is gone."""
        with self._transaction() as connection:
            return bool(
                connection.execute(
                    "INSERT INTO adapters SELECT id, ? FROM documents WHERE id = ?"
                    " ON CONFLICT DO UPDATE SET sha256 = excluded.sha256",
                    (sha256, document_id),
                ).rowcount
            )

    def drop_checksum(self, document_id: str) -> None:
        """Forget the checksum of an adapter's file."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM adapters WHERE document_id = ?", (document_id,))

    def ids_with_adapter(self) -> set[str]:
        """Ids of all documents that have an adapter, under whatever fingerprint."""
        return {row["document_id"] for row in self._read("SELECT document_id FROM adapters")}

    def _read(self, query: str, *parameters: Any) -> list[sqlite3.Row]:
        with self._lock, self._errors():
            return self._connection.execute(query, parameters).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                # SQLite itself has rolled back where the disk is full.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", None)
            is_full = code is not None and code & 0xFF == sqlite3.SQLITE_FULL
            # Where a file beside the index cannot grow, SQLite reports some other error.
            if is_full or disk_usage(self._path.parent).free < _LEAST_FREE_BYTES:
                raise StorageFull from error
            raise StoreError(f"{self._path.name}: {error}") from error


def _record(row: sqlite3.Row) -> DocumentRecord:
    values = dict(row)
    values["metadata"] = json.loads(values["metadata"])
    values["encode"] = EncodeSummary(**json.loads(values["encode"])) if values["encode"] else None
    return DocumentRecord(**values)
