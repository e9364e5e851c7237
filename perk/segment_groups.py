"""Groups of a document's segments, which take turns in the steps of the inner loop."""

from __future__ import annotations

from collections.abc import Sequence

from perk.segment import Segment

__all__ = ["group_segments"]


def group_segments(segments: Sequence[Segment], tokens: int) -> list[list[Segment]]:
    """Deal a document's segments out to as few groups of at most about so many tokens as hold them, all of a size.

    The groups depend on the segments alone, not on their order.

    Returns:
        Groups that together hold each segment once: one for each `tokens` tokens that the document has or begins, but
        no more than there are segments, and at least one.
    """
    count = min(-(-sum(len(segment.ids) for segment in segments) // tokens), len(segments))
    if count <= 1:
        return [list(segments)]
    groups: list[list[Segment]] = [[] for _ in range(count)]
    sizes = [0] * count
    # The longest first, each to the group that has least: what comes last evens them out.
    for segment in sorted(segments, key=lambda s: (-len(s.ids), s.ids)):
        least = sizes.index(min(sizes))
        groups[least].append(segment)
        sizes[least] += len(segment.ids)
    return groups
