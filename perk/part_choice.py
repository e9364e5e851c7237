"""Which of a document's parts a question is about: the one behind which it comes least as a surprise.

Of many parts, only those are read that share most of the question's words.

A question names what the whole text is about, as the first part does and others do not. So a reader of parts reads
each of them behind the first sentence of all, and has practised to tell them apart (`meta_training.choice_loss`).
Without such a reader the document's own adapter reads each behind its number, as it was encoded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from perk.base_model import BaseModel
from perk.parts import part_name, told_apart
from perk.passage_index import PassageIndex
from perk.readers import Readers
from perk.segments import segment_start
from perk.token_track import TokenTrack

__all__ = ["PartChoice", "question_behind"]

_BEFORE_QUESTION = "\nQuestion:"
# Of a longer question, its end chooses.
_QUESTION_TOKENS = 48
# Of more parts, reading each takes long, and the one that is meant shares words with the question.
_MOST_READ = 8


class PartChoice:
    """One question behind each of a document's parts.

    Attributes:
        found: the part that the question is about, once all is `done`; None where there is none to choose.
    """

    def __init__(self, said: Sequence[str], question: str, adapter: Tensor, readers: Readers, base: BaseModel) -> None:
        """Read nothing yet; of a single part there is nothing to read.

        Args:
            said: the parts, as `PartRecital` has them.
            question: about one of them.
            adapter: of the document, ``[P]``.
            readers: of the checkpoint.
            base: the model.
        """
        self._surprise: dict[str, float] = {}
        self._reading: list[tuple[TokenTrack, str]] = []
        numbered = [(number, text) for number, text in enumerate(said, start=1) if text]
        parts = [text for _, text in numbered]
        self.found = parts[0] if len(parts) == 1 else None
        if len(parts) < 2:
            return
        before, asked = question_behind(question, base)
        room = base.max_positions - len(before) - len(asked)
        apart = told_apart(parts)
        many = len(parts) > _MOST_READ
        for place in PassageIndex(parts).best(question, _MOST_READ) if many else range(len(parts)):
            number, text = numbered[place]
            if readers.of_parts is None:
                named = f"{part_name(number, len(said))} {text}"
                chooser, prompt = adapter, segment_start(named, base.tokenizer, readers.segments, number)
            else:
                chooser, prompt = readers.of_parts, base.encode(apart[place])
            track = TokenTrack(chooser, [*prompt[:room], *before], room=len(asked))
            track.draft = list(asked)
            self._reading.append((track, text))

    @property
    def done(self) -> bool:
        """Whether nothing more is to be read."""
        return not self._reading

    @property
    def tracks(self) -> list[TokenTrack]:
        """What is to be read."""
        return [track for track, _ in self._reading]

    def take(self, track: TokenTrack, logits: Tensor) -> None:
        """Go on, given logits ``[1 + draft, V]`` of what follows a track and each token of its draft."""
        asked = torch.tensor(track.draft, device=logits.device)[:, None]
        surprise = -float(logits[:-1].float().log_softmax(-1).gather(1, asked).sum())
        place = next(place for place, (reading, _) in enumerate(self._reading) if reading is track)
        self._surprise[self._reading.pop(place)[1]] = surprise
        if self.done:
            self.found = min(self._surprise, key=self._surprise.__getitem__)


def question_behind(question: str, base: BaseModel) -> tuple[list[int], list[int]]:
    """Token ids of what stands between a part and a question, and of the question."""
    return base.encode(_BEFORE_QUESTION), base.encode(f" {question}")[-_QUESTION_TOKENS:]
