"""Synthetic runs: what the demo's log looks like, sick and healthy, made in milliseconds."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stabwatch.runlog import Accumulator, Event, Meta, RecordLayout, RunFolder, host_accumulator

BLOCKS = 4
CREATED = 1_790_000_000.0
MakeRun = Callable[..., Path]


def accumulators(layers: list[str]) -> list[Accumulator]:
    attention = [f"{name}.attn" for name in layers]
    branches = [f"{name}.{branch}" for name in layers for branch in ("attn", "mlp")]
    weights = ["wte", *branches, "lm_head"]
    sites = ["wte"]
    for name in layers:
        sites += [f"{name}.attn", f"{name}.mlp", name]
    sites += ["lm_head"]
    return [
        Accumulator("loss", "", "mean"),
        *(Accumulator("activation", s, "moments") for s in sites),
        *(Accumulator("attention", s, "attention_bracket") for s in attention),
        *(Accumulator("attention", s, "attention_exact") for s in attention),
        Accumulator("logits", "", "logsumexp"),
        *(Accumulator("gradient", s, "moments") for s in weights),
        *(Accumulator("weight", s, "moments") for s in weights),
        *(Accumulator("update", s, "update") for s in weights),
        host_accumulator("learning_rate"),
        host_accumulator("step_seconds"),
        host_accumulator("overhead_ratio"),
        host_accumulator("probe_errors_total"),
    ]


class Row:
    """One record, filled by the names of fields."""

    def __init__(self, layout: RecordLayout) -> None:
        self.layout = layout
        self.values = np.full(layout.width, np.nan, np.float32)

    def put(self, tap: str, site: str, reduction: str, **fields: float) -> None:
        accumulator = Accumulator(tap, site, reduction)
        names = [name for name, _ in self.layout.fields[self.layout.accumulators.index(accumulator)]]
        start = self.layout.start(accumulator)
        self.values[start : start + len(names)] = 0
        for name, value in {"count": 1.0, **fields}.items():
            self.values[start + names.index(name)] = value

    def moments(self, tap: str, site: str, rms: float, peak: float) -> None:
        self.put(tap, site, "moments", count=1000, sumsq=rms * rms * 1000, abs_max=rms * peak)


def fill(row: Row, step: int, layers: list[str], sick: bool, rng: np.random.Generator) -> None:
    """The values of one step of the demo: attention logits 5 to 4000 when sick, 5 to 9 when not."""
    jitter = lambda scale=0.02: float(np.exp(scale * rng.standard_normal()))  # noqa: E731
    loss = 2.5 + 1.7 * np.exp(-step / 40) + 0.03 * rng.standard_normal()
    row.put("loss", "", "mean", sum=loss)
    row.put("logits", "", "logsumexp", count=100, sum=100 * 3.0 * jitter(), sumsq=100 * 9.5 * jitter())
    row.put("host", "learning_rate", "host", last=3e-2 if sick else 1e-3)
    row.put("host", "step_seconds", "host", last=0.12 * jitter())
    row.put("host", "overhead_ratio", "host", last=0.008 * jitter())
    row.put("host", "probe_errors_total", "host_count", sum=0)
    for i, name in enumerate(layers):
        growth = np.log(800) * min(1.0, (1.0 - 0.06 * i) * step / 300) if sick else 0.6 * (1 - np.exp(-step / 100))
        peak = 5 * np.exp(growth) * jitter()
        row.put(
            "attention", f"{name}.attn", "attention_bracket",
            count=100, lse_sumsq=100 * peak**2 / 9, upper=peak + 0.9, head=i % 4, lower=peak - 1.5,
        )  # fmt: skip
        if step % 25 == 0:
            row.put("attention", f"{name}.attn", "attention_exact", max=peak, head=i % 4)
    if step % 10:
        return
    for site in [*(f"{n}{b}" for n in layers for b in (".attn", ".mlp", "")), "wte", "lm_head"]:
        row.moments("activation", site, 1.2 * jitter(), 6.0 * jitter())
    for site in [*(f"{n}{b}" for n in layers for b in (".attn", ".mlp")), "wte", "lm_head"]:
        row.moments("gradient", site, 1e-3 * jitter(0.1), 5)
        row.moments("weight", site, 0.02, 4)
        row.put("update", site, "update", update_sumsq=4e-6, weight_sumsq=0.4)


def make_run(
    path: Path, *, sick: bool, steps: int = 300, layers: list[str] | None = None, end: str | None = "finished", **meta
) -> Path:
    layers = [f"blocks.{i}" for i in range(BLOCKS)] if layers is None else layers
    layout = RecordLayout.build(accumulators(layers))
    rng = np.random.default_rng(0)
    facts = {
        "run": path.name, "created": CREATED, "host": "testhost", "pid": 2**22 - 1, "pid_started": CREATED,
        "versions": {"torch": "2.13.0", "stabwatch": "0.1.0"},
        "model": {"name": "GPT", "parameters": 1_200_000, "layers": layers},
        "config": {"overhead_budget": 0.01},
    }  # fmt: skip
    folder = RunFolder(path, Meta(**{**facts, **meta}))
    folder.event(Event("start", CREATED))
    missing = [{"tap": "attention", "site": "blocks.9.attn", "reason": "its forward never ran"}]
    folder.event(Event("coverage", CREATED + 1, 3, {"taps": ["attention"], "fired": 4, "missing": missing}))
    for step in range(steps):
        row = Row(layout)
        fill(row, step, layers, sick, rng)
        folder.append(layout, step, CREATED + 0.12 * step, row.values)
    if end is not None:
        folder.event(Event("end", CREATED + 0.12 * steps, steps - 1, {"reason": end}))
    folder.close()
    return path


@pytest.fixture(scope="session")
def sick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "sick", sick=True)


@pytest.fixture(scope="session")
def healthy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "healthy", sick=False)


@pytest.fixture(scope="session")
def new_run() -> MakeRun:
    """make_run, for tests that need a run of their own."""
    return make_run


if __name__ == "__main__":
    import sys

    for kind in ("sick", "healthy"):
        make_run(Path(sys.argv[1]) / kind, sick=kind == "sick", created=time.time(), pid=os.getpid())
