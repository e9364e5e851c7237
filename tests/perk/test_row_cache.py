"""Attention over rows that are read in parts."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from perk.row_cache import ROW_ATTENTION, RowCache, RowCaches


@pytest.mark.parametrize("parts", [[7], [1] * 7, [3, 4], [2, 1, 3, 1]])
def test_tokens_read_behind_others_attend_as_in_one_pass(parts: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 7, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 1, 2, 7, 8, generator=generator, dtype=torch.float64)
    whole = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    attend = AttentionInterface()[ROW_ATTENTION]
    caches = RowCaches([RowCache()])
    read = []
    for q, k, v in zip(query.split(parts, 2), key.split(parts, 2), value.split(parts, 2), strict=True):
        keys, values = caches.update(k, v, 0)
        read.append(attend(None, q, keys, values, None)[0])
        caches.grow(q.shape[2])
    torch.testing.assert_close(torch.cat(read, dim=1).transpose(1, 2), whole)


def test_a_cache_takes_what_its_row_takes_and_grows_with_it() -> None:
    cache = RowCache()
    tokens = torch.randn(2, 1, 2, 300, 8)
    for key, value in tokens.split([9, *[1] * 291], 3):
        keys, values = cache.append(0, key, value)
        assert keys.untyped_storage().nbytes() <= 2 * max(keys.nbytes, 13 * keys[:, :, :1].nbytes)
        cache.length += key.shape[2]
    torch.testing.assert_close(torch.stack([keys, values]), tokens)
