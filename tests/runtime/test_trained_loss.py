"""The loss of a watched run is the objective whose gradient the step used, whatever computed it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stabwatch.runtime.coverage import OTHER_LOSS
from tests.sampling import sample


def net(inputs=6, outputs=4):
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


class Agent(nn.Module):
    """Called by its methods only."""

    def __init__(self):
        super().__init__()
        self.actor, self.critic = net(), net(6, 1)

    def forward(self, x):
        raise NotImplementedError

    def act(self, x):
        return self.actor(x).log_softmax(dim=-1)[:, 0]

    def value(self, x):
        return self.critic(x)


def masked(model, x, y):
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    return (F.cross_entropy(model(x), y, reduction="none") * mask).sum() / mask.sum()


LOSSES = {
    "masked": (net, masked),
    "mse": (net, lambda m, x, y: F.mse_loss(m(x), x[:, :4])),
    "smoothed": (net, lambda m, x, y: F.cross_entropy(m(x), y, label_smoothing=0.3)),
    "two terms": (net, lambda m, x, y: F.cross_entropy(z := m(x), y) + 3 * z.square().mean()),
    "several losses": (net, lambda m, x, y: sum(F.l1_loss(m(x), x[:, :4] * k) for k in range(3))),
    "methods": (Agent, lambda m, x, y: m.value(x).square().mean() - m.act(x).mean()),
    "preferences": (net, lambda m, x, y: -F.logsigmoid((m(x) - m(-x)).mean())),
    "half": (net, lambda m, x, y: 0.5 * F.cross_entropy(m(x), y)),
    "nll": (net, lambda m, x, y: F.nll_loss(m(x).log_softmax(dim=-1), y)),
}


def batch():
    return torch.randn(5, 6), torch.randint(0, 4, (5,))


@pytest.mark.parametrize("scaler", sample([None, False, True], None, True))
@pytest.mark.parametrize("kind", sample(LOSSES, "several losses", "methods", every=2))
def test_the_trained_loss(kind, scaler, attach):
    torch.manual_seed(0)
    make, loss_of = LOSSES[kind]
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaled = None if scaler is None else torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaler)
    attach(model, optimizer)
    truth = []
    for _ in range(6):
        parts = [loss_of(model, *batch()) / 2 for _ in range(2)]
        truth.append(sum(part.item() for part in parts))
        for part in parts:
            (part if scaled is None else scaled.scale(part)).backward()
        if scaled is None:
            optimizer.step()
        else:
            scaled.step(optimizer)
            scaled.update()
        optimizer.zero_grad()
    log = attach.finish()
    assert log.series("loss")[1] == pytest.approx(truth, rel=1e-5, abs=1e-6)
    assert log.series("skipped_steps_total")[1].sum() == 0
    assert [e.data for e in log.events if e.kind == "error"] == []


def test_a_nan_in_the_trained_loss_is_seen_where_the_cross_entropy_is_finite(attach):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(model, optimizer)
    x, y = batch()
    mask = torch.zeros(5)
    ((F.cross_entropy(model(x), y, reduction="none") * mask).sum() / mask.sum()).backward()
    optimizer.step()
    log = attach.finish()
    assert log.series("loss_nonfinite_total")[1].tolist() == [1]
    assert torch.isfinite(torch.tensor(log.series("token_loss")[1])).all()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("set_to_none", [False, True])
def test_each_part_of_a_gan_has_its_own_loss(set_to_none, frozen, attach, tmp_path):
    torch.manual_seed(0)
    maker, critic = net(3, 6), net(6, 1)
    of_maker = torch.optim.Adam(maker.parameters(), 1e-3)
    of_critic = torch.optim.Adam(critic.parameters(), 1e-3)
    first = attach(maker, of_maker, run_dir=tmp_path / "maker")
    attach(critic, of_critic, run_dir=tmp_path / "critic")
    truth = {"maker": [], "critic": []}
    for _ in range(8):
        critic.requires_grad_(True)
        of_critic.zero_grad(set_to_none)
        fake = maker(torch.randn(5, 3))
        real = F.softplus(-critic(torch.randn(5, 6))).mean()
        real.backward()
        caught = F.softplus(critic(fake.detach())).mean()
        caught.backward()
        of_critic.step()
        truth["critic"].append((real + caught).item())
        critic.requires_grad_(not frozen)
        of_maker.zero_grad(set_to_none)
        fooled = F.softplus(-critic(fake)).mean()
        fooled.backward()
        of_maker.step()
        truth["maker"].append(fooled.item())
    from stabwatch.runlog import read_run

    first.detach()
    attach.finish()
    for name, losses in truth.items():
        assert read_run(tmp_path / name).series("loss")[1] == pytest.approx(losses, rel=1e-5), name


def test_a_scaler_that_skips_a_step_of_one_model_says_nothing_of_the_other(attach, tmp_path):
    torch.manual_seed(0)
    models = [net(), net()]
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in models]
    scalers = [torch.amp.GradScaler("cpu", init_scale=4.0) for _ in models]
    watches = [attach(m, o, run_dir=tmp_path / str(i)) for i, (m, o) in enumerate(zip(models, optimizers, strict=True))]
    for step in range(6):
        for i, (m, o, s) in enumerate(zip(models, optimizers, scalers, strict=True)):
            loss = m(torch.randn(5, 6)).square().mean() * (float("inf") if (i, step) == (0, 3) else 1.0)
            s.scale(loss).backward()
            s.step(o)
            s.update()
            o.zero_grad()
    from stabwatch.runlog import read_run

    for watch in watches:
        watch.detach()
    logs = [read_run(tmp_path / str(i)) for i in range(2)]
    assert [list(log.steps) for log in logs] == [list(range(6))] * 2
    assert [log.series("skipped_steps_total")[1].tolist() for log in logs] == [[0, 0, 0, 1, 0, 0], [0] * 6]


def test_gradients_that_are_asked_for_count_as_a_backward_pass(attach):
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    truth = []
    for _ in range(4):
        loss = model(torch.randn(5, 6)).square().mean()
        for p, g in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            p.grad = g
        optimizer.step()
        truth.append(loss.item())
    assert attach.finish().series("loss")[1] == pytest.approx(truth, rel=1e-5)


def _values(found):
    return dict(enumerate(found)).values()


def _edges(found):
    return [torch.autograd.graph.get_gradient_edge(p) for p in found]


@pytest.mark.parametrize("given", [iter, list, lambda found: (p for p in found), _values, lambda found: {*found}])
def test_gradients_that_are_asked_for_by_an_iterator_count_at_every_step(given, attach):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, every_step=False)
    losses = []
    for _ in range(12):
        loss = model(torch.randn(5, 4)).square().mean()
        parameters = list(model.parameters())
        for p, gradient in zip(parameters, torch.autograd.grad(loss, given(parameters)), strict=True):
            p.grad = gradient
        optimizer.step()
        losses.append(loss.item())
    assert attach.finish().series("loss")[1].tolist() == pytest.approx(losses)


def test_a_loop_without_an_optimizer_that_asks_for_gradients_by_name(attach):
    torch.manual_seed(0)
    model = net()
    named = dict(model.named_parameters())
    attach(model, every_step=False)
    losses = []
    for _ in range(12):
        loss = model(torch.randn(5, 6)).square().mean()
        gradients = torch.autograd.grad(loss, named.values())
        losses.append(loss.item())
        with torch.no_grad():
            for p, gradient in zip(named.values(), gradients, strict=True):
                p.sub_(gradient, alpha=0.1)
    log = attach.finish()
    assert list(log.steps) == list(range(12))
    assert log.series("loss")[1].tolist() == pytest.approx(losses)


def test_an_edge_of_the_graph_has_no_number_and_costs_no_other_loss(attach):
    """What a backward pass from an edge differentiates is not known; the next one, from a tensor, is."""
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    losses = []
    for step in range(6):
        loss = model(torch.randn(5, 6)).square().mean()
        optimizer.zero_grad()
        if step % 2:
            loss.backward()
        elif step % 4:
            torch.autograd.backward(_edges([loss])[0], torch.ones(()))
        else:
            given = _edges(model.parameters())
            for p, g in zip(
                model.parameters(), torch.autograd.grad(_edges([loss]), given, [torch.ones(())]), strict=True
            ):
                p.grad = g
        optimizer.step()
        losses.append(loss.item())
    log = attach.finish()
    steps, values = log.series("loss")
    assert list(log.steps) == list(range(6))
    assert list(steps) == [1, 3, 5]
    assert values.tolist() == pytest.approx(losses[1::2])
    assert not watch._session.isolation.errors


def test_roots_that_are_given_by_an_iterator_are_one_objective(attach):
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    losses = []
    for _ in range(3):
        parts = [model(torch.randn(5, 4)).square().mean() for _ in range(2)]
        optimizer.zero_grad()
        torch.autograd.backward(part for part in parts)
        optimizer.step()
        losses.append(sum(part.item() for part in parts))
    assert attach.finish().series("loss")[1].tolist() == pytest.approx(losses)


def test_a_gradient_penalty_and_an_inner_step_are_not_losses_of_their_own(attach):
    torch.manual_seed(0)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    attach(model, optimizer)
    truth = []
    for _ in range(4):
        x = torch.randn(5, 6, requires_grad=True)
        loss = model(x).square().mean()
        slope = torch.autograd.grad(loss, x, create_graph=True)[0]
        inner = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        whole = loss + slope.square().sum() + sum(g.square().sum() for g in inner)
        whole.backward()
        optimizer.step()
        optimizer.zero_grad()
        truth.append(whole.item())
    assert attach.finish().series("loss")[1] == pytest.approx(truth, rel=1e-5)


def test_a_loss_that_is_logged_goes_before_the_trained_one(attach):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    for step in range(3):
        watch.log(loss=10.0 + step)
        model(torch.randn(5, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert attach.finish().series("loss")[1].tolist() == [10.0, 11.0, 12.0]


@pytest.mark.parametrize(("kind", "said"), [("half", True), ("two terms", True), ("smoothed", False)])
def test_it_is_said_that_the_trained_loss_is_not_the_cross_entropy(kind, said, attach):
    torch.manual_seed(0)
    model = net()
    loss_of = LOSSES[kind][1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    for _ in range(10):
        loss_of(model, *batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
    log = attach.finish()
    notes = [n["reason"] for e in log.events if e.kind == "coverage" for n in e.data["notes"]]
    assert (OTHER_LOSS in notes) == said


def test_a_backward_pass_of_another_model_is_not_heard(attach):
    torch.manual_seed(0)
    model, other = net(), net()
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    attach(model, optimizer)
    truth = []
    for _ in range(4):
        loss = model(torch.randn(5, 6)).square().mean()
        (100 * other(torch.randn(5, 6)).square().mean()).backward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        truth.append(loss.item())
    assert attach.finish().series("loss")[1] == pytest.approx(truth, rel=1e-5)


def test_a_loss_of_a_small_part_of_a_large_model_is_heard(attach):
    torch.manual_seed(0)

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(2, 1) for _ in range(300))

        def forward(self, x, i):
            return self.parts[i](x)

    model = Large()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    truth = []
    for i in range(8):
        parts = [model(torch.randn(5, 2), j).square().mean() for j in (i, 150 + i)]
        for part in parts:
            part.backward()
        optimizer.step()
        optimizer.zero_grad()
        truth.append(sum(part.item() for part in parts))
    found = dict(zip(*attach.finish().series("loss"), strict=True))
    assert len(found) >= 7, "one step is not known: its pass shows that more parameters must be compared"
    assert found == pytest.approx({step: truth[step] for step in found}, rel=1e-5)


def test_a_loop_that_writes_into_its_loss_changes_no_record(attach):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer)
    loss = model(torch.randn(5, 6)).square().mean()
    loss.backward()
    truth = loss.item()
    loss.detach().mul_(100)
    optimizer.step()
    assert attach.finish().series("loss")[1].tolist() == pytest.approx([truth])


def test_a_part_that_fails_does_not_reach_the_training(attach, monkeypatch):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)

    def fails(*args):
        raise RuntimeError("ours")

    monkeypatch.setattr(watch._session._parameter_steps, "over", fails)
    monkeypatch.setattr(watch._session._loss, "begins", fails)
    monkeypatch.setattr(watch._session._clock, "enters", fails)
    for _ in range(5):
        model(torch.randn(5, 6)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    errors = [e.data["message"] for e in attach.finish().events if e.kind == "error"]
    assert errors and all("ours" in message for message in errors)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_steps_of_a_model_that_is_never_called_itself(parts, given, attach):
    torch.manual_seed(0)
    model = Agent()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer if given else None)
    losses, norms = [], []
    for _ in range(5):
        optimizer.zero_grad()
        each = [
            model.value(torch.randn(5, 6)).square().mean() - model.act(torch.randn(5, 6)).mean() for _ in range(parts)
        ]
        for part in each:
            part.backward()
        losses.append(sum(part.item() for part in each))
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1).item())
        optimizer.step()
    log = attach.finish()
    assert list(log.steps) == list(range(5))
    assert log.series("loss")[1] == pytest.approx(losses, rel=1e-5)
    assert log.series("gradient_norm_before_clip")[1] == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("given", [False, True])
def test_a_gan_with_one_watch_shows_the_sum_of_its_losses(given, attach):
    torch.manual_seed(0)
    both = nn.ModuleList([net(3, 6), net(6, 1)])
    pair = [torch.optim.SGD(part.parameters(), 0.1) for part in both]
    attach(both, pair if given else None)
    truth = []
    for _ in range(5):
        pair[1].zero_grad()
        caught = F.softplus(both[1](both[0](torch.randn(5, 3)).detach())).mean()
        caught.backward()
        pair[1].step()
        pair[0].zero_grad()
        fooled = F.softplus(-both[1](both[0](torch.randn(5, 3)))).mean()
        fooled.backward()
        pair[0].step()
        truth.append((caught + fooled).item())
    log = attach.finish()
    assert list(log.steps) == list(range(5))
    assert log.series("loss")[1] == pytest.approx(truth, rel=1e-5)


def test_what_is_logged_and_is_no_number_costs_no_other_number(attach, caplog):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer)
    for step in range(9):
        model(torch.randn(3, 4)).sum().backward()
        watch.log(good=step, text="abc", vector=torch.ones(3), nothing=None, one=torch.ones(1, 1), small=np.float32(2))
        optimizer.step()
    log = attach.finish()
    for name, values in {"good": [*range(9)], "one": [1.0] * 9, "small": [2.0] * 9}.items():
        assert log.series("logged_value", name)[1].tolist() == values
    assert [e for e in log.events if e.kind == "error"] == []
    for name, kind in {"text": "type str", "vector": "shape (3,)", "nothing": "type NoneType"}.items():
        assert sum(name in line and kind in line for line in caplog.text.splitlines()) == 1
    notes = [note["tap"] for e in log.events if e.kind == "coverage" for note in e.data["notes"]]
    assert {"text", "vector", "nothing"} <= set(notes)
