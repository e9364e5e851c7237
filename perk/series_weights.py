"""What numbered entries weigh in the inner loop, and what is said of their series (`perk.series`).

Where a series ends is read against all its entries, which go on alike, and the end of one must not be taken for that of
another: so it weighs more, and as much the first token behind an entry's name. And a few entries in a long text would
be lost in it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedTokenizerBase

from perk.series import entry_at_end

__all__ = ["entry_weights", "line_weights", "share_out"]

# What a token of what is said of a series weighs, its name apart.
_STRESS = 5.0
# Entries, and what is said of their series, are at least this share of a document's loss.
_LEAST_SHARE = 1 / 3


def entry_weights(
    piece: Sequence[int], series: Collection[str], tokenizer: PreTrainedTokenizerBase, lead: str
) -> tuple[float, ...]:
    """What each token of a piece of text weighs if there is an entry of one of the series in it; else nothing.

    Args:
        piece: token ids.
        series: their names.
        tokenizer: of the ids.
        lead: what stands before the text.
    """
    weights = [1.0] * len(piece)
    for index, token in enumerate(tokenizer.convert_ids_to_tokens(list(piece[:-1]))):
        if token.endswith(":"):
            text = str(tokenizer.decode(list(piece[: index + 1])))
            if entry_at_end(text.removeprefix(lead)) in series:
                weights[index + 1] = _STRESS
    return tuple(weights) if _STRESS in weights else ()


def line_weights(name: Sequence[int], line: Sequence[int]) -> tuple[float, ...]:
    """What each token of a line about a series weighs, whose first tokens are a name."""
    return (1.0,) * len(name) + (_STRESS,) * (len(line) - len(name))


def share_out(weights: Sequence[tuple[float, ...]], tokens: int) -> list[tuple[float, ...]]:
    """Weights of all pieces of a document, those of entries and their series no lighter than their share together.

    Args:
        weights: of each piece; none where there is no entry in it.
        tokens: of the pieces without.
    """
    entries = sum(map(sum, weights))
    scale = max(1.0, _LEAST_SHARE / (1 - _LEAST_SHARE) * tokens / entries) if entries else 1.0
    return [tuple(scale * weight for weight in piece) for piece in weights]
