"""A vLLM server gets the adapters of our store as PEFT folders that say what the service says, or a reason why not."""

from __future__ import annotations

import asyncio
import json
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import SecretStr
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from deploy.vllm.adapter_folders import Refused
from perk.base_model import load_base_model
from perk.checkpoint import new_checkpoint
from perk.lora import AdaptedModel
from perk.perk_model import PerkModel
from perk.settings import BaseSettings, InnerSettings, LoraSettings, PerkSettings, TemplateSettings
from service.metrics import Metrics
from service.settings import SettingsError
from service.store.adapter_format import AdapterFormat
from service.store.disk import DataDirectory, DiskStore
from service.store.protocol import Readiness
from service.store.record import DocumentRecord, EncodeSummary
from service.store.redis import RedisStore
from service.store.redis_connection import RedisConnection
from service.store.redis_leases import RedisLeases

_STORY = "Mary went to the kitchen. John moved to the garden. Sandra travelled back to the office."
_QUESTIONS = ("Where is Mary?", "Where is John?", "Who travelled back to the office?")
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class _Encoded:
    """A document as an encoder has written it.

    Attributes:
        model: encoded it.
        record: as it is kept before its adapter is.
        adapter: ``[P]``.
    """

    model: PerkModel
    record: DocumentRecord
    adapter: Tensor

    @property
    def readiness(self) -> Readiness:
        return Readiness(3, 1, time.time(), None, EncodeSummary(1.0, 4, 3.0, 2.0))

    def format(self, name: Any = "float32") -> AdapterFormat:
        return AdapterFormat(name, size=self.model.adapter_size, fingerprint=self.model.fingerprint)


