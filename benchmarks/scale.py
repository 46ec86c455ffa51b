"""How it scales: a run of 10,000 layer series, 200 runs on one real Prometheus, and what scraping costs the training.

    python -m benchmarks.scale --write      about six minutes; writes benchmarks/results/scale.md
    python -m benchmarks.scale --quick      a smaller one, to see that it runs

Needs `prometheus` (Debian package) on the path. Run logs are written with the real writer; agents, scrapes, rules and
the Prometheus are real.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import psutil
import torch
import torch.nn.functional as F
import yaml

import stabwatch
from benchmarks.report import machine
from stabwatch.agent.discovery import target, target_file, write_atomically
from stabwatch.agent.http import HttpServer
from stabwatch.agent.server import App
from stabwatch.agent.state import Follower
from stabwatch.demo import GPT, DemoConfig, batches, corpus
from stabwatch.runlog import Accumulator, Meta, RecordLayout, RunFolder, host_accumulator
from stabwatch.signals.reductions import REDUCTIONS

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "scale.md"
KINDS = (
    ("activation", "moments"), ("gradient", "moments"), ("weight", "moments"), ("update", "update"),
    ("attention", "attention_bracket"),
)  # fmt: skip


def layout(blocks: int, parts: int) -> RecordLayout:
    """A run of so many blocks with so many layers each."""
    layers = [f"blocks.{b}.part{p}" for b in range(blocks) for p in range(parts)]
    host = [host_accumulator(name) for name in ("learning_rate", "step_seconds", "overhead_ratio")]
    accumulators = [Accumulator(tap, layer, reduction) for tap, reduction in KINDS for layer in layers]
    return RecordLayout.build([Accumulator("loss", "", "mean"), *host, *accumulators])


class MadeRun:
    """A run log that grows, with numbers of a healthy run."""

    def __init__(self, path: Path, layout: RecordLayout) -> None:
        now = time.time()
        me = psutil.Process()
        meta = Meta(run=path.name, created=now, host=socket.gethostname(), pid=me.pid, pid_started=me.create_time())
        self.path = path
        self.folder = RunFolder(path, meta)
        self._table = layout
        self._rng = np.random.default_rng(0)
        names = [f.name for c in layout.accumulators for f in REDUCTIONS[c.reduction].fields]
        self._one = np.array([n == "count" for n in names])
        self._none = np.array([n == "nonfinite" for n in names])
        self._step = 0

    def write(self, records: int) -> None:
        """Append records."""
        for _ in range(records):
            row = (1 + 0.05 * self._rng.standard_normal(self._table.width)).astype(np.float32)
            row[self._one], row[self._none] = 1, 0
            self.folder.append(self._table, self._step, time.time(), row)
            self._step += 1


def fetch(url: str) -> bytes:
    """The body of an answer."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read()


@contextmanager
def growing(runs: list[MadeRun], every: float) -> Iterator[None]:
    """Each run gets a record in this many seconds."""
    done = threading.Event()

    def work() -> None:
        while not done.wait(every):
            for run in runs:
                run.write(1)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def agent(run: Path, *options: str) -> Iterator[tuple[psutil.Process, str]]:
    """A real agent: its process and its address."""
    command = [sys.executable, "-m", "stabwatch.agent", str(run), "--port", "0", *options]
    with open(run / "agent.log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as child:
        while not (run / "agent.json").exists():
            if child.poll() is not None:
                raise SystemExit((run / "agent.log").read_text())
            time.sleep(0.1)
        try:
            yield psutil.Process(child.pid), str(json.loads((run / "agent.json").read_text())["url"])
        finally:
            child.terminate()
            child.wait(20)


def big_run(folder: Path, blocks: int, parts: int, scrapes: int) -> list[tuple[object, ...]]:
    """One run with thousands of layer series, at each cardinality."""
    rows = []
    for cardinality in ("layer", "block", "run"):
        run = MadeRun(folder / f"big-{cardinality}", layout(blocks, parts))
        run.write(64)
        with growing([run], 0.2), agent(run.path, "--cardinality", cardinality) as (process, url):
            time.sleep(5)
            seconds, size = [], 0
            cpu, began = sum(process.cpu_times()[:2]), time.monotonic()
            for _ in range(scrapes):
                start = time.perf_counter()
                body = fetch(url + "metrics")
                seconds.append(time.perf_counter() - start)
                size = len(body)
                time.sleep(0.3)
            share = (sum(process.cpu_times()[:2]) - cpu) / (time.monotonic() - began)
            lines = [line for line in body.decode().splitlines() if line and not line.startswith("#")]
            layered = sum('layer="blocks' in line for line in lines)
            rows.append(
                (cardinality, len(lines), layered, median(seconds), quantiles(seconds, n=100)[98], size / 2**20,
                 process.memory_info().rss / 2**20, share)
            )  # fmt: skip
    return rows


@contextmanager
def prometheus(folder: Path, seconds: int) -> Iterator[tuple[psutil.Process, Callable[[str], dict]]]:
    """A real Prometheus with the shipped rules, scraping what the target files name; and how to ask its API."""
    config = yaml.safe_load((ROOT / "exporters" / "prometheus.yml").read_text())
    config["rule_files"] = [str(ROOT / "alerts" / "stabwatch.rules.yaml")]
    config["global"] = {"scrape_interval": f"{seconds}s", "evaluation_interval": f"{seconds}s"}
    config["scrape_configs"][0]["file_sd_configs"][0]["files"] = [str(folder / "targets" / "*.json")]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}",
               f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]  # fmt: skip
    with subprocess.Popen(command) as child:

        def ask(path: str) -> dict:
            return json.loads(fetch(f"http://127.0.0.1:{port}/api/v1/{path}"))["data"]

        try:
            yield psutil.Process(child.pid), ask
        finally:
            child.terminate()
            child.wait(20)


