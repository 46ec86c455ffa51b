"""A watched run is the same run: parameters, buffers, losses and random numbers, bit for bit."""

from __future__ import annotations

import copy
import gc
import pickle
import time
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.runlog import Accumulator
from stabwatch.runtime.coverage import COPIED
from tests.models import ARCHITECTURES, gpt, run
from tests.sampling import sample


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", sample(ARCHITECTURES, "gpt", "cnn", "rnn", "vit"))
def test_training_is_bit_identical(name, autocast, attach):
    plain = run(name, autocast=autocast)
    watched = run(name, autocast=autocast, before=attach)
    log = attach.finish()
    assert all(torch.equal(a, b) for a, b in zip(plain[0], watched[0], strict=True))
    assert torch.equal(plain[1], watched[1]), "the random number generator was touched"
    assert plain[2] == watched[2]
    assert len(log.steps) == 12
    assert not [e for e in log.events if e.kind == "error"]


@pytest.mark.parametrize("name", ["gpt", "vit"])
def test_training_is_bit_identical_when_the_optimizer_is_not_given(name, attach):
    plain = run(name)
    watched = run(name, before=lambda model, optimizer: attach(model))
    assert all(torch.equal(a, b) for a, b in zip(plain[0], watched[0], strict=True))
    assert len(attach.finish().steps) == 12


def test_detach_leaves_nothing_behind(attach):
    def hooks(model):
        return {n: (set(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()}

    original = F.scaled_dot_product_attention, F.cross_entropy, torch.autograd.backward, torch.nn.utils.clip_grad_norm_
    task = gpt(torch.Generator())
    before = hooks(task.model)
    watch = attach(task.model)
    assert F.scaled_dot_product_attention is not original[0]
    watch.detach()
    watch.detach()
    assert hooks(task.model) == before
    assert original == (
        F.scaled_dot_product_attention,
        F.cross_entropy,
        torch.autograd.backward,
        torch.nn.utils.clip_grad_norm_,
    )


@pytest.mark.parametrize("every_step", [False, True])
def test_parameters_can_be_swapped(every_step, attach):
    """`torch.utils.swap_tensors` refuses a tensor with a weak reference, and so does `Module.to` where it swaps."""
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, every_step=every_step)

    def train(steps, dtype=torch.float32):
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(5, 6, dtype=dtype)).square().mean().backward()
            optimizer.step()

    train(6)
    held = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
    assert not [t for t in held if weakref.getweakrefs(t)]
    identities = [*map(id, model.parameters())]
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert [*map(id, model.parameters())] == identities
    torch.utils.swap_tensors(model[0].weight, nn.Parameter(torch.zeros(8, 6, dtype=torch.float64)))
    train(4, torch.float64)
    log = attach.finish()
    assert list(log.steps) == list(range(10))
    assert not [e for e in log.events if e.kind == "error"]


@pytest.mark.parametrize("clock", ["perf_counter", "monotonic", "time"])
def test_a_clock_that_stands_still_costs_no_record(clock, attach, monkeypatch):
    """Tests freeze time, and some clocks are coarse."""
    task = gpt(torch.Generator())
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    attach(task.model, optimizer)
    now = getattr(time, clock)()
    monkeypatch.setattr(time, clock, lambda: now)
    for _ in range(4):
        optimizer.zero_grad()
        task.loss().backward()
        optimizer.step()
    monkeypatch.undo()
    log = attach.finish()
    assert list(log.steps) == list(range(4))
    assert not [e for e in log.events if e.kind == "error"]


def test_no_graph_is_kept_alive_and_memory_is_flat(attach):
    """Live tensors after 120 steps are no more than after 20; nothing of a step outlives it."""
    counts = {}

    def look(step):
        if step in (20, 116):  # steps at which the same layers have their turn
            time.sleep(1)  # the writer's thread lets go of the last record
            gc.collect()
            live = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]
            counts[step] = (len(live), sum(t.numel() for t in live), sum(t.grad_fn is not None for t in live))

    run("gpt", steps=120, before=attach, after_step=look)
    assert all(late <= early for late, early in zip(counts[116], counts[20], strict=True)), counts


def test_copies_and_pickles_of_a_watched_model_are_not_watched(attach):
    task = gpt(torch.Generator())
    attach(task.model)
    twin = copy.deepcopy(task.model)
    assert all(m._stabwatch is None for m in twin.modules() if "_stabwatch" in vars(m))
    tokens = torch.zeros(2, 8, dtype=torch.long)
    assert torch.equal(twin(tokens), task.model(tokens))
    assert pickle.loads(pickle.dumps(task.model))(tokens).shape == (2, 8, 256)
    assert set(twin.state_dict()) == set(gpt(torch.Generator()).model.state_dict())


def test_a_model_that_keeps_its_watch_is_copied_and_pickled(attach):
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.watch = watch = attach(model, optimizer)
    assert copy.deepcopy(model).watch is watch and copy.copy(watch).run == watch.run
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    other = pickle.loads(pickle.dumps(model))
    left = other.watch
    assert (left.run, left.run_dir, left.url, left.step) == (watch.run, watch.run_dir, None, 0)
    assert "state=detached" in repr(left)
    assert [entry["reason"] for entry in left.coverage()["missing"]] == [COPIED]
    with left:
        left.begin_step(3)
        left.log(loss=1.0)
        left.announce("nothing")
        left.load_state_dict(watch.state_dict())
    assert left.state_dict()["run"] == watch.run
    assert len(attach.finish().steps) == 1


def test_evaluation_is_not_recorded(attach):
    task = gpt(torch.Generator())
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    attach(task.model, optimizer)
    for _ in range(3):
        task.loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            task.model.eval()
            task.loss()
            task.model.train()
    log = attach.finish()
    loss = Accumulator("token_loss", "", "mean")
    counts = [count for block in log.blocks for count in block.rows[:, block.layout.start(loss)]]
    assert counts == [4 * 16] * 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_out_of_range_are_no_errors_where_the_user_makes_warnings_errors(dtype, attach):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.Sequential(*(copy.deepcopy(layer.self_attn) for _ in range(2)))
    model.forward = lambda x: [x := x + part(x, x, x)[0] for part in model][-1]
    model = model.to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e3)
    watch = attach(model, optimizer, every_step=True)
    with np.errstate(all="raise"):
        for scale in (1.0, 1e12, 1e19, 1e25, 1.0):
            optimizer.zero_grad()
            model(scale * torch.randn(8, 6, 16, dtype=dtype)).square().mean().backward()
            optimizer.step()
    log = attach.finish()
    assert not watch._session.isolation.errors
    assert [e.data for e in log.events if e.kind == "error"] == [] and list(log.steps) == [0, 1, 2, 3, 4]
