"""Parts that are not trained, and loops that treat the model wrongly, are found; healthy loops are calm."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import stabwatch
from stabwatch.analysis import analyze

STEPS = 60


def _net(*widths):
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def _batch(step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 6, generator=generator)
    return x, (x[:, 0] > 0).long()


def _plain(model, optimizer, loss=lambda model, x, y: F.cross_entropy(model(x), y)):
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(model, *_batch(step)).backward()
        optimizer.step()
        yield step


class _Parts(nn.Module):
    """An encoder and a head; a list that is no ModuleList; an encoder whose features are cut off."""

    def __init__(self, hidden=False, cut=False):
        super().__init__()
        self.encoder, self.head, self.cut = _net(6, 8), _net(8, 2), cut
        self.extra = [nn.Linear(8, 8)] if hidden else []

    def forward(self, x):
        x = self.encoder(x).tanh()
        for layer in self.extra:
            x = x + layer(x)
        return self.head(x.detach() if self.cut else x)


def _run(loop, tmp_path):
    """Runs a loop, which yields once before its first step: the model, and the optimizer to attach."""
    torch.manual_seed(0)
    steps = loop()
    model, optimizer = next(steps)
    watch = stabwatch.attach(model, optimizer, run_dir=tmp_path / "run", agent=False, verbose=False)
    try:
        for _ in steps:
            pass
    finally:
        watch.detach()
    return analyze(watch.run_dir)


def head_replaced():
    model = _Parts()
    optimizer = torch.optim.Adam(model.encoder.parameters())
    yield model, None
    yield from _plain(model, optimizer)


def features_cut():
    model = _Parts(cut=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    yield model, optimizer
    yield from _plain(model, optimizer)


def list_of_layers():
    model = _Parts(hidden=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    yield model, optimizer
    yield from _plain(model, optimizer)


def no_zero_grad():
    model = _Parts()
    optimizer = torch.optim.AdamW(model.parameters())
    yield model, optimizer
    for step in range(STEPS):
        x, y = _batch(step)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        yield step


def no_zero_grad_in_an_ensemble():
    members = nn.ModuleList(_net(6, 8, 2) for _ in range(3))
    optimizers = [torch.optim.Adam(member.parameters()) for member in members]
    yield members, optimizers
    for step in range(STEPS):
        x, y = _batch(step)
        for member, optimizer in zip(members, optimizers, strict=True):
            F.cross_entropy(member(x), y).backward()
            optimizer.step()
        yield step


def one_of_two_zeroed():
    model = _Parts()
    slow, quick = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model.encoder, model.head))
    yield model, [slow, quick]
    for step in range(STEPS):
        quick.zero_grad()
        x, y = _batch(step)
        F.cross_entropy(model(x), y).backward()
        slow.step()
        quick.step()
        yield step


def copied_and_not_given_again():
    model = _Parts()
    optimizer = torch.optim.Adam(model.parameters())
    yield model, optimizer
    yield from _plain(model, optimizer)
    model.encoder, model.head = copy.deepcopy(model.encoder), copy.deepcopy(model.head)
    yield from _plain(model, optimizer)


def evaluated_first():
    model = nn.Sequential(_net(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2)).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    yield model, optimizer
    yield from _plain(model, optimizer)


def made_anew():
    model = _Parts()
    optimizer = torch.optim.Adam(model.parameters())
    yield model, None
    yield from _plain(model, optimizer)
    yield from _plain(model, torch.optim.Adam(model.parameters()))


def rate_gone():
    model = _Parts()
    optimizer = torch.optim.Adam(model.parameters())
    yield model, optimizer
    for step in _plain(model, optimizer):
        optimizer.param_groups[0]["lr"] *= 0.1
        yield step


def schedule_past_its_end():
    model = _Parts()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    yield model, optimizer
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 20)
    for step in _plain(model, optimizer):
        schedule.step()
        yield step


@pytest.mark.parametrize(
    ("loop", "cause", "layers"),
    [
        (head_replaced, "ParametersNotInOptimizer", ("head.0",)),
        (features_cut, "PartWithoutGradient", ("encoder.0",)),
        (list_of_layers, "ParametersNotRegistered", ("extra",)),
        (no_zero_grad, "GradientsAccumulate", ()),
        (no_zero_grad_in_an_ensemble, "GradientsAccumulate", ()),
        (one_of_two_zeroed, "GradientsAccumulate", ()),
        (copied_and_not_given_again, "ParametersNotInOptimizer", ("encoder.0", "head.0")),
        (evaluated_first, "EvalModeInTraining", ()),
        (made_anew, "OptimizerStateLost", ()),
        (rate_gone, "LearningRateZero", ()),
        (schedule_past_its_end, "LearningRateNegative", ()),
    ],
)
def test_a_fault_is_found_named_and_placed(loop, cause, layers, tmp_path):
    found = _run(loop, tmp_path)
    first = found.diagnosis.causes[0]
    assert (first.name, first.layers) == (cause, layers)
    assert found.exit_code == 1 and not found.errors


def two_networks_with_two_optimizers():
    """The gradients of the judge are left over from the step of the maker, and set to zero before its own."""
    model = nn.ModuleDict({"maker": _net(6, 8, 2), "judge": _net(2, 8, 2)})
    first, second = (torch.optim.Adam(model[name].parameters()) for name in ("judge", "maker"))
    yield model, None
    for step in range(3 * STEPS):
        x, y = _batch(step)
        first.zero_grad()
        F.cross_entropy(model["judge"](model["maker"](x).detach()), y).backward()
        first.step()
        if step % 5 == 4:
            second.zero_grad()
            F.cross_entropy(model["judge"](model["maker"](x)), 1 - y).backward()
            second.step()
        yield step


def each_its_own_pass():
    """An ensemble: each member is set to zero, trained and stepped before the next one."""
    members = nn.ModuleList(_net(6, 8, 2) for _ in range(4))
    optimizers = [torch.optim.Adam(member.parameters()) for member in members]
    yield members, optimizers
    for step in range(STEPS):
        x, y = _batch(step)
        for member, optimizer in zip(members, optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(member(x), y).backward()
            optimizer.step()
        yield step


def _written_after_each_step(write):
    model = _net(6, 16, 16, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    yield model, optimizer
    for step in _plain(model, optimizer):
        for p in model.parameters():
            if p.dim() > 1:
                write(p)
        yield step


def weights_clipped():
    return _written_after_each_step(lambda p: p.data.clamp_(-0.05, 0.05))


def rows_of_length_one():
    return _written_after_each_step(lambda p: p.data.div_(p.data.norm(dim=1, keepdim=True)))


def masked():
    return _written_after_each_step(lambda p: p.data.mul_(torch.arange(p.numel()).view(p.shape) % 3 > 0))


def target_network():
    """A copy that follows by hand: it requires gradients, gets none, and is in no optimizer on purpose."""
    model = nn.ModuleDict({"online": _net(6, 8, 4)})
    model["target"] = copy.deepcopy(model["online"])
    optimizer = torch.optim.Adam(model["online"].parameters())
    yield model, optimizer
    for step in range(STEPS):
        x, _ = _batch(step)
        with torch.no_grad():
            goal = model["target"](x)
        optimizer.zero_grad()
        F.mse_loss(model["online"](x + 0.1), goal).backward()
        optimizer.step()
        for mean, weight in zip(model["target"].parameters(), model["online"].parameters(), strict=True):
            mean.data.lerp_(weight.data, 0.01)
        yield step


def zeroed_by_hand():
    model = _Parts()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    yield model, optimizer
    for step in range(STEPS):
        for p in model.parameters():
            if p.grad is not None:
                p.grad.data.zero_()
        x, y = _batch(step)
        for rows in (slice(0, 8), slice(8, 16)):
            (F.cross_entropy(model(x[rows]), y[rows]) / 2).backward()
        optimizer.step()
        yield step


def frozen_batch_norm():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    model[1].requires_grad_(False)
    model[1].eval()
    yield model, optimizer
    yield from _plain(model, optimizer)


def closure():
    model = _Parts()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    yield model, optimizer
    for step in range(STEPS // 4):
        x, y = _batch(step)

        def again(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(again)
        yield step


def cosine_to_zero():
    model = _Parts()
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4 * STEPS)
    yield model, optimizer
    for _ in range(4):
        for step in _plain(model, optimizer):
            schedule.step()
            yield step


def validated_on_the_way():
    model = nn.Sequential(_net(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    yield model, optimizer
    for step in _plain(model, optimizer):
        model.eval()
        with torch.no_grad():
            model(_batch(step)[0])
        model.train()
        yield step


def judge_of_made_samples():
    """An adversarial pair: the watched judge passes gradients on to the generator after its own step."""
    judge, generator = _net(6, 8, 1), _net(3, 8, 6)
    of_judge, of_generator = (torch.optim.Adam(m.parameters(), lr=1e-3) for m in (judge, generator))
    yield judge, of_judge
    with stabwatch.attach(generator, of_generator, agent=False, verbose=False):
        for step in range(STEPS):
            judge.zero_grad()
            F.softplus(-judge(_batch(step)[0])).mean().backward()
            made = generator(torch.randn(16, 3))
            F.softplus(judge(made.detach())).mean().backward()
            of_judge.step()
            generator.zero_grad()
            F.softplus(-judge(made)).mean().backward()
            of_generator.step()
            yield step


@pytest.mark.parametrize(
    "loop",
    [
        two_networks_with_two_optimizers, each_its_own_pass, weights_clipped, rows_of_length_one, masked,
        target_network, zeroed_by_hand, frozen_batch_norm, closure, cosine_to_zero,
        validated_on_the_way, judge_of_made_samples,
    ],
)  # fmt: skip
def test_a_healthy_loop_is_left_in_peace(loop, tmp_path):
    found = _run(loop, tmp_path)
    assert [a.rule for a in found.alerts if a.severity != "info"] == []
    assert found.records > 0 and not found.errors
