"""One question while it is answered: the tokens so far, the next one, and what of the text may be told.

Where a checkpoint has a reader of entries (`perk.readers`), it begins: under its adapter the support is written, but
for the lines that the document's own adapter recalls, each on a track of its own. A reader that finds nothing to recall
leaves the question to the document's adapter, which answers it from the prompt on as it does without one; but a part
that it recalls another reader may read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from perk.answer_request import AnswerRequest
from perk.base_model import BaseModel
from perk.errors import InvalidInput
from perk.line_recall import LineRecall
from perk.part_recall import PartRecall
from perk.readers import LINE_END, Readers
from perk.series import NOTHING, is_entry_cue, is_series_line, likely_cue
from perk.settings import TemplateSettings
from perk.token_track import TokenTrack

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
        answer_from: how many tokens came before the answer; None while the document is still recalled.
        support: what was recalled and followed from it, once the answer begins.
        sent: the answer's text reported so far.
        finished: whether the answer has ended.
    """

    def __init__(
        self,
        number: int,
        request: AnswerRequest,
        templates: TemplateSettings,
        base: BaseModel,
        readers: Readers | None = None,
    ) -> None:
        """Prepare a row.

        Args:
            number: of the row.
            request: the question.
            templates: around it.
            base: the model.
            readers: of the checkpoint; None: the document's adapter answers alone, and recalls no parts.

        Raises:
            InvalidInput: question and answer are longer than the model.
        """
        self.number = number
        self.request = request
        # A base without an adapter has not learned to recall anything.
        self.templates = base.templates if request.adapter is None else templates
        question = self.templates.prompt.format(question=request.question.strip())
        prompt = list(base.tokenizer.encode(question, verbose=False))
        self.answer_from = 0 if self.templates.support_end is None else None
        self.support = ""
        self.sent = ""
        self.finished = False
        self._base = base
        self._support_end_ids = self._base.encode(self.templates.support_end or "")
        self._forced: list[int] = []
        self._eos_id = base.eos_id
        self._generator = torch.Generator()
        if request.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(request.seed)
        self._room = request.max_tokens
        if self._support_end_ids:
            self._room += self.templates.max_support_tokens + len(self._support_end_ids)
        if len(prompt) + self._room > base.max_positions:
            room = base.max_positions - self._room + request.max_tokens
            raise InvalidInput(
                "question",
                f"{len(prompt)} tokens with max_tokens {request.max_tokens}",
                f"together at most {room} tokens",
            )
        self._readers = readers if request.adapter is not None and self.answer_from is None else None
        self._parts: PartRecall | None = None
        # An entry's name, while the rest of it is recalled.
        self._cue = ""
        # None without a reader of entries, or once the document's adapter answers by itself.
        self._lines: LineRecall | None = None
        if self._readers is not None and self._readers.of_entries is not None:
            self._text = self._begin(self._readers.of_entries, prompt)
            self._lines = LineRecall(request.adapter, self._readers.segments, base)
        else:
            self._begin_document(prompt)
        # What the last entries said; none while nothing was recalled for the reader.
        self._said: list[str] = []

    @property
    def tracks(self) -> list[TokenTrack]:
        """What the model reads and goes on with: the text, or what is recalled for it, what it waits for first.

        Parts are recalled on tracks that all rows share which wait for them.
        """
        if self._parts is not None:
            return self._parts.tracks
        return self._lines.tracks(self._cue) if self._lines is not None and self._cue else [self._text]

    @property
    def prompt(self) -> list[int]:
        """Token ids of the question within its template."""
        return self._text.prompt

    @property
    def ids(self) -> list[int]:
        """Token ids of the support and the answer so far."""
        return self._text.ids

    def catch_up(self) -> None:
        """Go on where another row has recalled what both wait for."""
        if self._parts is not None:
            self._parts.catch_up()
            self._read_part(self._parts)

    def take_all(self, track: TokenTrack, logits: Tensor) -> list[AnswerDelta]:
        """Choose tokens from logits ``[1 + draft, V]``, one for each token that the track's draft holds and one more.

        The last ones are chosen only if all drafted ones before them are.
        """
        deltas: list[AnswerDelta] = []
        if self._parts is not None:
            # Not of the lines that stood beside one which ended their recall, and were decoded with it.
            if any(track is own for own in self._parts.tracks):
                self._parts.take(track, logits)
                self._read_part(self._parts)
        elif track is not self._text:
            if self._lines is not None:
                self._lines.take(track, logits[-1])
        else:
            kept = 0
            for drafted, row_logits in zip([*track.draft, None], logits, strict=True):
                delta = self.take(row_logits)
                deltas += [delta] if delta is not None else []
                if drafted is None or track.ids[-1:] != [drafted]:
                    break
                kept += 1
                if self.finished or self._cue or self._text is not track:
                    break
            track.settle_draft(kept)
        self._read_line()
        return deltas

    def take(self, logits: Tensor) -> AnswerDelta | None:
        """Choose the text's next token from logits ``[V]``; None while there is nothing to tell.

        That is so while the text ends in the middle of a character, or might begin a stop text.
        """
        token = self._choose(logits)
        if token is None:
            self._leave_to_document()
            return None
        reason: str | None = None
        if token == self._eos_id:
            reason = "stop"
        else:
            self.ids.append(token)
            if self.answer_from is not None and len(self.ids) - self.answer_from >= self.request.max_tokens:
                reason = "length"
        written = str(self._base.tokenizer.decode(self.ids, skip_special_tokens=True))
        text = self._answer(written)
        if text is None:
            self._look_for_cue(written.rpartition(LINE_END)[2].lstrip())
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

    @property
    def _reads_in_vain(self) -> bool:
        """Whether the reader of entries has found nothing to read so far."""
        return self._lines is not None and not self._said

    def _choose(self, logits: Tensor) -> int | None:
        """The next token; None where the support would end and nothing was found to read."""
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

    def _recall(self, logits: Tensor) -> int | None:
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
            if self._reads_in_vain:
                return None
            self._forced = list(self._support_end_ids)
        return self._forced.pop(0)

    def _look_for_cue(self, line: str) -> None:
        """Let the document's adapter recall what the reader has named."""
        room = self.templates.max_support_tokens - len(self.ids)
        if self._lines is not None and room > 0 and is_entry_cue(line):
            self._cue = line
            self._lines.want(line)

    def _read_line(self) -> None:
        """Let the reader read the line that it waits for, if that has ended."""
        if self._lines is None or not self._cue:
            return
        # Neither it nor the draft takes the room of the answer.
        room = self.templates.max_support_tokens - len(self.ids)
        said = self._lines.said(self._cue, room)
        if said is None:
            return
        cue, self._cue = self._cue, ""
        if self._reads_in_vain and not (is_series_line(cue + said) and self._lines.is_sure(cue)):
            self._leave_to_document()
            return
        self._said = [*self._said, said][-_ROUNDS:]
        if self._said == [said] * _ROUNDS:
            # Past its last entry a series goes on with what it said before.
            said = NOTHING
        read, draft = self._base.encode(said + LINE_END), self._base.encode(likely_cue(cue + said))
        self.ids.extend(read[:room])
        self._text.draft = draft if len(read) + len(draft) <= room else []

    def _leave_to_document(self) -> None:
        """Nothing was found to read: the document's adapter answers, from the prompt on."""
        self._lines = None
        self._begin_document(self.prompt)

    def _begin_document(self, prompt: list[int]) -> None:
        """Leave the text to the document's adapter; first it is looked whether the document is one of parts."""
        self._text = self._begin(self.request.adapter, prompt)
        adapter, readers = self.request.adapter, self._readers
        if adapter is not None and readers is not None and readers.segments.parts:
            self._parts = PartRecall(adapter, self.request.question.strip(), readers, self._base)
            self._read_part(self._parts)

    def _read_part(self, parts: PartRecall) -> None:
        """Let the part that was chosen be read, and answered from; without parts, let the document's adapter recall."""
        if not parts.done:
            return
        self._parts = None
        if parts.found is not None and self.templates.support is not None:
            if self._readers is not None and self._readers.of_parts is not None:
                self._text = self._begin(self._readers.of_parts, self.prompt)
            before = self.templates.support.partition("{support}")[0]
            read = self._base.encode(before + parts.found)[: self.templates.max_support_tokens]
            self.ids.extend([*read, *self._support_end_ids])
            self.answer_from, self.support = len(self.ids), parts.found

    def _begin(self, adapter: Tensor | None, prompt: list[int]) -> TokenTrack:
        return TokenTrack(adapter, prompt, room=self._room)

    def _answer(self, text: str) -> str | None:
        """The answer's part of all that was written so far, or None while the model still recalls."""
        mark = self.templates.support_end
        if mark is None:
            return text.lstrip()
        before, ended, after = text.partition(mark)
        if not ended:
            return None
        if self.answer_from is None:
            if self._reads_in_vain:
                self._leave_to_document()
                return None
            self.answer_from = len(self.ids)
            self.support = before.strip()
            self._lines = None
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
