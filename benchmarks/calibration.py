"""Do the rules stay silent on healthy runs and speak on unstable ones? Prints docs/calibration.md's table.

python benchmarks/calibration.py [--seeds 2] [--quick]
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.zoo import HEALTHY, UNSTABLE, train
from stabwatch.alerts import RULES, Engine, diagnose
from stabwatch.runlog import Block, read_run

DENSITIES = {"every step": {"every_step": True}, "default budget": {}}


def replay(path: Path, peaks: dict[str, float]) -> Engine:
    """Feed a run record by record; `peaks` keeps the largest derived gauges after each rule's warm-up."""
    engine = Engine()
    warm = {c.gauge: rule.warm_up for rule in RULES for level in rule.levels for c in level.when}
    for block in read_run(path).blocks:
        for i in range(len(block)):
            engine.observe(Block(block.table, block.steps[i : i + 1], block.times[i : i + 1], block.rows[i : i + 1]))
            for key, value in engine.derived.items():
                if math.isfinite(value) and key.signal in warm and block.steps[i] >= warm[key.signal]:
                    peaks[key.signal] = max(peaks[key.signal], value)
    return engine


def main() -> int:
    """Run all, print two tables; exit code 1 if a healthy run raised a warning or an unstable one was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one seed, one density")
    options = parser.parse_args()
    seeds = range(1 if options.quick else options.seeds)
    densities = {"every step": DENSITIES["every step"]} if options.quick else DENSITIES
    bad = 0
    peaks: dict[str, float] = defaultdict(lambda: -math.inf)
    print("| run | seed | measured | records | fired | first cause | at step | loss then, before | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for make in (*HEALTHY, *UNSTABLE):
            for seed in seeds:
                for density, settings in densities.items():
                    path = Path(folder) / f"{make.__name__}-{seed}-{len(settings)}"
                    began = time.perf_counter()
                    losses = train(make, seed, path, **settings)
                    seconds = time.perf_counter() - began
                    engine = replay(path, peaks if make in HEALTHY else defaultdict(lambda: -math.inf))
                    fired = [a for a in engine.history if a.state == "firing" and a.severity != "info"]
                    causes = diagnose(engine).causes
                    first = min((a.step for a in fired), default=None)
                    wanted = UNSTABLE.get(make, ())
                    good = (causes and causes[0].name in wanted) if wanted else not fired
                    bad += not good
                    then = (
                        ""
                        if first is None
                        else f"{losses[min(first, len(losses) - 1)]:.3g}, {losses[max(0, first - 20)]:.3g}"
                    )
                    names = ", ".join(sorted({f"{a.rule} ({a.severity})" for a in fired})) or "nothing"
                    print(
                        f"| {make.__name__} | {seed} | {density} | {len(read_run(path).steps)} | {names} "
                        f"| {causes[0].name if causes else ''}{'' if good else ' **WRONG**'} "
                        f"| {'' if first is None else first} | {then} | {seconds:.1f} |",
                        flush=True,
                    )
    print("\n| gauge | largest on healthy runs | fires beyond |\n|---|---|---|")
    for rule in RULES:
        for level in rule.levels:
            for c in level.when:
                if c.gauge in peaks and c.above is not None:
                    print(f"| `{c.gauge}` ({rule.name}, {level.severity}) | {peaks[c.gauge]:.3g} | {c.above:g} |")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
