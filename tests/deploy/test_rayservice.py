"""The manifest for KubeRay is valid, names an application that is there, and sets what the service knows."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from dockerfile_parse import DockerfileParser

from deploy.ray.options import RayOptions
from service.settings import Settings

_ROOT = Path(__file__).resolve().parents[2]
_FOLDER = _ROOT / "deploy" / "ray"
_SCHEMA = json.loads(Path(__file__).with_name("rayservice.schema.json").read_text())
_VERSION = "1.33"


def _manifest(name: str = "rayservice.yaml") -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((_FOLDER / name).read_text())
    return manifest


def _cluster() -> dict[str, Any]:
    cluster: dict[str, Any] = _manifest()["spec"]["rayClusterConfig"]
    return cluster


def _templates() -> list[dict[str, Any]]:
    cluster = _cluster()
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


def _application() -> dict[str, Any]:
    (application,) = yaml.safe_load(_manifest()["spec"]["serveConfigV2"])["applications"]
    found: dict[str, Any] = application
    return found


def test_the_manifest_obeys_its_schema() -> None:
    jsonschema.validate(_manifest(), _SCHEMA)
    for template in _templates():
        whole = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "replica"}, "template": template}
        kubernetes_validate.validate(whole, _VERSION, strict=True)
    kubernetes_validate.validate(_manifest("network-policy.yaml"), _VERSION, strict=True)


@pytest.mark.parametrize(("name", "misspelt"), [("rayClusterConfig", "rayCluster"), ("minReplicas", "minReplica")])
def test_the_schema_would_find_a_mistake(name: str, misspelt: str) -> None:
    manifest = yaml.safe_load((_FOLDER / "rayservice.yaml").read_text().replace(f"{name}:", f"{misspelt}:"))

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, _SCHEMA)


def test_the_application_is_there_and_takes_its_arguments() -> None:
    application = _application()
    module, _, function = application["import_path"].partition(":")
    tree = ast.parse((_ROOT / f"{module.replace('.', '/')}.py").read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    RayOptions.model_validate(application["args"])


def test_the_least_replicas_find_a_place() -> None:
    options = RayOptions.model_validate(_application()["args"])
    (group,) = _cluster()["workerGroupSpecs"]
    cores = float(group["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"])
    assert group["minReplicas"] * cores >= (options.encoders.least + options.answerers.least) * options.cpus
    assert group["maxReplicas"] * cores >= (options.encoders.most + options.answerers.most) * options.cpus


def test_only_settings_that_exist_are_set() -> None:
    known = {f"PERK_{name.upper()}" for name in Settings.model_fields}
    for template in _templates():
        (container,) = template["spec"]["containers"]
        names = {variable["name"] for variable in container["env"]}
        assert {name for name in names if name.startswith("PERK_")} <= known
        assert "PERK_REDIS_URL" in names


def test_pods_are_confined_and_reach_redis() -> None:
    (source,) = _manifest("network-policy.yaml")["spec"]["ingress"][0]["from"]
    for template in _templates():
        assert source["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        assert template["spec"]["securityContext"]["runAsNonRoot"]
        (container,) = template["spec"]["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert "memory" in container["resources"]["limits"]


def test_the_kustomization_names_what_is_there() -> None:
    kustomization = yaml.safe_load((_FOLDER / "kustomization.yaml").read_text())
    named = {*kustomization["resources"], *kustomization["configurations"], "kustomization.yaml"}
    assert named == {path.name for path in _FOLDER.glob("*.yaml")}
    (image,) = kustomization["images"]
    stages = [
        step["value"].split()[-1]
        for step in DockerfileParser(str(_ROOT / "Dockerfile")).structure
        if step["instruction"] == "FROM"
    ]
    assert image["newTag"] in stages


def test_the_cluster_runs_the_release_that_the_image_has() -> None:
    pinned = [line for line in (_ROOT / "constraints.txt").read_text().splitlines() if line.startswith("ray==")]
    assert pinned == [f"ray=={_cluster()['rayVersion']}"]
