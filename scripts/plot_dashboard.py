#!/usr/bin/env python3
"""Draws the panels of a dashboard from what a Prometheus has, for documents and for those without a Grafana.

.venv/bin/python scripts/plot_dashboard.py users --out users.png [--prometheus URL] [--minutes 10]
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl

mpl.use("Agg")
from matplotlib import dates
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_DASHBOARDS = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "dashboards"
_COLUMNS = 3
_POINTS = 120
# As Grafana names units, and as people read them.
_UNITS = {"s": "seconds", "reqps": "requests a second", "ops": "a second", "percentunit": "share", "none": ""}


def plot(name: str, address: str, minutes: float, out: Path) -> None:
    """Draw all graphs of a dashboard.

    Args:
        name: of the dashboard.
        address: of Prometheus.
        minutes: up to now.
        out: image to write.
    """
    dashboard = json.loads((_DASHBOARDS / f"{name}.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] == "timeseries"]
    rows = math.ceil(len(panels) / _COLUMNS)
    figure, axes = plt.subplots(rows, _COLUMNS, figsize=(16, 3.2 * rows), layout="constrained", squeeze=False)
    figure.suptitle(dashboard["title"])
    end = time.time()
    with httpx.Client(base_url=address) as client:
        for axis, panel in zip(axes.flat, panels, strict=False):
            for target in panel["targets"]:
                _draw(axis, panel, target, _series(client, target["expr"], end - 60 * minutes, end))
            _dress(axis, panel)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(out, dpi=80)
    plt.close(figure)


def _series(client: httpx.Client, query: str, start: float, end: float) -> list[dict[str, Any]]:
    filled = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
    parameters = {"query": filled, "start": start, "end": end, "step": max((end - start) / _POINTS, 1)}
    response = client.get("/api/v1/query_range", params=parameters)
    response.raise_for_status()
    found: list[dict[str, Any]] = response.json()["data"]["result"]
    return found


def _draw(axis: Axes, panel: dict[str, Any], target: dict[str, Any], series: list[dict[str, Any]]) -> None:
    for one in series:
        legend = _legend(target["legendFormat"], one["metric"])
        if all(value == "NaN" for _, value in one["values"]):
            continue
        times = [datetime.fromtimestamp(moment, UTC) for moment, _ in one["values"]]
        axis.plot(times, [float(value) for _, value in one["values"]], linewidth=1.2, label=legend or panel["title"])


def _legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)


def _dress(axis: Axes, panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    axis.set_title(panel["title"], fontsize=10)
    axis.set_ylabel(_UNITS.get(defaults["unit"], defaults["unit"]), fontsize=8)
    axis.tick_params(labelsize=7)
    axis.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axis.grid(alpha=0.3)
    if "scaleDistribution" in defaults["custom"]:
        axis.set_yscale("log")
    elif axis.lines:
        axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
    if axis.lines:
        axis.legend(fontsize=7)
    else:
        axis.text(0.5, 0.5, "none", ha="center", transform=axis.transAxes, color="gray")


def main() -> None:
    """Draw one dashboard."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dashboard", choices=sorted(path.stem for path in _DASHBOARDS.glob("*.json")))
    parser.add_argument("--out", type=Path, required=True, help="image to write")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="address of Prometheus")
    parser.add_argument("--minutes", type=float, default=10, help="how far back")
    arguments = parser.parse_args()
    plot(arguments.dashboard, arguments.prometheus, arguments.minutes, arguments.out)


if __name__ == "__main__":
    main()
