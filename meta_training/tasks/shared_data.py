"""Where downloaded training data lies: ``PERK_DATA_ROOT``, or ``../shared/data`` seen from the project's root."""

from __future__ import annotations

import os
from pathlib import Path

from perk.errors import InvalidInput

__all__ = ["data_file"]

_DEFAULT_ROOT = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def data_file(name: str) -> Path:
    """Path of a data file such as ``babi/qa1_train.txt``.

    Raises:
        InvalidInput: it is not there.
    """
    configured = os.environ.get("PERK_DATA_ROOT")
    path = (Path(configured) if configured else _DEFAULT_ROOT) / name
    if not path.is_file():
        raise InvalidInput("PERK_DATA_ROOT", f"a folder without {name}", "the folder with the training data")
    return path
