"""What is one step: accumulation, several optimizers, skipped steps, a wrapped optimizer."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tests.models import gpt


def _setup():
    torch.manual_seed(0)
    return gpt(torch.Generator().manual_seed(0))


@pytest.mark.parametrize("given", [False, True])
def test_gradient_accumulation_is_one_step(given, attach):
    task = _setup()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    attach(task.model, optimizer if given else None)
    for _ in range(5):
        for _ in range(3):
            (task.loss() / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert list(attach.finish().steps) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("given", [False, True])
def test_two_optimizers_make_one_step(given, attach):
    task = _setup()
    matrices = [p for p in task.model.parameters() if p.dim() > 1]
    others = [p for p in task.model.parameters() if p.dim() <= 1]
    pair = [torch.optim.SGD(matrices, lr=0.1), torch.optim.AdamW(others, lr=0.01)]
    attach(task.model, pair if given else None)
    for _ in range(5):
        task.loss().backward()
        for optimizer in pair:
            optimizer.step()
            optimizer.zero_grad()
    log = attach.finish()
    assert list(log.steps) == [0, 1, 2, 3, 4]
    for layer in ("blocks.0.attn", "norm"):
        assert len(log.series("layer_gradient_norm", layer)[1]) == 5
        assert len(log.series("update_to_weight_ratio", layer)[1]) == 5


def test_an_optimizer_of_another_model_is_not_our_clock(attach):
    task, other = _setup(), nn.Linear(3, 3)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    foreign = torch.optim.SGD(other.parameters(), lr=0.1)
    attach(task.model)
    for _ in range(4):
        task.loss().backward()
        other(torch.ones(3)).sum().backward()
        foreign.step()
        optimizer.step()
    assert list(attach.finish().steps) == [0, 1, 2, 3]


class Outer(torch.optim.Optimizer):
    """An optimizer whose step is that of another one inside; it fails at the steps in `fails`."""

    def __init__(self, inner, fails=()):
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        self.inner, self.fails, self.steps = inner, fails, 0

    def step(self, closure=None):
        self.steps += 1
        if self.steps - 1 in self.fails:
            raise RuntimeError("planted")
        self.inner.step()


@pytest.mark.parametrize("fails", [(), (1,)])
def test_a_step_inside_a_step_is_part_of_it_also_after_one_that_raised(fails, attach):
    task = _setup()
    optimizer = Outer(torch.optim.SGD(task.model.parameters(), lr=0.1), fails)
    attach(task.model)
    for step in range(5):
        task.loss().backward()
        with pytest.raises(RuntimeError) if step in fails else nullcontext():
            optimizer.step()
        optimizer.zero_grad()
    log = attach.finish()
    assert list(log.steps) == list(range(5 - len(fails)))
    assert len(log.series("update_to_weight_ratio", "norm")[1]) == 5 - len(fails)


def test_gradients_of_a_step_that_raised_are_in_no_record(attach):
    """Ctrl-C in a notebook, or memory that ran out: the loop goes on with another batch."""
    task = _setup()
    optimizer = Outer(torch.optim.SGD(task.model.parameters(), lr=0.1), fails=(1, 2))
    attach(task.model, optimizer)
    norms = []
    for step in range(5):
        task.loss().backward()
        norms.append(torch.stack([p.grad.norm() for p in task.model.parameters()]).norm().item())
        with pytest.raises(RuntimeError) if step in (1, 2) else nullcontext():
            optimizer.step()
        optimizer.zero_grad()
    assert attach.finish().series("gradient_norm")[1] == pytest.approx([norms[0], *norms[3:]], rel=1e-5)


def test_a_step_that_the_gradient_scaler_skips_is_counted_with_its_bad_gradients(attach):
    task = _setup()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    attach(task.model, optimizer)
    for step in range(6):
        loss = task.loss() * (float("inf") if step == 3 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    log = attach.finish()
    assert list(log.steps) == [0, 1, 2, 3, 4, 5]
    skipped = dict(zip(*log.series("skipped_steps_total"), strict=True))
    assert [skipped[s] for s in range(6)] == [0, 0, 0, 1, 0, 0]
    bad = dict(zip(*log.series("gradient_nonfinite_total", "blocks.0.attn"), strict=True))
    assert bad[3] > 0 and bad[2] == 0
    scale = dict(zip(*log.series("loss_scale"), strict=True))
    assert scale[2] == 2.0**10 and scale[4] == 2.0**9


def test_a_wrapped_optimizer_is_seen_through(attach):
    class Wrapper:
        def __init__(self, inner):
            self.optimizer = inner

        def step(self):
            self.optimizer.step()

    task = _setup()
    wrapper = Wrapper(torch.optim.SGD(task.model.parameters(), lr=0.1))
    attach(task.model, wrapper)
    for _ in range(3):
        task.loss().backward()
        wrapper.step()
    assert list(attach.finish().steps) == [0, 1, 2]


def test_without_a_step_nothing_is_recorded_and_the_log_ends_well(attach):
    task = _setup()
    attach(task.model)
    task.loss().backward()
    log = attach.finish()
    assert len(log.steps) == 0
    assert [e.kind for e in log.events] == ["start", "coverage", "end"]
    (entry,) = log.events[1].data["missing"]
    assert entry["tap"] == "clock" and "no optimizer step was seen yet" in entry["reason"]


def test_updates_take_turns_when_they_do_not_fit_and_too_large_layers_are_named(attach):
    task = _setup()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    layer = sum(p.numel() for p in task.model.blocks[0].mlp.parameters()) * 4
    watch = attach(task.model, optimizer, update_bytes=layer + 100)
    for _ in range(12):
        task.loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    log = attach.finish()
    first = set(log.series("update_to_weight_ratio", "blocks.0.mlp")[0])
    second = set(log.series("update_to_weight_ratio", "blocks.1.mlp")[0])
    assert first and second and not first & second
    assert [m for m in watch.coverage()["missing"] if m["tap"] == "update"] == []
    watch = attach(task.model, optimizer, update_bytes=layer - 100)
    missing = {m["site"]: m["reason"] for m in watch.coverage()["missing"] if m["tap"] == "update"}
    assert "update_bytes" in missing["blocks.0.mlp"]


def test_checkpointed_blocks_are_counted_once(attach):
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, inner, reentrant):
            super().__init__()
            self.inner, self.reentrant = inner, reentrant

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=self.reentrant)

    counts = {}
    for reentrant in (None, False, True):
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        block = layer if reentrant is None else Checkpointed(layer, reentrant)
        model = nn.Sequential(nn.Linear(4, 4), block)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        attach(model, optimizer)
        for _ in range(3):
            model(torch.ones(2, 4)).square().mean().backward()
            optimizer.step()
        log = attach.finish()
        table = log.blocks[-1].layout
        starts = [s for c, s in zip(table.accumulators, table.starts, strict=True) if c.tap == "activation"]
        counts[reentrant] = {int(n) for s in starts for n in log.blocks[-1].rows[:, s]}
        assert [e for e in log.events if e.kind == "error"] == []
    assert counts == {None: {8}, False: {8}, True: {8}}
