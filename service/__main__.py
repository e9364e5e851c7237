"""``python -m service`` is the ``perk`` command."""

from __future__ import annotations

from service.cli import main

main()
