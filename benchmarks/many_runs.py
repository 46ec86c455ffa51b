"""What `stabwatch serve` costs with many runs: start, list, scrape, memory.

python benchmarks/many_runs.py [--live 200] [--ended 5000] [--seconds 60]

The runs are made up: the live ones write a record every few seconds and have no agent, so the service judges them; of
the ended ones, all have an agent's verdict. Prints JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from stabwatch.agent.state import Follower
from tests.agent.synthetic import Log

STEP_SECONDS = 5.0
PATHS = {"list": "api/runs.json", "increment": "api/runs.json?since={version}", "metrics": "metrics"}


def template(folder: Path, layers: int, sick: bool) -> Path:
    """An ended run of 300 records that an agent has judged."""
    created = time.time() - 3600
    log = Log(folder, layers=[f"blocks.{i}" for i in range(layers)], sick=sick, created=created,
              now=lambda step: created + 0.1 * step)  # fmt: skip
    log.write(range(300))
    log.end(299)
    log.folder.close()
    follower = Follower(folder)
    follower.poll()
    follower.lease.release()
    return folder


def make_ended(root: Path, count: int) -> None:
    """Ended runs. Their records are shared, their metadata are not."""
    made = [template(root.parent / f"template{i}", layers, i == 0) for i, layers in enumerate((4, 12, 24))]
    for i in range(count):
        source, target = made[i % 3], root / f"sweep{i // 500}" / f"run-{i:05d}"
        target.mkdir(parents=True)
        meta = json.loads((source / "meta.json").read_text())
        meta |= {
            "run": target.name,
            "created": meta["created"] - 60 * i,
            "config": {"lr": i % 7},
            "tags": [f"sweep{i // 500}"],
        }
        (target / "meta.json").write_text(json.dumps(meta))
        shutil.copy(source / "events.jsonl", target)
        (target / "agent.lock").touch()
        for segment in source.glob("*.arrows"):
            os.link(segment, target / segment.name)


def train(root: Path, count: int) -> None:
    """Live runs, a record every `STEP_SECONDS`."""
    logs = [
        Log(root / "live" / f"live-{i:03d}", layers=[f"blocks.{j}" for j in range(4 + 4 * (i % 3))], sick=i % 4 == 0,
            created=time.time(), now=lambda step: time.time(), config={"agent": False})
        for i in range(count)
    ]  # fmt: skip
    step = 0
    while True:
        began = time.time()
        for log in logs:
            log.write(range(step, step + 1))
        step += 1
        time.sleep(max(0.0, STEP_SECONDS - (time.time() - began)))


def timed(url: str) -> tuple[float, bytes]:
    """Seconds of one request, and its answer."""
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        body = answer.read()
    return time.perf_counter() - began, gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body


def until(condition: Callable[[], bool], timeout: float = 300.0) -> float:
    """Seconds until a condition holds."""
    began = time.perf_counter()
    while not condition():
        assert time.perf_counter() - began < timeout
        time.sleep(0.1)
    return time.perf_counter() - began


def measured(url: str, seconds: float) -> dict[str, float]:
    """Median and worst seconds of the requests that a page and Prometheus make."""
    times: dict[str, list[float]] = {name: [] for name in PATHS}
    version, end = 0, time.time() + seconds
    while time.time() < end:
        for name, path in (
            ("list", "api/runs.json"),
            ("increment", "api/runs.json?since=1000000000"),
            ("metrics", "metrics"),
        ):
            took, answer = timed(url + path.format(version=version))
            times[name].append(took)
            version = json.loads(answer)["version"] if name == "list" else version
        time.sleep(1.0)
    found = {}
    for name, values in times.items():
        found[f"{name}_median_s"] = round(sorted(values)[len(values) // 2], 3)
        found[f"{name}_worst_s"] = round(max(values), 3)
    return found


def memory(process: psutil.Process) -> float:
    """Resident MiB of a process and its children."""
    return sum(p.memory_info().rss for p in [process, *process.children(recursive=True)]) / 2**20


def serve(root: Path, live: int, ended: int, seconds: float) -> dict[str, float]:
    """Start the service, and measure it."""
    command = [sys.executable, "-m", "stabwatch", "serve", str(root), "--port", "0"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout is not None
    match = re.search(r"(http://\S+/) ", process.stdout.readline())
    assert match
    url = match[1]
    answers = time.perf_counter() - began

    def health() -> dict[str, Any]:
        return dict(json.loads(urllib.request.urlopen(url + "healthz").read()))

    until(lambda: health()["complete"])
    listed = time.perf_counter() - began
    early = measured(url, 10.0)
    until(lambda: not health()["unread"])
    read = time.perf_counter() - began
    try:
        found = {"answers_s": round(answers, 2), "listed_s": round(listed, 2), "all_read_s": round(read, 2),
                 "while_reading": early, **measured(url, seconds)}  # fmt: skip
        states = health()
        assert states["runs"] == {"running": live, "finished": ended} and not states["errors"], states
        judged = len(json.loads(urllib.request.urlopen(url + "sd").read()))
        cpu = psutil.Process(process.pid).cpu_times()
        return {**found, "judged": judged, "memory_mib": round(memory(psutil.Process(process.pid))),
                "cpu_share": round((cpu.user + cpu.system) / (time.perf_counter() - began), 2)}  # fmt: skip
    finally:
        process.terminate()
        process.wait(30)


def main() -> None:
    """Measure a first start, and a second one that remembers the ended runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--live", type=int, default=200)
    parser.add_argument("--ended", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        root.mkdir()
        make_ended(root, given.ended)
        training = (
            subprocess.Popen([sys.executable, __file__, "--train", str(root), str(given.live)]) if given.live else None
        )
        try:
            until(lambda: len(list((root / "live").glob("*/signals-*"))) == given.live if given.live else True)
            for start in ("first", "second"):
                print(json.dumps({"start": start, **serve(root, given.live, given.ended, given.seconds)}), flush=True)
        finally:
            if training is not None:
                training.terminate()
                training.wait(30)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        train(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
