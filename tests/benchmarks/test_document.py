"""The benchmarks' document has exactly the tokens asked for, and is the same in every run."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from benchmarks.document import generate_document
from perk.errors import InvalidInput
from perk.perk_model import PerkModel


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> PerkModel:
    return PerkModel.load(tiny_checkpoint, device="cpu")


def _ending(model: PerkModel, end: str, *, parts: bool = False) -> PerkModel:
    """The same model with segments that end in that, paragraphs as parts or not."""
    segments = model.settings.segments.model_copy(update={"end": end, "parts": parts})
    settings = model.settings.model_copy(update={"segments": segments})
    return PerkModel(model.base, replace(model.checkpoint, settings=settings), adapted=model.adapted)


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize(("tokens", "end"), [(1, ""), *product([2, 7, 8, 9, 100, 513, 1024, 2000], ["", "\n"])])
def test_a_document_has_exactly_the_tokens_asked_for(model: PerkModel, tokens: int, end: str, parts: bool) -> None:
    model = _ending(model, end, parts=parts)
    text = generate_document(model, tokens)

    assert model.start_encoding([text]).tokens == [tokens]
    assert text == generate_document(model, tokens)


def test_a_document_of_an_end_alone_is_refused(model: PerkModel) -> None:
    with pytest.raises(InvalidInput, match="tokens: got 1, expected a number that the tokeniser"):
        generate_document(_ending(model, "\n"), 1)


def test_a_document_without_tokens_is_refused(model: PerkModel) -> None:
    with pytest.raises(InvalidInput, match="tokens: got 0, expected at least 1"):
        generate_document(model, 0)
