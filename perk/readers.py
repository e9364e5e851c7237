"""Readers: adapters of no document, which read what documents' adapters recall. They are learned by practice.

A document's adapter recalls an entry best alone, in the form in which it was read: behind many others like it, one is
taken for another. And what follows from entries that stand in the context, and which to recall next, is the same for
all documents. So two adapters answer a question that takes many entries. One that all documents share, learned by
practice (`meta_training.practice`), writes the support; wherever it has written the name and number of an entry, the
document's own adapter completes the line in a context of its own, and the reader goes on behind that.

What it knows of a document stands in these lines alone. It begins with those that list the document's series
(`perk.series`); where there are none, or the question is of another kind, the document's adapter answers by itself.

Nor is a document's adapter the best one to find an answer in a part that it has recalled (`perk.part_recall`): a few
steps have made it say what the document says, whatever it is asked. A second reader does that, and chooses the part.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from perk.recalled_parts import RecalledParts
from perk.settings import SegmentSettings

__all__ = ["LINE_END", "READERS", "Readers"]

LINE_END = "\n"

READERS = ("reader", "part_reader")
"""Names of their tensors in a checkpoint: of entries, and of parts."""


@dataclass(frozen=True)
class Readers:
    """What reads that which a document's adapter recalls.

    Attributes:
        segments: how documents were read into their adapters.
        of_entries: flat buffer ``[P]``; None: the document's adapter recalls entries by itself.
        of_parts: the same; None: the document's adapter reads its own parts.
        recalled: what documents' adapters have said of their parts.
    """

    segments: SegmentSettings
    of_entries: Tensor | None = None
    of_parts: Tensor | None = None
    recalled: RecalledParts = field(default_factory=RecalledParts)
