"""Several models that are trained together: each is a run of its own."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.errors import ConfigError
from stabwatch.hooks.backward import _of_this_thread
from stabwatch.runlog import read_run

STEPS = 8


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def gan(watch) -> tuple[list[list[float]], list[torch.Tensor]]:
    torch.manual_seed(0)
    models = generator, discriminator = _mlp(4, 2), _mlp(2, 1)
    first, second = (torch.optim.Adam(m.parameters(), lr=1e-3) for m in models)
    watch(generator, first)
    watch(discriminator, second)
    losses: list[list[float]] = [[], []]
    for _ in range(STEPS):
        real, noise = torch.randn(16, 2), torch.randn(16, 4)
        second.zero_grad()
        fake = discriminator(generator(noise).detach())
        loss = F.softplus(-discriminator(real)).mean() + F.softplus(fake).mean()
        loss.backward()
        second.step()
        losses[1].append(loss.item())
        first.zero_grad()
        loss = F.softplus(-discriminator(generator(noise))).mean()
        loss.backward()
        first.step()
        losses[0].append(loss.item())
    return losses, [p.detach().clone() for m in models for p in m.parameters()]


def actor_critic(watch) -> tuple[list[list[float]], list[torch.Tensor]]:
    """One optimizer holds both."""
    torch.manual_seed(0)
    models = actor, critic = _mlp(4, 3), _mlp(4, 1)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3)
    for model in models:
        watch(model, optimizer)
    losses: list[list[float]] = [[], []]
    for _ in range(STEPS):
        states, returns = torch.randn(16, 4), torch.randn(16, 1)
        value = critic(states)
        policy = -(actor(states).log_softmax(-1)[:, :1] * (returns - value.detach())).mean()
        baseline = F.mse_loss(value, returns)
        optimizer.zero_grad()
        policy.backward()
        baseline.backward()
        optimizer.step()
        losses[0].append(policy.item())
        losses[1].append(baseline.item())
    return losses, [p.detach().clone() for m in models for p in m.parameters()]


@pytest.mark.parametrize("train", [gan, actor_critic])
def test_each_model_has_its_own_steps_and_its_own_loss(train, attach):
    plain = train(lambda model, optimizer: None)
    losses, parameters = train(attach)
    assert losses == plain[0]
    assert all(torch.equal(a, b) for a, b in zip(parameters, plain[1], strict=True))
    for watch, trained in zip(attach.watches, losses, strict=True):
        watch.detach()
        log = read_run(watch.run_dir)
        assert log.steps.tolist() == list(range(STEPS))
        assert log.series("loss")[1] == pytest.approx(trained, rel=1e-5)
        assert {k.layer for k in log.keys if k.signal == "output_rms"} == {"0", "2"}
        assert not [e.data for e in log.events if e.kind == "error"]
        assert watch.coverage()["missing"] == []


def test_two_models_in_two_threads_do_not_hear_each_others_cross_entropy(tmp_path):
    models = [_mlp(4, classes) for classes in (3, 7)]
    watches = [
        stabwatch.attach(m, run_dir=tmp_path / str(i), agent=False, verbose=False, every_step=True)
        for i, m in enumerate(models)
    ]
    turns = threading.Barrier(2)
    losses: list[list[float]] = [[], []]

    def train(i: int) -> None:
        optimizer = torch.optim.SGD(models[i].parameters(), lr=0.1)
        for _ in range(STEPS):
            inputs = torch.randn(5, 4)
            turns.wait()
            logits = models[i](inputs)
            turns.wait()  # both models have been called
            loss = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
            turns.wait()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[i].append(loss.item())

    threads = [threading.Thread(target=train, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for watch, wanted in zip(watches, losses, strict=True):
        watch.detach()
        assert read_run(watch.run_dir).series("token_loss")[1].tolist() == pytest.approx(wanted)


def test_the_cross_entropy_of_a_compiled_model_is_not_that_of_another_one_that_is_watched(tmp_path):
    """Both are called in one thread; outside of the graph it is seen which was called last."""
    other, model = _mlp(4, 5), _mlp(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = stabwatch.attach(other, run_dir=tmp_path / "other", agent=False, verbose=False)
    other(torch.randn(2, 4))
    compiled = torch.compile(model, backend="eager")
    watch = stabwatch.attach(compiled, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False, every_step=True)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(compiled(torch.randn(5, 4)), torch.zeros(5, dtype=torch.int64))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for each in (watch, first):
        each.detach()
    assert read_run(watch.run_dir).series("token_loss")[1].tolist() == pytest.approx(losses)


@pytest.mark.parametrize("several", [list, tuple, lambda models: dict(zip("dg", models, strict=True))])
def test_several_models_at_once_are_one_clear_sentence(several):
    models = [_mlp(4, 2), _mlp(2, 1)]
    with pytest.raises(ConfigError, match="call it once for each of these 2"):
        stabwatch.attach(several(models), torch.optim.SGD(models[0].parameters(), lr=0.1))


def test_a_backward_pass_is_not_heard_by_the_watch_of_a_model_of_another_thread():
    """That one may have a pass of its own, which writes into the gradients that would be looked at."""
    mine, other, new = (SimpleNamespace(thread=t) for t in (threading.get_ident(), 7, 0))
    assert _of_this_thread([mine, other, new]) == [mine, new]
    assert _of_this_thread([other]) == [other], "a model may be called in one thread and trained in another"
