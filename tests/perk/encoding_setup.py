"""Encodings on the tiny GPT-2 in float64, with learned parameters that are fixed, and what they should come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from perk.inner_loop import EncodedDocument, Encoding
from perk.lora import AdaptedModel
from perk.segment import Segment
from perk.settings import InnerSettings
from perk.token_weights import TokenWeighting

STEPS = 3
EVERYTHING, ONE_SEGMENT = 1_000_000, 1
KEPT, RECOMPUTED = 1_000_000, 0


@dataclass(frozen=True)
class Setup:
    """A model with learned parameters that are random but fixed."""

    adapted: AdaptedModel
    weighting: TokenWeighting
    initial: Tensor
    log_step_sizes: Tensor

    def start(
        self,
        documents: Sequence[Sequence[Segment]],
        *,
        token_limit: int = EVERYTHING,
        state_limit: int = KEPT,
        weighted: bool = True,
        **inner: Any,
    ) -> Encoding:
        settings = InnerSettings(**{"rule": "rms", "steps": STEPS, **inner})
        return Encoding(
            self.adapted,
            self.weighting if weighted else None,
            settings,
            self.initial,
            self.log_step_sizes,
            documents,
            token_limit=token_limit,
            state_limit=state_limit,
        )

    def encode(self, documents: Sequence[Sequence[Segment]], **options: Any) -> list[EncodedDocument]:
        return finish(self.start(documents, **options))


def finish(encoding: Encoding) -> list[EncodedDocument]:
    while not encoding.done:
        encoding.advance()
    return encoding.results()


def assert_same(found: Sequence[EncodedDocument], expected: Sequence[EncodedDocument]) -> None:
    for one, other in zip(found, expected, strict=True):
        # The adapters are handed out in float32.
        torch.testing.assert_close(one.adapter, other.adapter, rtol=0, atol=1e-6)
        assert one.loss_before == pytest.approx(other.loss_before, rel=1e-6)
        assert one.loss_after == pytest.approx(other.loss_after, rel=1e-6)


def assert_same_alone(setup: Setup, documents: Sequence[Sequence[Segment]], **options: Any) -> list[int]:
    """Documents encoded together are as each alone; returns the steps of each."""
    together = setup.encode(documents, **options)
    alone = [setup.encode([document], **options)[0] for document in documents]
    assert_same(together, alone)
    steps = [encoded.steps for encoded in together]
    assert steps == [encoded.steps for encoded in alone]
    return steps


def assert_same_however_cut(setup: Setup, documents: Sequence[Sequence[Segment]], **options: Any) -> None:
    """A segment in each micro-batch makes the same adapters as all in one, its states kept or recomputed."""
    whole = setup.encode(documents, token_limit=EVERYTHING, **options)
    for state_limit in (KEPT, RECOMPUTED):
        assert_same(setup.encode(documents, token_limit=ONE_SEGMENT, state_limit=state_limit, **options), whole)


def progress_of(encoding: Encoding) -> list[float]:
    """Progress at the beginning and after each slice, to the end."""
    progress = [encoding.progress]
    while not encoding.done:
        encoding.advance()
        progress.append(encoding.progress)
    return progress


def defined_loss(
    setup: Setup, theta: Tensor, segments: Sequence[Segment], competing: Tensor, *, weighted: bool
) -> Tensor:
    """Weighted mean NLL of one document, segment by segment, `competing` being the tokens that may be predicted."""
    base = setup.adapted.base
    total, count = theta.new_zeros(()), 0
    for segment in segments:
        ids = torch.tensor([segment.ids])
        # The weights are those of the frozen base: no adapter is bound.
        states = base.backbone(ids).last_hidden_state[0]
        weights = setup.weighting(states) if weighted else torch.ones(len(states))
        with setup.adapted.bind(theta[None]):
            logits = base.model(ids).logits[0][:, competing]
        targets = torch.searchsorted(competing, ids[0])
        nll = functional.cross_entropy(logits[:-1], targets[1:], reduction="none")
        total = total + (weights[1:] * nll)[segment.prefix_tokens - 1 :].sum()
        count += len(segment.ids) - segment.prefix_tokens
    return total / count
