"""Train without stabwatch and say whether each fault shows, and whether each healthy workload learns.

python -m benchmarks.reports.verify [NAME ...]
"""

from __future__ import annotations

import sys
import time
import warnings

import torch

from benchmarks.reports.case import Case, Outcome, Trial, Workload
from benchmarks.reports.cases import CASES
from benchmarks.reports.checks import hurt_step
from benchmarks.reports.healthy import WORKLOADS


def twins(case: Case) -> tuple[Outcome, Outcome]:
    """The broken run and its healthy twin."""
    broken, twin = (Trial(bad, case.steps).run(case.train) for bad in (True, False))
    return broken, twin


def fault_shows(case: Case) -> str:
    """One line: does the fault show, and what did both runs print?"""
    began = time.perf_counter()
    broken, twin = twins(case)
    ends = ", ".join(f"{name} {broken.final(name):.4g} / {twin.final(name):.4g}" for name in ("loss", *broken.facts))
    took = (time.perf_counter() - began) / 2
    verdict = "ok  " if case.check(broken, twin) else "FAIL"
    hurt = hurt_step(broken.losses, twin.losses, case.fault)
    return f"{verdict} {case.name:26} {took:4.1f} s, hurt {hurt}, first {twin.first():.3g}, final broken / twin: {ends}"


def learns(workload: Workload) -> str:
    """One line: does the workload learn?"""
    began = time.perf_counter()
    run = Trial(False, workload.steps).run(workload.train)
    ends = ", ".join(f"{name} {run.first(name):.4g} -> {run.final(name):.4g}" for name in ("loss", *run.facts))
    verdict = "ok  " if workload.learns(run) else "FAIL"
    return f"{verdict} {workload.name:26} {time.perf_counter() - began:4.1f} s, {workload.steps} steps, {ends}"


def main(names: list[str]) -> int:
    """See the module's docstring."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    failed = 0
    for item in (*CASES, *WORKLOADS):
        if not names or item.name in names:
            line = fault_shows(item) if isinstance(item, Case) else learns(item)
            failed += line.startswith("FAIL")
            print(line, flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
