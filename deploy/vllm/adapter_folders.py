"""Adapters of the store as PEFT folders, for a server that is not ours."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from deploy.vllm.settings import VllmSettings
from perk.base_model import COMPUTE_DTYPES, BaseModel, load_base_model
from perk.checkpoint import Checkpoint, load_checkpoint
from perk.errors import BaseModelError, PerkError
from perk.lora import AdaptedModel
from perk.peft_export import export_peft
from perk.perk_model import configuration_fingerprint
from service.settings import Settings
from service.store.adapter_format import AdapterFormat
from service.store.reader import open_reader

__all__ = ["AdapterFolders", "Refused"]

_log = structlog.get_logger(__name__)

_ID = re.compile(r"doc_[0-9a-f]{32}")
_DECODER = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
# Linear modules that vLLM 0.33 puts adapters on, by the base's family. Its GPT-2 takes none.
_MODULES = {"llama": _DECODER, "qwen2": _DECODER}


class Refused(ValueError):
    """The document cannot be answered from here; the message says why, and quotes nothing of the document."""


@dataclass(frozen=True)
class _Exporter:
    """What it takes to find and write adapters of one checkpoint on one base.

    Attributes:
        adapted: has the layout; its weights are gone.
        formats: read adapters, by the fingerprint of the encoders that wrote them.
    """

    adapted: AdaptedModel
    formats: dict[str, AdapterFormat]


class AdapterFolders:
    """PEFT folders of documents, each named by its id. One event loop owns it."""

    def __init__(self, settings: Settings, vllm: VllmSettings) -> None:
        """Prepare; nothing is loaded or written before the first document is asked for.

        Args:
            settings: of the service whose store it is: checkpoint, data directory or Redis.
            vllm: of the server.
        """
        self._settings = settings
        self._vllm = vllm
        self._exporters: dict[str, _Exporter | Refused] = {}
        self._loading = asyncio.Lock()
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    async def provide(self, base_model: str, document_id: str) -> Path | None:
        """The folder of a document's adapter; None where there is no such document.

        Args:
            base_model: folder or hub id that the server has loaded.
            document_id: of the document.

        Raises:
            Refused: vLLM cannot answer from the adapter, or there is none yet.
            StoreError: the store cannot be read.
        """
        if not _ID.fullmatch(document_id):
            return None
        exporter = await self._exporter(base_model)
        adapter = await self._find(exporter, document_id)
        folder = self._root() / document_id
        if adapter is None:
            # What was deleted from the store must not live on here.
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            return None
        await asyncio.to_thread(_write_whole, exporter.adapted, adapter, folder, base_model)
        return folder

    async def _exporter(self, base_model: str) -> _Exporter:
        async with self._loading:
            if base_model not in self._exporters:
                try:
                    self._exporters[base_model] = await asyncio.to_thread(self._load, base_model)
                except Refused as refusal:
                    # It will not change, and took reading the whole base.
                    _log.error("adapters are refused", base=base_model, reason=str(refusal))
                    self._exporters[base_model] = refusal
        exporter = self._exporters[base_model]
        if isinstance(exporter, Refused):
            raise Refused(str(exporter))
        return exporter

    async def _find(self, exporter: _Exporter, document_id: str) -> Tensor | None:
        for fingerprint, adapter_format in exporter.formats.items():
            async with open_reader(self._settings, adapter_format, fingerprint) as store:
                record = await store.find(document_id)
                if record is None or record.owner != self._vllm.owner:
                    continue
                if record.status != "ready":
                    raise Refused(f"document {document_id} is {record.status}; it answers once it is ready")
                is_kept = record.expires_at is None or record.expires_at > time.time()
                adapter = await store.get(document_id) if is_kept else None
                if adapter is None:
                    raise Refused(
                        f"document {document_id} has lost its adapter; ask the service, which encodes it again"
                    )
                return adapter
        return None

    def _load(self, base_model: str) -> _Exporter:
        try:
            checkpoint = load_checkpoint(self._settings.checkpoint)
            self._require_servable(checkpoint)
            base = _load_base(base_model)
            checkpoint.require_base(base)
            adapted = AdaptedModel(base, checkpoint.settings.lora)
            checkpoint.require_layout(adapted.layout)
        except PerkError as error:
            raise Refused(str(error)) from error
        _require_modules(adapted)
        # Their fingerprint was all that was needed of the weights: vLLM has its own.
        nn.Module.to(base.model, device="meta")
        _log.info("adapters are found", base=base.name, checkpoint=checkpoint.name, rank=checkpoint.settings.lora.rank)
        initial = checkpoint.tensors["initial"]
        fingerprints = [configuration_fingerprint(base, checkpoint, dtype) for dtype in COMPUTE_DTYPES]
        return _Exporter(
            adapted,
            {
                fingerprint: AdapterFormat(size=adapted.layout.size, fingerprint=fingerprint, initial=initial)
                for fingerprint in fingerprints
            },
        )

    def _require_servable(self, checkpoint: Checkpoint) -> None:
        rank, limit = checkpoint.settings.lora.rank, self._vllm.max_lora_rank
        if rank > limit:
            raise Refused(
                f"checkpoint {checkpoint.name!r}: lora.rank is {rank}, more than this server's {limit}; start vLLM with"
                " a --max-lora-rank that is enough, and PERK_VLLM_MAX_LORA_RANK with the same"
            )

    def _root(self) -> Path:
        if self._vllm.dir is not None:
            self._vllm.dir.mkdir(parents=True, exist_ok=True)
            return self._vllm.dir
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="perk-vllm-")
        return Path(self._scratch.name)


def _load_base(source: str) -> BaseModel:
    """The base in the type that it is stored in: no copy of it is made."""
    try:
        dtype = AutoConfig.from_pretrained(source).dtype
    except (OSError, ValueError) as error:
        raise BaseModelError(f"base model {source!r} cannot be read: {error}") from error
    return load_base_model(source, device="cpu", dtype=dtype if isinstance(dtype, torch.dtype) else torch.float32)


def _require_modules(adapted: AdaptedModel) -> None:
    family = adapted.base.model.config.model_type
    supported = _MODULES.get(family)
    if supported is None:
        raise Refused(f"base {adapted.base.name!r}: vLLM takes no adapters on models of type {family!r}")
    targets = {module.rsplit(".", 1)[-1] for module in adapted.layout.modules}
    if others := sorted(targets - supported):
        raise Refused(
            f"lora.targets: vLLM takes no adapters on {', '.join(others)}, only on {', '.join(sorted(supported))}"
        )


def _write_whole(adapted: AdaptedModel, adapter: Tensor, folder: Path, base_model: str) -> None:
    """Write a PEFT folder that is whole or not there, whoever else writes it too."""
    if folder.is_dir():
        return
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        export_peft(adapted, adapter, Path(scratch) / "adapter", base_name=base_model)
        try:
            (Path(scratch) / "adapter").rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
