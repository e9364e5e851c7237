"""A document as a batch of short segments, each under a prefix that names it (PERK section 3.1).

What is learned from the batch depends on no position in the document, so a segment must make sense alone: it is cut at
lines and sentences. Each line is its own segment or several (a record, a fact, a paragraph); hard-wrapped prose is
unwrapped first, and lines too short to stand alone join the next.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from perk.cues import cue_segments
from perk.errors import InvalidInput
from perk.segment import Segment
from perk.sentences import sentences, text_lines
from perk.settings import PerkSettings, SegmentSettings

__all__ = ["document_segments", "join_passages", "normalise", "split_segments"]

_SURROGATE = re.compile(r"[\ud800-\udfff]")
# A line of fewer tokens says too little alone (a heading, a list item, a line of verse).
_SHORT_LINE = 8


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


def document_segments(text: str, tokenizer: PreTrainedTokenizerBase, settings: PerkSettings) -> list[Segment]:
    """Segments of a normalised document as a checkpoint reads it: prose by cues, where it has them.

    A line of its own is asked for by how it begins (a record, a fact), and read as it stands; prose has several
    sentences in a line, and is asked for by any word of them.
    """
    if not settings.segments.cues:
        return split_segments(text, tokenizer, settings.segments)
    lines = _whole_lines(text, tokenizer)
    parts = [sentences(line) for line, _ in lines]
    prose = [several for several in parts if len(several) > 1]
    alone = [line for line, one in zip(lines, parts, strict=True) if len(one) == 1]
    # A turn that no step takes is no use.
    asked = settings.segments.model_copy(update={"cues": min(settings.segments.cues, settings.inner.steps)})
    return [
        *_read(alone, tokenizer, settings.segments),
        *cue_segments(prose, tokenizer, asked, settings.templates),
    ]


def split_segments(text: str, tokenizer: PreTrainedTokenizerBase, settings: SegmentSettings) -> list[Segment]:
    """Cut a normalised document into segments.

    Returns:
        Segments in document order; together they hold every word of the text once.
    """
    return _read(_whole_lines(text, tokenizer), tokenizer, settings)


def _whole_lines(text: str, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, list[int]]]:
    """Lines of a text with their tokens; one that is too short to stand alone, such as a heading, joins the next."""
    lines: list[tuple[str, list[int]]] = []
    pending = ""
    for line in text_lines(text):
        joined = f"{pending}\n{line}" if pending else line
        pending = ""
        tokens = _tokens(joined, tokenizer)
        if len(tokens) < _SHORT_LINE:
            pending = joined
        else:
            lines.append((joined, tokens))
    return [*lines, (pending, _tokens(pending, tokenizer))] if pending else lines


def _read(
    lines: Sequence[tuple[str, list[int]]], tokenizer: PreTrainedTokenizerBase, settings: SegmentSettings
) -> list[Segment]:
    """Segments that read lines, given with their tokens, as they stand, in their order."""
    pieces: list[list[int]] = []
    for line, tokens in lines:
        if len(tokens) <= settings.max_tokens:
            pieces.append(tokens)
        else:
            pieces.extend(_pack(sentences(line, shortest=0), tokenizer, settings.max_tokens))
    segments = []
    for index, piece in enumerate(pieces, start=1):
        prefix = _tokens(settings.prefix.format(index=index), tokenizer)
        segments.append(Segment(ids=(*prefix, *piece), prefix_tokens=len(prefix)))
    return segments


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _pack(parts: list[str], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[list[int]]:
    """Join sentences while they fit; cut a sentence that is longer than a segment."""
    pieces: list[list[int]] = []
    current = ""
    for sentence in parts:
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
