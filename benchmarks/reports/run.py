"""How much of what users report is found, named and placed, on runs that nobody tuned to.

    python -m benchmarks.reports                            default settings, then everything at every step
    python -m benchmarks.reports --default                  default settings alone
    python -m benchmarks.reports --every-step               everything at every step alone
    python -m benchmarks.reports --only NAME [--only NAME]  some cases or healthy workloads
    python -m benchmarks.reports --healthy                  the healthy workloads alone
    python -m benchmarks.reports --cases                    the cases alone
    python -m benchmarks.reports --write docs/reports.md    write the page
    python -m benchmarks.reports --keep FOLDER              keep the runs there, and take those that are there

Each run is watched in the way of one line, `stabwatch.attach(model, optimizer)`, without an agent.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.reports.case import Case, Outcome, Trial, Workload
from benchmarks.reports.cases import CASES
from benchmarks.reports.healthy import WORKLOADS
from benchmarks.reports.page import Mode, line_of, page, totals
from benchmarks.reports.verdicts import HealthyResult, Result, judge, judge_healthy

R = TypeVar("R", Result, HealthyResult)
SETTINGS: dict[Mode, dict[str, bool]] = {"default": {}, "every step": {"every_step": True}}


def watched(item: Case | Workload, mode: Mode, folder: Path, broken: bool = False) -> Outcome:
    """Train, watched, with the run folders in `folder`; unless the folder holds that run already."""
    file = folder / "outcome.json"
    if not file.exists():
        run = Trial(broken, item.steps, folder, **SETTINGS[mode]).run(item.train)
        run.save(file)
    return Outcome.load(file)


def run_case(case: Case, mode: Mode, root: Path) -> Result:
    """Train a case and its twin, and judge what is said."""
    folder = root / mode.replace(" ", "-") / case.name
    return judge(case, *(watched(case, mode, folder / kind, kind == "broken") for kind in ("broken", "twin")))


def run_healthy(workload: Workload, mode: Mode, root: Path) -> HealthyResult:
    """Train a healthy workload, and count its alarms."""
    run = watched(workload, mode, root / mode.replace(" ", "-") / workload.name)
    return judge_healthy(workload.name, workload.about, run, workload.learns(run))


def main(argv: list[str] | None = None) -> int:
    """See the module's docstring. Exit code 1 if a fault does not show or a healthy workload does not learn."""
    options = _options(argv)
    torch.set_num_threads(1)  # the models are small
    warnings.filterwarnings("ignore")
    began = time.perf_counter()
    modes: list[Mode] = [mode for mode in SETTINGS if mode in options.modes]
    cases = [c for c in CASES if not options.healthy and (not options.only or c.name in options.only)]
    healthy = [w for w in WORKLOADS if not options.cases and (not options.only or w.name in options.only)]
    results: dict[Mode, list[Result]] = {mode: [] for mode in modes}
    calm: dict[Mode, list[HealthyResult]] = {mode: [] for mode in modes}
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        for mode in modes:
            for case in cases:
                results[mode].append(_told(run_case(case, mode, root), mode))
            for workload in healthy:
                calm[mode].append(_told(run_healthy(workload, mode, root), mode))
    print(totals(results, calm))
    if options.write:
        took = time.perf_counter() - began
        options.write.write_text(page(_command(argv), results, calm, took, options.keep is not None), encoding="utf-8")
    every = [r.shown for some in results.values() for r in some] + [h.learned for some in calm.values() for h in some]
    return int(not all(every))


def _told(result: R, mode: Mode) -> R:
    print(line_of(result, mode), flush=True)
    return result


def _command(argv: list[str] | None) -> str:
    given = sys.argv[1:] if argv is None else argv
    keep = {i + offset for i, word in enumerate(given) if word == "--keep" for offset in (0, 1)}
    return " ".join(["python -m benchmarks.reports", *(word for i, word in enumerate(given) if i not in keep)])


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--default", dest="modes", action="store_const", const=("default",))
    which.add_argument("--every-step", dest="modes", action="store_const", const=("every step",))
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--healthy", action="store_true", help="the healthy workloads alone")
    parser.add_argument("--cases", action="store_true", help="the cases alone")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the runs there, and take those that are there"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page to this file")
    parser.set_defaults(modes=tuple(SETTINGS))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return parser.parse_args(argv)
