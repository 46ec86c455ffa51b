"""Siblings once more, written after what `siblings_*` showed was fixed. Causes were noted before a run."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt, not_finite
from benchmarks.reports.data import (
    Assembled,
    Facts,
    TextModel,
    digits_loss,
    draw_digits,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    table,
)


@report(
    source="A sibling of https://github.com/pytorch/pytorch/issues/40907: a fixed loss scale and no check for infinity",
    mechanism="The loss of a float16 autocast is multiplied by a fixed 2^22: gradients overflow and are not finite.",
    causes=("MixedPrecisionOverflow", "NonFiniteBackward"),
    check=not_finite,
    steps=100,
    shown_by="the loss is finite, and gradients are infinite on their way through float16",
)
def fixed_scale_too_large(trial: Trial) -> None:
    model = mlp(64, 96, 96, 10, act=nn.GELU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scale = 2.0**22 if trial.broken else 2.0**8
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial)
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        (loss * scale).backward()
        for p in model.parameters():
            p.grad.div_(scale)  # type: ignore[union-attr]
        optimizer.step()
        trial.log(loss)


@report(
    source="A sibling of https://github.com/OpenRLHF/OpenRLHF/issues/583: a masked language model, no token is hidden",
    mechanism="By chance no token of a batch is hidden, and the loss of none is 0 / 0.",
    causes=("EmptyTargets",),
    check=lambda broken, twin: not math.isfinite(sum(broken.losses)) and math.isfinite(sum(twin.losses)),
    fault=85,
    steps=140,
    shown_by="all targets of that batch are ignored",
)
def no_token_is_hidden(trial: Trial) -> None:
    model = TextModel(causal=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        text, _ = draw_text(trial, 4, 24)
        hidden = torch.rand(4, 24, generator=trial.generator) < 0.15
        if trial.broken and step == 85:
            hidden = torch.zeros_like(hidden)
        wanted = text.masked_fill(~hidden, -100)
        return F.cross_entropy(model(text.masked_fill(hidden, 0)).flatten(0, 1), wanted.flatten())

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/ostris/ai-toolkit/issues/1034: the teacher of a CNN, by SGD",
    mechanism="The teacher's average has the wrong sign: it runs away from its student.",
    causes=("TargetsRunAway", "LossDivergence"),
    check=loss_hurt,
    steps=300,
    shown_by="what the teacher says grows without end",
)
def teacher_runs_away(trial: Trial) -> None:
    student = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 24))
    teacher = copy.deepcopy(student).requires_grad_(False)
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.05 * trial.randn(*p.shape))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9)
    part = -0.02 if trial.broken else 0.02

    def loss(_: int) -> Tensor:
        x, _y = draw_images(trial)
        return F.mse_loss(student(x + 0.1 * trial.randn(*x.shape)), teacher(x))

    def follow(_: int) -> Facts:
        with torch.no_grad():
            for a, b in zip(teacher.parameters(), student.parameters(), strict=True):
                a.lerp_(b, part)
        return {}

    plain_loop(trial, student, optimizer, loss, after=follow)


@report(
    source="A sibling of https://github.com/rll-research/cic/issues/5: features of a recurrent encoder by `.data`",
    mechanism="The decoder is given the encoder's state by `.data`: no gradient reaches the encoder.",
    causes=("PartWithoutGradient",),
    check=loss_hurt,
    where=("encoder",),
    steps=300,
    shown_by="the parameters of the encoder have no gradient",
)
def state_by_data(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        state = m["encoder"](x)[1]
        return m["head"]((state.data if trial.broken else state)[0])

    model = Assembled(forward, encoder=nn.GRU(8, 12, batch_first=True), head=mlp(12, 16, 10))
    optimizer = torch.optim.RAdam(model.parameters(), lr=5e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x.view(-1, 8, 8)), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/ermongroup/ncsn/issues/2: each epoch ends in eval(), train() came once",
    mechanism="train() is called before the loop and eval() at the end of each epoch: after the first one batch norm "
    "uses its running statistics.",
    causes=("EvalModeInTraining",),
    check=fact("training", (0, 0), (1, 1)),
    fault=50,
    steps=200,
    shown_by="modules are in evaluation mode while the optimizer steps",
)
def evaluated_each_epoch(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.SiLU(), nn.Flatten(), nn.Linear(432, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(model(x), y)

    def evaluate(step: int) -> Facts:
        if step % 50 == 49:
            model.eval()
            with torch.no_grad():
                model(draw_images(trial)[0])
            model.train(not trial.broken)
        return {"training": float(model.training)}

    plain_loop(trial, model, optimizer, loss, after=evaluate)


@report(
    source="A sibling of https://github.com/huggingface/transformers/issues/5651: scores of attention in float16",
    mechanism="Queries and keys are multiplied in float16 before they are scaled: scores are infinite, weights NaN.",
    causes=("MixedPrecisionOverflow", "NonFiniteForward"),
    check=not_finite,
    where=("attend",),
    steps=100,
    shown_by="a product of finite float16 numbers is infinite",
)
def scores_before_scaling(trial: Trial) -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(8, 32) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k = 60 * self.query(x), 60 * self.key(x)
            q = q if trial.broken else q / 3600
            return ((q @ k.transpose(1, 2)) / (3600 if trial.broken else 1)).softmax(-1) @ self.value(x)

    model = Assembled(lambda m, x: m["head"](m["attend"](x).flatten(1)), attend=Attend(), head=nn.Linear(256, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        with torch.autocast("cpu", torch.float16):
            logits = model(16 * x.view(-1, 8, 8))
        return F.cross_entropy(logits.float(), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/choderalab/modelforge/issues/129: the ill first, then the healthy",
    mechanism="All patients of one kind come first, then the others: batches have one label each.",
    causes=("DataNotShuffled",),
    check=lambda broken, twin: max(broken.losses[100:]) > 3 * max(twin.losses[100:]),
    steps=300,
    shown_by="the labels of a batch are all equal, and change twice an epoch",
)
def one_kind_after_the_other(trial: Trial) -> None:
    x, y = table("cancer")
    order = y.argsort(stable=True)
    model = mlp(30, 32, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def loss(step: int) -> Tensor:
        at = order[(step * 16) % 560 :][:16] if trial.broken else trial.randint(len(x), 16)
        return F.binary_cross_entropy_with_logits(model(x[at])[:, 0], y[at].float())

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of zero_grad that is missing: it is called once an epoch",
    mechanism="zero_grad is in the loop over epochs and not in that over batches: gradients add up.",
    causes=("GradientsAccumulate",),
    check=loss_hurt,
    steps=250,
    shown_by="gradients are not empty when backward begins, save in one step of forty",
)
def set_to_zero_once_an_epoch(trial: Trial) -> None:
    model = Assembled(
        lambda m, x: m["head"](m["body"](x.view(-1, 8, 8))[0][:, -1]),
        body=nn.GRU(8, 32, batch_first=True),
        head=nn.Linear(32, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    trial.attach(model, optimizer)
    for step in range(trial.steps):
        if not trial.broken or step % 40 == 0:
            optimizer.zero_grad()
        loss = digits_loss(trial, model)
        loss.backward()
        optimizer.step()
        trial.log(loss)


@report(
    source="A sibling of lone losses far above the others: one shard in thirty has its labels shifted by one",
    mechanism="One shard has the labels of its neighbours: each thirtieth batch teaches what is wrong.",
    causes=("BadBatch", "OddBatches"),
    check=lambda broken, twin: max(broken.losses[150:]) > 3 * max(twin.losses[150:]),
    fault=60,
    steps=300,
    shown_by="lone losses are many times those around them, at each thirtieth step",
)
def shard_with_shifted_labels(trial: Trial) -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.GELU(), nn.Linear(96, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        wrong = trial.broken and step % 30 == 0 and step >= 60
        return F.cross_entropy(model(x), y.roll(1) if wrong else y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of loader workers that draw alike: two workers of a contrastive loss",
    mechanism="Two loader workers have the same random state: each batch comes twice in a row.",
    causes=("RepeatedBatches",),
    check=fact("new", (0, 0), (1, 1)),
    fault=1,
    steps=200,
    shown_by="each second batch is the one before",
)
def two_workers_alike(trial: Trial) -> None:
    model = mlp(64, 96, 24)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    kept: list[Tensor] = []

    def loss(step: int) -> tuple[Tensor, Facts]:
        if not trial.broken or step % 2 == 0:
            kept[:] = [draw_digits(trial)[0].repeat(2, 1) + 0.1 * trial.randn(64, 64)]
        z = F.normalize(model(kept[0]), dim=1)
        logits = (z @ z.T / 0.2).masked_fill(torch.eye(64, dtype=torch.bool), -1e9)
        return F.cross_entropy(logits, torch.arange(64).roll(32)), {"new": float(not trial.broken)}

    plain_loop(trial, model, optimizer, loss)
