"""Lines and sentences of a text."""

from __future__ import annotations

import re

__all__ = ["sentences", "text_lines"]

_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]”’]*\s+(?=[\"'(\[“‘]?[A-Z0-9])")
# A sentence of fewer characters says too little alone: a title, an abbreviation, an exclamation.
_SHORT_SENTENCE = 30


def text_lines(text: str) -> list[str]:
    """Lines that stand for something: the text's own, or whole paragraphs where prose was wrapped by width."""
    lines: list[str] = []
    for paragraph in _BLANK_LINES.split(text):
        parts = [part.strip() for part in paragraph.split("\n") if part.strip()]
        continued = sum(part[0].islower() for part in parts[1:])
        # In wrapped prose most lines go on in the middle of a sentence; records, lists and verse start each anew.
        if continued > 0.4 * (len(parts) - 1):
            parts = [" ".join(parts)]
        lines.extend(parts)
    return lines


def sentences(line: str, *, shortest: int = _SHORT_SENTENCE) -> list[str]:
    """Sentences of a line, in order; one of fewer than `shortest` characters joins the next, the last the former."""
    spans: list[tuple[int, int]] = []
    start = 0
    for end in (*(match.end() for match in _SENTENCE_END.finditer(line)), len(line)):
        is_short = len(line[start:end].strip()) < shortest
        if is_short and end < len(line):
            continue
        if is_short and spans:
            start = spans.pop()[0]
        spans.append((start, end))
        start = end
    return [line[start:end].strip() for start, end in spans]
