"""The mean of checkpoints, tensor by tensor, of runs that can be averaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from meta_training.__main__ import application
from meta_training.average import average
from perk.checkpoint import Checkpoint, load_checkpoint
from perk.errors import InvalidInput
from perk.readers import READERS


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(tiny_checkpoint)


def _moved(checkpoint: Checkpoint, by: float) -> Checkpoint:
    return replace(checkpoint, tensors={name: tensor + by for name, tensor in checkpoint.tensors.items()})


def test_every_tensor_is_averaged(checkpoint: Checkpoint) -> None:
    mean = average([checkpoint, _moved(checkpoint, 1), _moved(checkpoint, 5)])
    assert mean.settings == checkpoint.settings
    assert mean.tensors.keys() == checkpoint.tensors.keys()
    for name, tensor in checkpoint.tensors.items():
        torch.testing.assert_close(mean.tensors[name], tensor + 2)


@pytest.mark.parametrize("name", READERS)
def test_the_first_one_s_readers_are_taken(checkpoint: Checkpoint, name: str) -> None:
    reader = torch.linspace(-1, 1, len(checkpoint.tensors["initial"]))
    reading = replace(checkpoint, tensors=checkpoint.tensors | {name: reader})
    assert torch.equal(average([reading, checkpoint]).tensors[name], reader)
    assert name not in average([checkpoint, reading]).tensors


def test_shares_weigh_them(checkpoint: Checkpoint) -> None:
    mean = average([checkpoint, _moved(checkpoint, 8)], [0.25, 0.75])
    for name, tensor in checkpoint.tensors.items():
        torch.testing.assert_close(mean.tensors[name], tensor + 6)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([1.0], "shares: got 1, expected one for each of 2 checkpoints"),
        ([0.5, 0.6], r"shares: got 0.5 \+ 0.6, expected numbers from 0 that add up to 1"),
        ([1.5, -0.5], r"shares: got 1.5 \+ -0.5, expected numbers from 0 that add up to 1"),
    ],
)
def test_shares_that_are_none_are_refused(checkpoint: Checkpoint, shares: list[float], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        average([checkpoint, checkpoint], shares)


def test_the_first_says_how_texts_are_written(checkpoint: Checkpoint) -> None:
    settings = checkpoint.settings
    segments = settings.segments.model_copy(update={"max_tokens": settings.segments.max_tokens + 1})
    other = replace(checkpoint, settings=settings.model_copy(update={"segments": segments}))
    assert average([other, checkpoint]).settings == other.settings
    assert average([checkpoint, other]).settings == settings


def test_one_alone_is_itself(checkpoint: Checkpoint) -> None:
    assert average([checkpoint]).fingerprint == checkpoint.fingerprint


def test_nothing_has_no_mean() -> None:
    with pytest.raises(InvalidInput, match="checkpoints: got none"):
        average([])


def test_checkpoints_of_other_settings_are_refused(
    checkpoint: Checkpoint, save_checkpoint: Callable[..., Path]
) -> None:
    other = load_checkpoint(save_checkpoint("other", rank=4, steps=3))
    with pytest.raises(
        InvalidInput, match="checkpoints: got 'other', expected the base, adapter and inner loop of 'tiny'"
    ):
        average([checkpoint, other])


@pytest.mark.parametrize(("shares", "by"), [([], 1.0), (["--share", "0.75", "--share", "0.25"], 0.5)])
def test_the_command_writes_a_checkpoint(checkpoint: Checkpoint, tmp_path: Path, shares: list[str], by: float) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    checkpoint.save(folders[0])
    _moved(checkpoint, 2).save(folders[1])
    result = CliRunner().invoke(application, ["average", *map(str, folders), "--out", str(tmp_path / "mean"), *shares])
    assert result.exit_code == 0, result.output
    torch.testing.assert_close(
        load_checkpoint(tmp_path / "mean").tensors["initial"], checkpoint.tensors["initial"] + by
    )
