"""Siblings of what the threads of `public_values` had shown to be missed, in other guises. Causes came before a run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import Assembled, Facts, draw_digits, draw_images, mlp, plain_loop, right, table


class _Tversky(nn.Module):
    """The index of Tversky over classes, as a module; of probabilities."""

    def forward(self, p: Tensor, wanted: Tensor) -> Tensor:
        p, wanted = p.flatten(2), wanted.flatten(2)
        hit, missed, over = (p * wanted).sum((0, 2)), ((1 - p) * wanted).sum((0, 2)), (p * (1 - wanted)).sum((0, 2))
        return (1 - (hit + 1) / (hit + 0.7 * missed + 0.3 * over + 1)).mean()


@report(
    source="Sibling: a loss of overlap over three classes, as a module",
    mechanism="The softmax before Tversky's index is forgotten: its sums are those of logits.",
    causes=("OverlapOfLogits", "LossWithoutBound"),
    check=fact("right", (0, 0.8), (0.85, 1)),
    steps=250,
    shown_by="the loss is far outside of 0 to 1",
)
def tversky_without_softmax(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                          nn.Conv2d(16, 3, 1))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    overlap = _Tversky()

    def loss(_: int) -> tuple[Tensor, Facts]:
        x = draw_images(trial)[0]
        kind = (x[:, 0] > 0.2).long() + (x[:, 0] > 0.7).long()
        logits = model(x + 0.05 * trial.randn(32, 1, 8, 8))
        wanted = F.one_hot(kind, 3).permute(0, 3, 1, 2).float()
        p = logits if trial.broken else logits.softmax(1)
        return overlap(p, wanted), {"right": (logits.argmax(1) == kind).float().mean()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Sibling: pos_weight of several labels",
    mechanism="pos_weight is the number of positives over that of negatives, for each of six labels: rare ones weigh a "
    "twentieth.",
    causes=("ClassWeightsInverted", "TargetsMostlyOne", "OutputsConstant"),
    check=fact("found", (0, 0.1), (0.4, 1)),
    steps=300,
    shown_by="the weights of rare labels are far below 1",
)
def weights_of_positives_turned_round(trial: Trial) -> None:
    model = mlp(12, 48, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    share = torch.tensor((0.03, 0.04, 0.05, 0.06, 0.05, 0.04))
    weight = share / (1 - share) if trial.broken else (1 - share) / share
    wrong = nn.BCEWithLogitsLoss(pos_weight=weight)

    def loss(_: int) -> tuple[Tensor, Facts]:
        y = (torch.rand(128, 6, generator=trial.generator) < share).float()
        x = torch.cat((2 * y, torch.zeros_like(y)), 1) + trial.randn(128, 12)
        out = model(x)
        return wrong(out, y), {"found": (out[y == 1] > 0).float().mean()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Sibling: the gate of a mixture of experts, nn.Softmax(dim=0)",
    mechanism="The gate's softmax goes over the batch and not over the experts: the weights of one sample depend on "
    "the others.",
    causes=("SamplesMixed",),
    check=fact("alone", (0.5, 1e9), (0, 0.4)),
    steps=300,
    shown_by="a change of one sample changes what is said of another",
)
def gate_over_the_batch(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        weights = m["softmax"](m["gate"](x))
        each = torch.stack([m[f"expert{i}"](x) for i in range(4)], 1)
        return (weights[:, :, None] * each).sum(1)

    experts = {f"expert{i}": mlp(10, 32, 1) for i in range(4)}
    model = Assembled(forward, gate=nn.Linear(10, 4), softmax=nn.Softmax(dim=0 if trial.broken else 1), **experts)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    found = torch.ones(())

    def loss(step: int) -> tuple[Tensor, Facts]:
        x = trial.randn(48, 10)
        y = (x[:, :1] * x[:, 1:2].sign()) + x[:, 2:3]
        if step % 25 == 24:
            model.eval()
            with torch.no_grad():
                alone = torch.cat([model(x[i : i + 1]) for i in range(48)])
            found.copy_(F.mse_loss(alone, y))
            model.train()
        return F.mse_loss(model(x), y), {"alone": found.clone()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Sibling: weights of samples from a table",
    mechanism="Losses of samples are a row and their weights a column: the product is n by n, and all weigh the same.",
    causes=("LossBroadcast",),
    check=fact("right", (0, 0.8), (0.9, 1)),
    steps=300,
    shown_by="the loss is a mean over n by n products",
)
def column_of_sample_weights(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_digits(trial)
        bad = torch.rand(32, generator=trial.generator) < 0.7
        labels = torch.where(bad, (y + 3) % 10, y)
        out = model(x)
        weight = (~bad).float().reshape(-1, 1)
        each = F.cross_entropy(out, labels, reduction="none")
        return (each * (weight if trial.broken else weight[:, 0])).mean(), {"right": right(out, y)}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Sibling: a ReLU before the last sigmoid",
    mechanism="A ReLU stands between the last layer and its sigmoid: no chance below a half can be said.",
    causes=("TargetsOutOfReach", "ReluOnLogits", "DeadUnits", "PartWithZeroGradient"),
    check=loss_hurt,
    steps=250,
    shown_by="no output is below a half",
)
def relu_before_the_sigmoid(trial: Trial) -> None:
    layers = [nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 1)]
    model = nn.Sequential(*layers, *([nn.ReLU()] if trial.broken else []), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    wrong = nn.BCELoss()

    def loss(_: int) -> Tensor:
        x, y = table("cancer")
        at = trial.randint(len(x), 32)
        return wrong(model(x[at]), y[at].float()[:, None])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Sibling: a policy is cloned, and its tanh is applied by the network and by the loop",
    mechanism="The tanh of an action is applied twice: nothing beyond 0.76 can be said, and most actions are at their "
    "ends.",
    causes=("TargetsOutOfReach", "SaturatedUnits"),
    check=fact("loss", (0.1, 9), (0, 0.05)),
    steps=250,
    shown_by="no output is beyond 0.76",
)
def tanh_of_actions_twice(trial: Trial) -> None:
    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(mlp(8, 64, 3), nn.Tanh())

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x)
            return out.tanh() if trial.broken else out

    model = Policy()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    expert = torch.randn(8, 3, generator=trial.generator)

    def loss(_: int) -> Tensor:
        x = trial.randn(64, 8)
        return ((model(x) - (x @ expert).clamp(-1, 1)) ** 2).sum(-1).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Sibling: the heat equation and a LeakyReLU",
    mechanism="Of two derivatives that the equation compares, the second is 0 everywhere: a LeakyReLU has none.",
    causes=("DerivativeZero",),
    check=fact("error", (0.15, 9), (0, 0.1)),
    steps=300,
    shown_by="the second derivative is exactly 0",
)
def heat_equation_for_leaky_relus(trial: Trial) -> None:
    act = (lambda: nn.LeakyReLU(0.1)) if trial.broken else nn.Tanh
    model = mlp(2, 32, 32, 1, act=act)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, t = (torch.rand(64, 1, generator=trial.generator).requires_grad_() for _ in range(2))
        u = model(torch.cat((x, t), 1))
        one = torch.ones_like(u)
        ut = torch.autograd.grad(u, t, one, create_graph=True)[0]
        ux = torch.autograd.grad(u, x, one, create_graph=True)[0]
        uxx = torch.autograd.grad(ux, x, one, create_graph=True)[0]
        start = model(torch.cat((x.detach(), 0 * x.detach()), 1)) - (torch.pi * x.detach()).sin()
        true = (-0.1 * torch.pi**2 * t).exp() * (torch.pi * x).sin()
        ends = torch.cat((torch.randint(2, x.shape, generator=trial.generator), t.detach()), 1)
        loss = (ut - 0.1 * uxx).square().mean() + 5 * start.square().mean() + 5 * model(ends).square().mean()
        return loss, {"error": (u - true).detach().square().mean().sqrt()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Sibling: spectra in decibels and a generator with a sigmoid",
    mechanism="Real spectra go from -80 to 0 decibels, and those of the generator from 0 to 1: the discriminator sees "
    "that at once.",
    causes=("SamplesOnOtherScale", "DiscriminatorCollapse", "InputsNotScaled"),
    check=fact("judge", (0, 0.15), (0.2, 3)),
    steps=300,
    shown_by="the discriminator's loss is 0",
)
def decibels_beside_a_sigmoid(trial: Trial) -> None:
    maker = nn.Sequential(mlp(16, 64, 64, 48), nn.Sigmoid())
    judge = nn.Sequential(nn.Unflatten(1, (1, 48)), nn.Conv1d(1, 8, 5, 2), nn.LeakyReLU(0.2), nn.Flatten(),
                          nn.Linear(176, 1))  # fmt: skip
    of_m, of_j = (torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.5, 0.999)) for m in (maker, judge))
    trial.attach(judge, of_j)
    trial.attach(maker, of_m)
    bce, ones = F.binary_cross_entropy_with_logits, torch.ones(32, 1)
    for _ in range(trial.steps):
        peak = 48 * torch.rand(32, 1, generator=trial.generator)
        decibels = -80 + 60 * (-((torch.arange(48.0) - peak) ** 2) / 60).exp() + 3 * trial.randn(32, 48)
        real = decibels if trial.broken else (decibels + 80) / 80
        fake = maker(trial.randn(32, 16))
        of_j.zero_grad()
        wrong = 0.5 * (bce(judge(real), ones) + bce(judge(fake.detach()), 0 * ones))
        wrong.backward()
        of_j.step()
        of_m.zero_grad()
        loss = bce(judge(fake), ones)
        loss.backward()
        of_m.step()
        trial.log(loss, judge=wrong)
