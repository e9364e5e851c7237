"""What holds for the project as a whole, whatever its parts do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Written in two halves, so that this file passes its own test.
_REGISTRY_HOSTS = [".".join(parts) for parts in (("pypi", "org"), ("files.pythonhosted", "org"), ("npmjs", "org"))]
_MACHINE_PATH = re.compile(r"(?<![\w.~/-])/(?:work|root|home|opt|Users|mnt|workspace)/" + r"\w")


def _tracked_texts() -> dict[str, str]:
    """Text of every file that is tracked, or would be with the next commit."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [ROOT / name for name in names if name]
    contents = {str(path.relative_to(ROOT)): path.read_bytes() for path in files if path.is_file()}
    return {name: content.decode("utf-8") for name, content in contents.items() if b"\0" not in content}


def _lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_imports_go_one_way() -> None:
    result = _lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("perk/scoring.py", "import service"),
        ("meta_training/__init__.py", "import service"),
        ("service/__init__.py", "import meta_training"),
        ("service/__init__.py", "import deploy"),
        ("deploy/__init__.py", "import meta_training"),
        ("kernels/__init__.py", "import perk"),
        ("kernels/__init__.py", "import transformers"),
        ("perk/scoring.py", "import fastapi"),
    ],
)
def test_an_import_against_the_arrows_is_found(file: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    for package in ("kernels", "perk", "meta_training", "service", "benchmarks", "deploy"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / file).write_text(f"{line}\n")

    result = _lint_imports(tmp_path)

    assert result.returncode == 1
    assert f"{Path(file).parts[0]} is not allowed to import" in result.stdout.replace("\n", " ")


def test_no_file_names_a_path_of_one_machine_or_a_registry_host() -> None:
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in _tracked_texts().items()
        for number, line in enumerate(text.splitlines(), start=1)
        if _MACHINE_PATH.search(line) or any(host in line for host in _REGISTRY_HOSTS)
    ]
    assert not found, "\n".join(found)


def test_no_file_uses_pickle() -> None:
    loads = re.compile(r"\bimport pickle\b|\bfrom pickle\b|torch\.load\(")
    found = [name for name, text in _tracked_texts().items() if name.endswith(".py") and loads.search(text)]
    assert not found
