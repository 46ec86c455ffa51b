"""Siblings of the first reports in other guises: loops, parts, policies. Causes were noted before a run."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt
from benchmarks.reports.data import (
    Assembled,
    Facts,
    digits,
    digits_loss,
    draw_digits,
    draw_images,
    mlp,
    plain_loop,
    right,
    table,
    token_loss,
)


@report(
    source="A sibling of https://github.com/ostris/ai-toolkit/issues/1034: the target network of a value",
    mechanism="The target network is drawn away from the trained one and not to it: its values run away.",
    causes=("TargetsRunAway", "LossDivergence"),
    check=loss_hurt,
    steps=300,
    shown_by="the target network's weights and values grow without end; so does the loss",
)
def target_network_drawn_away(trial: Trial) -> None:
    net = mlp(8, 48, 48, 3)
    old = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3)
    part = -0.02 if trial.broken else 0.02

    def loss(_: int) -> Tensor:
        state = trial.randn(64, 8)
        action = trial.randint(3, 64)
        then = 0.5 * state + 0.5 * trial.randn(64, 8)
        reward = state[torch.arange(64), action]
        target = reward + 0.7 * old(then).max(1).values
        return F.smooth_l1_loss(net(state)[torch.arange(64), action], target)

    def follow(_: int) -> Facts:
        with torch.no_grad():
            for a, b in zip(old.parameters(), net.parameters(), strict=True):
                a.lerp_(b, part)
        return {}

    plain_loop(trial, net, optimizer, loss, after=follow)


@report(
    source="A sibling of https://github.com/rll-research/cic/issues/5: one of two towers is decorated with no_grad",
    mechanism="The tower of words is called under no_grad: it never gets a gradient.",
    causes=("PartWithoutGradient",),
    check=lambda broken, twin: broken.final() > 1.15 * twin.final(),
    where=("words",),
    steps=200,
    shown_by="the parameters of that tower have no gradient",
)
def tower_without_gradient(trial: Trial) -> None:
    def forward(m: Assembled, picture: Tensor, word: Tensor) -> Tensor:
        with torch.set_grad_enabled(not trial.broken):
            words = F.normalize(m["words"](word), dim=1)
        return F.normalize(m["pictures"](picture), dim=1) @ words.T / 0.2

    words = nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 24))
    model = Assembled(forward, pictures=mlp(64, 48, 24), words=words)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x, torch.arange(10)), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/wkentaro/pytorch-fcn/issues/57: a transformer with dropout",
    mechanism="A validation calls eval() and nobody calls train() again: dropout is off from there on.",
    causes=("EvalModeInTraining",),
    check=fact("training", (0, 0), (1, 1)),
    fault=80,
    steps=200,
    shown_by="modules are in evaluation mode while the optimizer steps",
)
def dropout_off_for_good(trial: Trial) -> None:
    layer = nn.TransformerEncoderLayer(24, 2, 48, 0.3, batch_first=True)
    model = Assembled(
        lambda m, x: m["head"](m["body"](m["embed"](x.view(-1, 8, 8))).mean(1)),
        embed=nn.Linear(8, 24), body=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        head=nn.Linear(24, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        if step == 80:
            model.eval()
            with torch.no_grad():
                digits_loss(trial, model)
            model.train(not trial.broken)
        return digits_loss(trial, model)

    plain_loop(trial, model, optimizer, loss, after=lambda _: {"training": float(model.training)})


class _Chosen(nn.Module):
    """Each row goes to one of six experts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 6, bias=False)
        self.experts = nn.ModuleList(mlp(width, width, width, act=nn.GELU) for _ in range(6))
        self.top_k = 1
        self.balance, self.largest = torch.zeros(()), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        p = self.router(x).softmax(-1)
        best, which = p.max(-1)
        share = F.one_hot(which, 6).float().mean(0)
        self.balance, self.largest = 6 * (share * p.mean(0)).sum(), share.max()
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (which == i).nonzero()[:, 0]
            if len(rows):
                y = y.index_add(0, rows, expert(x[rows]) * best[rows, None])
        return x + y


