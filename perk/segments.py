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

from perk.errors import InvalidInput
from perk.parts import are_paragraphs, part_name, to_one_line
from perk.segment import Segment
from perk.sentences import sentences, text_lines
from perk.series import numbered_series, series_lines
from perk.series_weights import entry_weights, line_weights, share_out
from perk.settings import SegmentSettings

__all__ = ["join_passages", "normalise", "segment_start", "split_segments"]

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


def split_segments(text: str, tokenizer: PreTrainedTokenizerBase, settings: SegmentSettings) -> list[Segment]:
    """Cut a normalised document into segments.

    Returns:
        Segments in document order, which together hold every word of the text once; then those that say where its
        numbered series end.
    """
    lead = _lead(settings)
    pieces: list[list[int]] = []
    for line, tokens in _whole_lines(text, tokenizer, lead):
        if len(tokens) <= settings.max_tokens:
            pieces.append(tokens)
        else:
            pieces.extend(_pack(sentences(line, shortest=0), tokenizer, settings.max_tokens, lead))
    series = numbered_series(text) if settings.series or settings.parts else {}
    if settings.parts and not series:
        pieces = _as_parts(pieces, tokenizer, lead)
    end = _tokens(settings.end, tokenizer)
    pieces = [[*piece, *end] for piece in pieces]
    weights: list[tuple[float, ...]] = [()] * len(pieces)
    if settings.series and series:
        weights = [entry_weights(piece, series, tokenizer, lead) for piece in pieces]
        for line in series_lines(series):
            name, said = _tokens(lead + line.partition(":")[0], tokenizer), [*_tokens(lead + line, tokenizer), *end]
            pieces.append(said)
            weights.append(line_weights(name, said))
        plain = sum(len(piece) for piece, own in zip(pieces, weights, strict=True) if not own)
        weights = share_out(weights, plain)
    segments = []
    for number, (piece, own) in enumerate(zip(pieces, weights, strict=True), start=1):
        prefix = _tokens(settings.prefix.format(index=number), tokenizer)
        segment = Segment(ids=(*prefix, *piece), prefix_tokens=len(prefix))
        segments.append(replace(segment, weights=own[segment.first_loss - len(prefix) :]))
    return segments


def segment_start(
    text: str, tokenizer: PreTrainedTokenizerBase, settings: SegmentSettings, number: int | None = None
) -> list[int]:
    """Token ids of the segment of that number, or of none in particular, that begins with a text."""
    prefix = settings.prefix.format(index="" if number is None else number)
    return [*_tokens(prefix, tokenizer), *_tokens(_lead(settings) + text, tokenizer)]


def _as_parts(pieces: list[list[int]], tokenizer: PreTrainedTokenizerBase, lead: str) -> list[list[int]]:
    """Each piece behind its number, if they are paragraphs; else as they are."""
    texts = [str(tokenizer.decode(piece)).removeprefix(lead) for piece in pieces]
    if not are_paragraphs(texts):
        return pieces
    return [
        [*_tokens(lead + part_name(number, len(texts)), tokenizer), *_tokens(f" {to_one_line(text)}", tokenizer)]
        for number, text in enumerate(texts, start=1)
    ]


def _lead(settings: SegmentSettings) -> str:
    # Byte-pair encoders take a space into the word behind it: after a prefix without one, the text begins with it.
    return " " if settings.prefix and not settings.prefix[-1].isspace() else ""


def _whole_lines(text: str, tokenizer: PreTrainedTokenizerBase, lead: str) -> list[_Line]:
    """Lines of a text with their tokens behind `lead`; one that is too short, such as a heading, joins the next."""
    lines: list[_Line] = []
    pending = ""
    for line in text_lines(text):
        joined = f"{pending}\n{line}" if pending else line
        pending = ""
        tokens = _tokens(lead + joined, tokenizer)
        if len(tokens) < _SHORT_LINE:
            pending = joined
        else:
            lines.append((joined, tokens))
    return [*lines, (pending, _tokens(lead + pending, tokenizer))] if pending else lines


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
