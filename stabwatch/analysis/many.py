"""Many runs at once: on the cores of this machine, or on the machines of a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from stabwatch.alerts import RULES, Rule
from stabwatch.analysis.replay import Replay, Replays, replays_at
from stabwatch.errors import MissingExtraError
from stabwatch.runlog import beside_targets, find_runs, holds_run
from stabwatch.runlog.mirror import local, runs_at
from stabwatch.runlog.stores import url_of

FEW = 8
"""Fewer runs are done sooner than processes have started."""


def places(paths: Sequence[str | Path], elsewhere: bool = False) -> list[str]:
    """Each run at some paths by its own path, and each log of another trainer.

    elsewhere: another machine will read them; so runs of an object store are given by their addresses.
    Raises RunLogError.
    """
    found: list[str] = []
    for path in beside_targets(paths):
        url = url_of(path)
        if url is not None and elsewhere:
            found += runs_at(url)
            continue
        here = local(path)
        folders = [here] if here.is_file() or (here.exists() and not holds_run(here)) else find_runs([here])
        found += [str(folder.resolve()) for folder in folders]
    return list(dict.fromkeys(found))


def replay_many(
    runs: Sequence[str],
    rules: Sequence[Rule] = RULES,
    on_ray: bool = False,
    done: Callable[[int, int], None] = lambda count, of: None,
) -> Replays:
    """Replay runs, in their order; each as `replays_at` does. done: called with how many are done, and of how many.

    on_ray: on the cluster of RAY_ADDRESS, or on a local one. Raises RunLogError, LogError, and MissingExtraError.
    """
    found: list[Replay] = []
    for number, replays in enumerate(_on_ray(runs, rules) if on_ray else _on_cores(runs, rules), 1):
        found += replays
        done(number, len(runs))
    return Replays(tuple(found), tuple(rule.name for rule in rules))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_cores(runs: Sequence[str], rules: Sequence[Rule]) -> Iterator[tuple[Replay, ...]]:
    spawn = multiprocessing.get_context("spawn")  # this process may have threads
    with ProcessPoolExecutor(min(cores(), len(runs)), mp_context=spawn) as pool:
        futures = [pool.submit(replays_at, run, rules) for run in runs]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _on_ray(runs: Sequence[str], rules: Sequence[Rule]) -> Iterator[tuple[Replay, ...]]:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("This needs Ray: pip install 'stabwatch[ray]'.") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, log_to_driver=False)
    try:
        shared: Any = ray.put(tuple(rules))
        task = ray.remote(replays_at)
        for result in [task.remote(run, shared) for run in runs]:
            yield ray.get(result)
    finally:
        if ours:
            ray.shutdown()
