"""Does a run say truly what watching costs? `stabwatch_overhead_ratio` beside the measured ratio, and steps recorded.

    python benchmarks/told_overhead.py            about four minutes
    python benchmarks/told_overhead.py --quick    under a minute; shows that it runs
    python benchmarks/told_overhead.py --busy     the same while two other processes compute: in processor time

For steps of about 2, 5, 20 and 100 ms: a bare training and one with the default settings, each in a process of its own,
which take turns as in `overhead.py`. True is the share of a watched step that the bare one does not need, told is the
mean of what the run log says of the same steps. Beside busy processes a step waits for its turns, the longer one more
often, so its time is no measure of what watching takes: there the processor time of steps is compared.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from overhead import BASE, Plan, measure, summarise

SIZES = {
    "2 ms": Plan(width=32, layers=1, heads=2, context=16, batch=2),
    "5 ms": Plan(width=32, layers=4, heads=2, context=16, batch=2),
    "20 ms": Plan(width=96, layers=4, heads=4, context=64, batch=5),
    "100 ms": Plan(width=192, layers=6, heads=6, context=128, batch=4),
}
WATCHED = "stabwatch"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps: does it run?")
    parser.add_argument("--busy", action="store_true", help="two other processes compute meanwhile")
    parser.add_argument("--only", nargs="*", choices=list(SIZES))
    parser.add_argument("--seconds", type=float, default=40.0, help="of each size, about")
    parser.add_argument("--results", type=Path, help="file for the table")
    options = parser.parse_args()
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * options.busy)]
    lines = [
        "| step | bare, ms | watched, ms | true | told | told / true | steps recorded | intervals |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    print("\n".join(lines))
    try:
        for name, size in SIZES.items():
            if options.only is None or name in options.only:
                lines.append(row(name, size, 2.0 if options.quick else options.seconds, options.busy))
                print(lines[-1], flush=True)
    finally:
        for other in others:
            other.kill()
    if options.results:
        options.results.write_text("\n".join(lines) + "\n", encoding="utf-8")


def row(name: str, size: Plan, seconds: float, busy: bool) -> str:
    """One line of the table."""
    expected = float(name.split()[0]) / 1e3
    turn = max(3, int(0.15 / expected))
    settle = max(64, min(1100, int(seconds / 4 / expected)))
    plan = replace(size, threads=1, rounds=10_000, steps=turn, settle=settle)
    plan = replace(plan, clock="process_time" if busy else plan.clock)
    times, facts, _ = measure([BASE, WATCHED], plan, seconds=seconds)
    found, own = summarise(times, facts), facts[WATCHED]
    true = found[WATCHED]["excess_ms"] / (found[BASE]["step_ms"] + found[WATCHED]["excess_ms"])
    return (
        f"| {name} | {found[BASE]['step_ms']:.2f} | {found[WATCHED]['step_ms']:.2f} | {true:.1%} | {own['told']:.1%} "
        f"| {own['told'] / true:.2f} | {own['recorded']:.1%} | {list(own['interval'].values())} |"
    )


if __name__ == "__main__":
    main()
