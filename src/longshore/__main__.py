"""`python -m longshore` is the `longshore` command."""

from __future__ import annotations

from longshore.cli import main

__all__ = ()

if __name__ == "__main__":
    main()
