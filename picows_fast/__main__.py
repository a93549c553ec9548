"""Entry point of ``python -m picows_fast``; everything it does lives in picows_fast.cli."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
