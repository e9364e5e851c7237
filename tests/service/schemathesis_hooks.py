"""What schemathesis cannot know from an OpenAPI document: which bytes are a file of an accepted kind."""

from __future__ import annotations

import schemathesis
from hypothesis import strategies as st


def _is_document(text: str) -> bool:
    return bool(text.removeprefix("\ufeff").strip()) and "\0" not in text


schemathesis.openapi.format("binary", st.text(min_size=1).filter(_is_document).map(str.encode))