def many_runs(folder: Path, count: int, every: int, minutes: float) -> list[tuple[str, object]]:
    """So many runs, each with an agent's server of its own, on one Prometheus."""
    runs = [MadeRun(folder / f"run{i:03d}", layout(12, 4)) for i in range(count)]
    for run in runs:
        run.write(32)
    followers = [Follower(run.path) for run in runs]
    servers = [HttpServer(App(f, None), "127.0.0.1", 20000 + i) for i, f in enumerate(followers)]
    done = threading.Event()

    def follow() -> None:
        while not done.is_set():
            for follower in followers:
                follower.poll()
            time.sleep(0.5)

    threading.Thread(target=follow, daemon=True).start()
    for server, run in zip(servers, runs, strict=True):
        server.start()
        write_atomically(
            target_file(folder / "targets", run.path.name), target(server.address, run.path.name, server.tls)
        )
    with growing(runs, 10.0), prometheus(folder, every) as (process, ask):
        time.sleep(60 * minutes)

        def one(query: str) -> float:
            found = ask("query?" + urllib.parse.urlencode({"query": query}))["result"]
            return float(found[0]["value"][1]) if found else float("nan")

        groups = ask("rules")["groups"]
        out = [
            ("runs up", one("count(up == 1)")),
            ("stabwatch series", one('count({__name__=~"stabwatch_.*"})')),
            ("scrape, median (s)", one("quantile(0.5, scrape_duration_seconds)")),
            ("scrape, 99th percentile (s)", one("quantile(0.99, scrape_duration_seconds)")),
            *((f"rules `{g['name']}`: {len(g['rules'])} rules, evaluation (s)", g["evaluationTime"]) for g in groups),
            ("memory of the Prometheus (MiB)", process.memory_info().rss / 2**20),
        ]
    done.set()
    for server in servers:
        server.close()
    return out


def training(folder: Path, rounds: int, steps: int) -> list[tuple[str, float]]:
    """Steps of a training whose agent is scraped once a second, over steps while nobody scrapes, in turns."""
    torch.manual_seed(0)
    config = DemoConfig(width=64, layers=4, heads=4, context=64)
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    draw = batches(corpus(), config)
    watch = stabwatch.attach(model, optimizer, run_dir=folder / "training", port=0, verbose=False, linger=0.0)
    url = watch.wait_for_agent(60) or ""
    scraper = subprocess.Popen(
        [sys.executable, "-c", SCRAPER, url + "metrics", str(folder / "scraping")], stdin=subprocess.DEVNULL
    )
    ratios = []
    for turn in range(rounds):
        found = {}
        for on in (False, True) if turn % 2 else (True, False):
            flag = folder / "scraping"
            flag.touch() if on else flag.unlink(missing_ok=True)
            times = []
            for _ in range(steps):
                start = time.perf_counter()
                tokens, following = draw()
                loss = F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                times.append(time.perf_counter() - start)
            found[on] = median(times)
        ratios.append(found[True] / found[False])
    scraper.terminate()
    scraper.wait(10)
    watch.detach()
    low, middle, high = quantiles(ratios, n=4)
    return [("median", middle), ("lower quartile", low), ("upper quartile", high)]


SCRAPER = """
import os, sys, time, urllib.request
while True:
    if os.path.exists(sys.argv[2]):
        urllib.request.urlopen(sys.argv[1], timeout=10).read()
    time.sleep(1.0)
"""


def main() -> None:
    """Run all three and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if shutil.which("prometheus") is None:
        raise SystemExit("There is no `prometheus` on the path: apt-get install prometheus.")
    quick = given.quick
    folder = Path(tempfile.mkdtemp(prefix="stabwatch-scale-"))
    (folder / "targets").mkdir()
    try:
        big = big_run(folder, 2 if quick else 6, 50, 8 if quick else 40)
        many = many_runs(folder, 10 if quick else 200, 5 if quick else 30, 0.3 if quick else 3)
        slow = training(folder, 3 if quick else 12, 5 if quick else 40)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = report(big, many, slow)
    print(text)
    if given.write:
        RESULTS.write_text(text)


def report(big: list[tuple[object, ...]], many: list[tuple[str, object]], slow: list[tuple[str, float]]) -> str:
    """The page."""
    head = (
        "cardinality", "series", "of layers", "scrape, median (s)", "99th percentile (s)", "MiB",
        "memory of the agent (MiB)", "its share of a core",
    )  # fmt: skip
    return "\n".join(
        [
            "# Scale",
            "",
            f"`python -m benchmarks.scale --write` on {machine()}; everything on that machine.",
            "",
            "## One large run",
            "",
            "300 layers with five kinds of statistics each, a record every 0.2 s, a scrape every 0.3 s.",
            "",
            layout(head, big),
            "",
            "## Many runs on one Prometheus",
            "",
            "Each run has 48 layers, a server of its own and a record every 10 s; scraped and judged every 30 s with",
            "the shipped rules. One process serves them all here, so the scrape times are those of a busy host.",
            "",
            layout(("what", "measured"), many),
            "",
            "## What scraping costs the training",
            "",
            "Step of a small GPT whose agent is scraped once a second, over its step while nobody scrapes; in turns.",
            "",
            layout(("ratio", "measured"), slow),
            "",
        ]
    )


if __name__ == "__main__":
    main()
