"""One question while it is answered: the tokens so far, the next one, and what of the text may be told."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from perk.answer_request import AnswerRequest
from perk.base_model import BaseModel
from perk.errors import InvalidInput
from perk.row_cache import RowCache
from perk.settings import TemplateSettings

__all__ = ["AnswerDelta", "AnswerRow"]

# What is recalled goes round once one passage has come so often in a row and fills so many tokens; few texts do.
_ROUNDS = 3
_TOKENS_OF_ROUNDS = 48


@dataclass(frozen=True)
class AnswerDelta:
    """New text of one row.

    Attributes:
        row: its number in its batch, which no other row of that batch ever has.
        text: further text of the answer.
        finish_reason: ``stop`` or ``length`` with the last one, else None.
        support: with the last one: what was recalled of the document before the answer.
    """

    row: int
    text: str
    finish_reason: str | None = None
    support: str = ""


class AnswerRow:
    """Decoding state of one question.

    Attributes:
        number: in its batch.
        request: the question.
        templates: around it.
        prompt: its token ids.
        ids: token ids written so far.
        answer_from: how many of them came before the answer; None while the model still recalls the document.
        support: what it recalled, once it has.
        sent: the answer's text reported so far.
        finished: whether the answer has ended.
        cache: keys and values of all tokens read so far.
    """

    def __init__(self, number: int, request: AnswerRequest, templates: TemplateSettings, base: BaseModel) -> None:
        """Prepare a row.

        Raises:
            InvalidInput: question and answer are longer than the model.
        """
        self.number = number
        self.request = request
        # A base without an adapter has not learned to recall anything.
        self.templates = base.templates if request.adapter is None else templates
        question = self.templates.prompt.format(question=request.question.strip())
        self.prompt = list(base.tokenizer.encode(question, verbose=False))
        self.ids: list[int] = []
        self.answer_from = 0 if self.templates.support_end is None else None
        self.support = ""
        self.sent = ""
        self.finished = False
        self._base = base
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
        longest = len(self.prompt) + request.max_tokens
        if self._support_end_ids:
            recalled = self.templates.max_support_tokens + len(self._support_end_ids)
            room -= recalled
            longest += recalled
        if len(self.prompt) + request.max_tokens > room:
            raise InvalidInput(
                "question",
                f"{len(self.prompt)} tokens with max_tokens {request.max_tokens}",
                f"together at most {room} tokens",
            )
        self.cache = RowCache(longest)

    @property
    def next_ids(self) -> list[int]:
        """Tokens that the model reads next: the prompt, then the last token."""
        return self.ids[-1:] or self.prompt

    def take(self, logits: Tensor) -> AnswerDelta | None:
        """Choose the next token from logits ``[V]``; None while there is nothing to tell.

        That is so while the text ends in the middle of a character, or might begin a stop text.
        """
        token = self._choose(logits)
        reason: str | None = None
        if token == self._eos_id:
            reason = "stop"
        else:
            self.ids.append(token)
            if self.answer_from is not None and len(self.ids) - self.answer_from >= self.request.max_tokens:
                reason = "length"
        text = self._answer(str(self._base.tokenizer.decode(self.ids, skip_special_tokens=True)))
        if text is None:
            return None
        cuts = [position for position in (text.find(stop) for stop in self.request.stop) if position >= 0]
        if cuts:
            text, reason = text[: min(cuts)], "stop"
        if reason is None:
            held = _held_back(text, self.request.stop)
            if held == text[len(self.sent) :] or text.endswith("\N{REPLACEMENT CHARACTER}"):
                return None
            text = text[: len(text) - len(held)]
        else:
            self.finished = True
            text = text.rstrip()
        fresh = text[len(self.sent) :]
        self.sent = text if len(text) > len(self.sent) else self.sent
        if reason is not None:
            return AnswerDelta(self.number, fresh, reason, self.support)
        return AnswerDelta(self.number, fresh) if fresh else None

    def _choose(self, logits: Tensor) -> int:
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
        """What the document said is no matter of taste: always the likeliest token, until the mark must follow.

        Chosen so, a text that goes round never leaves its circle; the answer is read off what came before.
        """
        if not self._forced:
            token = int(logits.argmax())
            if (
                token != self._eos_id
                and len(self.ids) < self.templates.max_support_tokens
                and not _goes_round(self.ids)
            ):
                return token
            self._forced = list(self._support_end_ids)
        return self._forced.pop(0)

    def _answer(self, text: str) -> str | None:
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


def _goes_round(ids: list[int]) -> bool:
    """Whether token ids end with one passage again and again."""
    for length in range(1, len(ids) // _ROUNDS + 1):
        rounds = max(_ROUNDS, math.ceil(_TOKENS_OF_ROUNDS / length))
        # The last token first: nearly every length is ruled out by it.
        if ids[-1 - length] == ids[-1] and ids[-length * rounds :] == ids[-length:] * rounds:
            return True
    return False


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
