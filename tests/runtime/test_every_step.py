"""Every step is in the log with its loss, gradient norm, rate and time, whatever the machine does besides."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.demo import GPT, DemoConfig
from tests.sampling import sample

STEPS = 110
BASICS = ("loss", "gradient_norm_before_clip", "learning_rate", "step_seconds")


@pytest.fixture
def busy_machine():
    """Two processes that do nothing but compute."""
    jobs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    yield
    for job in jobs:
        job.kill()
        job.wait()


def _train(attach, steps=STEPS, **settings):
    """A GPT with steps of some milliseconds; gives what the loop knows of each step, and the watch."""
    torch.manual_seed(0)
    config = DemoConfig(width=32, layers=4, context=16, batch=2, heads=4)
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = attach(model, optimizer, every_step=False, **settings)
    tokens = torch.randint(0, 96, (steps, 2, 17))
    told = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate = 1e-3 * (1 + step)
        loss = F.cross_entropy(model(tokens[step, :, :-1]).flatten(0, 1), tokens[step, :, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        told.append((loss.item(), norm.item(), rate))
    return told, watch


@pytest.mark.parametrize("budget", sample([0.01, 0.0001], 0.0001))
def test_every_step_is_in_the_log_with_the_right_numbers(attach, busy_machine, budget):
    told, _ = _train(attach, overhead_budget=budget)
    run = attach.finish()
    assert len(run.steps) >= 0.99 * STEPS
    for at, name in enumerate(BASICS[:3]):
        steps, values = run.series(name)
        assert len(steps) >= 0.99 * STEPS, name
        assert values.tolist() == pytest.approx([told[step][at] for step in steps.tolist()], rel=1e-5), name
    _, seconds = run.series("step_seconds")
    assert (seconds > 0).all()


def test_the_other_tiers_still_get_their_turns(attach):
    _, watch = _train(attach)
    run = attach.finish()
    places = {"always": ("attention_logit_upper", "blocks.0.attn"), "sampled": ("output_rms", "blocks.0")}
    counted = {tier: len(run.series(*place)[0]) for tier, place in places.items()}
    assert counted["always"] >= STEPS // 16
    assert counted["sampled"] >= 4
    assert watch._session._pace.governor.interval["always"] <= 16


def test_hooks_and_the_writer_are_on_the_books(attach):
    _, watch = _train(attach, 40)
    session = watch._session
    assert session.isolation.spent["entry"] > 0
    assert session._writer.seconds > 0
    assert 0 < session._pace.governor.overhead < 1
