"""The reader: recalls a document's numbered entries one by one, and writes what follows from them.

A document's adapter recalls an entry best alone, in the form in which it was read: behind many others like it, one is
taken for another. And what follows from entries that stand in the context, and which to recall next, is the same for
all documents. So two adapters answer a question that takes many entries. One that all documents share, learned by
practice (`meta_training.practice`), writes the support; wherever it has written the name and number of an entry, the
document's own adapter completes the line in a context of its own, and the reader goes on behind that.

What it knows of a document stands in these lines alone. It begins with those that list the document's series
(`perk.series`); where there are none, or the question is of another kind, the document's adapter answers by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from perk.segments import segment_start
from perk.settings import SegmentSettings

__all__ = ["LINE_END", "Reader"]

LINE_END = "\n"


@dataclass(frozen=True)
class Reader:
    """What reads the lines that a document's adapter recalls.

    Attributes:
        adapter: flat buffer ``[P]``, that of no document.
        segments: how documents were read into their adapters.
    """

    adapter: Tensor
    segments: SegmentSettings

    @property
    def longest_line(self) -> int:
        """Most tokens of what is recalled behind the name of an entry."""
        return self.segments.max_tokens

    def cue(self, name: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids that an entry is recalled behind, by its name and number: it begins as a segment of its own."""
        return segment_start(name, tokenizer, self.segments)
