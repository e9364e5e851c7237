"""A story is recounted actor by actor, and after each fact that moves the thing stands where it is."""

from __future__ import annotations

from meta_training.tasks.recount import recount_actor, recount_thing

_FACTS = (
    "Ben moved to the barn.",
    "Ann picked up the lamp.",
    "Ann went to the shed.",
    "Ben got the milk.",
    "Ann went to the barn.",
    "Ann dropped the lamp there.",
    "Ben took the lamp.",
    "Ann journeyed to the attic.",
    "Ben went to the cellar.",
)
_LINES = (
    "Ben Event 1: Ben moved to the barn.",
    "Ann Event 1: Ann picked up the lamp.",
    "Ann Event 2: Ann went to the shed.",
    "Ben Event 2: Ben got the milk.",
    "Ann Event 3: Ann went to the barn.",
    "Ann Event 4: Ann dropped the lamp there.",
    "Ben Event 3: Ben took the lamp.",
    "Ann Event 5: Ann journeyed to the attic.",
    "Ben Event 4: Ben went to the cellar.",
)


def test_everyones_facts_come_in_order_with_where_the_thing_is() -> None:
    series = {"Ann Event": 5, "Ben Event": 4, "Door": 2}
    recount = recount_thing(_FACTS, _LINES, "lamp", rename=str, series=series)
    assert recount.lines == (
        "Series 1: Ann Event.",
        "Ann Event 1: Ann picked up the lamp.",
        "lamp taken: somewhere",
        "Ann Event 2: Ann went to the shed.",
        "lamp: shed, from somewhere",
        "Ann Event 3: Ann went to the barn.",
        "lamp: barn, from shed",
        "Ann Event 4: Ann dropped the lamp there.",
        "lamp left: barn",
        "Ann Event 5: Ann journeyed to the attic.",
        "Ann Event 6: none.",
        "Ann left the lamp: barn",
        "Series 2: Ben Event.",
        "Ben Event 1: Ben moved to the barn.",
        "Ben Event 2: Ben got the milk.",
        "Ben Event 3: Ben took the lamp.",
        "lamp taken: barn",
        "Ben Event 4: Ben went to the cellar.",
        "lamp: cellar, from barn",
        "Ben Event 5: none.",
        "Ben has the lamp: cellar",
        "Series 3: Door.",
        "Series 4: none.",
    )
    assert recount.carried == {
        "Ann": [
            "lamp taken: somewhere",
            "lamp: shed, from somewhere",
            "lamp: barn, from shed",
            "lamp left: barn",
            "Ann left the lamp: barn",
        ],
        "Ben": ["lamp taken: barn", "lamp: cellar, from barn", "Ben has the lamp: cellar"],
    }


def test_who_never_had_it_is_recounted_without_it() -> None:
    recount = recount_thing(_FACTS, _LINES, "milk", rename=str, series={"Ann Event": 5})
    assert recount.lines == (
        "Series 1: Ann Event.",
        *[line for line in _LINES if line[0] == "A"],
        "Ann Event 6: none.",
        "Series 2: none.",
    )
    assert recount.carried == {}


def test_lines_that_follow_are_renamed_and_the_series_bear_the_new_names() -> None:
    def rename(text: str) -> str:
        return text.replace("Ann", "Zoe").replace("lamp", "key").replace("barn", "dining room")

    recount = recount_thing(
        _FACTS, [rename(line) for line in _LINES], "lamp", rename=rename, series={"Ben Event": 4, "Zoe Event": 5}
    )
    assert recount.lines[-4:] == (
        "Zoe Event 5: Zoe journeyed to the attic.",
        "Zoe Event 6: none.",
        "Zoe left the key: dining room",
        "Series 3: none.",
    )
    assert recount.carried["Ann"][-1] == "Ann left the lamp: barn"


def test_an_actor_alone_is_looked_up_and_recounted_to_the_last_event() -> None:
    series = {"Ann Event": 5, "Ben Event": 4, "Door": 2}
    assert recount_actor(_LINES, "Ben", series=series) == (
        "Series 1: Ann Event.",
        "Series 2: Ben Event.",
        *[line for line in _LINES if line[0] == "B"],
        "Ben Event 5: none.",
    )
