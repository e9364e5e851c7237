"""Answering: greedy or sampled decoding of a batch of questions, each row under its own adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from perk.base_model import BaseModel
from perk.errors import InvalidInput
from perk.lora import AdaptedModel
from perk.settings import PLAIN_TEMPLATES, TemplateSettings

__all__ = ["Answer", "AnswerDelta", "AnswerRequest", "Answering"]


@dataclass(frozen=True)
class AnswerRequest:
    """One question.

    Attributes:
        question: its text.
        adapter: flat buffer ``[P]`` of the document asked, or None to ask the base model alone.
        max_tokens: most tokens of the answer, what is recalled before it not counted.
        temperature: 0 takes the likeliest token; above, tokens are sampled.
        top_p: sample from the smallest set of tokens with at least this probability.
        seed: of the sampling; None draws one.
        stop: texts that end the answer; they are not part of it.
    """

    question: str
    adapter: Tensor | None = None
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise InvalidInput("question", "no visible character", "at least one visible character")
        if self.max_tokens < 1:
            raise InvalidInput("max_tokens", str(self.max_tokens), "at least 1")
        if not 0 <= self.temperature < math.inf:
            raise InvalidInput("temperature", str(self.temperature), "a finite number, at least 0")
        if not 0 < self.top_p <= 1:
            raise InvalidInput("top_p", str(self.top_p), "above 0, at most 1")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InvalidInput("seed", str(self.seed), "0 to 2^63 - 1")
        if any(not text for text in self.stop):
            raise InvalidInput("stop", "an empty string", "texts of at least one character")


@dataclass(frozen=True)
class AnswerDelta:
    """New text of one row.

    Attributes:
        row: its index.
        text: further text of the answer.
        finish_reason: ``stop`` or ``length`` with the last one, else None.
        support: with the last one: what was recalled of the document before the answer.
    """

    row: int
    text: str
    finish_reason: str | None = None
    support: str = ""


@dataclass(frozen=True)
class Answer:
    """A whole answer, see `AnswerDelta`; `completion_tokens` counts what was recalled before it too."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    support: str = ""


class _Row:
    """Decoding state of one question.

    Attributes:
        request: the question.
        templates: around it.
        prompt: its token ids.
        ids: token ids written so far.
        answer_from: how many of them came before the answer; None while the model still recalls the document.
        support: what it recalled, once it has.
        sent: the answer's text reported so far.
        finished: whether the answer has ended.
    """

    def __init__(self, request: AnswerRequest, templates: TemplateSettings, base: BaseModel) -> None:
        self.request = request
        # A base without an adapter has not learned to recall anything.
        self.templates = PLAIN_TEMPLATES if request.adapter is None else templates
        question = self.templates.prompt.format(question=request.question.strip())
        self.prompt = list(base.tokenizer.encode(question, verbose=False))
        self.ids: list[int] = []
        self.answer_from = 0 if self.templates.support_end is None else None
        self.support = ""
        self.sent = ""
        self.finished = False
        self._support_end_ids = list(
            base.tokenizer.encode(self.templates.support_end or "", add_special_tokens=False, verbose=False)
        )
        self._forced: list[int] = []
        self._eos_id = base.eos_id
        self._generator = torch.Generator()
        if request.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(request.seed)
        room = base.max_positions
        if self._support_end_ids:
            room -= self.templates.max_support_tokens + len(self._support_end_ids)
        if len(self.prompt) + request.max_tokens > room:
            raise InvalidInput(
                "question",
                f"{len(self.prompt)} tokens with max_tokens {request.max_tokens}",
                f"together at most {room} tokens",
            )

    def choose(self, logits: Tensor) -> int:
        """Next token from logits ``[V]``."""
        if self.answer_from is None:
            return self._recall(logits)
        if self.request.temperature == 0:
            return int(logits.argmax())
        # From the largest down, so that no temperature is too small to divide by.
        below = logits.double().cpu() - logits.max().item()
        probabilities = (below / self.request.temperature).softmax(-1)
        if self.request.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            outside = ordered.cumsum(-1) - ordered >= self.request.top_p
            probabilities[order[outside]] = 0
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def _recall(self, logits: Tensor) -> int:
        """What the document said is no matter of taste: always the likeliest token, until the mark must follow."""
        if not self._forced:
            token = int(logits.argmax())
            if token != self._eos_id and len(self.ids) < self.templates.max_support_tokens:
                return token
            self._forced = list(self._support_end_ids)
        return self._forced.pop(0)

    def answer(self, text: str) -> str | None:
        """The answer's part of all that was written so far, or None while the model still recalls."""
        mark = self.templates.support_end
        if mark is None:
            return text.lstrip()
        before, ended, after = text.partition(mark)
        if not ended:
            return None
        if self.answer_from is None:
            self.answer_from = len(self.ids)
            self.support = before.strip()
        return after.lstrip()


