"""The Taylor guard: survives spikes that clipping does not, and changes no bit when it has nothing to do."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.guards import TaylorGuard
from tests.sampling import sample


class Tokens(nn.Module):
    """A small transformer classifier with dropout."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(20, 5 * 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x).view(-1, 5, 16)).mean(1))


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)),
    "cnn": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4, 5)), nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
        nn.Flatten(), nn.Linear(160, 5),
    ),
    "transformer": Tokens,
}  # fmt: skip
OPTIMIZERS = {"sgd": (torch.optim.SGD, 0.1), "adam": (torch.optim.Adam, 3e-3)}
SPIKE_AT = 40


def train(kind, optimizer="sgd", spike=1.0, steps=80, guard=None, clip=False):
    torch.manual_seed(0)
    model = MODELS[kind]()
    make, rate = OPTIMIZERS[optimizer]
    opt = make(model.parameters(), lr=rate)
    made = guard(opt, model) if guard else None
    data = torch.randn(512, 20)
    labels = data[:, :5].argmax(1)
    losses = []
    for step in range(steps):
        rows = torch.randint(512, (64,))
        opt.param_groups[0]["lr"] = rate * (spike if step == SPIKE_AT else 1.0)
        opt.zero_grad()
        loss = F.cross_entropy(model(data[rows]), labels[rows])
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        losses.append(loss.item())
    return losses, model, made, torch.get_rng_state()


def guarded(optimizer, model):
    return TaylorGuard(optimizer, model, samples=64)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", sample(MODELS, "mlp"))
def test_it_survives_a_spike_of_ten_thousand_times_where_clipping_does_not(kind, optimizer):
    losses, _, guard, _ = train(kind, optimizer, 1e4, guard=guarded)
    before = max(losses[SPIKE_AT - 5 : SPIKE_AT])
    assert int(guard.interventions) >= 1
    assert max(losses[SPIKE_AT:]) < 1.5 * before, "no step hurts"
    assert losses[-1] < before
    clipped, *_ = train(kind, optimizer, 1e4, clip=True)
    assert max(clipped[SPIKE_AT:]) > 5 * max(losses[SPIKE_AT:]), "the comparison would be no test"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", sample(MODELS, "cnn"))
def test_a_guard_that_has_nothing_to_do_changes_no_bit(kind, optimizer):
    plain = train(kind, optimizer, steps=12)
    watched = train(kind, optimizer, steps=12, guard=lambda o, m: TaylorGuard(o, m, limit=1e6, samples=64))
    assert int(watched[2].interventions) == 0 and float(watched[2].ratio) > 0
    assert plain[0] == watched[0]
    assert plain[3].equal(watched[3]), "random numbers"
    for (name, a), b in zip(plain[1].state_dict().items(), watched[1].state_dict().values(), strict=True):
        assert a.equal(b), name


def test_the_limit_is_kept():
    """What is left of the step is the limit over the ratio, which is linear in the step."""
    torch.manual_seed(0)
    model = MODELS["mlp"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    guard = TaylorGuard(optimizer, model, limit=0.5, samples=64)
    data = torch.randn(64, 20)
    F.cross_entropy(model(data), torch.randint(5, (64,))).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    assert float(guard.ratio) > 1 and float(guard.scale) == pytest.approx(0.5 / float(guard.ratio))
    moved = [(p - before[name]).abs().max().item() for name, p in model.named_parameters()]
    wanted = [(100 * float(guard.scale) * p.grad).abs().max().item() for p in model.parameters()]
    assert moved == pytest.approx(wanted, rel=1e-4)


def test_a_step_that_is_not_finite_is_undone():
    torch.manual_seed(0)
    model = MODELS["mlp"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = TaylorGuard(optimizer, model)
    F.cross_entropy(model(torch.randn(8, 20)), torch.randint(5, (8,))).backward()
    before = [p.detach().clone() for p in model.parameters()]
    model[0].weight.grad[0, 0] = torch.nan
    optimizer.step()
    assert all(p.equal(b) for p, b in zip(model.parameters(), before, strict=True))
    assert int(guard.interventions) == 1 and float(guard.scale) == 0


def test_a_guard_that_fails_steps_aside(caplog):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def forward(self, x):
            return self.layer(x).sum()

    model = Odd()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    TaylorGuard(optimizer, model)
    with caplog.at_level(logging.ERROR, logger="stabwatch"):
        for _ in range(3):
            model(torch.randn(2, 4)).backward()
            optimizer.step()
    assert [r.message for r in caplog.records] == ["stabwatch: the Taylor guard failed; training continues without it"]


def test_a_guard_that_has_failed_is_named_in_the_coverage(attach):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = attach(model, optimizer, guard="taylor", every_step=True)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    assert [n["reason"][:40] for n in watch.coverage()["notes"]] == ["the Taylor guard is off since it failed:"]


def test_by_one_word_at_attach(tmp_path):
    torch.manual_seed(0)
    model = MODELS["mlp"]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e4)
    settings = dict(run_dir=tmp_path / "run", agent=False, verbose=False, every_step=True)
    with stabwatch.attach(model, guard="taylor", taylor=True, **settings) as watch:
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(32, 20)), torch.randint(5, (32,))).backward()
            optimizer.step()
    from stabwatch.runlog import read_run

    ratios = read_run(watch.run_dir).series("step_to_radius_ratio")[1]
    assert len(ratios) == 4 and max(ratios) <= 1 + 1e-3, "what is measured is the step that was taken"
    with pytest.raises(stabwatch.errors.ConfigError, match="`guard` must be made of taylor"):
        stabwatch.attach(model, guard="clip")


def test_a_limit_that_makes_no_sense_is_refused():
    model = MODELS["mlp"]()
    with pytest.raises(ValueError, match="`limit` must be positive"):
        TaylorGuard(torch.optim.SGD(model.parameters(), lr=0.1), model, limit=0)
