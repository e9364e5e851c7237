#!/usr/bin/env bash
# Makes .venv and installs this project into it, editable, at the versions of constraints.txt.
#
#   scripts/install.sh [EXTRAS]      EXTRAS as pip writes them: dev,train
#
# PYTHON names the interpreter that makes .venv; without it, the first one on the path that is new enough.
set -euo pipefail
cd "$(dirname "$0")/.."

extras="${1:-}"
venv=.venv
# The release that the project is tested with where there is no GPU; its CPU wheel has none of the CUDA libraries.
cpu_torch='torch==2.13.0'
# The release that kernels are tested and compiled with there. A CUDA build of torch asks for its own.
cpu_triton='triton==3.9.0'

is_new_enough() {
    command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python}; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "install: needs Python 3.11 or newer, and none is on the path; name one with PYTHON=/path/to/python3" >&2
    return 1
}

if ! "$venv/bin/python" -c '' 2>/dev/null; then
    python="$(find_python)"
    echo "install: making $venv with $("$python" --version)" >&2
    "$python" -m venv --clear "$venv"
fi

pip=("$venv/bin/python" -m pip --disable-pip-version-check)

# A torch that is there stays, whatever its release. With a GPU, the project's own requirement brings the CUDA build.
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null && ! command -v nvidia-smi >/dev/null; then
    echo "install: $cpu_torch (no NVIDIA GPU found)" >&2
    "${pip[@]}" install --quiet "$cpu_torch"
fi

echo "install: the project${extras:+ with [$extras]} (some minutes on the first run)" >&2
pins=""
if "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' 2>/dev/null; then
    pins="$cpu_triton"
fi
"${pip[@]}" install --quiet --constraint constraints.txt --constraint <(echo "$pins") --editable ".${extras:+[$extras]}"
