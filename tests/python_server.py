"""Starts Python programs without the imports that each of them would repeat.

Of a short training, most of the time goes into the import of torch and of its compiler. Each line of standard input is
a request (JSON: words, cwd, env, and the files in, out and err); each program is a fork of this process, which runs it
as `python WORDS...` would. The answers are lines too: process id, then exit code. See `tests.processes.run_python`.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import sys
import threading
import types
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  (the first optimizer imports it)

import stabwatch.analysis.compare.compare
import stabwatch.analysis.compare.forecast  # (with scipy.stats)
import stabwatch.cli.app
import stabwatch.cli.render.analysis
import stabwatch.runtime.session  # noqa: F401


def serve() -> dict[str, Any]:
    """Answer requests until there are no more; in each fork, return the request."""
    gc.collect()
    gc.freeze()
    while line := sys.stdin.readline():
        request: dict[str, Any] = json.loads(line)
        process = os.fork()
        if not process:
            return request
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
    os._exit(0)


def enter(request: dict[str, Any]) -> list[str]:
    """Become the process that is asked for; what is to be run."""
    os.setsid()
    for number, name, mode in ((0, "in", os.O_RDONLY), (1, "out", os.O_WRONLY), (2, "err", os.O_WRONLY)):
        opened = os.open(request[name], mode)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    first = str(Path(request["words"][0]).resolve().parent) if not request["words"][0].startswith("-") else os.getcwd()
    ahead = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:0] = [path for path in ahead if path not in sys.path]
    sys.orig_argv = [sys.executable, *request["words"]]
    return request["words"]


def run(words: list[str]) -> None:
    """What `python WORDS...` runs."""
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(main))
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def main() -> None:
    """Serve. A fork ends as Python does, but leaves its memory to the system: to take torch apart takes a second."""
    words, code = enter(serve()), 0
    try:
        run(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException as error:
        code = 1
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        sys.excepthook(type(error), error, error.__traceback__)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
