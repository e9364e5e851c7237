"""``python -m perk`` fetches and converts the default base model, so that no later start waits for it."""

from __future__ import annotations

import sys

from perk.base_model import load_tokenizer

if __name__ == "__main__":
    load_tokenizer(report=lambda line: print(line, file=sys.stderr, flush=True))
