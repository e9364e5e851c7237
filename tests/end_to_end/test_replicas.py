"""Replicas as processes of their own, on one Redis: one is killed, the others go on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def test_a_replica_killed_in_the_middle_of_an_encode_hands_it_over(
    start_service: Callable[..., Any], redis: Any, story: str, register: str, tmp_path: Path
) -> None:
    doomed, heir = (
        start_service(data_dir=tmp_path / name, redis_url=redis.url).until_ready() for name in ("doomed", "heir")
    )
    ready = heir.encode(story)
    answer = heir.ask(ready, "Where is Mary?")
    assert doomed.ask(ready, "Where is Mary?") == answer
    interrupted = doomed.send(register)
    doomed.until(lambda: doomed.show(interrupted)["progress"] > 0)

    def lease() -> list[bytes]:
        return list(redis.client.keys(f"*{interrupted['id']}:lease"))

    # Whoever of the two has it is the one to be killed.
    (name,) = lease()
    if heir.metric('perk_slice_seconds_count{kind="encode"}') > doomed.metric(
        'perk_slice_seconds_count{kind="encode"}'
    ):
        doomed, heir = heir, doomed
    encodes_before = heir.metric('perk_encodes_total{outcome="ready"}')
    assert doomed.end(signal.SIGKILL) == -signal.SIGKILL

    while heir.show(interrupted)["status"] != "ready":
        assert heir.ask(ready, "Where is Mary?") == answer
    heir.until(lambda: not redis.client.exists(name))

    assert heir.metric('perk_encodes_total{outcome="ready"}') == encodes_before + 1
    assert [document["id"] for document in heir.documents()] == [interrupted["id"], ready["id"]]
    assert redis.password not in heir.log + doomed.log
