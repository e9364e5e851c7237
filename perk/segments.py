"""A document as a batch of short segments, each under a prefix that names it (PERK section 3.1).

What is learned from the batch depends on no position in the document, so a segment must make sense alone: it is cut at
lines and sentences. Each line is its own segment or several (a record, a fact, a paragraph); hard-wrapped prose is
unwrapped first, and lines too short to stand alone join the next.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from perk.cues import LINE_WORDS, SENTENCE_WORDS, cue_segments
from perk.errors import InvalidInput
from perk.segment import Segment
from perk.sentences import sentences, text_lines
from perk.settings import PerkSettings, SegmentSettings

__all__ = ["document_segments", "join_passages", "normalise", "split_segments"]

_SURROGATE = re.compile(r"[\ud800-\udfff]")
# A line of fewer tokens says too little alone (a heading, a list item, a line of verse).
_SHORT_LINE = 8

# A line with its tokens.
_Line = tuple[str, list[int]]


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
    """Segments of a normalised document as a checkpoint reads it: as it stands, or by cues where it has them.

    A line of its own (a record, a fact) is read as it stands and so found by how it begins; with `line_cues` it is
    asked for by any of its words as well. Prose has several sentences in a line; with `cues` it is asked for alone.
    """
    chosen = settings.segments
    if not (chosen.cues or chosen.line_cues):
        return split_segments(text, tokenizer, chosen)
    lines = [(line, sentences(line[0])) for line in _whole_lines(text, tokenizer)]
    alone = [(line, parts) for line, parts in lines if len(parts) == 1]
    prose = [(line, parts) for line, parts in lines if len(parts) > 1]
    # A turn that no step takes is no use.
    turns = range(settings.inner.steps)
    line_turns, prose_turns = turns[: 2 * chosen.line_cues], turns[: chosen.cues]
    standing = _read([line for line, _ in alone], tokenizer, chosen)

    def ask(asked: list[tuple[_Line, list[str]]], turns: range, words: tuple[int, int]) -> list[Segment]:
        paragraphs = [parts for _, parts in asked]
        return cue_segments(
            paragraphs, tokenizer, settings.templates, turns=turns, words=words, max_tokens=chosen.max_tokens
        )

    return [
        *(replace(segment, turns=tuple(line_turns[::2]) or None) for segment in standing),
        *ask(alone, line_turns[1::2], LINE_WORDS),
        *(
            ask(prose, prose_turns, SENTENCE_WORDS)
            if prose_turns
            else _read([line for line, _ in prose], tokenizer, chosen, first=len(standing) + 1)
        ),
    ]


def split_segments(text: str, tokenizer: PreTrainedTokenizerBase, settings: SegmentSettings) -> list[Segment]:
    """Cut a normalised document into segments.

    Returns:
        Segments in document order; together they hold every word of the text once.
    """
    return _read(_whole_lines(text, tokenizer), tokenizer, settings)


def _whole_lines(text: str, tokenizer: PreTrainedTokenizerBase) -> list[_Line]:
    """Lines of a text with their tokens; one that is too short to stand alone, such as a heading, joins the next."""
    lines: list[_Line] = []
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
    lines: Sequence[_Line], tokenizer: PreTrainedTokenizerBase, settings: SegmentSettings, first: int = 1
) -> list[Segment]:
    """Segments that read lines, given with their tokens, as they stand, in their order, numbered from `first`."""
    # Byte-pair encoders take a space into the word behind it: after a prefix without one, the text begins with it.
    lead = " " if settings.prefix and not settings.prefix[-1].isspace() else ""
    pieces: list[list[int]] = []
    for line, alone in lines:
        tokens = _tokens(lead + line, tokenizer) if lead else alone
        if len(tokens) <= settings.max_tokens:
            pieces.append(tokens)
        else:
            pieces.extend(_pack(sentences(line, shortest=0), tokenizer, settings.max_tokens, lead))
    end = _tokens(settings.end, tokenizer)
    segments = []
    for index, piece in enumerate(pieces, start=first):
        prefix = _tokens(settings.prefix.format(index=index), tokenizer)
        segments.append(Segment(ids=(*prefix, *piece, *end), prefix_tokens=len(prefix)))
    return segments


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def _pack(parts: list[str], tokenizer: PreTrainedTokenizerBase, limit: int, lead: str) -> list[list[int]]:
    """Join sentences while they fit; cut a sentence that is longer than a segment. Each piece begins with `lead`."""
    pieces: list[list[int]] = []
    current = ""
    for sentence in parts:
        joined = f"{current} {sentence}" if current else lead + sentence
        if len(_tokens(joined, tokenizer)) <= limit:
            current = joined
            continue
        if current:
            pieces.append(_tokens(current, tokenizer))
        tokens = _tokens(lead + sentence, tokenizer)
        if len(tokens) <= limit:
            current = lead + sentence
        else:
            pieces.extend(tokens[start : start + limit] for start in range(0, len(tokens), limit))
            current = ""
    if current:
        pieces.append(_tokens(current, tokenizer))
    return pieces
