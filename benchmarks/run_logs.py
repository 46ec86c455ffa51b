"""How long stabwatch's own commands take on a long run log, and how much memory: streamed, whatever its length.

python -m benchmarks.run_logs                      1e6 records of 500 slots (2 GB); forty minutes
python -m benchmarks.run_logs --records 100000
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import table
from tests.agent.synthetic import Log

SLOTS = 500
COMMANDS = (("analyze", ()), ("report", ("-o", "report.html")))
DIFFERENT = 400
"""Records that are made up; the others repeat the last hundred."""


def write_run(folder: Path, records: int) -> tuple[int, int]:
    """A run that goes wrong early and on. Gives its slots, and its bytes on the disk."""
    layers, log = 1, Log(folder / "probe", layers=["blocks.0"])
    while log.layout.width < SLOTS:
        log.folder.close()
        layers += 1
        log = Log(folder / f"probe-{layers}", layers=[f"blocks.{i}" for i in range(layers)])
    rows = [log.row(step) for step in range(DIFFERENT)]
    for step in range(records):
        row = rows[step] if step < DIFFERENT else rows[DIFFERENT - 100 + step % 100]
        log.folder.append(log.layout, step, log.now(step), row)
    log.end(records - 1)
    log.folder.close()
    log.path.rename(folder / "run")
    return log.layout.width, sum(f.stat().st_size for f in (folder / "run").iterdir())


def measure(command: str, options: tuple[str, ...], folder: Path) -> tuple[float, float, float]:
    """Seconds on the clock and of the processor, and MiB at the peak."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "stabwatch", command, "run", *options], cwd=folder, stdout=subprocess.DEVNULL
    )
    _, _, used = os.wait4(process.pid, 0)
    return time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    options = parser.parse_args()
    np.seterr(all="ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fields, size = write_run(folder, options.records)
        print(f"{options.records:,} records of {fields} fields, {size / 1e6:,.0f} MB.\n", flush=True)
        rows = []
        for name, more in COMMANDS:
            seconds, cpu, memory = measure(name, more, folder)
            page = folder / "report.html"
            written = f"{page.stat().st_size // 1000}" if page.exists() else ""
            rows.append((name, f"{seconds:.0f}", f"{cpu:.0f}", f"{memory:.0f}", written))
    print(table(("command", "seconds", "of the processor", "MiB at the peak", "kB of HTML"), rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
