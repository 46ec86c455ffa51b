"""How long stabwatch's own commands take on a long run log, and how much memory: streamed, whatever its length.

python -m benchmarks.run_logs                      1e6 records of 500 fields (2 GB); about five minutes
python -m benchmarks.run_logs --records 100000
python -m benchmarks.run_logs --records 20000 --before ../earlier --rounds 5

The last one compares `analyze` with that of another checkout, by processor time: both take turns on the same log.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import table
from tests.agent.synthetic import Log

ROOT = Path(__file__).resolve().parents[1]
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


def measure(command: str, options: tuple[str, ...], folder: Path, code: Path = ROOT) -> tuple[float, float, float]:
    """Seconds on the clock and of the processor, and MiB at the peak. code: the checkout to run."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "stabwatch", command, "run", *options],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"},
    )
    _, _, used = os.wait4(process.pid, 0)
    return time.perf_counter() - begun, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def compare(folder: Path, before: Path, rounds: int, records: int) -> str:
    """`analyze` of two checkouts in turns: a table of processor times, and the median ratio of a round."""
    empty = folder / "few"
    write_run(empty, 100)
    pairs = [[measure("analyze", (), folder, code)[1] for code in (before.resolve(), ROOT)] for _ in range(rounds)]
    starts = [[measure("analyze", (), empty, code)[1] for code in (before.resolve(), ROOT)] for _ in range(rounds)]
    rows = [
        (name, *(f"{statistics.median(p[i] for p in found):.2f}" for i in (0, 1)), _ratio(found))
        for name, found in (("seconds of the processor", pairs), ("the same for 100 records", starts))
    ]
    more = [[a - b for a, b in zip(*both, strict=True)] for both in zip(pairs, starts, strict=True)]
    each = (f"{statistics.median(p[i] for p in more) / (records - 100) * 1e6:.1f}" for i in (0, 1))
    rows.append(("microseconds a record", *each, _ratio(more)))
    return table(("analyze", "before", "now", "times"), rows)


def _ratio(pairs: list[list[float]]) -> str:
    return f"{statistics.median(before / now for before, now in pairs):.1f}"


def main() -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    np.seterr(all="ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fields, size = write_run(folder, options.records)
        print(f"{options.records:,} records of {fields} fields, {size / 1e6:,.0f} MB.\n", flush=True)
        if options.before:
            print(compare(folder, options.before, options.rounds, options.records))
            return 0
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
