"""Segments of D documents become micro-batches that together hold each token's loss once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perk.batches import make_micro_batches, pack_micro_batches
from perk.segment import Segment

PAD = 0


@st.composite
def _segment(draw: st.DrawFn) -> Segment:
    ids = draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    return Segment(ids=tuple(ids), prefix_tokens=draw(st.integers(0, len(ids) - 1)))


# A document may be without segments, as one is that nothing is asked about, but not all.
DOCUMENTS = st.lists(st.lists(_segment(), max_size=6), min_size=1, max_size=4).filter(any)


def _losses(segments: Sequence[Segment]) -> list[tuple[tuple[int, ...], int]]:
    """Each loss token with all that stands before it."""
    return sorted(
        (segment.ids[:index], segment.ids[index])
        for segment in segments
        for index in range(segment.first_loss, len(segment.ids))
    )


@given(documents=DOCUMENTS, token_limit=st.integers(1, 100))
def test_each_token_with_loss_is_predicted_once_from_all_before_it(
    documents: list[list[Segment]], token_limit: int
) -> None:
    found: list[list[tuple[tuple[int, ...], int]]] = [[] for _ in documents]
    for batch in make_micro_batches(documents, token_limit=token_limit, pad_id=PAD):
        length = batch.ids.shape[1]
        ids = batch.ids.view(batch.documents, -1, length)
        for place, index in (batch.shares > 0).nonzero().tolist():
            row, column = divmod(int(batch.positions[place, index]), length)
            before = tuple(ids[place, row, : column + 1].tolist())
            assert PAD not in before
            assert int(batch.own_positions[place, index]) == row * length + column + 1
            assert int(ids[place, row, column + 1]) == int(batch.targets[place, index])
            found[int(batch.members[place])].append((before, int(batch.targets[place, index])))
    assert [sorted(losses) for losses in found] == [_losses(segments) for segments in documents]


@given(documents=DOCUMENTS, token_limit=st.integers(1, 100))
def test_the_shares_of_a_document_are_those_of_a_mean(documents: list[list[Segment]], token_limit: int) -> None:
    batches = make_micro_batches(documents, token_limit=token_limit, pad_id=PAD)
    for d, segments in enumerate(documents):
        shares = torch.cat([batch.shares[batch.members == d].flatten() for batch in batches])
        count = sum(segment.loss_tokens for segment in segments)
        torch.testing.assert_close(shares[shares > 0], torch.full((count,), 1 / max(count, 1)))


@given(documents=DOCUMENTS, token_limit=st.integers(1, 100))
def test_a_micro_batch_has_at_most_the_limit_unless_it_is_one_segment_of_each(
    documents: list[list[Segment]], token_limit: int
) -> None:
    for batch in make_micro_batches(documents, token_limit=token_limit, pad_id=PAD):
        assert batch.ids.numel() <= token_limit or batch.ids.shape[0] == batch.documents


@given(segments=st.lists(_segment(), min_size=1, max_size=12), token_limit=st.integers(1, 40))
def test_packed_segments_have_the_losses_and_shares_of_padded_ones(segments: list[Segment], token_limit: int) -> None:
    found: list[tuple[tuple[int, ...], int]] = []
    batches = pack_micro_batches(segments, token_limit=token_limit)
    for batch in batches:
        assert batch.row_lengths == batch.lengths
        starts = [0, *accumulate(batch.row_lengths)]
        assert batch.ids.shape == (1, starts[-1])
        assert starts[-1] <= token_limit or len(batch.row_lengths) == 1
        for position, own in zip(batch.positions[0].tolist(), batch.own_positions[0].tolist(), strict=True):
            assert own == position + 1
            start = max(start for start in starts if start <= own)
            found.append((tuple(batch.ids[0, start:own].tolist()), int(batch.ids[0, own])))
        assert batch.targets[0].tolist() == batch.ids[0, batch.own_positions[0]].tolist()
    assert sorted(found) == _losses(segments)
    (padded,) = make_micro_batches([segments], token_limit=1_000, pad_id=PAD, padding_limit=1.0)
    shares = torch.cat([batch.shares[0] for batch in batches])
    assert shares.sort().values.tolist() == padded.shares[0].sort().values.tolist()


def test_packed_micro_batches_are_of_about_one_size_and_equal_lengths_lie_side_by_side() -> None:
    segments = [Segment(ids=(1,) * length, prefix_tokens=1) for length in (9, 30, 11, 20, 11, 40, 11, 28)]
    batches = pack_micro_batches(segments, token_limit=60)
    assert [batch.lengths for batch in batches] == [(40,), (30,), (28, 20), (11, 11, 11, 9)]


def test_segments_of_one_length_fill_the_limit() -> None:
    segments = [Segment(ids=(1,) * 10, prefix_tokens=2)] * 7
    batches = make_micro_batches([segments], token_limit=30, pad_id=PAD)
    assert [tuple(batch.ids.shape) for batch in batches] == [(3, 10), (3, 10), (1, 10)]


def test_little_is_padding() -> None:
    lengths = [100, 95, 90, 50, 48, 46, 5]
    segments = [Segment(ids=(1,) * length, prefix_tokens=1) for length in lengths]
    batches = make_micro_batches([segments], token_limit=10_000, pad_id=PAD)
    assert sum(int((batch.ids == PAD).sum()) for batch in batches) <= 0.15 * sum(lengths)
    assert len(batches) == 3


def test_as_much_is_padding_as_is_said() -> None:
    segments = [Segment(ids=(1,) * length, prefix_tokens=1) for length in (100, 95, 90, 50, 48, 46, 5)]
    batches = make_micro_batches([segments], token_limit=10_000, pad_id=PAD, padding_limit=0.3)
    assert [tuple(batch.ids.shape) for batch in batches] == [(6, 100), (1, 5)]


@given(documents=DOCUMENTS)
def test_cutting_documents_apart_never_adds_padding(documents: list[list[Segment]]) -> None:
    whole, cut = (
        sum(b.ids.numel() for b in make_micro_batches(documents, token_limit=10_000, pad_id=PAD, padding_limit=limit))
        for limit in (0.999, 0.3)
    )
    assert cut <= whole


def test_documents_of_many_short_segments_are_not_filled_up_to_those_of_few_long_ones() -> None:
    register = [Segment(ids=(1,) * 40, prefix_tokens=1)] * 20
    article = [Segment(ids=(1,) * 200, prefix_tokens=1)] * 3
    batches = make_micro_batches([register, article, register], token_limit=10_000, pad_id=PAD)
    found = [(batch.members.tolist(), tuple(batch.ids.shape)) for batch in batches]
    assert sorted(found) == [([0, 2], (40, 40)), ([1], (3, 200))]


def test_rows_of_some_documents_are_picked_and_added() -> None:
    batch, other = make_micro_batches(
        [[Segment(ids=(1,) * n, prefix_tokens=1)] for n in (40, 4, 40)], token_limit=100, pad_id=PAD
    )
    assert (batch.members.tolist(), other.members.tolist()) == ([1], [0, 2])
    every = torch.arange(6.0).view(3, 2)
    assert torch.equal(other.rows_of(every), every[[0, 2]])
    assert torch.equal(
        other.add_to(torch.zeros(3, 2), torch.ones(2, 2)), torch.tensor([[1.0] * 2, [0.0] * 2, [1.0] * 2])
    )


def test_there_must_be_a_document() -> None:
    with pytest.raises(ValueError, match="empty"):
        make_micro_batches([], token_limit=10, pad_id=PAD)


def test_tokens_that_weigh_nothing_are_not_predicted() -> None:
    segments = [
        Segment(ids=(5, 6, 7, 8, 9), prefix_tokens=2, weights=(0.0, 3.0, 1.0)),
        Segment(ids=(4, 3, 2, 1, 0), prefix_tokens=3),
    ]
    (batch,) = make_micro_batches([segments], token_limit=100, pad_id=PAD)
    assert batch.targets.tolist() == [[8, 9, 1, 0]]
    # Each is predicted by the state before it, in rows of five.
    assert batch.positions.tolist() == [[2, 3, 7, 8]]
    assert batch.shares[0].tolist() == pytest.approx([3 / 6, 1 / 6, 1 / 6, 1 / 6])
