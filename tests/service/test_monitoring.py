"""Dashboards and alerts ask for what the service exports, and a real Prometheus answers every one of their queries."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import Metrics

_ROOT = Path(__file__).resolve().parents[2]
_DEPLOY = _ROOT / "deploy"
_DASHBOARDS = sorted((_DEPLOY / "grafana" / "dashboards").glob("*.json"))
_PATIENCE_SECONDS = 60.0

# What Prometheus itself says of its targets.
_OF_PROMETHEUS = {"up"}
# A healthy store has no errors, and their counters no series.
_MAY_BE_EMPTY = {"perk_store_errors_total", "perk_redis_errors_total"}


def _panels(path: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(path.read_text())["panels"] if panel["type"] != "row"]


def _alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((_DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _filled(query: str) -> str:
    """A panel's query as Grafana sends it."""
    return query.replace("$__rate_interval", "1m").replace("$instance", ".*")


def _queries() -> dict[str, str]:
    """Every query of every panel and alert, by where it stands."""
    queries = {
        f"{path.stem}: {panel['title']} {target['refId']}": _filled(target["expr"])
        for path in _DASHBOARDS
        for panel in _panels(path)
        for target in panel["targets"]
    }
    return queries | {rule["alert"]: rule["expr"] for rule in _alerts()}


def _metrics_of(node: Any) -> Iterator[str]:
    """Names of all metrics in a parsed query."""
    match node:
        case promql_parser.VectorSelector():
            yield node.name
        case promql_parser.MatrixSelector():
            yield from _metrics_of(node.vector_selector)
        case promql_parser.BinaryExpr():
            yield from _metrics_of(node.lhs)
            yield from _metrics_of(node.rhs)
        case promql_parser.Call():
            for argument in node.args:
                yield from _metrics_of(argument)
        case promql_parser.AggregateExpr() | promql_parser.ParenExpr() | promql_parser.UnaryExpr():
            yield from _metrics_of(node.expr)
        case promql_parser.SubqueryExpr():
            yield from _metrics_of(node.expr)
        case promql_parser.NumberLiteral() | promql_parser.StringLiteral():
            return
        case _:
            raise AssertionError(f"no rule for {type(node).__name__}")


def _exported() -> set[str]:
    """Names of all series that the service can have."""
    metrics = Metrics()
    for metric in vars(metrics).values():
        labels = getattr(metric, "_labelnames", ())
        if labels:
            metric.labels(*labels)
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return {sample.name for family in families for sample in family.samples}


@pytest.mark.parametrize("place", sorted(_queries()))
def test_every_query_names_only_metrics_that_are_exported(place: str) -> None:
    names = set(_metrics_of(promql_parser.parse(_queries()[place])))

    assert names
    assert names <= _exported() | _OF_PROMETHEUS


def test_dashboards_are_provisioned_and_explain_themselves() -> None:
    sources = yaml.safe_load((_DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text())
    uids = {source["uid"] for source in sources["datasources"]}
    assert {path.stem for path in _DASHBOARDS} == {"users", "machine"}
    assert len({json.loads(path.read_text())["uid"] for path in _DASHBOARDS}) == 2
    for path in _DASHBOARDS:
        panels = _panels(path)
        assert len({panel["id"] for panel in panels}) == len(panels)
        for panel in panels:
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} <= uids


def test_every_metric_of_ours_is_on_a_dashboard_or_in_an_alert() -> None:
    watched = {name for query in _queries().values() for name in _metrics_of(promql_parser.parse(query))}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in watched}

    ours = {name for name in _exported() if name.startswith("perk_")}
    assert {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in ours if "_created" not in name} <= families


