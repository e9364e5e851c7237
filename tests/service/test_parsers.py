"""Whatever comes from outside, a parser reads it or refuses it, and says so in its own words."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from fastapi import Request
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from service.api import documents as routes
from service.engine.document import Document
from service.engine.flight import Flight
from service.engine.replicas import encode_progress
from service.errors import DamagedText
from service.keys import KeyRing, Limits, read_keys
from service.metrics import Metrics
from service.store.adapter_format import AdapterFormat, DamagedAdapter
from service.store.index import DocumentIndex
from service.store.protocol import Place
from service.store.record import DocumentRecord
from service.store.redis import RedisStore
from service.store.redis_connection import RedisConnection
from service.store.redis_leases import RedisLeases

T = TypeVar("T")

_SIZE = 100
_ID = f"doc_{0:032x}"
_FINGERPRINT = "f" * 64
_LIMITS = ("requests_per_minute", "documents", "tokens_per_day")

_RECORD = DocumentRecord(
    id=_ID,
    fingerprint=_FINGERPRINT,
    status="queued",
    title=None,
    metadata={},
    bytes=4,
    tokens=2,
    created_at=100.5,
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_ANY_BYTES = st.binary(max_size=60) | _JSON.map(lambda value: json.dumps(value).encode())
_DEEP = b"[" * 100_000


@st.composite
def _damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content`, cut, or with some bytes that are others."""
    changed = bytearray(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)
    for place in draw(st.lists(st.integers(0, max(len(changed) - 1, 0)), max_size=4)):
        changed[place : place + 1] = draw(st.binary(max_size=2))
    return bytes(changed)


# Cursors


@given(st.from_regex(r"\A[0-6][0-9a-f]{47}\Z"))
def test_every_cursor_that_is_let_in_is_a_place_that_can_be_looked_up(cursor: str) -> None:
    place = routes._place(cursor)

    assert math.isfinite(place.created_at)
    record = replace(_RECORD, id=place.id, created_at=place.created_at)
    assert routes._cursor(Document.of(record, None, model="", checkpoint="")) == cursor
    index = DocumentIndex(Path(":memory:"))
    index.page(_FINGERPRINT, "", 10, place)
    index.close()


@given(st.text() | st.from_regex(r"[0-9a-f]{40,50}"))
@settings(max_examples=30)
def test_any_other_cursor_is_refused(service: Any, cursor: str) -> None:
    response = service.client.get("/documents", params={"cursor": cursor})

    is_cursor = len(cursor) == 48 and cursor[0] in "0123456" and set(cursor) <= set("0123456789abcdef")
    assert response.status_code == (200 if is_cursor else 422)


# The header Prefer


def _wait(*values: str) -> int | None:
    headers = [(b"prefer", value.encode("latin-1")) for value in values]
    return routes._preferred_wait(Request({"type": "http", "headers": headers}))


@given(st.lists(st.text(st.characters(max_codepoint=255)), max_size=3))
def test_any_preference_is_read_or_passed_over(values: list[str]) -> None:
    seconds = _wait(*values)

    assert seconds is None or 0 <= seconds <= 3600


@given(
    st.integers(0, 999_999_999),
    st.lists(st.sampled_from(["respond-async", "handling=lenient", "return=minimal", "x=1"]), max_size=2),
    st.sampled_from(["wait={}", "Wait = {}", 'wait="{}"', "wait={}; x=1"]),
    st.booleans(),
)
def test_a_wait_is_found_among_other_preferences(seconds: int, others: list[str], form: str, apart: bool) -> None:
    preferences = [*others, form.format(seconds), *others]

    assert _wait(*(preferences if apart else [", ".join(preferences)])) == min(seconds, 3600)


# Limits in a file of keys


@given(st.dictionaries(st.sampled_from(_LIMITS), st.none() | st.integers(-2, 10**16) | st.floats() | st.booleans()))
@example({"documents": 0})
@example({"documents": True})
def test_a_limit_of_a_key_holds_as_it_stands_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, limits: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "limits.json"
    path.write_text(json.dumps([{"key": "a", **limits}]))
    most = {"requests_per_minute": 10**9, "documents": 10**9, "tokens_per_day": 10**15}
    is_fine = all(value is None or (type(value) is int and 0 <= value <= most[name]) for name, value in limits.items())
    defaults = Limits(1, 2, 3)
    if not is_fine:
        with pytest.raises(ValueError, match="key 1: "):
            read_keys(f"@{path}")
        return
    keys = read_keys(f"@{path}")
    tenant = KeyRing(keys, defaults).tenant({"x-api-key": "a"})
    assert tenant is not None
    for name in _LIMITS:
        given_limit = limits.get(name)
        # None: that of the settings. 0: none at all.
        assert getattr(tenant.limits, name) == (getattr(defaults, name) if given_limit is None else given_limit or None)


# Adapters


