"""A base model with a checkpoint: documents in, adapters out; questions in, answers out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perk.answer import Answer, Answering, AnswerRequest
from perk.answer_batch import AnswerBatch
from perk.base_model import COMPUTE_DTYPES, BaseModel, load_base_model, load_outline
from perk.checkpoint import Checkpoint, load_checkpoint
from perk.errors import BaseMismatch, CheckpointError, InvalidInput
from perk.gradient_graphs import GradientGraphs
from perk.inner_loop import EncodedDocument, Encoding
from perk.liger import use_liger
from perk.lora import AdaptedModel
from perk.peft_export import export_peft
from perk.readers import READERS, Readers
from perk.segment import Segment
from perk.segments import normalise, split_segments

__all__ = ["PerkModel", "configuration_fingerprint"]

# Raised whenever the same text and checkpoint would give another adapter than before.
_METHOD_VERSION = 7

_DEFAULT_BUDGET = 2 * 1024**3
_MIN_SLICE = 256
# Larger micro-batches gain nothing once matrix products are full, but make a slice longer for those who wait.
_MAX_SLICE = {"cpu": 640, "cuda": 8192}


def configuration_fingerprint(base: BaseModel, checkpoint: Checkpoint, dtype: torch.dtype) -> str:
    """Hex digest over all that determines an adapter besides its text.

    Args:
        base: of which the weights count as they are stored.
        checkpoint: its settings and tensors.
        dtype: that the base computes in.
    """
    identity = f"{_METHOD_VERSION};{base.fingerprint};{checkpoint.fingerprint};{dtype}"
    return hashlib.sha256(identity.encode()).hexdigest()


class PerkModel:
    """Encodes and answers. Not thread-safe: one thread owns it.

    Attributes:
        base: the frozen model.
        checkpoint: what meta-training learned for it.
        settings: of the checkpoint.
        adapted: the base with places for adapters.
        weighting: of tokens in the inner loss; None: all weigh the same.
        readers: of what documents' adapters recall.
        fingerprint: of all that determines an adapter besides its text.
    """

    def __init__(self, base: BaseModel, checkpoint: Checkpoint, *, adapted: AdaptedModel | None = None) -> None:
        """Attach a checkpoint's adapter to a base, or take an `adapted` one of the same settings.

        Raises:
            BaseMismatch: the checkpoint belongs to another base.
            CheckpointError: its tensors do not fit.
        """
        checkpoint.require_base(base)
        settings = checkpoint.settings
        self.base = base
        self.checkpoint = checkpoint
        self.settings = settings
        self.adapted = adapted or AdaptedModel(base, settings.lora)
        checkpoint.require_layout(self.adapted.layout)
        self.weighting = checkpoint.token_weighting(base.head.shape[1])
        if self.weighting is not None:
            self.weighting.to(base.device, base.dtype).requires_grad_(False)
        self._graphs = GradientGraphs() if base.device.type == "cuda" else None
        self._initial = checkpoint.tensors["initial"].to(base.device)
        self._log_step_sizes = checkpoint.tensors["log_step_sizes"].to(base.device)
        learned = (checkpoint.tensors.get(name) for name in READERS)
        of_entries, of_parts = (None if one is None else one.to(base.device, base.dtype) for one in learned)
        self.readers = Readers(settings.segments, of_entries=of_entries, of_parts=of_parts)
        self.fingerprint = configuration_fingerprint(base, checkpoint, base.dtype)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path = "default",
        *,
        device: str = "auto",
        base: str | None = None,
        in_context: bool = False,
        report: Callable[[str], None] | None = None,
    ) -> PerkModel:
        """Load a checkpoint and the base it names.

        Args:
            checkpoint: folder, or the name of a shipped one.
            device: ``auto``, ``cpu`` or ``cuda``.
            base: hub id or folder to take instead of the one that the checkpoint names (it must hold the same weights).
            in_context: expect an adapter that answers with the document in its prompt, which encodes nothing.
            report: called with a line of text when a long step starts.

        Raises:
            CheckpointError: the checkpoint cannot be read, or is of the other kind.
        """
        loaded = load_checkpoint(checkpoint)
        if loaded.settings.in_context != in_context:
            kinds = {True: "answers with the document in its prompt (ft-icr)", False: "encodes documents (perk)"}
            raise CheckpointError(
                f"checkpoint {loaded.name!r} {kinds[loaded.settings.in_context]}; expected one that {kinds[in_context]}"
            )
        source = base or loaded.settings.base.source
        model = load_base_model(source, device=device, report=report)
        use_liger(model)
        return cls(model, loaded)

    @classmethod
    def load_outline(cls, checkpoint: str | Path, fingerprint: str) -> PerkModel:
        """A model without weights, which tells ids, counts tokens and writes PEFT folders, and can do no more.

        Args:
            checkpoint: folder, or the name of a shipped one.
            fingerprint: of the models that encode and answer elsewhere.

        Raises:
            BaseMismatch: those have another checkpoint.
        """
        loaded = load_checkpoint(checkpoint)
        base = loaded.settings.base
        for dtype in COMPUTE_DTYPES:
            outline = cls(load_outline(base.source, fingerprint=base.fingerprint, dtype=dtype), loaded)
            if outline.fingerprint == fingerprint:
                return outline
        raise BaseMismatch(
            f"checkpoint {loaded.name!r} is not the one of the models with fingerprint {fingerprint[:16]}"
        )

    @property
    def name(self) -> str:
        """Name of the base model."""
        return self.base.name

    @property
    def checkpoint_name(self) -> str:
        """Name of the checkpoint."""
        return self.checkpoint.name

    @property
    def initial(self) -> Tensor:
        """The checkpoint's adapter before a document is written into it, ``[P]``, on the CPU."""
        return self.checkpoint.tensors["initial"]

    @property
    def adapter_size(self) -> int:
        """P, the number of elements of an adapter."""
        return self.adapted.layout.size

    def document_id(self, text: str) -> str:
        """``doc_`` and 32 hex digits over the normalised text and the fingerprint of all that determines the adapter.

        Raises:
            InvalidInput: the text is empty or holds NUL characters.
        """
        digest = hashlib.sha256(f"{self.fingerprint}\n{normalise(text)}".encode())
        return f"doc_{digest.hexdigest()[:32]}"

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without segment prefixes."""
        return len(self.base.encode(text))

    def split(self, text: str) -> list[Segment]:
        """Segments of a document.

        Raises:
            InvalidInput: the text is empty or holds NUL characters.
        """
        return split_segments(normalise(text), self.base.tokenizer, self.settings.segments)

    def segment_texts(self, text: str) -> list[str]:
        """What each segment of a document says, as an adapter is trained on, without its prefix."""
        decode = self.base.tokenizer.decode
        return [str(decode(list(segment.ids[segment.prefix_tokens :]))) for segment in self.split(text)]

    def encoding_limits(self, documents: int, memory_budget: int | None = None) -> tuple[int, int]:
        """Most tokens of a micro-batch, and most bytes kept over the steps, for encoding so many documents together.

        Args:
            documents: D.
            memory_budget: bytes; half of them for the micro-batch (default 2 GiB).
        """
        half = (memory_budget or _DEFAULT_BUDGET) // 2
        per_token = self.adapted.activation_bytes(merged=self.adapted.merges(documents, half))
        return min(max(half // per_token, _MIN_SLICE), _MAX_SLICE[self.base.device.type]), half

    def start_encoding(self, texts: Sequence[str], *, memory_budget: int | None = None) -> Encoding:
        """Plan the encoding of D documents together.

        Args:
            texts: the documents.
            memory_budget: bytes for activations (default 2 GiB); a smaller one means more and smaller micro-batches,
                and the same adapters.

        Raises:
            InvalidInput: there is no text, or one is empty or holds NUL characters.
        """
        if not texts:
            raise InvalidInput("texts", "none", "at least one document")
        token_limit, state_limit = self.encoding_limits(len(texts), memory_budget)
        return Encoding(
            self.adapted,
            self.weighting,
            self.settings.inner,
            self._initial,
            self._log_step_sizes,
            [self.split(text) for text in texts],
            token_limit=token_limit,
            state_limit=state_limit,
            graphs=self._graphs,
        )

    def encode(self, text: str) -> EncodedDocument:
        """Encode one document to the end."""
        encoding = self.start_encoding([text])
        while not encoding.done:
            encoding.advance()
        return encoding.results()[0]

    def start_batch(self) -> AnswerBatch:
        """Start an empty batch, which questions may join and leave between two tokens."""
        return AnswerBatch(self.adapted, self.settings.templates, self.readers)

    def start_answer(self, requests: Sequence[AnswerRequest]) -> Answering:
        """Start a batch of questions, each with its own adapter."""
        return Answering(self.start_batch(), requests)

    def answer(self, adapter: Tensor | None, question: str, **options: Any) -> Answer:
        """Answer one question to the end; `options` as in `AnswerRequest`."""
        answering = self.start_answer([AnswerRequest(question=question, adapter=adapter, **options)])
        text, reason, support = "", "length", ""
        while not answering.done:
            for delta in answering.advance():
                text += delta.text
                reason, support = delta.finish_reason or reason, delta.support or support
        return Answer(text, reason, answering.prompt_tokens[0], answering.completion_tokens[0], support)

    def export_peft(self, adapter: Tensor, directory: Path) -> None:
        """Write an adapter ``[P]`` as a PEFT folder."""
        name = self.base.model.config.name_or_path or self.name
        export_peft(self.adapted, adapter, directory, base_name=str(name))