def test_every_alert_has_its_section_and_its_unit_test() -> None:
    operations = (_ROOT / "docs" / "operations.md").read_text()
    tested = {
        case["name"] for case in yaml.safe_load((_DEPLOY / "prometheus" / "alerts.test.yml").read_text())["tests"]
    }
    names = {rule["alert"] for rule in _alerts()}
    assert tested == names
    assert names == set(re.findall(r"^### (Perk\w+)$", operations, re.MULTILINE))
    for rule in _alerts():
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on the path (Debian's package prometheus has it)")
    return found


@pytest.mark.parametrize(
    "arguments",
    [["check", "config", "prometheus.yml"], ["test", "rules", "alerts.test.yml"]],
    ids=["configuration", "alerts"],
)
def test_prometheus_own_checks_pass(arguments: list[str]) -> None:
    command = [_program("promtool"), *arguments]
    result = subprocess.run(command, cwd=_DEPLOY / "prometheus", capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stdout + result.stderr


def _until(holds: Callable[[], bool]) -> None:
    """Wait for a condition, a minute at most."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


class Prometheus:
    """A real one on a free port, which scrapes a service each second.

    Attributes:
        address: its own.
    """

    def __init__(self, program: str, folder: Path, target: str) -> None:
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(_DEPLOY / "prometheus" / "alerts.yml")],
            "scrape_configs": [{"job_name": "perk", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
            )
        self.address = f"http://127.0.0.1:{port}"
        self._http = httpx.Client(base_url=self.address, timeout=_PATIENCE_SECONDS)

    def get(self, path: str, **parameters: str) -> Any:
        """Data of an answer of its API."""
        response = self._http.get(f"/api/v1/{path}", params=parameters)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def value(self, query: str) -> float:
        """The number that a query gives; 0 where it gives nothing."""
        result = self.get("query", query=query)["result"]
        return float(result[0]["value"][1]) if result else 0.0

    def until_ready(self) -> None:
        """Wait until it answers queries."""

        def is_ready() -> bool:
            assert self._process.poll() is None, self._log.read_text()
            try:
                return self._http.get("/-/ready").status_code == 200
            except httpx.TransportError:
                return False

        _until(is_ready)

    def until(self, query: str, least: float) -> None:
        """Wait until a query gives at least a number."""
        _until(lambda: self.value(query) >= least)

    def stop(self) -> None:
        """End it."""
        self._http.close()
        self._process.terminate()
        self._process.wait(_PATIENCE_SECONDS)


def _without_threshold(query: str) -> str:
    """What an alert compares, so that it has a value while all is well."""
    parsed = promql_parser.parse(query)
    while isinstance(parsed, promql_parser.BinaryExpr) and str(parsed.op) in ("and", ">", "<", "=="):
        parsed = parsed.lhs
    return str(parsed)


def _send_traffic(service: Any, damaged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of thing that dashboards and alerts look at: what goes well, and every fault that can be put in."""
    client = service.client
    number = 0
    while service.metric('perk_tier_evictions_total{tier="memory"}') == 0:
        service.encode(f"Mary went to room {number}.")
        number += 1
    document = service.encode("John moved to the garden.")

    def ask(document_id: str = document["id"], max_tokens: int = 4, question: str = "Who?") -> int:
        body = {"question": question, "max_tokens": max_tokens}
        status: int = client.post(f"/documents/{document_id}/ask", json=body).status_code
        return status

    assert ask(damaged) == 200, "it has been encoded again"
    assert ask(question="") == 422
    with ThreadPoolExecutor(24) as pool:
        assert set(pool.map(lambda _: ask(max_tokens=100), range(24))) == {200, 429}
    # An adapter beyond its time is encoded again too.
    expires_at = datetime.fromisoformat(client.get(f"/documents/{document['id']}").json()["expires_at"])
    service.until(lambda: datetime.now(UTC) > expires_at)
    assert ask() == 200

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as faults:
        faults.setattr("perk.perk_model.PerkModel.start_encoding", fail)
        response = client.post("/documents", json={"text": "No one reads this."}, headers={"Prefer": "wait=60"})
        assert response.json()["status"] == "failed"
    with monkeypatch.context() as faults:
        faults.setattr(service.engine.documents, "find", fail)
        assert client.get(f"/documents/{document['id']}").status_code == 500


def test_every_query_has_a_result_where_there_was_traffic(
    start_service: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = _program("prometheus")
    before = start_service().until_ready()
    damaged = before.encode("Sandra travelled back to the office.")["id"]
    before.stop()
    (before.settings.data_dir / "adapters" / f"{damaged}.safetensors").write_bytes(b"damage")
    service = start_service(memory_budget=1 << 20, adapter_ttl=5, queue_limit=2).until_ready()
    prometheus = Prometheus(program, tmp_path, service.address.removeprefix("http://"))
    try:
        prometheus.until_ready()
        prometheus.until("count_over_time(perk_ready[1m])", 1)
        _send_traffic(service, damaged, monkeypatch)
        # Rates need two scrapes that have seen the same series.
        seen = prometheus.value('count_over_time(perk_questions_total{outcome="answered"}[1m])')
        prometheus.until('count_over_time(perk_questions_total{outcome="answered"}[1m])', seen + 2)

        for place, query in _queries().items():
            result = prometheus.get("query", query=_without_threshold(query))["result"]
            names = set(_metrics_of(promql_parser.parse(query)))
            assert result or names & _MAY_BE_EMPTY or query.startswith("absent("), f"{place}: {query} gives nothing"
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        assert {rule["name"] for rule in rules} == {rule["alert"] for rule in _alerts()}
        assert {rule["health"] for rule in rules} == {"ok"}
        assert prometheus.value("perk_ready") == 1
        script = runpy.run_path(str(_ROOT / "scripts" / "plot_dashboard.py"))
        for path in _DASHBOARDS:
            picture = tmp_path / f"{path.stem}.png"
            script["plot"](path.stem, prometheus.address, 1.0, picture)
            assert picture.read_bytes().startswith(b"\x89PNG")
    finally:
        prometheus.stop()
