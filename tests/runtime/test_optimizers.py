"""Whatever steps the parameters, and however: one record per step, with the numbers of that step."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import nn

from stabwatch.runtime.parameter_steps import AT_PARAMETERS, COMPILED_STEP, OTHER_STEP, REPLACED_STEP
from tests.runtime.optimizers import KINDS, LAYERS, STEPS, Truth, model, objective
from tests.sampling import sample


def run(kind, attach_with):
    net = model()
    truth = Truth(net)
    KINDS[kind](net, truth, lambda optimizer: attach_with(net, optimizer))
    return truth, [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("kind", sample(KINDS, "sgd", "by hand", every=2))
def test_every_step_has_a_record_with_its_numbers(kind, attach):
    _, alone = run(kind, lambda net, optimizer: None)
    truth, watched = run(kind, attach)
    assert all(map(torch.equal, alone, watched))
    log = attach.finish()
    assert [e.data for e in log.events if e.kind == "error"] == []
    assert list(log.steps) == list(range(STEPS))
    assert log.series("loss")[1] == pytest.approx(truth.loss, rel=1e-5)
    assert log.series("gradient_norm")[1] == pytest.approx(truth.norm, rel=1e-4)
    if truth.before:
        assert log.series("gradient_norm_before_clip")[1] == pytest.approx(truth.before, rel=1e-5)
    for layer in LAYERS:
        assert log.series("update_to_weight_ratio", layer)[1] == pytest.approx(truth.update[layer], rel=1e-3)
    known = [float(r) for r in truth.rate if r is not None and not math.isnan(r)]
    assert log.series("learning_rate")[1].tolist() == pytest.approx(known)


def notes(watch):
    return {n["tap"]: n["reason"] for n in watch.coverage()["notes"]}


def test_it_is_said_that_steps_are_seen_at_the_parameters(attach):
    run("by hand", attach)
    assert notes(attach.watches[-1]) == {"optimizer": AT_PARAMETERS}
    run("sgd", attach)
    assert notes(attach.watches[-1]) == {}


def test_a_compiled_step_has_the_same_graphs_and_every_step_a_record(attach):
    from torch._dynamo.utils import counters

    def train(watched):
        torch._dynamo.reset()
        counters.clear()
        net = model()
        optimizer = torch.optim.AdamW(net.parameters(), lr=torch.tensor(1e-2))
        if watched:
            attach(net, optimizer)
        step, losses = torch.compile(lambda: optimizer.step(), backend="eager"), []
        for i in range(20):
            optimizer.zero_grad()
            loss = objective(net, i)
            loss.backward()
            step()
            losses.append(loss.item())
        return dict(counters["stats"]), [p.detach().clone() for p in net.parameters()], losses

    graphs, alone, losses = train(False)
    more, state, _ = train(True)
    assert more == graphs
    assert all(map(torch.equal, alone, state))
    log = attach.finish()
    assert list(log.steps) == list(range(20))
    assert log.series("loss")[1] == pytest.approx(losses, rel=1e-5)
    assert notes(attach.watches[-1]) == {"optimizer": COMPILED_STEP}


@torch.no_grad()
def by_own_hand(optimizer, closure=None):
    for p in optimizer.param_groups[0]["params"]:
        p.sub_(p.grad, alpha=0.1)


def replace_class(optimizer):
    type(optimizer).step = by_own_hand


def replace_method(optimizer):
    optimizer.step = functools.partial(by_own_hand, optimizer)


def wrap_method(optimizer):
    step = optimizer.step
    optimizer.step = lambda: step()


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    ("change", "note"),
    [(replace_class, REPLACED_STEP), (replace_method, REPLACED_STEP), (wrap_method, None), (None, OTHER_STEP)],
)
def test_every_step_has_its_record_where_the_step_was_replaced(change, note, given, attach):
    class Own(torch.optim.SGD):
        pass

    net = model()
    optimizer = Own(net.parameters(), lr=0.1)
    if change is not None:
        change(optimizer)
    attach(net, optimizer if given else None)
    losses = []
    for i in range(20):
        optimizer.zero_grad()
        loss = objective(net, i)
        loss.backward()
        losses.append(loss.item())
        if change is None:
            by_own_hand(optimizer)
        else:
            optimizer.step()
    log = attach.finish()
    assert notes(attach.watches[-1]).get("optimizer") == note
    if change is not None:  # else it takes a while until it is clear that these are steps
        assert list(log.steps) == list(range(20))
        assert log.series("loss")[1] == pytest.approx(losses, rel=1e-5)


def test_a_step_that_raises_an_error_does_not_hide_the_next_ones(attach):
    class Breaks(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            return super().step()

    def bad():
        raise ValueError("the user's")

    net = model()
    optimizer = Breaks(net.parameters(), lr=0.1)
    attach(net, optimizer)
    for i in range(5):
        objective(net, i).backward()
        if i == 1:
            with pytest.raises(ValueError, match="the user's"):
                optimizer.step(bad)
        optimizer.step(lambda: None)
        optimizer.zero_grad()
    assert list(attach.finish().steps) == [0, 1, 2, 3, 4]


def test_passes_whose_batch_is_skipped_are_no_steps(attach):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    attach(net)
    losses = []
    for i in range(40):
        loss = objective(net, i)
        loss.backward()
        if i % 10 == 9:
            optimizer.step()
            losses.append(loss.item())
        optimizer.zero_grad()
    log = attach.finish()
    assert len(log.steps) == 4
    assert log.series("loss")[1] == pytest.approx(losses, rel=1e-5)


def frozen_head():
    net = model()
    optimizer = torch.optim.SGD(net[2].parameters(), lr=0.1)
    net[2].requires_grad_(False)
    return net, optimizer


def all_frozen():
    net = model().requires_grad_(False)
    return net, torch.optim.SGD(net.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (frozen_head, "all 2 parameters of the model that the optimizer holds are frozen"),
        (frozen_head, "2 of 2 trainable parameters are in no optimizer that was given: `0.weight`, `0.bias`"),
        (lambda: (m := model(), torch.optim.SGD(m[0].parameters(), lr=0.1)), "2 of 4 trainable parameters"),
        (lambda: (model(), torch.optim.SGD(model().parameters(), lr=0.1)), "holds no parameter of this model"),
        (lambda: (nn.Sequential(nn.ReLU()), None), "the model has no parameters"),
        (lambda: (model().to("meta"), None), "hold no numbers"),
        (all_frozen, "all 4 parameters of the model are frozen"),
    ],
)
def test_an_optimizer_that_does_not_train_the_model_is_named(make, said, attach, caplog):
    watch = attach(*make())
    assert said in caplog.text
    assert watch._session.state == "watching"
    attach.finish()


class MasterWeights:
    """An optimizer in the manner of Apex, Megatron and ZeRO: it steps copies, and writes them back."""

    def __init__(self, parameters):
        self.groups = [list(parameters)]
        self.copies = [p.detach().clone() for p in self.groups[0]]
        self.optimizer = torch.optim.AdamW(self.copies, lr=0.01)

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self):
        for p, copy in zip(self.groups[0], self.copies, strict=True):
            copy.grad, p.grad = p.grad, None
        self.optimizer.step()
        for p, copy in zip(self.groups[0], self.copies, strict=True):
            p.data.copy_(copy)


def test_an_optimizer_that_steps_copies_of_the_parameters(attach, caplog):
    net = model()
    optimizer = MasterWeights(net.parameters())
    attach(net, optimizer)
    losses, norms = [], []
    for i in range(12):
        loss = objective(net, i)
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.cat([p.grad.flatten() for p in net.parameters()]).norm().item())
        optimizer.step()
    log = attach.finish()
    assert log.series("loss")[1] == pytest.approx(losses, rel=1e-5)
    assert log.series("gradient_norm")[1] == pytest.approx(norms, rel=1e-5)
    assert caplog.text == ""


@pytest.mark.parametrize("given", [True, False])
def test_copies_that_a_loop_steps_and_writes_back_by_hand(given, attach, caplog):
    """Nothing leads from the optimizer to the model, so its steps are seen at the parameters, from the first one on."""
    net = model().bfloat16()
    copies = [p.detach().float().requires_grad_() for p in net.parameters()]
    optimizer = torch.optim.AdamW(copies, lr=0.05)
    attach(net, optimizer if given else None, every_step=False)
    losses = []
    for i in range(12):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(i))
        loss = (net(x.bfloat16()).float() - x[:, :3]).square().mean()
        net.zero_grad()
        loss.backward()
        losses.append(loss.item())
        for p, copy in zip(net.parameters(), copies, strict=True):
            copy.grad = p.grad.float()
        optimizer.step()
        with torch.no_grad():
            for p, copy in zip(net.parameters(), copies, strict=True):
                p.copy_(copy)
    log = attach.finish()
    assert list(log.steps) == list(range(12))
    assert log.series("loss")[1] == pytest.approx(losses, rel=1e-5)
    assert ("its steps are not steps of this run" in caplog.text) == given


def test_a_whole_optimizer_is_not_complained_about(attach, caplog):
    net = model()
    attach(net, torch.optim.SGD(net.parameters(), lr=0.1))
    attach(net)
    assert caplog.text == ""


def test_adafactor_tells_the_rate_that_it_used(attach):
    transformers = pytest.importorskip("transformers.optimization")
    net = model()
    optimizer = transformers.Adafactor(net.parameters(), lr=None, relative_step=True, warmup_init=True)
    attach(net, optimizer)
    used = []
    for i in range(4):
        objective(net, i).backward()
        optimizer.step()
        group = optimizer.param_groups[0]
        used.append(float(optimizer._get_lr(group, optimizer.state[group["params"][0]])))
        optimizer.zero_grad()
    log = attach.finish()
    assert log.series("learning_rate")[1] == pytest.approx(used, rel=1e-5)
    assert [e.data for e in log.events if e.kind == "error"] == []


class Assigning(torch.optim.Optimizer):
    """Gives each parameter other data in place of changing what it has, as some implementations of LARS do."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad


def test_what_an_optimizer_changes_by_assigning_data_is_measured(attach):
    def signals(make):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        optimizer = make(model.parameters())
        attach(model, optimizer)
        for _ in range(24):
            optimizer.zero_grad()
            model(torch.randn(6, 4)).square().mean().backward()
            optimizer.step()
        log = attach.finish()
        names = ("update_to_weight_ratio", "update_successive_cosine", "update_weight_cosine")
        return {(name, layer): log.series(name, layer)[1] for name in names for layer in ("0", "2")}

    found, wanted = signals(Assigning), signals(lambda p: torch.optim.SGD(p, lr=0.1))
    assert all(len(values) for values in wanted.values())
    for key, values in wanted.items():
        assert found[key].tolist() == pytest.approx(values.tolist(), rel=1e-3, abs=1e-6, nan_ok=True)
