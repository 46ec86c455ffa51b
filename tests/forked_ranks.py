"""`python -m tests.forked_ranks MODULE WORLD FOLDER ARGS...`: the ranks of a job.

Each rank is `python -m MODULE RANK ARGS...`. Its output goes to FOLDER/RANK.out and FOLDER/RANK.err. The exit code is 0
if those of all ranks are. `tests.processes.run_ranks` runs it in a process that has imported torch already.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path


def _as_rank(module: str, rank: int, folder: Path, args: list[str]) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv = [module, str(rank), *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> int:
    """Run all ranks. A rank returns 0, or raises what its module raises."""
    module, world, folder, *args = sys.argv[1:]
    ranks = []
    for rank in range(int(world)):
        process = os.fork()
        if not process:
            _as_rank(module, rank, Path(folder), args)
            return 0
        ranks.append(process)
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in ranks]
    print(codes)
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
