"""A made-up document of an exact number of tokens, the same in every run."""

from __future__ import annotations

import random

from perk.errors import InvalidInput
from perk.perk_model import PerkModel
from perk.segments import split_segments

__all__ = ["generate_document"]

_SEED = 0
# A line cut to the tokens that are left nearly always reads as that many tokens again; else another line is cut.
_CUTS = 200

_NAMES = ("Ada", "Bruno", "Clara", "Dmitri", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas")
_SURNAMES = ("Young", "Lindqvist", "Moreno", "Okoro", "Petrov", "Quinn", "Reyes", "Sato", "Turner", "Weber")
_MAJORS = ("Physics", "History", "Civil Engineering", "Linguistics", "Economics", "Fine Arts", "Computer Science")
_YEARS = ("Freshman", "Sophomore", "Junior", "Senior")
_THINGS = ("harbour", "old mill", "letter", "road to the north", "garden", "winter market", "bridge", "upper room")
_PEOPLE = ("traveller", "clerk", "schoolmaster", "miller's daughter", "captain", "widow", "young surveyor")
_DEEDS = ("had heard nothing of", "spoke at length about", "could not forget", "set out to find", "was thinking of")
_ENDS = (
    "although the weather had turned before noon",
    "and nobody in the village thought it strange",
    "which was more than anyone had expected of such a year",
    "so that the lamps were lit earlier than usual",
)


def generate_document(model: PerkModel, tokens: int) -> str:
    """Records and paragraphs of prose, which together carry exactly `tokens` tokens of loss.

    Raises:
        InvalidInput: `tokens` is not positive, or this tokeniser cannot meet it.
    """
    if tokens < 1:
        raise InvalidInput("tokens", str(tokens), "at least 1")
    rng = random.Random(_SEED)
    lines: list[str] = []
    left = tokens
    # Tokens that each segment has besides its text: a line of so few cannot be.
    besides = _count(model, "a") - len(model.base.tokenizer.encode("a", add_special_tokens=False))
    for _ in range(tokens + _CUTS):
        # In turn, so that the whole is never one of paragraphs, which would be read as numbered parts.
        line = _paragraph(rng) if len(lines) % 2 else _record(rng)
        size = _count(model, line)
        if size > left:
            ids = model.base.tokenizer.encode(line, add_special_tokens=False)[: left - besides]
            line = str(model.base.tokenizer.decode(ids)).strip()
            if not line or _count(model, line) != left:
                continue
            size = left
        elif 0 < left - size <= besides:
            continue
        lines.append(line)
        left -= size
        if left == 0:
            return "\n".join(lines)
    raise InvalidInput("tokens", str(tokens), f"a number that the tokeniser of {model.name} can meet")


def _count(model: PerkModel, line: str) -> int:
    """Tokens that a line has in the segments of a step, prefixes not counted, where it is no part."""
    plain = model.settings.segments.model_copy(update={"parts": False})
    segments = split_segments(line, model.base.tokenizer, plain)
    return sum(len(segment.ids) - segment.prefix_tokens for segment in segments)


def _record(rng: random.Random) -> str:
    return (
        f"Student <{rng.randrange(1_000_000, 10_000_000)}>, Name: {rng.choice(_NAMES)} {rng.choice(_SURNAMES)}, "
        f"Year: {rng.choice(_YEARS)}, Major: {rng.choice(_MAJORS)}, Grade: {rng.randrange(101)}"
    )


def _paragraph(rng: random.Random) -> str:
    sentences = [
        f"The {rng.choice(_PEOPLE)} {rng.choice(_DEEDS)} the {rng.choice(_THINGS)} "
        f"beside the {rng.choice(_THINGS)}, {rng.choice(_ENDS)}."
        for _ in range(rng.randint(2, 5))
    ]
    return " ".join(sentences)
