"""Tries stabwatch on all families of transformers, spellings of attention, optimizers and wrappers.

    python -m benchmarks.compat                       all, and write docs/compatibility.md
    python -m benchmarks.compat --group vision        one group
    python -m benchmarks.compat --only bert           the rows with this name
    python -m benchmarks.compat --continue            only the rows that the results do not have
    python -m benchmarks.compat --page                write the page from the results, and run nothing
    python -m benchmarks.compat --parallel            the table of signals over kinds of parallelism, and nothing else
    python -m benchmarks.compat --results FILE        other results than benchmarks/results/compat.json

Each row runs in a process of its own, with a time limit. Rows are kept as JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.compat import attention, families, optimizers, others, parallel, wrappers
from benchmarks.compat.page import page, totals
from benchmarks.compat.program import Case, Row
from benchmarks.compat.trial import try_case

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "compat.json"
PAGE = ROOT / "docs" / "compatibility.md"
LIMIT = 60.0
"""Seconds that a row may take."""


def all_cases() -> list[Case]:
    """Every row of the table."""
    return [*families.cases(), *others.cases(), *attention.cases(), *optimizers.cases(), *wrappers.cases()]


def main(argv: Sequence[str] | None = None) -> int:
    """See the module's docstring. Exit code 1 if a training is changed, or a gap has no reason."""
    options = _options(argv)
    known = load(options.results)
    if options.parallel:
        parallel.run()
    elif not options.page:
        _run(_chosen(options, known), known, options.results)
    rows = [known[key] for case in all_cases() if (key := (case.group, case.name)) in known]
    PAGE.write_text(page(rows), encoding="utf-8")
    print("\n".join(totals(rows)))
    return int(any(r.faults or (not r.skipped and (not r.identical or r.unexplained)) for r in rows))


def load(path: Path = RESULTS) -> dict[tuple[str, str], Row]:
    """The results so far, by group and name."""
    rows = [Row(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))] if path.exists() else []
    return {(row.group, row.name): row for row in rows}


def _chosen(options: argparse.Namespace, known: dict[tuple[str, str], Row]) -> list[Case]:
    found = all_cases()
    if options.group:
        found = [case for case in found if case.group in options.group]
    if options.only:
        found = [case for case in found if case.name in options.only]
    if options.go_on:
        found = [case for case in found if (case.group, case.name) not in known]
    return found


def _run(chosen: list[Case], known: dict[tuple[str, str], Row], results: Path) -> None:
    _prepare()
    for number, case in enumerate(chosen):
        began = time.perf_counter()
        row = isolated(case)
        row.seconds = round(time.perf_counter() - began, 1)
        known[case.group, case.name] = row
        print(f"{number + 1}/{len(chosen)} {_line(row)}", flush=True)
        entries = [asdict(row) for row in known.values()]
        results.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def _prepare() -> None:
    """Import once what all processes need."""
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with suppress(ImportError):
        import transformers.modeling_utils
        import transformers.models.llama.modeling_llama

        transformers.logging.set_verbosity_error()


def isolated(case: Case) -> Row:
    """Run a case in a process of its own."""
    context: Any = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_in_child, args=(case, there))
    process.start()
    there.close()
    row = Row(case.group, case.name, case.about)
    if here.poll(LIMIT):
        try:
            row = here.recv()
        except EOFError:
            process.join()
            row.skipped = f"the process ended with code {process.exitcode}"
    else:
        row.skipped = f"it took more than {LIMIT:g} s"
    process.kill()
    process.join()
    return row


def _in_child(case: Case, out: Connection) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    out.send(try_case(case))
    out.close()
    os._exit(0)


def _line(row: Row) -> str:
    if row.skipped:
        return f"{row.name}: not tried: {row.skipped}"
    state = "identical" if row.identical else "DIFFERENT"
    gaps = "; ".join(f"{layer}: {reason or 'UNEXPLAINED'}" for layer, reason in row.gaps.items())
    loss = "none" if row.loss is None else f"{row.loss:.1e}"
    rest = f"{state}, {row.steps} steps, loss {loss}, attention {len(row.seen)}/{len(row.layers)}"
    return f"{row.name}: {rest} {gaps} {row.missing or ''} {row.faults or ''} ({row.seconds:.1f} s)"


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.compat", description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--group", action="append", help="only this group; may be repeated")
    parser.add_argument("--only", action="append", help="only the rows with this name; may be repeated")
    parser.add_argument("--continue", dest="go_on", action="store_true", help="only rows without a result")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file with the results")
    parser.add_argument("--parallel", action="store_true", help="only the table of signals over kinds of parallelism")
    parser.add_argument("--page", action="store_true", help="write the page, and run nothing")
    return parser.parse_args(sys.argv[1:] if argv is None else argv)
