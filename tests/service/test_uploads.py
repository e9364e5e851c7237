"""Files: their text is read in a process with limits, and a bad one is refused and nothing else."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import docx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfWriter

from service.uploads.kinds import kind_of

_DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


def _docx() -> bytes:
    document = docx.Document()
    document.add_paragraph("Mary went to the kitchen.")
    document.add_table(1, 2).rows[0].cells[1].text = "apple"
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def _pdf() -> bytes:
    stream = b"BT /F1 12 Tf 20 100 Td (Mary went to the kitchen.) Tj ET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R"
        b" /Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
    ]
    content = b"%PDF-1.4\n"
    places = []
    for number, value in enumerate(objects, start=1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, value)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return content + b"xref\n0 5\n0000000000 65535 f \n%strailer\n<< /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        table,
        len(content),
    )


def _locked_pdf() -> bytes:
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("password", algorithm="RC4-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def _bomb() -> bytes:
    original = zipfile.ZipFile(io.BytesIO(_docx()))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in original.namelist():
            if name.endswith("jpeg"):
                continue
            with archive.open(name, "w") as member:
                if name == "word/document.xml":
                    for _ in range(140):
                        member.write(b" " * 1_000_000)
                else:
                    member.write(original.read(name))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "kind", "content"),
    [
        ("a.txt", "text/plain", b"Mary went to the kitchen. apple"),
        ("a.md", "text/markdown", b"# Mary went to the kitchen.\n\napple"),
        ("a.html", "text/html", b"<title>t</title><script>no</script><p>Mary went to the <b>kitchen</b>. apple"),
        ("a.docx", _DOCX, _docx()),
        ("a.pdf", "application/octet-stream", _pdf()),
    ],
    ids=["text", "Markdown", "HTML", "DOCX", "PDF"],
)
def test_files_of_each_kind_become_documents(service: Any, name: str, kind: str, content: bytes) -> None:
    response = service.client.post("/documents", files={"file": (name, content, kind)}, headers={"Prefer": "wait=60"})

    assert response.status_code == 201, response.text
    assert response.json()["title"] == name
    # 31 is the shortest of these texts; the PDF has no apple.
    assert 25 <= response.json()["bytes"] <= 60


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pdf", b"%PDF-1.7\nbroken"),
        ("a.pdf", _pdf()[:200]),
        ("a.pdf", _locked_pdf()),
        ("a.docx", b"PK\x03\x04 broken"),
        ("a.docx", _docx()[:-100]),
        ("a.docx", _bomb()),
        ("a.html", b"<div>" * 30_000 + b"deep"),
    ],
    ids=["no PDF", "half a PDF", "locked", "no zip", "half a zip", "bomb", "deep HTML"],
)
def test_a_file_that_cannot_be_read_is_a_422(service: Any, name: str, content: bytes) -> None:
    response = service.client.post("/documents", files={"file": (name, content)})

    assert response.status_code == 422, response.text
    assert response.json()["errors"][0]["field"] in ("file", "text")
    assert service.client.get("/ready").status_code == 200


@pytest.mark.parametrize(
    ("name", "kind", "content"),
    [
        ("a.png", "image/png", b"\x89PNG"),
        ("a.exe", "application/octet-stream", b"MZ\0\0"),
        ("a.pdf", "application/pdf", b"no PDF"),
        ("a.txt", "text/plain", b"PK\x03\x04"),
        ("a.zip", "application/zip", b"PK\x03\x04"),
    ],
)
def test_other_kinds_of_files_are_refused(service: Any, name: str, kind: str, content: bytes) -> None:
    response = service.client.post("/documents", files={"file": (name, content, kind)})

    assert response.status_code == 415, response.text


@given(st.text(max_size=30), st.text(max_size=30), st.binary(max_size=40))
def test_any_name_type_and_content_have_a_kind_or_none(name: str, declared: str, content: bytes) -> None:
    kind = kind_of(name, declared, content)

    assert kind in ("text", "html", "pdf", "docx", None)
    if content.startswith(b"PK\x03\x04"):
        assert kind in ("docx", None)
