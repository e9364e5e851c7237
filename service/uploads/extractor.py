"""Reads a file on standard input and writes its text, in UTF-8, on standard output.

Run as a script in a process of its own, which sets its limits before it reads anything: parsers of other people's files
may take any time and memory. It imports nothing of the service, and is told nothing but its limits.

    python -I extractor.py KIND MEMORY_BYTES CPU_SECONDS TEXT_BYTES
"""

from __future__ import annotations

import io
import logging
import resource
import sys
import zipfile
from collections.abc import Iterator

# Exit statuses; the parent puts them into words.
DAMAGED, ENCRYPTED, TOO_LONG, NO_MEMORY = 3, 4, 5, 6

_MOST_MEMBERS = 10_000


class _Encrypted(Exception):
    """Text that needs a password."""


def _html(content: bytes) -> Iterator[str]:
    from bs4 import BeautifulSoup
    from markdownify import MarkdownConverter

    page = BeautifulSoup(content, "html.parser")
    for hidden in page(["script", "style", "template", "noscript", "head"]):
        hidden.decompose()
    yield MarkdownConverter(heading_style="ATX", strip=["a", "img"]).convert_soup(page)


def _pdf(content: bytes) -> Iterator[str]:
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(content))
    # Many are encrypted with no password, which only asks readers to forbid printing.
    if reader.is_encrypted and not reader.decrypt(""):
        raise _Encrypted
    for page in reader.pages:
        yield page.extract_text() + "\n\n"


def _docx(content: bytes) -> Iterator[str]:
    import docx
    from docx.table import Table

    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if any(member.flag_bits & 1 for member in members):
            raise _Encrypted
        # What the archive says of itself: where it lies, the limit of memory holds.
        unpacked = sum(member.file_size for member in members)
        if len(members) > _MOST_MEMBERS or unpacked > resource.getrlimit(resource.RLIMIT_AS)[0] // 4:
            raise MemoryError
    for block in docx.Document(io.BytesIO(content)).iter_inner_content():
        if isinstance(block, Table):
            for row in block.rows:
                yield " | ".join(cell.text for cell in row.cells) + "\n"
            yield "\n"
        else:
            yield block.text + "\n\n"


_READERS = {"html": _html, "pdf": _pdf, "docx": _docx}


def main(kind: str, memory: int, seconds: int, most: int) -> int:
    """Extract; returns the exit status."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    # No file is written, and no memory is dumped where others could read it.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Parsers quote what they stumble over.
    logging.disable()
    try:
        written = 0
        for piece in _READERS[kind](sys.stdin.buffer.read()):
            encoded = piece.encode("utf-8", "replace")
            written += len(encoded)
            if written > most:
                return TOO_LONG
            sys.stdout.buffer.write(encoded)
        sys.stdout.buffer.flush()
    except MemoryError:
        return NO_MEMORY
    except _Encrypted:
        return ENCRYPTED
    except Exception:  # noqa: BLE001 - whatever a parser raises, the file is at fault, and the process ends
        return DAMAGED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:5])))
