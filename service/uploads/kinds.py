"""What kind of file an upload is."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal

__all__ = ["ACCEPTED", "Kind", "kind_of"]

Kind = Literal["text", "html", "pdf", "docx"]

ACCEPTED = "plain text, Markdown, HTML, PDF or DOCX"

_BY_TYPE: dict[str, Kind] = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "application/pdf": "pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
}
_BY_SUFFIX: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".pdf": "pdf",
    ".docx": "docx",
}
_MEANINGLESS = ("", "application/octet-stream", "binary/octet-stream", "application/x-www-form-urlencoded")
# Readers of PDF skip what precedes its mark, within so many bytes.
_PDF_MARK_WITHIN = 1024


def kind_of(name: str, declared: str, content: bytes) -> Kind | None:
    """The kind that name, declared type and content agree on; None where they do not, or it is none of those accepted.

    Args:
        name: of the file; may be empty.
        declared: its Content-Type, which may have parameters, or be empty.
        content: of the file.
    """
    essence = declared.partition(";")[0].strip().lower()
    by_type = _BY_TYPE.get(essence) or ("text" if essence.startswith("text/") else None)
    if by_type is None and essence not in _MEANINGLESS:
        return None
    by_suffix = _BY_SUFFIX.get(PurePath(name).suffix.lower())
    # A type says more than a name, but many clients call text what they do not know.
    kind = by_suffix if by_type in (None, "text") and by_suffix is not None else by_type
    seen = _seen(content)
    if kind is None:
        # No one says what it is: a PDF says so itself, and text shows.
        return seen or ("text" if _is_text(content) else None)
    if kind in ("pdf", "docx"):
        return kind if seen == kind else None
    return None if seen else kind


def _seen(content: bytes) -> Kind | None:
    if b"%PDF-" in content[:_PDF_MARK_WITHIN]:
        return "pdf"
    return "docx" if content.startswith(b"PK\x03\x04") else None


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False