class Answering:
    """A batch of questions in slices of one token a row. Rows that end stay in the batch, but produce nothing."""

    def __init__(self, adapted: AdaptedModel, templates: TemplateSettings, requests: Sequence[AnswerRequest]) -> None:
        if not requests:
            raise InvalidInput("requests", "none", "at least one question")
        base = adapted.base
        self._adapted = adapted
        self._rows = [_Row(request, templates, base) for request in requests]
        prompts = [row.prompt for row in self._rows]
        self.prompt_tokens = [len(prompt) for prompt in prompts]
        width = max(self.prompt_tokens)
        # Padded on the left, so that every row's next token stands in the same column.
        ids = torch.tensor([[base.eos_id] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        self._mask = mask.to(base.device)
        self._next_ids = ids.to(base.device)
        self._cache = DynamicCache(config=base.model.config)
        self._theta = self._stack([request.adapter for request in requests])

    @property
    def done(self) -> bool:
        """Whether every row has finished."""
        return all(row.finished for row in self._rows)

    @property
    def completion_tokens(self) -> list[int]:
        """Tokens produced so far, by row."""
        return [len(row.ids) for row in self._rows]

    def cancel(self, row: int) -> None:
        """Stop producing tokens for a row; nothing more is reported for it."""
        self._rows[row].finished = True

    @torch.inference_mode()
    def advance(self) -> list[AnswerDelta]:
        """One token for every unfinished row; the first call also reads the prompts."""
        logits = self._forward()
        deltas = []
        chosen = []
        for index, row in enumerate(self._rows):
            if row.finished:
                chosen.append(self._adapted.base.eos_id)
                continue
            token = row.choose(logits[index])
            chosen.append(token)
            delta = self._accept(index, row, token)
            if delta is not None:
                deltas.append(delta)
        self._next_ids = torch.tensor(chosen, device=logits.device)[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(chosen), 1)], dim=1)
        return deltas

    def _forward(self) -> Tensor:
        base = self._adapted.base
        positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -self._next_ids.shape[1] :]
        arguments: dict[str, Any] = {
            "input_ids": self._next_ids,
            "attention_mask": self._mask,
            "position_ids": positions,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        with self._adapted.bind(self._theta):
            last = base.backbone(**arguments).last_hidden_state[:, -1]
        logits: Tensor = last @ base.head.T
        return logits

    def _accept(self, index: int, row: _Row, token: int) -> AnswerDelta | None:
        """Take a token; None while it ends in the middle of a character or might begin a stop text."""
        request = row.request
        reason: str | None = None
        if token == self._adapted.base.eos_id:
            reason = "stop"
        else:
            row.ids.append(token)
            if row.answer_from is not None and len(row.ids) - row.answer_from >= request.max_tokens:
                reason = "length"
        text = row.answer(str(self._adapted.base.tokenizer.decode(row.ids, skip_special_tokens=True)))
        if text is None:
            return None
        cuts = [position for position in (text.find(stop) for stop in request.stop) if position >= 0]
        if cuts:
            text, reason = text[: min(cuts)], "stop"
        if reason is None:
            held = _held_back(text, request.stop)
            if held == text[len(row.sent) :] or text.endswith("\N{REPLACEMENT CHARACTER}"):
                return None
            text = text[: len(text) - len(held)]
        else:
            row.finished = True
            text = text.rstrip()
        fresh = text[len(row.sent) :]
        row.sent = text if len(text) > len(row.sent) else row.sent
        if reason is not None:
            return AnswerDelta(index, fresh, reason, row.support)
        return AnswerDelta(index, fresh) if fresh else None

    def _stack(self, adapters: list[Tensor | None]) -> Tensor | None:
        """Adapters of all rows ``[R, P]``; a row without one gets zeros, which change nothing."""
        if all(adapter is None for adapter in adapters):
            return None
        size = self._adapted.layout.size
        for adapter in adapters:
            if adapter is not None and adapter.shape != (size,):
                raise InvalidInput("adapter", f"shape {tuple(adapter.shape)}", f"shape ({size},)")
        base = self._adapted.base
        rows = [torch.zeros(size) if adapter is None else adapter for adapter in adapters]
        return torch.stack(rows).to(base.device, base.dtype)


def _held_back(text: str, stops: tuple[str, ...]) -> str:
    """The end of a text that must wait: trailing white space, or what may turn out to begin a stop text."""
    longest = len(text) - len(text.rstrip())
    for stop in stops:
        for size in range(1, min(len(stop), len(text) + 1)):
            if text.endswith(stop[:size]):
                longest = max(longest, size)
    # White space before it too: it is not part of the answer if the stop text comes true.
    kept = text[: len(text) - longest].rstrip()
    return text[len(kept) :]