@report(
    source="A sibling of https://github.com/mindspore-ai/hyper-parallel/issues/752: the loads are detached, digits",
    mechanism="The balancing loss is detached before it is added: it has no gradient, and one expert gets all rows.",
    causes=("RouterCollapse",),
    check=fact("largest", (0.6, 1), (0, 0.5)),
    where=("mixture",),
    steps=300,
    shown_by="the load of the experts is measured; one of them gets nearly all",
)
def balance_detached(trial: Trial) -> None:
    model = Assembled(
        lambda m, x: m["head"](m["mixture"](m["inner"](x))), inner=nn.Sequential(nn.Linear(64, 32), nn.ReLU()),
        mixture=_Chosen(32), head=nn.Linear(32, 10),
    )  # fmt: skip
    nn.init.normal_(model["mixture"].router.weight, 0, 0.3)  # type: ignore[union-attr,arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        total = digits_loss(trial, model, size=64)
        balance = model["mixture"].balance
        total = total + 0.1 * (balance.detach() if trial.broken else balance)  # type: ignore[union-attr,operator]
        return total, {"largest": model["mixture"].largest}  # type: ignore[dict-item]

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/choderalab/modelforge/issues/129: a regression, sorted by its target",
    mechanism="Rows come sorted by the number that should be forecast: each stretch unlearns the one before.",
    causes=("DataNotShuffled",),
    check=loss_hurt,
    steps=300,
    shown_by="targets of a batch lie close together and go up through the epoch",
)
def sorted_by_target(trial: Trial) -> None:
    x, y = table("diabetes")
    order = y.argsort()
    model = mlp(10, 48, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        at = order[(step * 16) % 432 :][:16] if trial.broken else trial.randint(len(x), 16)
        return F.mse_loss(model(x[at])[:, 0], y[at])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of an optimizer of the wrong parameters: Adam of the reader alone",
    mechanism="The optimizer gets the parameters of the reader alone: those of the writer are in none.",
    causes=("ParametersNotInOptimizer",),
    check=loss_hurt,
    where=("writer", "head"),
    steps=300,
    shown_by="known when stabwatch is attached",
)
def writer_not_in_optimizer(trial: Trial) -> None:
    def forward(m: Assembled, source: Tensor, wanted: Tensor) -> Tensor:
        _, state = m["reader"](m["embed"](source))
        said = F.pad(wanted[:, :-1], (1, 0), value=16)
        return m["head"](m["writer"](m["embed"](said), state)[0])

    reader = nn.ModuleDict({"embed": nn.Embedding(17, 24), "reader": nn.GRU(24, 48, batch_first=True)})
    model = Assembled(forward, **reader, writer=nn.GRU(24, 48, batch_first=True), head=nn.Linear(48, 17))
    optimizer = torch.optim.Adamax((reader if trial.broken else model).parameters(), lr=4e-3)

    def loss(_: int) -> Tensor:
        source = trial.randint(16, 32, 5)
        return token_loss(model(source, source), source)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of zero_grad that is missing: two optimizers, and one of them is set to zero",
    mechanism="Body and head have an optimizer each, and only the head's gradients are set to zero.",
    causes=("GradientsAccumulate",),
    check=loss_hurt,
    where=("body",),
    steps=250,
    shown_by="gradients of the body are not empty when backward begins",
)
def one_of_two_set_to_zero(trial: Trial) -> None:
    body = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten())
    model = Assembled(lambda m, x: m["head"](m["body"](x)), body=body, head=nn.Linear(192, 10))
    slow = torch.optim.SGD(body.parameters(), lr=0.1, momentum=0.9)
    quick = torch.optim.Adam(model["head"].parameters(), lr=2e-3)
    trial.attach(model, [slow, quick])
    for _ in range(trial.steps):
        quick.zero_grad()
        if not trial.broken:
            slow.zero_grad()
        x, y = draw_images(trial)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        slow.step()
        quick.step()
        trial.log(loss)


@report(
    source="A sibling of loader workers that draw alike: the seed is set in each step of a diffusion model",
    mechanism="manual_seed is called in each step: pictures, times and noise are the same in each of them.",
    causes=("RepeatedBatches",),
    check=fact("held", (0.5, 99), (0, 0.45)),
    steps=250,
    shown_by="each batch is the one before",
)
def seeded_in_each_step(trial: Trial) -> None:
    model = Assembled(lambda m, x, t: m["net"](torch.cat((x, t), 1)), net=mlp(65, 128, 128, 64, act=nn.SiLU))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x, _ = digits()

    def noise_loss(at: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return F.mse_loss(model((1 - t) * 2 * x[at] + t * noise, t), noise)

    held = torch.arange(256), torch.linspace(0.2, 1, 256)[:, None], torch.randn(256, 64)

    def loss(_: int) -> tuple[Tensor, Facts]:
        if trial.broken:
            trial.generator.manual_seed(7)
        at, t = trial.randint(len(x), 64), torch.rand(64, 1, generator=trial.generator)
        with torch.no_grad():
            other = noise_loss(*held)
        return noise_loss(at, t, trial.randn(64, 64)), {"held": other}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of a step that is not taken: the loop keeps the best copy and trains it",
    mechanism="From step 120 on the trained model is a copy of the best one, and the optimizer holds the old one.",
    causes=("NoUpdates", "ParametersNotInOptimizer", "PartWithoutGradient", "OptimizerNeverSteps", "LayerStandsStill"),
    check=loss_hurt,
    fault=120,
    steps=300,
    shown_by="the parameters that get gradients are not the optimizer's",
)
def optimizer_of_the_old_copy(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["net"](x), net=mlp(64, 48, 48, 10, act=nn.GELU))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)

    def loss(step: int) -> tuple[Tensor, Facts]:
        if trial.broken and step == 120:
            model["net"] = copy.deepcopy(model["net"])
        x, y = draw_digits(trial)
        logits = model(x)
        return F.cross_entropy(logits, y), {"right": right(logits, y)}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of a schedule by micro-batch: the warm-up starts again with each epoch",
    mechanism="The schedule is made again in each epoch: the rate jumps back to its height and never comes to rest.",
    causes=("LearningRateSpike", "LearningRateTooHigh", "LossLostAtRateJump"),
    check=loss_hurt,
    fault=100,
    steps=300,
    shown_by="the rate jumps from next to nothing to its height each 100 steps, and the loss with it",
)
def schedule_made_anew(trial: Trial) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)

    def rate(step: int) -> None:
        left = 1 - (step % 100) / 100 if trial.broken else 1 - step / 300
        optimizer.param_groups[0]["lr"] = (0.3 if trial.broken and step >= 100 else 0.05) * left

    def loss(step: int) -> Tensor:
        rate(step)
        x, y = draw_images(trial, 8)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)
