"""API keys: whose requests are whose, and how much each tenant may use."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

__all__ = ["ApiKey", "KeyRing", "Limits", "Tenant", "read_keys"]

_FILE_MARK = "@"
_MOST_FILE_BYTES = 1024**2
# No name has a colon: a key without one can take no name's documents.
_NAMELESS = "key:"


@dataclass(frozen=True)
class Limits:
    """What one tenant may use; None: no limit.

    Attributes:
        requests_per_minute: on average; as many may come at once.
        documents: kept at a time.
        tokens_per_day: of documents encoded, prompts and answers together, from midnight to midnight UTC.
    """

    requests_per_minute: int | None = None
    documents: int | None = None
    tokens_per_day: int | None = None


@dataclass(frozen=True)
class Tenant:
    """Whoever a request is for.

    Attributes:
        owner: of the documents; empty where the service is open. It tells no one the key.
        salt: enters the ids of the documents, so that no one else can know the id of a text; empty where it is open.
        limits: of all its keys together.
    """

    owner: str = ""
    salt: bytes = field(default=b"", repr=False)
    limits: Limits = Limits()

    def document_id(self, shared_id: str) -> str:
        """Id of this tenant's copy of a document.

        Args:
            shared_id: hash of the text and all that determines the adapter, ``doc_`` and 32 hex digits.
        """
        if not self.salt:
            return shared_id
        return f"doc_{hmac.new(self.salt, shared_id.encode(), hashlib.sha256).hexdigest()[:32]}"


class ApiKey(BaseModel):
    """A key, whose it is, and limits that go before those of the settings; 0 stands for none."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    key: SecretStr
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    requests_per_minute: int | None = Field(None, ge=0, le=10**9)
    documents: int | None = Field(None, ge=0, le=10**9)
    tokens_per_day: int | None = Field(None, ge=0, le=10**15)

    @field_validator("key")
    @classmethod
    def _is_sendable(cls, key: SecretStr) -> SecretStr:
        value = key.get_secret_value()
        if not (value and value.isascii() and value.isprintable() and " " not in value):
            raise ValueError("expected visible ASCII characters")
        return key

    @property
    def owner(self) -> str:
        """Of the documents sent with this key."""
        return self.name or _NAMELESS + self._derive("owner").hex()[:32]

    @property
    def salt(self) -> bytes:
        """Of the ids of the documents sent with this key."""
        return self._derive("document ids")

    def limits(self, defaults: Limits) -> Limits:
        """Its limits, where it has none of its own those of the settings."""
        own = {name: getattr(self, name) for name in vars(defaults)}
        return Limits(**{name: _given(own[name], default) for name, default in vars(defaults).items()})

    def _derive(self, purpose: str) -> bytes:
        return hmac.new(self.key.get_secret_value().encode(), f"perk {purpose}".encode(), hashlib.sha256).digest()


def _given(own: int | None, default: int | None) -> int | None:
    return default if own is None else own or None


def read_keys(value: str) -> tuple[ApiKey, ...]:
    """Keys between commas, or ``@`` and the path of a JSON file: a list of objects as in `ApiKey`.

    Raises:
        ValueError: a key is none; the message names its place and field, and shows no key.
    """
    if value.startswith(_FILE_MARK):
        entries = _read_file(Path(value.removeprefix(_FILE_MARK)))
    else:
        entries = [{"key": part.strip()} for part in value.split(",")]
    keys = [_read_key(number, entry) for number, entry in enumerate(entries, start=1)]
    _check_together(keys)
    return tuple(keys)


def _read_file(path: Path) -> list[Any]:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ValueError(f"the file of keys cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > _MOST_FILE_BYTES:
        raise ValueError(f"the file of keys has more than {_MOST_FILE_BYTES} bytes")
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError):
        raise ValueError("the file of keys is no JSON in UTF-8") from None
    if not isinstance(entries, list) or not entries:
        raise ValueError('the file of keys must hold a list of objects, such as [{"key": "…", "name": "team-a"}]')
    return entries


def _read_key(number: int, entry: Any) -> ApiKey:
    try:
        return ApiKey.model_validate(entry)
    except ValidationError as error:
        problems = [
            # A misspelt name might be a key in the wrong place.
            f"{problem['loc'][0] if problem['loc'] and problem['loc'][0] in ApiKey.model_fields else 'an object'}: "
            f"{problem['msg'].removeprefix('Value error, ')}"
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise ValueError(f"key {number}: {'; '.join(problems)}") from None


def _check_together(keys: Iterable[ApiKey]) -> None:
    secrets: set[str] = set()
    limits: dict[str, Limits] = {}
    for number, key in enumerate(keys, start=1):
        secret = key.key.get_secret_value()
        if secret in secrets:
            raise ValueError(f"key {number} stands there twice")
        secrets.add(secret)
        if key.limits(Limits()) != limits.setdefault(key.owner, key.limits(Limits())):
            raise ValueError(f"key {number} has other limits than an earlier key of the same name")


class KeyRing:
    """All keys of a service, and the tenant of each."""

    def __init__(self, keys: Iterable[ApiKey], defaults: Limits) -> None:
        """Derive what each key stands for.

        Args:
            keys: none: the service is open, and everyone is one tenant.
            defaults: limits of keys that have none of their own.
        """
        self._open = Tenant(limits=defaults)
        tenants: dict[str, Tenant] = {}
        self._tenants: list[tuple[bytes, Tenant]] = []
        for key in keys:
            # The first key of a name gives the salt: a key added later finds the same ids.
            tenant = tenants.setdefault(key.owner, Tenant(key.owner, key.salt, key.limits(defaults)))
            self._tenants.append((_digest(key.key.get_secret_value()), tenant))

    def tenant(self, headers: Mapping[str, str]) -> Tenant | None:
        """Whose request this is; None where it has no valid key and needs one.

        Args:
            headers: of the request, found whatever their case.
        """
        if not self._tenants:
            return self._open
        sent = _digest(_sent_key(headers))
        found = None
        # Each is compared, in constant time, and as a digest: time says nothing about any of them, not even a length.
        for known, tenant in self._tenants:
            if hmac.compare_digest(sent, known):
                found = tenant
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _sent_key(headers: Mapping[str, str]) -> str:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return key.strip()
    return headers.get("x-api-key", "").strip()
