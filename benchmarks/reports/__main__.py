"""`python -m benchmarks.reports`."""

from __future__ import annotations

from benchmarks.reports.run import main

raise SystemExit(main())
