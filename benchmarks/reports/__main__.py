"""`python -m benchmarks.reports`."""

from __future__ import annotations

import logging

from benchmarks.reports.run import main

logging.getLogger("stabwatch").setLevel(logging.ERROR)
raise SystemExit(main())
