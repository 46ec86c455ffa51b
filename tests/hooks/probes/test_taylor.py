"""The Taylor radius of a training: of the whole step, and of what has a softmax."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

SIGNALS = (
    "step_to_radius_ratio", "step_to_radius_mean_ratio", "step_to_radius_median_ratio", "step_to_radius_p99_ratio",
    "taylor_radius",
)  # fmt: skip


def train(attach, model, optimizers, loss_of, steps=4, inputs=(16, 6)):
    watch = attach(model, optimizers, taylor=True)
    for step in range(steps):
        x = torch.randn(inputs, generator=torch.Generator().manual_seed(step))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model(x)).backward()
        for optimizer in optimizers:
            optimizer.step()
    coverage = watch.coverage()
    log = attach.finish()
    assert not [e for e in log.events if e.kind == "error"]
    return log, str(coverage["unmeasured"])


def classes_of(out):
    return F.cross_entropy(out, torch.arange(len(out)) % out.shape[1])


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


class OfWholeBatches(nn.Module):
    """Refuses a part of a batch."""

    def forward(self, x):
        if len(x) != 8:
            raise ValueError("these are no 8 samples")
        return x


def test_batch_normalisation_gets_two_samples(attach):
    model = nn.Sequential(mlp(), nn.BatchNorm1d(4))
    log, _ = train(attach, model, [torch.optim.SGD(model.parameters(), lr=0.1)], classes_of, inputs=(8, 6))
    assert all(len(log.series(signal)[0]) for signal in SIGNALS)


def test_a_step_is_what_all_optimizers_change_together(attach):
    model = mlp()
    one, _ = train(attach, model, [torch.optim.SGD(model.parameters(), lr=0.1)], classes_of)
    model = mlp()
    parts = [torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 2)]
    two, _ = train(attach, model, parts, classes_of)
    for signal in SIGNALS:
        assert two.series(signal)[1].tolist() == pytest.approx(one.series(signal)[1].tolist(), rel=1e-5), signal


def test_a_quantile_of_few_samples_is_not_above_the_largest(attach):
    model = mlp()
    log, _ = train(attach, model, [torch.optim.SGD(model.parameters(), lr=0.1)], classes_of, steps=12)
    largest, mean, median, p99, _ = (log.series(signal)[1] for signal in SIGNALS)
    assert len(largest) and (p99 <= largest * (1 + 1e-6)).all() and (median <= p99 * (1 + 1e-6)).all()
    assert (mean <= largest * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("make", "loss_of", "reason"),
    [
        (mlp, lambda out: out.square().mean(), "no call of `cross_entropy` was seen"),
        (lambda: nn.Sequential(mlp(), OfWholeBatches()), classes_of, "these are no 8 samples"),
    ],
)
def test_where_there_is_no_radius_it_says_so(attach, make, loss_of, reason):
    model = make()
    log, unmeasured = train(attach, model, [torch.optim.SGD(model.parameters(), lr=0.1)], loss_of, inputs=(8, 6))
    assert reason in unmeasured
    assert not any(len(log.series(signal)[0]) for signal in SIGNALS)


def test_the_classes_of_an_image_stand_before_its_places(attach):
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 5, 1))

    def loss_of(out):
        return F.cross_entropy(out, torch.arange(128).view(8, 4, 4) % 5)

    model = net()
    log, _ = train(attach, model, [torch.optim.SGD(model.parameters(), lr=0.1)], loss_of, inputs=(8, 3, 4, 4))
    before = {n: p.detach().clone() for n, p in net().named_parameters()}
    x = torch.randn((8, 3, 4, 4), generator=torch.Generator().manual_seed(0))[:1]
    stepped = net()
    loss_of(stepped(torch.randn((8, 3, 4, 4), generator=torch.Generator().manual_seed(0)))).backward()
    with torch.no_grad():
        moved = torch.func.functional_call(
            stepped, {n: p - 0.1 * g.grad for (n, p), g in zip(before.items(), stepped.parameters(), strict=True)}, (x,)
        )
        change = moved - torch.func.functional_call(stepped, before, (x,))  # the net is linear
    spread = change.amax(dim=1) - change.amin(dim=1)
    assert log.series("step_to_radius_ratio")[1][0] == pytest.approx(spread.max().item() / torch.pi, rel=1e-4)
