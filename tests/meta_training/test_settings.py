"""The settings of a run: read from a file, under overrides; what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from meta_training.settings import read_settings
from perk.errors import InvalidInput

CONFIG: dict[str, Any] = {
    "seed": 3,
    "output": "runs/some",
    "outer": {"unrolled": 1},
    "stages": [{"steps": steps, "tasks": [{"task": "student-recall", "tokens": [60, 160]}]} for steps in (2, 2)],
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """File with `CONFIG`."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("sede=1", "sede"),
        ("outer.unroled=1", "outer.unroled"),
        ("inner.step=1", "inner.step"),
        ("stages.0.tasks.0.token=[1, 2]", "stages.0.tasks.0.token"),
        ("outer.documents=0", "outer.documents"),
        ("outer.rate=fast", "outer.rate"),
        ("stages=[]", "stages"),
        ("stages.0.tasks=[]", "stages.0.tasks"),
        ("stages.0.tasks.0.tokens=[9, 3]", "stages.0.tasks.0.tokens"),
        ("stages.0.tasks.0.tokens=[0, 3]", "stages.0.tasks.0.tokens.0"),
        ("nothing", "set"),
        ("seed.deep=1", "set"),
        ("stages.7.steps=1", "set"),
        ("stages.x=1", "set"),
        ("seed={", "set"),
    ],
)
def test_an_unknown_key_or_a_bad_value_is_an_error_that_names_it(override: str, field: str, config: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_settings(config, [override])
    assert caught.value.field == field


@pytest.mark.parametrize("content", [b"\xff\xfe", b"seed: [", b"- 1\n- 2\n", b""])
def test_a_file_that_is_no_mapping_is_an_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="config: got"):
        read_settings(path)
    with pytest.raises(InvalidInput, match="config: got"):
        read_settings(tmp_path / "nowhere.yaml")


def test_overrides_stand_over_the_file(config: Path) -> None:
    settings = read_settings(config, ["stages.1.steps=7", "inner.rule=adamw", "outer.betas=[0.5, 0.6]"])
    assert settings.total_steps == 9
    assert settings.inner.rule == "adamw"
    assert settings.outer.betas == (0.5, 0.6)
    assert settings.outer.unrolled == 1
