"""Runs a program unwatched and watched, and compares everything."""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import stabwatch
from benchmarks.compat.layers import AttentionLayers, matched
from benchmarks.compat.program import Case, NotTried, Program, Row
from stabwatch.runlog import Run, read_run

STEPS = 3
SETTINGS: dict[str, Any] = {"agent": False, "verbose": False, "every_step": True}


@dataclass
class Outcome:
    """What a run leaves behind."""

    losses: list[float]
    state: dict[str, Tensor]
    randomness: list[bytes]

    def equals(self, other: Outcome) -> bool:
        """Bit for bit."""
        same_losses = np.array_equal(np.array(self.losses), np.array(other.losses), equal_nan=True)
        if not same_losses or self.randomness != other.randomness or self.state.keys() != other.state.keys():
            return False
        return all(_bits_equal(a, other.state[name]) for name, a in self.state.items())


def _bits_equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(np.array_equal(_bits(a), _bits(b)))


def _bits(x: Tensor) -> np.ndarray:
    return x.reshape(-1).contiguous().view(torch.uint8).numpy()


def made(case: Case) -> Program:
    """The program, made with fixed random numbers."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return case.make()


def train(program: Program) -> Outcome:
    """Some steps, with fixed random numbers."""
    torch.manual_seed(1)
    with program.around():
        losses = [program.train_step() for _ in range(STEPS)]
    named = [*program.model.named_parameters(), *program.model.named_buffers()]
    state = {name: _whole(value.detach()).clone() for name, value in named}
    randomness = [torch.get_rng_state().numpy().tobytes(), repr(random.getstate()).encode()]
    return Outcome(losses, state, [*randomness, np.random.get_state()[1].tobytes()])


def _whole(x: Tensor) -> Tensor:
    return x.to_local() if hasattr(x, "to_local") else x  # type: ignore[no-any-return]


def try_case(case: Case) -> Row:
    """Run a case. What the program itself raises makes it a skipped row."""
    row = Row(case.group, case.name, case.about)
    began = time.perf_counter()
    try:
        program = made(case)
        row.about = row.about or type(program.model).__name__
        row.layers, row.silent = layers_of(program)
        plain = train(made(case))
    except NotTried as reason:
        row.skipped = str(reason)
        return row
    except Exception as error:
        row.skipped = one_line(error)
        return row
    with tempfile.TemporaryDirectory() as folder:
        program = made(case)
        watch = stabwatch.attach(program.watched or program.model, program.optimizer, run_dir=folder, **SETTINGS)
        try:
            watched = train(program)
        except Exception as error:
            row.faults.append(f"the watched training failed: {one_line(error)}")
            return row
        finally:
            watch.detach()
        _judge(row, plain, watched, read_run(Path(folder)))
    if not row.identical and not plain.equals(train(made(case))):
        row.skipped = "two unwatched runs of it differ"
    row.seconds = time.perf_counter() - began
    return row


def layers_of(program: Program) -> tuple[list[str], list[str]]:
    """The attention layers that a forward calls, and modules called attention that have no softmax."""
    finder = AttentionLayers(program.model)
    with program.around(), torch.compiler.set_stance("force_eager"), finder.watching():
        program.loss()
    return finder.layers, finder.silent


def _judge(row: Row, plain: Outcome, watched: Outcome, log: Run) -> None:
    row.identical = plain.equals(watched)
    row.steps = len(log.steps)
    row.faults = [str(e.data.get("message")) for e in log.events if e.kind == "error"]
    recorded = log.series("loss")[1]
    if len(recorded) == len(watched.losses):
        row.loss = float(max(map(_distance, recorded, watched.losses)))
    logits = ("attention_logit_max", "attention_logit_upper")
    row.seen = matched(row.layers, sorted({k.layer for k in log.keys if k.signal in logits and _has(log, k)}))
    report = next((e.data for e in reversed(log.events) if e.kind == "coverage"), {})
    said = [*report.get("missing", ()), *report.get("unmeasured", ())]
    of_attention = [entry for entry in said if entry["tap"] in ("attention", "attention_exact")]
    row.gaps = {layer: _reason(layer, of_attention) for layer in (*row.layers, *row.silent) if layer not in row.seen}
    others = [e for e in report.get("missing", ()) if e["tap"] != "attention" or e["site"] not in row.gaps]
    row.missing = dict(Counter(f"{e['tap']}: {e['reason']}" for e in others))


def _has(log: Run, key: Any) -> bool:
    return bool(len(log.series(key.signal, key.layer)[0]))


def _distance(a: float, b: float) -> float:
    if np.isnan(a) and np.isnan(b):
        return 0.0
    return abs(a - b) / max(abs(b), 1e-9) if a != b else 0.0


def _reason(layer: str, said: list[dict[str, str]]) -> str:
    """What the report says of a layer, or of the modules inside or around it."""
    inside = layer + "." if layer else ""
    for near in (lambda s: s == layer, lambda s: s.startswith(inside), lambda s: s and layer.startswith(s + ".")):
        found = next((entry["reason"] for entry in said if near(entry["site"])), None)
        if found is not None:
            return found
    return ""


def one_line(error: BaseException) -> str:
    """The first line of an error, with its class."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:160]}"
