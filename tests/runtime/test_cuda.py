"""On a GPU: nothing waits for it, training is the same bit by bit, and the numbers are those of a CPU.

Everything here runs in bfloat16 and at every tier; where there is no GPU, nothing of it does.
"""

from __future__ import annotations

import time
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.demo import GPT, DemoConfig
from tests.models import Mixture

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(240)]

STEPS = 12
OF_THE_HOST = ("overhead_ratio", "data_wait_seconds", "samples_per_second")
FORMS = {"eager": None, "compiled": "default", "CUDA graphs": "reduce-overhead"}


class Model(nn.Module):
    """A GPT with a mixture of experts behind its blocks, so that every tap has something to see."""

    def __init__(self) -> None:
        super().__init__()
        self.gpt = GPT(DemoConfig(width=64, layers=2, heads=2, context=64))
        self.inner, self.outer, self.mixture = nn.Linear(256, 8), nn.Linear(8, 256), Mixture()

    def forward(self, tokens):
        x = self.gpt(tokens)
        return x + self.outer(self.mixture(self.inner(x)))


@pytest.fixture(autouse=True)
def deterministic(monkeypatch):
    """Also in the flash kernels' backward; our own reductions must not be refused there."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def train(attach=None, mode=None, device="cuda", kind=torch.bfloat16, before_step=lambda step: None, **settings):
    """Parameters, RNG states, losses, and what the watch has written."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    called = torch.compile(model, mode=mode) if mode else model
    draw = torch.Generator().manual_seed(1)
    data = [torch.randint(0, 256, (4, 65), generator=draw).to(device) for _ in range(STEPS)]
    watch = attach(model, optimizer, **settings) if attach else None
    losses = []
    for step, rows in enumerate(data):
        before_step(step)
        with torch.autocast(device, kind, enabled=kind != torch.float32):
            loss = F.cross_entropy(called(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if watch:
            watch.log(perplexity=loss.detach().exp(), constant=1.0)
        optimizer.step()
        losses.append(loss.detach())
    log = attach.finish() if attach else None
    state = [p.detach().clone() for p in model.parameters()]
    rng = [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if device == "cuda" else [])]
    return state, rng, torch.stack(losses), log


def errors(log):
    """What went wrong inside stabwatch, with tracebacks."""
    return "\n".join(f"{e.data['probe']}: {e.data['traceback']}" for e in log.events if e.kind == "error")


class Waits(warnings.catch_warnings):
    """Where the host waited for the device: the lines of stabwatch that stand on each stack."""

    def __init__(self):
        super().__init__(record=False)
        self.lines = set()

    def __enter__(self):
        super().__enter__()
        return self

    def begin(self, step):
        """What is compiled and allocated in the first steps is not looked at."""
        if step == 4:
            warnings.simplefilter("always")
            warnings.showwarning = self._note
            torch.cuda.set_sync_debug_mode("warn")

    def __exit__(self, *_):
        torch.cuda.set_sync_debug_mode("default")
        super().__exit__()

    def _note(self, message, *_, **__):
        frames = [f for f in traceback.extract_stack() if "/stabwatch/" in f.filename]
        if "synchronizing" in str(message) and frames:
            self.lines.add(" < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames[::-1]))


def test_what_waits_is_noticed():
    """`fingerprint` waits, and says so."""
    with Waits() as waits:
        waits.begin(4)
        stabwatch.fingerprint(torch.ones(4, device="cuda"))
    assert any("batches.py" in line for line in waits.lines)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_waits_for_the_device(form, attach):
    with Waits() as waits:
        log = train(attach, FORMS[form], before_step=waits.begin, taylor=form == "eager")[3]
    assert not waits.lines, "\n".join(sorted(waits.lines))
    assert not errors(log), errors(log)
    assert len(log.steps) == STEPS


@pytest.mark.parametrize("form", FORMS)
def test_training_is_bit_identical(form, attach):
    plain = train(mode=FORMS[form])
    again = train(mode=FORMS[form])
    assert all(a.equal(b) for a, b in zip(plain[0], again[0], strict=True)), "this torch does not repeat itself"
    watched = train(attach, FORMS[form])
    assert not errors(watched[3]), errors(watched[3])
    assert watched[2].equal(plain[2])
    assert all(a.equal(b) for a, b in zip(plain[0], watched[0], strict=True))
    assert all(a.equal(b) for a, b in zip(plain[1], watched[1], strict=True)), "a random number generator was touched"


def test_it_sees_what_it_sees_on_a_cpu(attach):
    """Measured on an H100: every series, and the run's own values to 1e-4 in float32 after one step."""
    here = train(attach, device="cpu", kind=torch.float32)[3]
    there = train(attach, kind=torch.float32)[3]
    assert not errors(there), errors(there)
    assert set(there.keys) == set(here.keys)
    for key in here.keys:
        first, second = (run.series(key.signal, key.layer) for run in (here, there))
        if key.signal not in OF_THE_HOST:
            assert first[0].tolist() == second[0].tolist(), f"{key} is measured at other steps"
        if key.signal in ("loss", "gradient_norm", "attention_logit_max", "output_rms", "weight_rms"):
            assert second[1][0] == pytest.approx(first[1][0], rel=1e-3), key


def test_the_governor_learns_the_time_of_the_device(attach):
    """The host queues a step in a fraction of what it takes."""
    model = nn.Linear(8, 8).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer, every_step=False)
    x = torch.randn(4, 8, device="cuda")
    torch.cuda._sleep(1)
    begin = time.perf_counter()
    for _ in range(40):
        torch.cuda._sleep(20_000_000)  # about ten milliseconds
        model(x).square().mean().backward()
        optimizer.step()
    torch.cuda.synchronize()
    true = (time.perf_counter() - begin) / 40
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()
        torch.cuda.synchronize()
    found = watch._session._pace.governor._bare[len(watch._session._pace.governor._bare) // 2]
    assert found == pytest.approx(true, rel=0.2)
