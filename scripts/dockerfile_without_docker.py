#!/usr/bin/env python3
"""Builds a target of the Dockerfile where no Docker engine is, and starts what it built.

    sudo .venv/bin/python scripts/dockerfile_without_docker.py [--target cpu] [--keep]

Every stage is an overlay over this machine's own root, in a mount namespace of its own: its RUN steps run in order, as
root, in a clean virtual environment, and nothing of this machine is changed. So it proves steps, copies, paths, users
and the start, but not that the base image has what this machine has. Needs Linux, root, Python 3.11 as `python`, what
`.venv` has for tests, some minutes, most of them for torch, and some gigabytes of the folder for temporary files.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[1]
_INSIDE = "PERK_DOCKERFILE_NAMESPACE"
_PATIENCE_SECONDS = 120.0


@dataclass
class Stage:
    """One stage of the build.

    Attributes:
        name: after ``AS``.
        upper: what it and the stages below it have written.
        root: where it is mounted.
    """

    name: str
    upper: Path
    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


class Build:
    """All stages that a target needs, in the order of the file."""

    def __init__(self, scratch: Path, target: str) -> None:
        self._scratch = scratch
        self._target = target
        self._defaults: dict[str, str] = {}
        self._stages: dict[str, Stage] = {}

    def run(self) -> Stage:
        """Run the instructions of the target and of all stages that it is made from."""
        instructions = [
            (step["instruction"], step["value"])
            for step in DockerfileParser(str(ROOT / "Dockerfile")).structure
            if step["instruction"] != "COMMENT"
        ]
        wanted = _wanted(instructions, self._target)
        stage: Stage | None = None
        for name, value in instructions:
            if name == "FROM":
                base, _, stage_name = value.split()
                stage = self._begin(base, stage_name) if stage_name in wanted else None
            elif name == "ARG" and not self._stages and stage is None:
                key, _, default = value.partition("=")
                self._defaults[key] = os.environ.get(key, default)
            elif stage is not None:
                print(f"[{stage.name}] {name} {value}", file=sys.stderr, flush=True)
                self._apply(stage, name, value)
        return self._stages[self._target]

    def _begin(self, base: str, name: str) -> Stage:
        below = self._stages.get(base)
        upper, work, root = (self._scratch / name / part for part in ("upper", "work", "root"))
        for folder in (upper, work, root):
            folder.mkdir(parents=True)
        if below is not None:
            # A copy: overlays refuse layers that lie within each other, and all of them lie within this machine's root.
            _run("cp", "-a", "--reflink=auto", f"{below.upper}/.", str(upper))
        options = f"lowerdir=/,upperdir={upper},workdir={work}"
        _run("mount", "-t", "overlay", "overlay", "-o", options, str(root))
        for kind in ("proc", "dev"):
            _run("mount", "--rbind", f"/{kind}", str(root / kind))
        if below is None:
            # The base image's interpreter is anyone's to run, this machine's may be root's alone.
            (root / "root").chmod(0o755)
            stage = Stage(name, upper, root, {"PATH": os.environ["PATH"], "HOME": "/root"})
        else:
            stage = Stage(
                name, upper, root, dict(below.environment), {}, below.folder, below.user,
                below.entrypoint, below.command, below.healthcheck,
            )  # fmt: skip
        self._stages[name] = stage
        return stage

    def _apply(self, stage: Stage, name: str, value: str) -> None:
        match name:
            case "ARG":
                key, _, default = value.partition("=")
                found = os.environ.get(key) or default or self._defaults.get(key)
                if found:
                    stage.arguments[key] = found
            case "ENV":
                for key, text in re.findall(r"(\w+)=(\S+)", value):
                    stage.environment[key] = text.replace("$PATH", stage.environment["PATH"])
            case "WORKDIR":
                stage.folder = value
                (stage.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "RUN":
                _run(*_entered(stage, ["/bin/sh", "-e", "-c", value]), environment=_environment(stage))
            case "COPY":
                self._copy(stage, value)
            case "USER":
                stage.user = value if ":" in value else f"{value}:{value}"
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(value)
            case "CMD":
                stage.command = json.loads(value)
            case "HEALTHCHECK":
                stage.healthcheck = json.loads(value[value.index("[") :])
            case "VOLUME" | "EXPOSE":
                return
            case _:
                sys.exit(f"no rule for {name} yet")

    def _copy(self, stage: Stage, value: str) -> None:
        words = value.split()
        options = {word.split("=")[0]: word.split("=")[1] for word in words if word.startswith("--")}
        *sources, target = (word for word in words if not word.startswith("--"))
        origin = self._stages[options["--from"]].root if "--from" in options else ROOT
        for source in sources:
            path = origin / source.lstrip("/")
            destination = stage.root / (Path(stage.folder) / target).as_posix().lstrip("/")
            if path.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", ".env")
                shutil.copytree(path, destination, symlinks=True, dirs_exist_ok=True, ignore=ignore)
            else:
                # A trailing slash names a folder, as in `./`.
                shutil.copy2(path, destination / path.name if target.endswith("/") else destination)
            if "--chown" in options:
                _run("chown", "-R", options["--chown"], str(destination))


def _wanted(instructions: list[tuple[str, str]], target: str) -> set[str]:
    """Names of the target and of all stages that it is made from."""
    needs: dict[str, set[str]] = {}
    name = ""
    for instruction, value in instructions:
        if instruction == "FROM":
            base, _, name = value.split()
            needs[name] = {base} & needs.keys()
        elif instruction == "COPY" and value.startswith("--from="):
            needs[name].add(value.split()[0].removeprefix("--from="))
    wanted, open_names = set(), [target]
    while open_names:
        current = open_names.pop()
        wanted.add(current)
        open_names += needs[current] - wanted
    return wanted


def _environment(stage: Stage) -> dict[str, str]:
    # Of this machine, only how pip reaches its index.
    pip = {key: text for key, text in os.environ.items() if key.startswith("PIP_")}
    return pip | stage.arguments | stage.environment


def _entered(stage: Stage, command: list[str]) -> list[str]:
    script = 'cd "$0" && exec "$@"'
    return ["chroot", f"--userspec={stage.user}", str(stage.root), "/bin/sh", "-c", script, stage.folder, *command]


def _run(*command: str, environment: dict[str, str] | None = None) -> None:
    result = subprocess.run(command, env=environment, check=False)
    if result.returncode:
        sys.exit(f"failed with {result.returncode}: {' '.join(command)}")


def _start(stage: Stage) -> None:
    """Start the target as its own user, on a root that is read-only as under compose, until it is healthy and ready."""
    data = stage.root / stage.environment["PERK_DATA_DIR"].lstrip("/")
    _run("mount", "--bind", str(data), str(data))
    _run("mount", "-t", "tmpfs", "tmpfs", str(stage.root / "tmp"))
    _run("mount", "-o", "remount,bind,ro", str(stage.root))
    environment = _environment(stage) | {"HOME": stage.environment["PERK_DATA_DIR"]}
    process = subprocess.Popen(_entered(stage, stage.entrypoint + stage.command), env=environment)
    try:
        port = stage.command[-1]
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not _answers(f"http://127.0.0.1:{port}/ready"):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit("the service did not become ready")
            time.sleep(0.2)
        _run(*_entered(stage, stage.healthcheck), environment=environment)
    finally:
        process.terminate()
        status = process.wait(60)
    if status:
        sys.exit(f"the service ended with {status}")


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def main() -> None:
    """Build and start."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cpu", help="name of a stage of the Dockerfile")
    parser.add_argument("--keep", action="store_true", help="leave what the stages have written, and say where")
    arguments = parser.parse_args()
    if _INSIDE not in os.environ:
        # The mounts end with the namespace, whatever happens.
        os.execvpe("unshare", ["unshare", "--mount", sys.executable, *sys.argv], os.environ | {_INSIDE: "1"})
    scratch = Path(tempfile.mkdtemp(prefix="perk-dockerfile-"))
    try:
        _start(Build(scratch, arguments.target).run())
        print(f"{arguments.target}: every step ran, and the service became ready")
    finally:
        if arguments.keep:
            print(f"left in {scratch}")
        else:
            # The namespace still holds the mounts: lazily, so that only what the stages wrote is removed.
            for root in scratch.glob("*/root"):
                subprocess.run(["umount", "--lazy", "--recursive", str(root)], check=False)
            shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
