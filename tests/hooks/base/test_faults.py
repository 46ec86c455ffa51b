"""Whatever breaks inside stabwatch, training goes on unchanged, and the fault is counted and named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.errors import ConfigError
from stabwatch.hooks.base.run_accumulators import RunAccumulators
from stabwatch.hooks.probes import activation, attention, loss
from stabwatch.hooks.probes.layers import ParameterTaps
from stabwatch.runlog import read_run
from stabwatch.runlog.folder import RunFolder
from stabwatch.runtime.session import Session
from tests.models import run
from tests.processes import run_python
from tests.sampling import sample

ROOT = Path(__file__).parents[3]


def _boom(*args, **kwargs):
    raise RuntimeError("injected")


TAPS = {
    "activation": (activation, "measure"),
    "attention": (attention, "saved_logsumexp"),
    "attention_exact": (attention, "update_largest_logit"),
    "loss": (loss, "cross_entropy"),
    "clip": (RunAccumulators, "update_clip"),
    "gradient": (ParameterTaps, "read_gradients"),
    "weight": (ParameterTaps, "measure_weights"),
    "update": (ParameterTaps, "snapshot"),
    "log": (RunAccumulators, "update_scalars"),
}


@pytest.mark.parametrize("probe", sample(TAPS, "activation", "attention", "loss", "update"))
def test_a_fault_in_a_tap_changes_nothing_and_is_named(probe, attach, monkeypatch):
    plain = run("gpt", steps=6)
    monkeypatch.setattr(*TAPS[probe], _boom)
    watched = run(
        "gpt", steps=6, before=attach, after_step=lambda s: attach.watches[-1].log(note=1.0) if probe == "log" else None
    )
    assert all(torch.equal(a, b) for a, b in zip(plain[0], watched[0], strict=True))
    watch = attach.watches[-1]
    log = attach.finish()
    assert len(log.steps) == 6
    assert watch._session.isolation.errors[probe] == 3 and probe in watch._session.isolation.disabled
    errors = [e.data for e in log.events if e.kind == "error"]
    assert [(e["probe"], e["disabled"]) for e in errors] == [(probe, False), (probe, True)]
    assert "injected" in errors[0]["traceback"]
    assert log.series("probe_errors_total")[1].sum() == 3


def test_a_fault_at_the_end_of_a_step_changes_nothing(attach, monkeypatch):
    plain = run("gpt", steps=6)
    monkeypatch.setattr(Session, "_record", _boom)
    watched = run("gpt", steps=6, before=attach)
    assert all(torch.equal(a, b) for a, b in zip(plain[0], watched[0], strict=True))
    assert attach.watches[-1]._session.isolation.errors["clock"] == 3


def test_a_fault_in_the_writer_changes_nothing_and_is_named(attach, monkeypatch):
    original = RunFolder.append
    calls = []

    def flaky(self, *args):
        calls.append(1)
        if len(calls) <= 4:
            raise OSError(28, "No space left on device")
        return original(self, *args)

    monkeypatch.setattr(RunFolder, "append", flaky)
    plain = run("gpt", steps=10)
    watched = run("gpt", steps=10, before=attach)
    assert all(torch.equal(a, b) for a, b in zip(plain[0], watched[0], strict=True))
    log = attach.finish()
    assert list(log.steps) == [4, 5, 6, 7, 8, 9]
    assert any("No space left" in e.data["message"] for e in log.events if e.kind == "error")
    assert attach.watches[-1]._session._writer.dropped == 4


def test_an_exception_of_the_user_s_is_the_user_s(attach, tmp_path):
    task_error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:

        def fail(step):
            if step == 2:
                raise task_error

        run("gpt", before=attach, after_step=fail)
    assert caught.value is task_error


@pytest.mark.parametrize(
    "part",
    [
        "runtime.model_taps.select_modules",
        "runtime.model_taps.StepBuffer",
        "hooks.step_hooks.register_optimizer_step_post_hook",
        "runtime.run_output.Writer",
    ],
)
def test_when_attaching_fails_training_goes_on_unwatched(part, monkeypatch, attach, caplog):
    plain = run("gpt", steps=4)
    monkeypatch.setattr(f"stabwatch.{part}", _boom)
    watched = run("gpt", steps=4, before=attach, after_step=lambda step: attach.watches[-1].log(x=1))
    assert all(torch.equal(a, b) for a, b in zip(plain[0], watched[0], strict=True))
    assert attach.watches[-1].coverage()["missing"]
    assert "training goes on unwatched" in caplog.text and "injected" in caplog.text
    assert not hasattr(torch.nn.functional.cross_entropy, "__wrapped__")
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in attach.watches[-1]._session._model.modules())


def test_a_run_folder_that_cannot_be_made_is_replaced(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    watch = stabwatch.attach(torch.nn.Linear(2, 2), run_dir=tmp_path / "file" / "run", agent=False)
    watch.detach()
    assert watch.run_dir.is_dir()
    assert "using" in capsys.readouterr().err


def test_bad_settings_are_refused_with_the_way_out(tmp_path):
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"no setting `budget`\. Settings: .*overhead_budget"):
        stabwatch.attach(model, budget=0.1)
    with pytest.raises(ConfigError, match=r"`overhead_budget` must be between 0 and 1, and is 2\.0"):
        stabwatch.attach(model, overhead_budget=2)
    (tmp_path / "c.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must hold `name: value` lines"):
        stabwatch.attach(model, config=tmp_path / "c.yaml")
    assert not any("_stabwatch" in vars(m) for m in model.modules())


SCRIPT = """
import os, sys, time, torch, stabwatch
from stabwatch.demo import GPT, DemoConfig
import torch.nn.functional as F
config = DemoConfig(width=16, layers=1, heads=1, context=8)
model = GPT(config); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
watch = stabwatch.attach(model, optimizer, run_dir=sys.argv[1], verbose=False, linger=0.5, port=0, agent={agent})
for step in range({steps}):
    x = torch.randint(0, 256, (2, 9))
    F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).backward()
    optimizer.step(); optimizer.zero_grad()
    print(step, watch._session._writer.written, flush=True)
    {each}
