"""A document as a batch of short segments, each under a prefix that names it (PERK section 3.1).

What is learned from the batch depends on no position in the document, so a segment must make sense alone: it is cut at
lines and sentences. Each line is its own segment or several (a record, a fact, a paragraph); hard-wrapped prose is
unwrapped first, and lines too short to stand alone join the next.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from perk.errors import InvalidInput
from perk.settings import SegmentSettings

__all__ = ["Segment", "join_passages", "normalise", "split_segments"]

_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]”’]*\s+(?=[\"'(\[“‘]?[A-Z0-9])")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# A line of fewer tokens says too little alone (a heading, a list item, a line of verse).
_SHORT_LINE = 8


@dataclass(frozen=True)
class Segment:
    """Token ids of one segment.

    Attributes:
        ids: prefix and text.
        prefix_tokens: how many ids at the start are the prefix, which carries no loss.
        stressed_tokens: how many ids at the end weigh `stress` times as much as the others in the loss.
        stress: their weight.
    """

    ids: tuple[int, ...]
    prefix_tokens: int
    stressed_tokens: int = 0
    stress: float = 1.0

    @property
    def first_loss(self) -> int:
        """Index of the first id that carries loss. Without a prefix it is the second: no state predicts the first."""
        return max(self.prefix_tokens, 1)

    @property
    def loss_tokens(self) -> int:
        """How many ids carry loss."""
        return len(self.ids) - self.first_loss

    @property
    def loss_weight(self) -> float:
        """Sum of the weights of the ids that carry loss."""
        return self.loss_tokens + (self.stress - 1) * self.stressed_tokens


def normalise(text: str) -> str:
    """The canonical form of a document: Unicode NFC, ``\\n`` line ends, no outer white space.

    Raises:
        InvalidInput: nothing is left, or the text holds NUL characters or halves of surrogate pairs.
    """
    if "\x00" in text:
        raise InvalidInput("text", "a NUL character", "text without NUL characters")
    if _SURROGATE.search(text):
        raise InvalidInput("text", "half of a surrogate pair", "text that UTF-8 can hold")
    canonical = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    if not canonical:
        raise InvalidInput(
            "text", "no visible character" if text else "an empty string", "at least one visible character"
        )
    return canonical


def join_passages(passages: Sequence[str]) -> str:
    """One document text from a list of passages."""
    return "\n\n".join(passages)


def split_segments(text: str, tokenizer: PreTrainedTokenizerBase, settings: SegmentSettings) -> list[Segment]:
    """Cut a normalised document into segments.

    Returns:
        Segments in document order; together they hold every word of the text once.
    """
    pieces: list[list[int]] = []
    pending = ""
    for line in _lines(text):
        joined = f"{pending}\n{line}" if pending else line
        pending = ""
        tokens = _tokens(joined, tokenizer)
        if len(tokens) < _SHORT_LINE:
            pending = joined
        elif len(tokens) <= settings.max_tokens:
            pieces.append(tokens)
        else:
            pieces.extend(_pack(_sentences(joined), tokenizer, settings.max_tokens))
    if pending:
        pieces.append(_tokens(pending, tokenizer))
    segments = []
    for index, piece in enumerate(pieces, start=1):
        prefix = _tokens(settings.prefix.format(index=index), tokenizer)
        segments.append(Segment(ids=(*prefix, *piece), prefix_tokens=len(prefix)))
    return segments


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _lines(text: str) -> list[str]:
    """Lines that stand for something: the document's own, or whole paragraphs where prose was wrapped by width."""
    lines: list[str] = []
    for paragraph in _BLANK_LINES.split(text):
        parts = [part.strip() for part in paragraph.split("\n") if part.strip()]
        continued = sum(part[0].islower() for part in parts[1:])
        # In wrapped prose most lines go on in the middle of a sentence; records, lists and verse start each anew.
        if continued > 0.4 * (len(parts) - 1):
            parts = [" ".join(parts)]
        lines.extend(parts)
    return lines


def _sentences(line: str) -> list[str]:
    sentences = []
    start = 0
    for match in _SENTENCE_END.finditer(line):
        sentences.append(line[start : match.end()].rstrip())
        start = match.end()
    sentences.append(line[start:])
    return sentences


def _pack(sentences: list[str], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[list[int]]:
    """Join sentences while they fit; cut a sentence that is longer than a segment."""
    pieces: list[list[int]] = []
    current = ""
    for sentence in sentences:
        joined = f"{current} {sentence}" if current else sentence
        if len(_tokens(joined, tokenizer)) <= limit:
            current = joined
            continue
        if current:
            pieces.append(_tokens(current, tokenizer))
        tokens = _tokens(sentence, tokenizer)
        if len(tokens) <= limit:
            current = sentence
        else:
            pieces.extend(tokens[start : start + limit] for start in range(0, len(tokens), limit))
            current = ""
    if current:
        pieces.append(_tokens(current, tokenizer))
    return pieces
