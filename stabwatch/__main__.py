"""`python -m stabwatch` is the `stabwatch` command."""

from __future__ import annotations

from stabwatch.cli import main

if __name__ == "__main__":
    main()
