"""`python -m benchmarks.programs CLONES [--only TEXT] [--write docs/programs.md]`: see the package."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import NamedTuple

from benchmarks.programs.table import PROGRAMS, Program
from benchmarks.report import machine, table
from stabwatch.analysis.analyze import analyze

LONGEST = 240.0
"""Seconds of a program."""
ABOUT = """# Programs of public repositories, as they are

`{command}`, {day}, {machine}, {seconds:.0f} s.

Each program is a file of a public repository that was not changed: tutorials, games of two networks, policies. It runs
twice from the same seeds, once without stabwatch and once with a watch at default settings on each optimizer that it
makes (`benchmarks/programs/`); what is not installed (environments, data sets, plots) has a stand-in. Same bits: all
parameters and the states of the random generators of torch, numpy and Python are equal after as many steps.
Alarms are what `stabwatch analyze` reports and ends with exit status 1 for. Those that the program's own code or curve
bears out are true: a softmax before `cross_entropy` in two of the games; an epsilon of 0.8 in their batch norms, which
was meant as a momentum, so that nothing is learned; logits of 20 and attention logits of 1,000 from an embedding that
is not scaled; the net without batch norm in a lesson on batch norm; and a spike of the loss.

"""


class Outcome(NamedTuple):
    """What came out. alarms: names of causes, by watch. failure: the last line of an error; '' without one."""

    program: Program
    steps: int
    same: bool
    alarms: tuple[str, ...]
    failure: str

    @property
    def false(self) -> tuple[str, ...]:
        """Alarms that are not known to be true."""
        return tuple(name for name in self.alarms if name not in self.program.true)


def _run(program: Program, clones: Path, runs: str) -> tuple[list[str], str]:
    """The words of the last line of a run, and the line before it."""
    folder = clones / program.repository / program.folder
    given = [runs, str(program.steps), program.script, *program.arguments]
    paths = (str(Path.cwd()), os.environ.get("PYTHONPATH", ""))
    fixed = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    try:
        done = _ended(given, folder, {**os.environ, **fixed, **program.environment})
    except subprocess.TimeoutExpired:
        return ["program", "0", "failed", "-"], f"not over after {LONGEST:.0f} s"
    lines = [line for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].split(), lines[-2] if len(lines) > 1 else ""


def _ended(given: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.programs.watched", *given],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=LONGEST,
        check=False,
    )


def _outcome(program: Program, clones: Path) -> Outcome:
    with tempfile.TemporaryDirectory() as kept:
        watched, before = _run(program, clones, kept)
        bare, _ = _run(program, clones, "-")
        alarms: list[str] = []
        for folder in sorted(Path(kept).iterdir()):
            found = analyze(folder)
            if any(incident.is_problem for incident in found.incidents):
                alarms.append(found.diagnosis.causes[0].name)
    ends = len(watched) == 4 and watched[2] != "failed"
    return Outcome(program, int(watched[1]), watched[1:] == bare[1:], tuple(alarms), "" if ends else before)


def page(outcomes: list[Outcome]) -> str:
    """The tables, by repository and of all alarms."""
    repositories = Counter(o.program.repository for o in outcomes)
    rows = []
    for name, count in repositories.items():
        mine = [o for o in outcomes if o.program.repository == name]
        same, alarms = sum(o.same for o in mine), sum(len(o.alarms) for o in mine)
        false = sum(len(o.false) for o in mine)
        rows.append((name.replace("+", "/"), count, sum(o.steps for o in mine), f"{same} of {count}", alarms, false))
    steps, false = sum(o.steps for o in outcomes), sum(len(o.false) for o in outcomes)
    head = ("repository", "programs", "steps", "same bits", "alarms", "of these not known to be true")
    told = [(o.program.name, ", ".join(o.alarms), ", ".join(o.false)) for o in outcomes if o.alarms]
    whole = f"Together: {len(outcomes)} programs, {steps:,} steps, {false} alarms that are not known to be true."
    return "\n\n".join((table(head, rows), whole, table(("program", "alarms", "not known to be true"), told))) + "\n"


def main() -> int:
    """Run them and write the page; 1 if a program's bits changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clones", type=Path, help="folder with clones that are named OWNER+NAME")
    parser.add_argument("--only", default="", help="programs whose names contain this")
    parser.add_argument("--write", type=Path, help="write the page there")
    given = parser.parse_args()
    began, outcomes = time.monotonic(), []
    wanted = [program for program in PROGRAMS if given.only in program.name]
    there = [program for program in wanted if (given.clones / program.repository / program.folder).is_dir()]
    print("\n".join(f"{program.name}: there is no clone" for program in wanted if program not in there), flush=True)
    pool = ThreadPoolExecutor(os.cpu_count())
    for program, found in zip(there, pool.map(lambda p: _outcome(p, given.clones), there), strict=True):
        same = "" if found.same else "  THE BITS DIFFER"
        print(
            f"{program.name}: {found.steps} steps, {', '.join(found.alarms) or '-'} {found.failure}{same}", flush=True
        )
        if not found.failure:
            outcomes.append(found)
    command = "python -m benchmarks.programs CLONES --write docs/programs.md"
    seconds = time.monotonic() - began
    text = ABOUT.format(command=command, day=date.today(), machine=machine(), seconds=seconds) + page(outcomes)
    if given.write:
        given.write.write_text(text)
    else:
        print(text)
    return int(not all(o.same for o in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
