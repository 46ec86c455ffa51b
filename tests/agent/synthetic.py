"""Run logs that imitate the demo: attention logits grow from 5 to 4000 over 300 steps while the loss looks calm."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

from stabwatch.runlog import Accumulator, Event, Meta, RecordLayout, RunFolder, host_accumulator

CREATED = 1_790_000_000.0
LAYERS = tuple(f"blocks.{i}" for i in range(4))


def meta(run: str, **facts) -> Meta:
    """Facts of a run whose training process is this one."""
    mine = {
        "created": CREATED,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_started": psutil.Process().create_time(),
        "versions": {"stabwatch": "0.1.0", "torch": "2.13.0"},
        "model": {"name": "GPT", "parameters": 1_200_000},
    }
    return Meta(run=run, **{**mine, **facts})


class Log:
    """Writes a run folder, step by step."""

    def __init__(self, path: Path, *, layers: Sequence[str] = LAYERS, sick: bool = True, now=None, **facts) -> None:
        self.path = path
        self.layers = layers
        self.sick = sick
        self.now = now or (lambda step: CREATED + 0.1 * step)
        self.attention = [f"{name}.attn" for name in layers]
        self.sites = ["wte", *(f"{n}{part}" for n in layers for part in (".attn", ".mlp", "")), "lm_head"]
        self.weights = ["wte", *(f"{n}{part}" for n in layers for part in (".attn", ".mlp")), "lm_head"]
        self.layout = RecordLayout.build(
            [
                Accumulator("loss", "", "mean"),
                *(Accumulator("activation", s, "moments") for s in self.sites),
                *(Accumulator("attention", s, f"attention_{k}") for s in self.attention for k in ("bracket", "exact")),
                Accumulator("logits", "", "logsumexp"),
                *(Accumulator("gradient", s, "moments") for s in self.weights),
                Accumulator("gradient", "", "clip"),
                *(Accumulator("weight", s, "moments") for s in self.weights),
                *(Accumulator("update", s, "update") for s in self.weights),
                *map(host_accumulator, ("learning_rate", "step_seconds", "overhead_ratio", "skipped_steps_total")),
            ]
        )  # fmt: skip
        self.folder = RunFolder(path, meta(path.name, **facts))
        self.folder.event(Event("start", self.now(0), 0))
        self.random = np.random.default_rng(0)

    def put(self, row: np.ndarray, tap: str, site: str, reduction: str, **fields: float) -> None:
        """Fill one cell; count is 1 unless given, other fields are 0."""
        accumulator = Accumulator(tap, site, reduction)
        names = [name for name, _ in self.layout.fields[self.layout.accumulators.index(accumulator)]]
        start = self.layout.start(accumulator)
        values = {"count": 1.0, **fields}
        row[start : start + len(names)] = [values.get(name, 0.0) for name in names]

    def row(self, step: int) -> np.ndarray:
        """All slots of one step."""
        row = np.full(self.layout.width, np.nan, np.float32)
        noise = lambda scale=0.02: float(np.exp(scale * self.random.standard_normal()))  # noqa: E731
        self.put(row, "loss", "", "mean", sum=2.5 + 1.5 * np.exp(-step / 40) + 0.03 * self.random.standard_normal())
        self.put(row, "logits", "", "logsumexp", count=100, sum=310 * noise(), sumsq=960 * noise())
        self.put(row, "gradient", "", "clip", sumsq=noise(0.2) + 4 * np.exp(-step / 20))
        self.put(row, "host", "learning_rate", "host", last=3e-2)
        self.put(row, "host", "step_seconds", "host", last=0.1 * noise())
        self.put(row, "host", "overhead_ratio", "host", last=0.008)
        self.put(row, "host", "skipped_steps_total", "host_count", sum=0)
        for i, site in enumerate(self.attention):
            growth = np.log(800) * min(1.0, (1 - 0.5 * i / len(self.attention)) * step / 300) if self.sick else 0
            peak = 5 * np.exp(growth) * noise()
            self.put(row, "attention", site, "attention_bracket", count=100, lse_sumsq=11 * peak**2,
                     upper=peak + 1, head=i % 4, lower=peak - 2)  # fmt: skip
            if step % 25 == 0:
                self.put(row, "attention", site, "attention_exact", max=peak, head=i % 4)
        if step % 4 == 0:
            self.sampled(row, noise)
        return row

    def sampled(self, row: np.ndarray, noise) -> None:
        """What is measured at every fourth step only."""
        for i, site in enumerate(self.sites):
            rms = (1 + 0.1 * i) * noise()
            self.put(row, "activation", site, "moments", count=1000, sumsq=1000 * rms**2, abs_max=6 * rms * noise(0.1))
        for site in self.weights:
            self.put(row, "gradient", site, "moments", count=1000, sumsq=1e-3 * noise(0.3), abs_max=0.01)
            self.put(row, "weight", site, "moments", count=1000, sumsq=0.4, abs_max=0.1)
            self.put(row, "update", site, "update", update_sumsq=4e-6 * noise(0.2), weight_sumsq=0.4)

    def write(self, steps: range) -> None:
        """Append records."""
        for step in steps:
            self.folder.append(self.layout, step, self.now(step), self.row(step))

    def end(self, step: int, reason: str = "finished", **data) -> None:
        """Append the end event."""
        self.folder.event(Event("end", self.now(step), step, {"reason": reason, **data}))


if __name__ == "__main__":  # a process that 'trains' until it is killed: RUN [SECONDS_PER_STEP]
    log = Log(Path(sys.argv[1]), now=lambda step: time.time(), created=time.time())
    pause = float(sys.argv[2]) if len(sys.argv) > 2 else 0.02
    for step in range(100_000):
        log.write(range(step, step + 1))
        time.sleep(pause)
