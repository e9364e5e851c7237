"""A larger checkpoint computes what the smaller one did, and can be trained from there."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from meta_training.__main__ import application
from meta_training.enlargement import enlarge
from perk import PerkModel
from perk.base_model import load_base_model
from perk.checkpoint import Checkpoint, load_checkpoint
from perk.errors import InvalidInput
from perk.readers import READERS

_IDS = torch.tensor([[5, 9, 2, 7, 3]])


@pytest.fixture
def model(tiny_checkpoint: Path) -> PerkModel:
    """With an initialisation that changes the base's states, as one of meta-training does."""
    loaded = load_checkpoint(tiny_checkpoint)
    generator = torch.Generator().manual_seed(3)
    initial = loaded.tensors["initial"] + 0.2 * torch.randn(loaded.tensors["initial"].shape, generator=generator)
    sizes = loaded.tensors["log_step_sizes"] + 0.01 * torch.arange(loaded.tensors["log_step_sizes"].shape[1])
    tensors = loaded.tensors | {"initial": initial, "log_step_sizes": sizes}
    base = load_base_model(loaded.settings.base.source, device="cpu")
    return PerkModel(base, Checkpoint("tiny", loaded.settings, tensors))


def _states(model: PerkModel, adapter: Tensor | None = None) -> Tensor:
    with torch.no_grad(), model.adapted.bind((model.initial if adapter is None else adapter)[None]):
        return model.adapted.upper_states(model.adapted.lower_states(_IDS))


def _load(checkpoint: Checkpoint) -> PerkModel:
    return PerkModel(load_base_model(checkpoint.settings.base.source, device="cpu"), checkpoint)


@pytest.mark.parametrize("rank", [4, 7, 16])
def test_more_rank_computes_the_same_until_it_learns(model: PerkModel, rank: int) -> None:
    larger = _load(enlarge(model.checkpoint, model.adapted.layout, rank=rank))
    assert larger.settings.lora.rank == rank
    assert larger.settings.lora.scale == pytest.approx(model.settings.lora.scale)
    torch.testing.assert_close(_states(larger), _states(model))
    for (a, b), (old_a, old_b) in zip(
        larger.adapted.layout.views(larger.checkpoint.tensors["initial"][None]),
        model.adapted.layout.views(model.checkpoint.tensors["initial"][None]),
        strict=True,
    ):
        assert torch.equal(a[:, :4], old_a)
        assert torch.equal(b[:, :, :4], old_b)
        if rank > 4:
            assert (a[:, 4:].std() / old_a.std()) == pytest.approx(1, rel=0.4)
    shrunk = model.checkpoint.tensors["log_step_sizes"] + math.log2(rank / 4) * math.log(0.8)
    torch.testing.assert_close(larger.checkpoint.tensors["log_step_sizes"], shrunk)


@pytest.mark.parametrize("name", READERS)
def test_a_reader_computes_the_same_too(model: PerkModel, name: str) -> None:
    # Small enough for states of the size of the others here: rounding is of that size too.
    reader = 0.05 * torch.randn(model.adapter_size, generator=torch.Generator().manual_seed(4))
    tensors = model.checkpoint.tensors | {name: reader}
    checkpoint = Checkpoint("tiny", model.settings, tensors)
    larger = enlarge(checkpoint, model.adapted.layout, rank=9)
    torch.testing.assert_close(_states(_load(larger), larger.tensors[name]), _states(model, reader))
    assert not torch.allclose(_states(model, reader), _states(model))


def test_more_steps_follow_those_that_were_learned(model: PerkModel) -> None:
    larger = enlarge(model.checkpoint, model.adapted.layout, steps=5)
    sizes = larger.tensors["log_step_sizes"].exp()
    old = model.checkpoint.tensors["log_step_sizes"].exp()
    torch.testing.assert_close(sizes[:2], old)
    torch.testing.assert_close(sizes[2:], old[-1] * torch.tensor([0.7, 0.49, 0.343])[:, None])
    assert torch.equal(larger.tensors["initial"], model.checkpoint.tensors["initial"])
    assert _load(larger).encode("Alice keeps the red key. Bob keeps the blue one.").steps == 5


def test_nothing_asked_is_nothing_changed(model: PerkModel) -> None:
    assert enlarge(model.checkpoint, model.adapted.layout).fingerprint == model.checkpoint.fingerprint


def test_the_seed_decides_what_is_new(model: PerkModel) -> None:
    one, same, other = (enlarge(model.checkpoint, model.adapted.layout, rank=8, seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint == same.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rank": 3}, "rank: got 3, expected at least the checkpoint's 4"),
        ({"rank": 0}, "rank: got 0, expected at least the checkpoint's 4"),
        ({"steps": 1}, "steps: got 1, expected at least the checkpoint's 2"),
        ({"rank": 1025}, r"lora\.rank: got 1025, expected .*1024"),
        ({"steps": 65}, r"inner\.steps: got 65, expected .*64"),
    ],
)
def test_sizes_out_of_range_are_refused(model: PerkModel, asked: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        enlarge(model.checkpoint, model.adapted.layout, **asked)


def test_the_command_writes_a_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["enlarge", "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "out"), "--rank", "8"]
    result = CliRunner().invoke(application, arguments)
    assert result.exit_code == 0, result.output
    assert PerkModel.load(tmp_path / "out").settings.lora.rank == 8
