"""The load benchmark against a real service: it counts what the service says it did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.load import sweep


def test_users_ask_and_send_documents(
    start_service: Callable[..., Any], strong_checkpoint: Path, tmp_path: Path
) -> None:
    service = start_service(checkpoint=strong_checkpoint, queue_limit=128).until_ready()
    table, image = tmp_path / "load.csv", tmp_path / "load.png"

    arguments = f"--url {service.client.base_url} --users 1 2 --encode-shares 0.1 --seconds 12 --meanwhile-words 20000"
    status = sweep.main([*arguments.split(), "--csv", str(table), "--plot", str(image)])

    assert status == 0
    header, *rows = table.read_text().splitlines()
    assert header == "users,encode_share,meanwhile_words,kind,requests,failures,per_second,p50,p95,p99"
    cells = [row.split(",") for row in rows]
    assert {(users, kind) for users, _, _, kind, *_ in cells} >= {("1", "ask"), ("2", "ask")}
    assert all(failures == "0" for _, _, _, _, _, failures, *_ in cells)
    assert image.stat().st_size > 1000


def test_other_rows_of_the_table_are_left_out(tmp_path: Path) -> None:
    table = tmp_path / "run_stats.csv"
    columns = "Type,Name,Request Count,Failure Count,Median Response Time,Requests/s,50%,95%,99%"
    table.write_text(
        f"{columns}\nPOST,ask,10,1,9,2.5,9,12,14\nGET,status,3,0,1,1,1,1,1\n,Aggregated,13,1,9,3.5,9,12,14\n"
    )

    (row,) = sweep.read_statistics(table, users=4, encode_share=0.5, meanwhile_words=7)

    assert row == sweep.Measured(4, 0.5, 7, "ask", 10, 1, 2.5, 9.0, 12.0, 14.0)


def test_a_service_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(httpx.ConnectError):
        sweep.main(["--url", "http://127.0.0.1:9", "--csv", str(tmp_path / "load.csv")])