_ADAPTER = 0.01 * torch.randn(_SIZE, generator=torch.Generator().manual_seed(0))
_FORMATS = {
    name: AdapterFormat(name, size=_SIZE, fingerprint=_FINGERPRINT, initial=torch.zeros(_SIZE))
    for name in ("float32", "bf16", "int8-delta")
}


@given(
    st.one_of(st.binary(max_size=300), *(_damaged(each.pack(_ADAPTER)) for each in _FORMATS.values())),
    st.sampled_from(sorted(_FORMATS)),
)
@example(len(_DEEP).to_bytes(8, "little") + _DEEP, "bf16")
def test_any_bytes_are_an_adapter_or_damaged(content: bytes, reading: str) -> None:
    reason = ""
    try:
        adapter = _FORMATS[reading].unpack(content)
    except DamagedAdapter as damage:
        reason = damage.reason
    if reason:
        assert reason in ("format", "fingerprint", "shape")
        return
    assert adapter.shape == (_SIZE,)
    assert adapter.dtype == torch.float32


# What stands in Redis


def _in_redis(server: Any, use: Callable[[RedisStore, RedisLeases], Awaitable[T]]) -> T:
    async def scenario() -> T:
        metrics = Metrics()
        connection = RedisConnection(SecretStr(server.url), metrics)
        store = RedisStore(
            connection, fingerprint=_FINGERPRINT, adapter_format=_FORMATS["bf16"], adapter_ttl=None, metrics=metrics
        )
        try:
            return await use(store, RedisLeases(connection, store, metrics=metrics))
        finally:
            await connection.close()

    return asyncio.run(scenario())


def _key(part: str = "") -> str:
    return f"perk:{_FINGERPRINT[:16]}:doc:{_ID}{part}"


@given(st.sampled_from(sorted(vars(_RECORD))), _ANY_BYTES)
@example("created_at", b"NaN")
@example("created_at", b"1e300")
@example("tokens", b'"many"')
@example("metadata", _DEEP)
@example("id", b'"doc_1"')
@settings(max_examples=60)
def test_a_record_with_any_field_is_one_that_can_be_shown_or_none(redis_server: Any, field: str, value: bytes) -> None:
    redis_server.client.flushall()

    async def use(store: RedisStore, _: RedisLeases) -> None:
        await store.add(_RECORD, "text")
        redis_server.client.hset(_key(), field, value)
        record = await store.find(_ID)
        assert record is None or routes.DocumentOut.of(Document.of(record, None, model="", checkpoint=""))
        if record is None:
            assert (await store.page(10, None)) == []

    _in_redis(redis_server, use)


@given(_ANY_BYTES)
@example(b"9" * 5000)
@settings(max_examples=30)
def test_any_text_and_any_adapter_in_redis_is_told_as_damaged(redis_server: Any, value: bytes) -> None:
    redis_server.client.flushall()

    async def use(store: RedisStore, _: RedisLeases) -> None:
        await store.add(_RECORD, "text")
        redis_server.client.set(_key(":text"), value)
        with pytest.raises(DamagedText):
            await store.text(_ID)
        for fields in ({"chunks": value, "sha256": value}, {"chunks": 1, "sha256": value, "chunk:0": value}):
            redis_server.client.hset(_key(":adapter"), mapping=fields)
            assert await store.get(_ID) is None
            assert not redis_server.client.exists(_key(":adapter"))

    _in_redis(redis_server, use)


_PROGRESS = {"done": 0.5, "step": 1, "tokens": [9], "segments": [2], "steps": 4, "segments_done": [1], "loss": [1.5]}


@given(
    _ANY_BYTES
    | st.dictionaries(st.sampled_from([*_PROGRESS, "more"]), _JSON).map(
        lambda changes: json.dumps({**_PROGRESS, **changes}).encode()
    )
)
@example(json.dumps({**_PROGRESS, "tokens": []}).encode())
@example(_DEEP)
@settings(max_examples=60)
def test_any_progress_of_another_replica_can_be_shown_or_is_none(redis_server: Any, value: bytes) -> None:
    redis_server.client.flushall()

    async def use(_: RedisStore, leases: RedisLeases) -> None:
        redis_server.client.mset({_key(":lease"): "someone", _key(":progress"): value})
        values = (await leases.progress([_ID]))[_ID]
        progress = None if values is None else encode_progress(values)
        if progress is not None:
            flight = Flight(_RECORD, again=False)
            flight.update(progress)
            assert routes.DocumentOut.of(Document.of(_RECORD, flight, model="", checkpoint=""))

    _in_redis(redis_server, use)


@given(st.from_regex(r"\A[0-6][0-9a-f]{47}\Z"))
@settings(max_examples=30)
def test_redis_finds_a_page_after_any_place(redis_server: Any, cursor: str) -> None:
    async def use(store: RedisStore, _: RedisLeases) -> list[DocumentRecord]:
        place: Place = routes._place(cursor)
        return await store.page(10, place)

    redis_server.client.flushall()
    assert _in_redis(redis_server, use) == []