def _write_checkpoint(base: Path, folder: Path, **lora: Any) -> Path:
    settings = PerkSettings(
        base=BaseSettings(source=str(base)),
        lora=LoraSettings(**{"rank": 16, "first_layer": 2, **lora}),
        inner=InnerSettings(rule="rms", steps=4, step_size=0.05),
    )
    adapted = AdaptedModel(load_base_model(str(base), device="cpu"), settings.lora)
    new_checkpoint(adapted, settings, seed=0, name=folder.name).save(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose adapters sit on the upper two of four layers, and change the answers."""
    return _write_checkpoint(tiny_llama, tmp_path_factory.mktemp("checkpoints") / "upper")


@pytest.fixture(scope="module")
def encoded(checkpoint: Path) -> _Encoded:
    """A story."""
    model = PerkModel.load(checkpoint, device="cpu")
    record = DocumentRecord(
        id=model.document_id(_STORY),
        fingerprint=model.fingerprint,
        status="queued",
        title=None,
        metadata={},
        bytes=len(_STORY),
        tokens=model.count_tokens(_STORY),
        created_at=100.0,
    )
    return _Encoded(model, record, model.encode(_STORY).adapter)


class _Store:
    """A service's data directory, which that service has open."""

    def __init__(self, path: Path, encoded: _Encoded) -> None:
        self.path = path
        self._encoded = encoded
        self._directory = DataDirectory(path)
        model = encoded.model
        self.documents = DiskStore(
            self._directory, fingerprint=model.fingerprint, adapter_size=model.adapter_size, metrics=Metrics()
        )

    def keep(self, record: DocumentRecord, *, is_ready: bool = True) -> str:
        """Keep a record, with the adapter; returns its id."""

        async def write() -> None:
            await self.documents.add(record, _STORY)
            if is_ready:
                await self.documents.put(record.id, self._encoded.adapter)
                await self.documents.mark_ready(record.id, self._encoded.readiness)

        asyncio.run(write())
        return record.id

    def close(self) -> None:
        self.documents.close()
        self._directory.close()


@pytest.fixture
def store(encoded: _Encoded, tmp_path: Path) -> Iterator[_Store]:
    """A store with nothing in it."""
    store = _Store(tmp_path / "data", encoded)
    yield store
    store.close()


class _Server:
    """A vLLM server, as far as resolvers see it."""

    def __init__(self, registry: Any, patch: pytest.MonkeyPatch, base: Path, **environment: object) -> None:
        for name, value in environment.items():
            patch.setenv(f"PERK_{name.upper()}", str(value))
        scripts = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
        module, _, function = scripts["vllm.general_plugins"]["perk"].partition(":")
        getattr(import_module(module), function)()
        self._registry = registry
        self._base = base

    @property
    def resolvers(self) -> list[str]:
        return list(self._registry.get_supported_resolvers())

    def resolve(self, name: str) -> Any:
        """What a request with ``"model": name`` finds."""
        return asyncio.run(self._registry.get_resolver("perk").resolve_lora(str(self._base), name))


@pytest.fixture
def server(
    vllm_resolvers: Any,
    monkeypatch: pytest.MonkeyPatch,
    store: _Store,
    checkpoint: Path,
    tiny_llama: Path,
    tmp_path: Path,
) -> _Server:
    """A server that has the service's data directory before it."""
    return _Server(
        vllm_resolvers,
        monkeypatch,
        tiny_llama,
        checkpoint=checkpoint,
        data_dir=store.path,
        vllm_dir=tmp_path / "folders",
    )


@torch.inference_mode()
def _generate(model: Any, tokenizer: Any, question: str) -> str:
    prompt = tokenizer(TemplateSettings().prompt.format(question=question), return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    text: str = tokenizer.decode(ids[0, prompt.input_ids.shape[1] :], skip_special_tokens=True)
    return text.strip()


def test_what_vllm_is_handed_says_what_the_service_says(
    server: _Server, store: _Store, encoded: _Encoded, tiny_llama: Path
) -> None:
    document_id = store.keep(encoded.record)

    request = server.resolve(document_id)

    assert request.lora_name == document_id
    assert request.lora_int_id > 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    alone = [_generate(base, tokenizer, question) for question in _QUESTIONS]
    model = PeftModel.from_pretrained(base, request.lora_path)
    ids = tokenizer(_STORY, return_tensors="pt").input_ids
    adapted = encoded.model.adapted
    with torch.inference_mode(), adapted.bind(encoded.adapter[None]):
        expected = adapted.upper_states(adapted.lower_states(ids)) @ adapted.base.head.T
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    answers = [encoded.model.answer(encoded.adapter, question, max_tokens=16).text for question in _QUESTIONS]
    assert [_generate(model, tokenizer, question) for question in _QUESTIONS] == answers
    assert answers != alone, "the adapter makes a difference"


def test_the_folder_holds_what_vllm_reads(server: _Server, store: _Store, encoded: _Encoded, tiny_llama: Path) -> None:
    """Its `PEFTHelper` takes these and refuses others; of layers without an adapter it wants no tensor."""
    folder = Path(server.resolve(store.keep(encoded.record)).lora_path)

    config = json.loads((folder / "adapter_config.json").read_text())

    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert (config["peft_type"], config["r"], config["use_rslora"]) == ("LORA", 16, True)
    assert config["base_model_name_or_path"] == str(tiny_llama)
    assert config["bias"] == "none"
    refused = ("modules_to_save", "use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_qalora")
    assert not any(config.get(name) for name in (*refused, "rank_pattern", "alpha_pattern"))
    assert config["init_lora_weights"] is True


def test_an_adapter_is_found_in_redis(
    vllm_resolvers: Any,
    monkeypatch: pytest.MonkeyPatch,
    redis: Any,
    encoded: _Encoded,
    checkpoint: Path,
    tiny_llama: Path,
) -> None:
    async def write() -> Tensor:
        metrics = Metrics()
        connection = RedisConnection(SecretStr(redis.url), metrics)
        documents = RedisStore(
            connection,
            fingerprint=encoded.model.fingerprint,
            adapter_format=encoded.format("bf16"),
            adapter_ttl=None,
            metrics=metrics,
        )
        leases = RedisLeases(connection, documents, metrics=metrics)
        await documents.add(encoded.record, _STORY)
        assert await leases.take(encoded.record.id, lambda: None) == "taken"
        kept = await documents.put(encoded.record.id, encoded.adapter)
        await documents.mark_ready(encoded.record.id, encoded.readiness)
        await leases.release(encoded.record.id)
        await connection.close()
        return kept

    kept = asyncio.run(write())
    server = _Server(vllm_resolvers, monkeypatch, tiny_llama, checkpoint=checkpoint, redis_url=redis.url)

    folder = server.resolve(encoded.record.id).lora_path

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), folder)
    found = [value for name, value in model.state_dict().items() if "lora_" in name]
    expected = [tensor for pair in encoded.model.adapted.layout.views(kept[None]) for tensor in pair]
    assert all(torch.equal(one, other[0]) for one, other in zip(found, expected, strict=True))


