"""`python -m benchmarks.compat`."""

from __future__ import annotations

from benchmarks.compat.run import main

raise SystemExit(main())
