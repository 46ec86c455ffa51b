"""The first reports once more, in other guises: values, losses, precision. Causes were noted before a run."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt, not_finite
from benchmarks.reports.data import (
    Assembled,
    Facts,
    draw_digits,
    draw_images,
    mlp,
    plain_loop,
    table,
)


@report(
    source="A sibling of https://github.com/pytorch/pytorch/issues/147437: Adamax",
    mechanism="Weights are float16, in which Adamax' epsilon of 1e-8 is zero: pixels that are never set have 0 / 0.",
    causes=("AdamEpsilonUnderflow", "NonFiniteUpdate"),
    check=not_finite,
    steps=100,
    shown_by="gradients are finite, and the weights after the step are not",
)
def largest_without_epsilon(trial: Trial) -> None:
    model = mlp(64, 48, 10, act=nn.SiLU).half()
    optimizer = torch.optim.Adamax(model.parameters(), lr=2e-3, eps=1e-8 if trial.broken else 1e-4)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x.half()).float(), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/OpenRLHF/OpenRLHF/issues/583: a series without a value that was observed",
    mechanism="No value of one batch of series was observed: the mean over an empty selection is NaN.",
    causes=("EmptyTargets", "NonFiniteLoss"),
    check=lambda broken, twin: not math.isfinite(sum(broken.losses)) and math.isfinite(sum(twin.losses)),
    fault=110,
    steps=160,
    shown_by="the loss is a mean over nothing; predictions are finite",
)
def nothing_was_observed(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](x)[0])[..., 0], body=nn.GRU(1, 24, batch_first=True),
                      head=nn.Linear(24, 1))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

    def loss(step: int) -> Tensor:
        t = 6 * torch.rand(16, 1, generator=trial.generator) + torch.arange(25) / 3
        series = t.sin() + 0.1 * trial.randn(16, 25)
        observed = torch.rand(16, 24, generator=trial.generator) < 0.6
        if trial.broken and step == 110:
            observed = torch.zeros_like(observed)
        return F.smooth_l1_loss(model(series[:, :-1, None]), series[:, 1:], reduction="none")[observed].mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/Lightning-AI/pytorch-lightning/issues/9599: a loss scale by hand",
    mechanism="The loss is multiplied by 2,048 by hand, and gradients are clipped before they are divided by it.",
    causes=("ClipOnScaledGradients", "ClippedTooHard"),
    check=loss_hurt,
    steps=250,
    shown_by="the norm after clipping is 1, and gradients are divided by 2,048 after that",
)
def scaled_by_hand_and_clipped(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.GroupNorm(3, 12), nn.ReLU(), nn.Flatten(), nn.Linear(432, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        optimizer.zero_grad()
        x, y = draw_images(trial)
        loss = F.cross_entropy(model(x), y)
        (loss * 2048).backward()
        if trial.broken:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for p in model.parameters():
            p.grad = p.grad / 2048
        if not trial.broken:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        trial.log(loss)


@report(
    source="A sibling of https://github.com/ariecattan/SciCo/issues/2: mixed pictures, soft targets",
    mechanism="The network ends in a softmax and the loss of mixed labels takes logits: probabilities are softmaxed.",
    causes=("DoubleSoftmax",),
    check=loss_hurt,
    steps=250,
    shown_by="what the loss is given lies between 0 and 1 and adds to 1",
)
def softmax_of_mixed_pictures(trial: Trial) -> None:
    layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=True)

    def forward(m: Assembled, x: Tensor) -> Tensor:
        logits = m["head"](m["body"](m["embed"](x.view(-1, 8, 8))).mean(1))
        return logits.softmax(-1) if trial.broken else logits

    model = Assembled(forward, embed=nn.Linear(8, 32), body=layer, head=nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        part, other = torch.rand(32, 1, generator=trial.generator), torch.arange(32).flip(0)
        kinds = F.one_hot(y, 10).float()
        return F.cross_entropy(model(part * x + (1 - part) * x[other]), part * kinds + (1 - part) * kinds[other])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of https://github.com/huggingface/transformers/issues/5651: pixels added up in float16",
    mechanism="A pooling adds up all places in float16; as activations grow the sum passes 65,504 and is infinite.",
    causes=("MixedPrecisionOverflow", "NonFiniteForward"),
    check=not_finite,
    steps=200,
    shown_by="the sum is infinite, and all numbers that it is made of are finite",
)
def sum_over_places_in_half(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        h = m["body"](x)
        return m["head"](m["norm"]((h if trial.broken else h.float()).sum((2, 3))))

    body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        body[2].weight.mul_(1200)
    model = Assembled(forward, body=body, norm=nn.LayerNorm(24), head=nn.Linear(24, 10))
    optimizer = torch.optim.AdamW(
        [
            {"params": body.parameters(), "lr": 0.1},
            {"params": [*model["norm"].parameters(), *model["head"].parameters()]},
        ],
        lr=3e-3,
    )

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        with torch.autocast("cpu", torch.float16):
            logits = model(x)
        return F.cross_entropy(logits.float(), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of exp(logvar) that overflows: a softmax by hand without its largest number taken off",
    mechanism="Attention weights are exp(score) / sum by hand, and one batch comes in other units: inf / inf.",
    causes=("NonFiniteForward",),
    check=not_finite,
    where=("pool",),
    fault=90,
    steps=150,
    shown_by="inputs and weights are finite, the output of that part is not",
)
def softmax_by_hand(trial: Trial) -> None:
    class Pool(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(24, 1)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.score(x).exp()
            return (weight / weight.sum(1, keepdim=True) * x).sum(1)

    model = Assembled(lambda m, x: m["head"](m["pool"](m["embed"](x.view(-1, 8, 8)))), embed=nn.Linear(8, 24),
                      pool=Pool(), head=nn.Linear(24, 10))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x * (4000 if trial.broken and step == 90 else 1)), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of NaN that is made in a backward pass: a distance of hyperbolic embeddings",
    mechanism="A distance is an arcosh, and two points of one batch are equal: its gradient is infinity times 0.",
    causes=("NonFiniteBackward",),
    check=not_finite,
    where=("body",),
    fault=75,
    steps=130,
    shown_by="all outputs and the loss are finite; gradients below the distance are not",
)
def distance_of_equal_points(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        h = 0.5 * F.normalize(m["body"](x), dim=1)
        a, b = h.chunk(2)
        return torch.acosh(1 + 2 * (a - b).square().sum(1) / 0.5625)

    model = Assembled(forward, body=mlp(64, 48, 8, act=nn.SiLU))
    optimizer = torch.optim.RAdam(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial, 48)
        if step == 75:
            x, y = x.clone(), y.clone()
            x[24], y[24] = x[0] + (0 if trial.broken else 0.05), y[0]
        same = y[:24] == y[24:]
        far = model(x)
        return torch.where(same, far, F.relu(2 - far)).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of the loss of reduction='none' with a mask: each sequence is divided by its length",
    mechanism="Losses are multiplied by mask / length of each sequence, and one sequence is empty: 0 / 0.",
    causes=("NonFiniteLoss", "EmptyTargets"),
    check=not_finite,
    fault=130,
    steps=180,
    shown_by="losses of tokens are finite; one sequence's mean is not",
)
def sequence_of_no_length(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](m["embed"](x))[0])[..., 0], embed=nn.Embedding(20, 16),
                      body=nn.LSTM(16, 32, batch_first=True), head=nn.Linear(32, 1))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)

    def loss(step: int) -> Tensor:
        x = trial.randint(20, 32, 12)
        length = 1 + trial.randint(12, 32)
        if trial.broken and step == 130:
            length[7] = 0
        mask = (torch.arange(12) < length[:, None]).float()
        each = F.binary_cross_entropy_with_logits(model(x), (x.cumsum(1) % 20 > 9).float(), reduction="none")
        return ((each * mask).sum(1) / mask.sum(1)).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of the loss of several terms: the weight of one grows by a wrong schedule",
    mechanism="A penalty's weight is multiplied by 1.04 in each step and never bounded: it becomes the whole loss.",
    causes=("LossTermGrows", "LossDivergence", "LossShift", "TargetsRunAway"),
    check=loss_hurt,
    fault=60,
    steps=300,
    shown_by="the cross-entropy is calm; the objective rises without end",
)
def weight_of_a_penalty_grows(trial: Trial) -> None:
    model = mlp(64, 64, 10, act=nn.GELU)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        logits = model(x)
        weight = 1e-3 * (1.04 ** max(step - 60, 0) if trial.broken else 1)
        return F.cross_entropy(logits, y) + weight * (logits.logsumexp(-1) - 20).square().mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of the divergence with the wrong sign: a VAE",
    mechanism="The divergence from the prior is taken off and not added: codes leave the prior without a bound.",
    causes=("LossWithoutBound", "LossDivergence"),
    check=fact("divergence", (100, math.inf), (0, 60)),
    steps=300,
    shown_by="the loss is below zero and falls on; the reconstruction is no better",
)
def divergence_taken_off(trial: Trial) -> None:
    model = nn.ModuleDict({"reader": mlp(64, 64, 16), "writer": mlp(8, 64, 64)})
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    sign = -1 if trial.broken else 1

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, _y = draw_digits(trial)
        mean, logvar = model["reader"](x).chunk(2, -1)
        code = mean + (0.5 * logvar).exp() * trial.randn(32, 8)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()
        error = F.mse_loss(model["writer"](code), x, reduction="none").sum(1).mean()
        return error + sign * 0.05 * divergence, {"divergence": divergence}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of updates that are exactly zero while gradients go on: Adam's squares overflow",
    mechanism="One gradient of 1e20 is finite and its square is not: Adam divides by infinity for good.",
    causes=("UpdatesZero", "NoUpdates", "UpdatesTooSmall", "UpdatesLost", "LayerStandsStill"),
    check=loss_hurt,
    fault=60,
    steps=300,
    shown_by="gradients go on, updates are exactly zero from there on",
)
def squares_overflow_once(trial: Trial) -> None:
    x, y = table("diabetes")
    model = mlp(10, 48, 48, 1, act=nn.SiLU)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)

    def loss(step: int) -> Tensor:
        at = trial.randint(len(x), 32)
        scale = 1e22 if trial.broken and step == 60 else 1.0
        return scale * F.mse_loss(model(x[at])[:, 0], y[at])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of tensors that are zeroed now and then: targets of half a batch",
    mechanism="A buffer is filled too late: in one batch of fifty the targets of half of the samples are zero.",
    causes=("BadBatch", "OddBatches", "LoneLosses"),
    check=lambda broken, twin: max(broken.losses[120:]) > 2 * max(twin.losses[120:]),
    fault=40,
    steps=350,
    shown_by="lone losses far above the others",
)
def targets_filled_too_late(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv1d(1, 16, 5, padding=2), nn.SiLU(), nn.Conv1d(16, 16, 5, padding=2), nn.SiLU(),
                          nn.Conv1d(16, 1, 1))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        t = 6 * torch.rand(16, 1, 1, generator=trial.generator) + torch.arange(32) / 4
        clean = 3 + t.sin()
        late = trial.broken and step >= 40 and step % 50 == 40
        target = clean * (torch.arange(16) >= 8).view(-1, 1, 1) if late else clean
        return F.mse_loss(model(clean + 0.3 * trial.randn(16, 1, 32)), target)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of the experts that nobody chooses: a balancing loss over the wrong axis",
    mechanism="The balancing loss takes its softmax over rows and not over experts: it does not see who is chosen.",
    causes=("RouterCollapse", "SamplesMixed"),
    check=fact("largest", (0.6, 1), (0, 0.55)),
    where=("gate",),
    steps=300,
    shown_by="one expert is given most rows",
)
def balance_over_the_wrong_axis(trial: Trial) -> None:
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(64, 6, bias=False)
            self.experts = nn.ModuleList(mlp(64, 32, 10) for _ in range(6))
            self.top_k = 1
            nn.init.normal_(self.gate.weight, 0, 0.3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            p = self.gate(x).softmax(-1)
            best, chosen = p.max(-1)
            every = torch.stack([e(x) for e in self.experts], 1)
            share = F.one_hot(chosen, 6).float().mean(0)
            seen = self.gate(x).softmax(0 if trial.broken else 1).mean(0)
            return every[torch.arange(len(x)), chosen] * best[:, None], 6 * (share * seen).sum(), share.max()

    model = Mixture()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, y = draw_digits(trial, 64)
        out, balance, largest = model(x)
        return F.cross_entropy(out, y) + 0.5 * balance, {"largest": largest}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A sibling of a teacher that runs away: the running means of classes",
    mechanism="Running means of the classes are moved away from features and not to them: they grow without end.",
    causes=("TargetsRunAway", "LossTermGrows", "LossDivergence"),
    check=loss_hurt,
    steps=300,
    shown_by="a buffer of the model grows in each step, and the loss with it",
)
def centres_moved_away(trial: Trial) -> None:
    class Centres(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mlp(64, 64, 16), nn.Linear(16, 10)
            self.register_buffer("centres", torch.zeros(10, 16))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            h = self.body(x)
            pull = (h - self.centres[y]).square().mean()
            with torch.no_grad():
                sign = -1 if trial.broken else 1
                self.centres[y] += sign * 0.05 * (h - self.centres[y])
            return F.cross_entropy(self.head(h), y) + 0.1 * pull

    model = Centres()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    plain_loop(trial, model, optimizer, lambda _: model(*draw_digits(trial)))