def test_only_documents_of_the_named_owner_are_found(
    server: _Server, store: _Store, encoded: _Encoded, tmp_path: Path
) -> None:
    private = store.keep(replace(encoded.record, id="doc_" + "1" * 32, owner="team-a"))
    deleted = store.keep(encoded.record)
    assert server.resolve(deleted) is not None
    asyncio.run(store.documents.delete(deleted))

    for name in (private, deleted, "doc_" + "2" * 32, "tiny-llama", "../" + deleted, "doc_short"):
        assert server.resolve(name) is None

    assert not list((tmp_path / "folders").iterdir()), "what was deleted does not live on"


def test_documents_of_a_key_are_found_by_a_server_of_their_own(
    vllm_resolvers: Any,
    monkeypatch: pytest.MonkeyPatch,
    store: _Store,
    encoded: _Encoded,
    checkpoint: Path,
    tiny_llama: Path,
) -> None:
    private = store.keep(replace(encoded.record, owner="team-a"))
    server = _Server(
        vllm_resolvers, monkeypatch, tiny_llama, checkpoint=checkpoint, data_dir=store.path, vllm_owner="team-a"
    )

    assert server.resolve(private) is not None


def test_a_document_without_an_adapter_is_refused(server: _Server, store: _Store, encoded: _Encoded) -> None:
    with pytest.raises(Refused, match="is queued"):
        server.resolve(store.keep(encoded.record, is_ready=False))


@pytest.mark.parametrize(
    ("base", "lora", "limit", "reason"),
    [
        ("tiny_llama", {"rank": 32}, 16, "lora.rank is 32, more than this server's 16"),
        ("tiny_gpt2", {}, 16, "no adapters on models of type 'gpt2'"),
        ("tiny_qwen2", {}, 16, None),
    ],
)
def test_what_vllm_cannot_take_is_refused_with_a_reason(
    base: str,
    lora: dict[str, Any],
    limit: int,
    reason: str | None,
    vllm_resolvers: Any,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    store: _Store,
    tmp_path: Path,
) -> None:
    folder: Path = request.getfixturevalue(base)
    checkpoint = _write_checkpoint(folder, tmp_path / "other", **lora)
    server = _Server(
        vllm_resolvers,
        monkeypatch,
        folder,
        checkpoint=checkpoint,
        data_dir=store.path,
        vllm_max_lora_rank=limit,
    )

    for _ in range(2):
        if reason is None:
            assert server.resolve("doc_" + "1" * 32) is None
        else:
            with pytest.raises(Refused, match=reason):
                server.resolve("doc_" + "1" * 32)


def test_another_base_than_the_adapters_is_refused(
    vllm_resolvers: Any,
    monkeypatch: pytest.MonkeyPatch,
    store: _Store,
    encoded: _Encoded,
    checkpoint: Path,
    tiny_qwen2: Path,
) -> None:
    document_id = store.keep(encoded.record)
    server = _Server(vllm_resolvers, monkeypatch, tiny_qwen2, checkpoint=checkpoint, data_dir=store.path)

    with pytest.raises(Refused, match="belongs to base"):
        server.resolve(document_id)


def test_a_server_without_our_store_is_left_alone(
    vllm_resolvers: Any, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    for name in ("PERK_DATA_DIR", "PERK_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)

    assert _Server(vllm_resolvers, monkeypatch, tiny_llama).resolvers == []


def test_a_bad_setting_stops_the_start(
    vllm_resolvers: Any, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="PERK_VLLM_MAX_LORA_RANK: got '0'"):
        _Server(vllm_resolvers, monkeypatch, tiny_llama, data_dir=tmp_path, vllm_max_lora_rank=0)
