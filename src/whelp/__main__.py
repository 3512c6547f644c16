"""`python -m whelp`."""

from __future__ import annotations

from whelp.cli import main

if __name__ == "__main__":
    main()
