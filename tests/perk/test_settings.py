"""What a checkpoint's settings accept, and what they mean."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from perk.settings import InnerSettings, LoraSettings, PerkSettings, SegmentSettings, TemplateSettings


def test_they_survive_json() -> None:
    settings = PerkSettings(
        lora=LoraSettings(rank=2, targets=("q_proj",)), inner=InnerSettings(rule="rms", candidates=7)
    )
    assert PerkSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"unknown": 1}, "unknown"),
        ({"format": 2}, "format"),
        ({"lora": {"rank": 0}}, "lora.rank"),
        ({"lora": {"dropout": 0.1}}, "lora.dropout"),
        ({"lora": {"targets": "some"}}, "lora.targets"),
        ({"lora": {"first_layer": -1}}, "lora.first_layer"),
        ({"inner": {"rule": "sgd"}}, "inner.rule"),
        ({"inner": {"steps": 0}}, "inner.steps"),
        ({"inner": {"step_size": 0}}, "inner.step_size"),
        ({"inner": {"candidates": 0}}, "inner.candidates"),
        ({"inner": {"rivals": [0]}}, "inner.rivals"),
        ({"inner": {"repeat": {"step": 1, "most": 257, "loss": 1}}}, "inner.repeat.most"),
        ({"inner": {"repeat": {"step": 1, "most": 1, "loss": 0}}}, "inner.repeat.loss"),
        ({"inner": {"groups": {"step": 0, "tokens": 8}}}, "inner.groups.step"),
        ({"inner": {"groups": {"step": 1, "tokens": 7}}}, "inner.groups.tokens"),
        ({"inner": {"groups": {"step": 1, "tokens": 8, "above": -1}}}, "inner.groups.above"),
        ({"inner": {"groups": {"step": 1, "tokens": 8, "stride": 0}}}, "inner.groups.stride"),
        ({"segments": {"max_tokens": 7}}, "segments.max_tokens"),
    ],
)
def test_an_unknown_name_or_a_bad_value_is_refused_by_name(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        PerkSettings.model_validate(settings)
    found = {".".join(map(str, error["loc"])) for error in caught.value.errors()}
    assert any(name.startswith(field) for name in found), found


@pytest.mark.parametrize(
    ("named", "field"),
    [
        ({"rivals": [2, 5]}, "rivals"),
        ({"repeat": {"step": 5, "most": 1, "loss": 1}}, "repeat.step"),
        ({"groups": {"step": 5, "tokens": 8}}, "groups.step"),
    ],
)
def test_a_step_that_is_named_is_one_of_them(named: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=f"{field}: step 5 of 4"):
        PerkSettings.model_validate({"inner": {"steps": 4} | named})


def test_steps_that_are_left_out_lie_behind_one_that_is_repeated() -> None:
    with pytest.raises(ValidationError, match=r"groups\.stride: 2 without a step to repeat"):
        PerkSettings.model_validate({"inner": {"groups": {"step": 1, "tokens": 8, "stride": 2}}})


def test_they_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PerkSettings().lora.rank = 3  # type: ignore[misc]


@pytest.mark.parametrize(("stabilised", "scale"), [(True, 16 / 8), (False, 16 / 64)])
def test_the_scale_of_the_adapter_is_alpha_over_the_rank_or_its_root(stabilised: bool, scale: float) -> None:
    assert LoraSettings(rank=64, alpha=16, rank_stabilised=stabilised).scale == scale


@pytest.mark.parametrize("prefix", ["{name}: ", "{", "{0}", "{index!}"])
def test_a_prefix_may_use_the_index_only(prefix: str) -> None:
    with pytest.raises(ValidationError, match="may use no field but"):
        SegmentSettings(prefix=prefix)
    for allowed in ("", "fact: ", "{index}) "):
        SegmentSettings(prefix=allowed)


def test_a_template_must_hold_what_it_is_for() -> None:
    with pytest.raises(ValidationError, match=r"must contain \{question\}"):
        TemplateSettings(prompt="Answer:")
    with pytest.raises(ValidationError, match=r"must contain \{answer\}"):
        TemplateSettings(answer="yes")
    with pytest.raises(ValidationError, match=r"must contain \{support\} once"):
        TemplateSettings(support="{support}{support}\n")
    with pytest.raises(ValidationError, match="must end with a mark"):
        TemplateSettings(support="Facts: {support}\n")


def test_a_target_is_the_support_its_mark_and_the_answer() -> None:
    assert TemplateSettings().target("kitchen", ["Mary is in the kitchen."]) == " kitchen"
    paper = TemplateSettings(support=" <support>{support}</support>\n<output>", answer="{answer}</output>")
    assert paper.target("Yes", ["One.", "Two."]) == " <support>One.\nTwo.</support>\n<output>Yes</output>"
    assert paper.support_end == "</support>\n<output>"


@pytest.mark.parametrize("texts", [{"prompt": "{question} {document}"}, {"answer": "{answer} {"}])
def test_a_template_may_use_nothing_else(texts: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="may use no field but"):
        TemplateSettings(**texts)