"""


def _script(**parts):
    return SCRIPT.format(**{"agent": False, "steps": 20, "each": "pass", **parts})


def _child(folder, **parts):
    code = _script(**parts)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in background jobs
    )  # fmt: skip


def test_kill_9_loses_no_written_record(tmp_path):
    kill = "if watch._session._writer.written >= 25: os.kill(os.getpid(), 9)"
    done = run_python("-c", _script(steps=10_000, each=kill), tmp_path / "run")
    assert done.returncode == -signal.SIGKILL
    written = int(done.stdout.split()[-1])
    log = read_run(tmp_path / "run")
    assert len(log.steps) >= written
    assert log.events[-1].kind != "end"


def test_an_unhandled_exception_ends_the_log_with_its_text(tmp_path):
    done = run_python("-c", _script(each="if step == 3: raise KeyError('no such batch')"), tmp_path / "run")
    assert done.returncode == 1 and "KeyError" in done.stderr
    end = read_run(tmp_path / "run").events[-1]
    assert (end.kind, end.data["reason"], end.step) == ("end", "exception", 3)
    assert "no such batch" in end.data["error"]


def _agent_pid(folder, other_than=None, timeout=60.0):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            pid = json.loads((folder / "agent.json").read_text())["pid"]
            if pid != other_than:
                return pid
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    raise AssertionError("no agent came up")


def test_an_agent_that_dies_is_restarted_and_training_goes_on(tmp_path):
    folder = tmp_path / "run"
    child = _child(folder, agent=True, steps=100_000, each="time.sleep(0.02)")
    try:
        first = _agent_pid(folder)
        os.kill(first, signal.SIGKILL)
        second = _agent_pid(folder, other_than=first)
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)
    finally:
        child.kill()
    log = read_run(folder)
    assert [e.data["state"] for e in log.events if e.kind == "agent"][:1] == ["restarted"]
    assert second != first


def test_an_agent_that_cannot_start_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    watch = stabwatch.attach(torch.nn.Linear(2, 2), run_dir=tmp_path / "run", verbose=False)
    watch.detach()
    agent = next(e for e in read_run(tmp_path / "run").events if e.kind == "agent")
    assert agent.data["state"] == "not started"


def test_empty_batches_and_complex_parameters_are_no_fault(attach):
    """What has no rows shows no logits; of complex parameters no update, spectrum or format is measured."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 4))
    model.register_parameter("phase", nn.Parameter(torch.ones(3, dtype=torch.complex64)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    for rows in (0, 6, 0, 6):
        optimizer.zero_grad()
        target = torch.zeros(rows, dtype=torch.long)
        value = F.cross_entropy(model(torch.randn(rows, 8)), target, reduction="sum") + model.phase.abs().sum()
        value.backward()
        optimizer.step()
    log = attach.finish()
    assert not [e for e in log.events if e.kind == "error"]
    assert list(log.series("output_logit_logsumexp")[0]) == [1, 3]
