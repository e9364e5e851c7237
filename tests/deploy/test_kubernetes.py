"""The manifests are valid, and say of the service what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import Settings

_FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
# Neither is an object of a cluster: one is kustomize's, one a chart's.
_OTHERS = {"kustomization.yaml", "prometheus-adapter.values.yaml"}
_VERSION = "1.33"


def _manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(_FOLDER.rglob("*.yaml")):
        if path.name not in _OTHERS:
            for manifest in yaml.safe_load_all(path.read_text()):
                yield f"{path.relative_to(_FOLDER)}: {manifest['kind']} {manifest['metadata']['name']}", manifest


_OBJECTS = dict(_manifests())


def _deployment() -> dict[str, Any]:
    return _OBJECTS["perk.yaml: Deployment perk"]


# A patch has only what it changes.
@pytest.mark.parametrize("name", sorted(name for name in _OBJECTS if not name.startswith("gpu/")))
def test_every_manifest_obeys_its_schema(name: str) -> None:
    kubernetes_validate.validate(_OBJECTS[name], _VERSION, strict=True)


def test_the_schema_would_find_a_mistake() -> None:
    misspelt = yaml.safe_load(yaml.safe_dump(_deployment()).replace("readinessProbe", "readynessProbe"))

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelt, _VERSION, strict=True)


def test_the_kustomizations_name_what_is_there() -> None:
    named = set()
    for path in (_FOLDER / "kustomization.yaml", _FOLDER / "gpu" / "kustomization.yaml"):
        kustomization = yaml.safe_load(path.read_text())
        files = [file for generator in kustomization.get("configMapGenerator", ()) for file in generator["files"]]
        patches = [patch["path"] for patch in kustomization.get("patches", ())]
        for file in (*kustomization["resources"], *files, *patches):
            found = (path.parent / file).resolve()
            assert found.exists(), file
            named.add(found)
    ours = {path.resolve() for path in _FOLDER.rglob("*.yaml") if path.name not in _OTHERS}
    assert ours <= named


def test_every_container_is_confined() -> None:
    for name, manifest in _OBJECTS.items():
        pod = manifest.get("spec", {}).get("template", {}).get("spec", {})
        for container in (*pod.get("initContainers", ()), *pod.get("containers", ())):
            if name.startswith("gpu/") and container["name"] == "perk":
                continue
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]


def test_replicas_are_probed_where_they_answer() -> None:
    (container,) = _deployment()["spec"]["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] == "/health", "a replica without its store must not be killed"


def test_a_replica_has_the_time_that_it_needs_to_stop() -> None:
    pod = _deployment()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = Settings.model_fields["stop_grace_seconds"].default
    assert pod["terminationGracePeriodSeconds"] >= pause + grace + 10


def test_only_settings_that_exist_are_set() -> None:
    known = {f"PERK_{name.upper()}" for name in Settings.model_fields}
    for name in ("perk.yaml: Deployment perk", "gpu/perk.yaml: Deployment perk"):
        (container,) = _OBJECTS[name]["spec"]["template"]["spec"]["containers"]
        assert {variable["name"] for variable in container["env"]} <= known


def test_replicas_are_added_by_what_waits() -> None:
    scaler = _OBJECTS["autoscaler.yaml: HorizontalPodAutoscaler perk"]["spec"]
    (metric,) = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == "perk_waiting"
    assert int(metric["pods"]["target"]["averageValue"]) < Settings.model_fields["queue_limit"].default
    rules = yaml.safe_load((_FOLDER / "prometheus-adapter.values.yaml").read_text())["rules"]["custom"]
    assert "perk_waiting" in rules[0]["metricsQuery"]


def test_redis_has_one_configuration() -> None:
    assert (_FOLDER / "redis.conf").read_text() == (_FOLDER.parent / "redis" / "redis.conf").read_text()
