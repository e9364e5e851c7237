"""Keys: each tenant has its own documents and limits, and learns nothing of any other's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.quotas import Quotas
from service.errors import RateExceeded, TokensSpent
from service.keys import KeyRing, Limits, Tenant, read_keys


def _as(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_the_same_text_under_two_keys_is_two_documents_that_know_nothing_of_each_other(
    start_service: Callable[..., Any], story: str
) -> None:
    service = start_service(api_keys="alpha,beta").until_ready()
    client = service.client
    sent = client.post("/documents", json={"text": story}, headers={**_as("alpha"), "Prefer": "wait=60"})
    assert sent.status_code == 201
    first = sent.json()["id"]

    assert client.get("/documents", headers=_as("beta")).json() == {"data": [], "next_cursor": None}
    place = f"/documents/{first}"
    unknown = "/documents/doc_" + "0" * 32
    for method, path in [("GET", ""), ("GET", "/events"), ("GET", "/adapter"), ("POST", "/ask"), ("DELETE", "")]:
        body = {"json": {"question": "Who?"}} if method == "POST" else {}
        foreign = client.request(method, place + path, headers=_as("beta"), **body)
        missing = client.request(method, unknown + path, headers=_as("beta"), **body)
        assert foreign.status_code == missing.status_code == 404
        assert foreign.json()["detail"].replace(first, "") == missing.json()["detail"].replace(unknown[11:], "")

    again = client.post("/documents", json={"text": story}, headers={**_as("beta"), "Prefer": "wait=60"})
    assert again.status_code == 201, "it is encoded again, as if no one had sent it before"
    assert again.json()["id"] != first
    assert client.delete(f"/documents/{again.json()['id']}", headers=_as("beta")).status_code == 204
    assert client.get(place, headers=_as("alpha")).json()["status"] == "ready"
    assert client.post("/documents", json={"text": story}, headers=_as("alpha")).status_code == 200

    with openai.OpenAI(base_url=f"{service.address}/v1", api_key="beta", max_retries=0) as stranger:
        assert first not in [model.id for model in stranger.models.list()]
        with pytest.raises(openai.NotFoundError):
            stranger.models.retrieve(first)
    with (
        openai.OpenAI(base_url=f"{service.address}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    for headers in ({}, _as("wrong"), _as("alph"), _as("alpha,beta")):
        refused = client.get("/documents", headers=headers)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Bearer")


def test_limits_of_a_key_file_hold_for_all_keys_of_a_name(
    start_service: Callable[..., Any], tmp_path: Path, story: str
) -> None:
    limited = {"name": "team", "documents": 1, "tokens_per_day": 60, "requests_per_minute": 8}
    entries = [{"key": "old", **limited}, {"key": "new", **limited}, {"key": "free"}]
    (tmp_path / "keys.json").write_text(json.dumps(entries))
    service = start_service(api_keys=f"@{tmp_path / 'keys.json'}").until_ready()
    client = service.client
    sent = client.post("/documents", json={"text": "a b c"}, headers={**_as("old"), "Prefer": "wait=60"})
    assert sent.status_code == 201
    known = client.post("/documents", json={"text": "a b c"}, headers=_as("new"))
    assert (known.status_code, known.json()["id"]) == (200, sent.json()["id"])

    full = client.post("/documents", json={"text": "d e f"}, headers=_as("new"))
    assert full.status_code == 403
    client.delete(f"/documents/{sent.json()['id']}", headers=_as("new"))
    spent = client.post("/documents", json={"text": story * 4}, headers=_as("new"))
    assert spent.status_code == 429
    assert 0 < int(spent.headers["Retry-After"]) <= 86_400

    statuses = [client.get("/documents", headers=_as(key)).status_code for key in ["old", "new"] * 3]
    assert statuses == [200] * 3 + [429] * 3
    refused = client.get("/documents", headers=_as("old"))
    assert 1 <= int(refused.headers["Retry-After"]) <= 8
    assert refused.headers["X-RateLimit-Limit"] == "8"
    assert client.get("/documents", headers=_as("free")).status_code == 200


def test_a_rate_lets_the_next_request_in_when_it_said() -> None:
    now = 0.0
    quotas = Quotas(clock=lambda: now, wall_clock=lambda: now)
    tenant = Tenant("a", limits=Limits(requests_per_minute=6, tokens_per_day=10))
    for _ in range(6):
        quotas.admit(tenant)
    with pytest.raises(RateExceeded) as refused:
        quotas.admit(tenant)
    assert refused.value.retry_after == 10
    now += refused.value.retry_after
    quotas.admit(tenant)

    quotas.spend(tenant, 9)
    quotas.require_tokens(tenant)
    quotas.spend(tenant, 1)
    with pytest.raises(TokensSpent) as spent:
        quotas.require_tokens(tenant)
    now += spent.value.retry_after
    quotas.require_tokens(tenant, 10)


def test_without_keys_the_id_is_that_of_text_and_configuration() -> None:
    tenant = KeyRing((), Limits()).tenant({})

    assert tenant is not None
    assert tenant.document_id("doc_" + "1" * 32) == "doc_" + "1" * 32


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('[{"key": "a secret"}]', "key 1: key"),
        ('[{"key": "secret"}, {"key": "secret"}]', "key 2 stands there twice"),
        ('[{"key": "x", "name": "secret secret"}]', "key 1: name"),
        ('[{"key": "x", "documents": "secret"}]', "key 1: documents"),
        ('[{"key": "x", "secret": 1}]', "key 1"),
        ('[{"key": "x", "name": "a"}, {"key": "y", "name": "a", "documents": 1}]', "key 2 has other limits"),
        ("[]", "list"),
        ('{"key": "secret"}', "list"),
        ("secret", "JSON"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_a_mistake_in_the_file_is_named_but_shows_no_key(tmp_path: Path, content: str, named: str) -> None:
    (tmp_path / "keys.json").write_text(content)

    with pytest.raises(ValueError, match=named) as caught:
        read_keys(f"@{tmp_path / 'keys.json'}")

    assert "secret" not in str(caught.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["key", "name", "documents", "other"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_file_of_keys_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-keys.json"
    path.write_bytes(content)
    try:
        keys = read_keys(f"@{path}")
    except ValueError:
        return
    assert all(KeyRing(keys, Limits()).tenant({"x-api-key": key.key.get_secret_value()}) for key in keys)


@given(st.text().filter(lambda text: not text.startswith("@")), st.text())
def test_no_key_but_those_named_is_let_in(value: str, sent: str) -> None:
    try:
        keys = read_keys(value)
    except ValueError:
        return
    named = {key.key.get_secret_value() for key in keys}
    let_in = KeyRing(keys, Limits()).tenant({"authorization": f"Bearer {sent}"}) is not None
    assert let_in == (sent.strip() in named)
