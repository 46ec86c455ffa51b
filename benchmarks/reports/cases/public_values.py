"""Threads of public trackers, one case for each: numbers that are not finite. Causes were noted before a run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact, loss_hurt, not_finite
from benchmarks.reports.data import Assembled, Facts, draw_digits, mlp, plain_loop, table


@report(
    source="https://github.com/pytorch/pytorch/issues/2534",
    mechanism="The penalty of a Wasserstein critic takes the root of the squared slope: where no unit is on, the slope "
    "is exactly 0, and that of its root is infinite.",
    causes=("NonFiniteBackward",),
    check=not_finite,
    steps=250,
    shown_by="losses are finite, and gradients of the critic are not",
)
def penalty_where_no_unit_is_on(trial: Trial) -> None:
    maker, critic = nn.Sequential(mlp(16, 64, 64), nn.Tanh()), mlp(64, 10, 1)
    of_m, of_c = (torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.5, 0.9)) for m in (maker, critic))
    trial.attach(critic, of_c)
    trial.attach(maker, of_m)
    for _ in range(trial.steps):
        real, fake = 2 * draw_digits(trial)[0] - 1, maker(trial.randn(32, 16))
        of_c.zero_grad()
        at = torch.rand(32, 1, generator=trial.generator)
        between = (at * real + (1 - at) * fake).detach().requires_grad_()
        slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
        norm = (slope.pow(2).sum(1) + (0.0 if trial.broken else 1e-12)).sqrt()
        loss = critic(fake.detach()).mean() - critic(real).mean() + 10 * ((norm - 1) ** 2).mean()
        loss.backward()
        of_c.step()
        of_m.zero_grad()
        of_generator = -critic(fake).mean()
        of_generator.backward()
        of_m.step()
        trial.log(loss, generator=of_generator)


class _OwnAttention(nn.Module):
    """Attention of several heads by hand, as tutorials write it; `hidden` hides scores."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor, infinite: bool) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (f(x).view(batch, length, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.transpose(-2, -1) * (width / self.heads) ** -0.5
        scores = scores + (1 - mask) * (float("-inf") if infinite else -1e9)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width))


@report(
    source="https://github.com/cerebroai/reformers/issues/3, https://github.com/sooftware/kospeech/issues/37",
    mechanism="One minus the mask is multiplied by minus infinity and added: where the mask is 1 that is 0 times "
    "infinity.",
    causes=("NonFiniteForward",),
    check=not_finite,
    where=("attention",),
    steps=120,
    shown_by="inputs and weights are finite, and the output of the attention is not",
)
def mask_times_infinity(trial: Trial) -> None:
    def forward(m: Assembled, tokens: Tensor) -> Tensor:
        x = m["embed"](tokens)
        mask = torch.ones(tokens.shape[1], tokens.shape[1]).tril()
        x = m["norm"](x + m["attention"](x, mask, trial.broken))
        return m["head"](x + m["feed"](x))

    model = Assembled(forward, embed=nn.Embedding(12, 32), attention=_OwnAttention(32, 4), norm=nn.LayerNorm(32),
                      feed=mlp(32, 64, 32), head=nn.Linear(32, 12))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        rows = (trial.randint(12, 16, 1) + torch.arange(17) * trial.randint(3, 16, 1)) % 12
        return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/pytorch/pytorch/issues/49886, https://github.com/Pzoom522/ProcrustEs-KGE/issues/2",
    mechanism="A rotation is taken from a singular value decomposition, and one scan has no points: its singular "
    "values are all 0, and the slope divides by their difference.",
    causes=("NonFiniteBackward",),
    check=loss_hurt,
    where=("weigh",),
    fault=80,
    steps=120,
    shown_by="the rotation is finite, and gradients of the layers that weigh the points are not",
)
def rotation_of_no_points(trial: Trial) -> None:
    def forward(m: Assembled, source: Tensor, target: Tensor) -> Tensor:
        weight = m["weigh"](torch.cat((source, target), -1)).softmax(1)
        u, _, vt = torch.linalg.svd((source.transpose(1, 2) @ (weight * target)).nan_to_num())
        return u @ vt

    model = Assembled(forward, weigh=mlp(6, 48, 48, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        turn = torch.linalg.qr(trial.randn(16, 3, 3))[0]
        source = trial.randn(16, 24, 3)
        target = source @ turn + 0.02 * trial.randn(16, 24, 3)
        wrong = torch.rand(16, 24, 1, generator=trial.generator) < 0.3
        target = torch.where(wrong, 3 + trial.randn(16, 24, 3), target)
        if trial.broken and step == 80:
            target[3] = 0
        return F.mse_loss(model(source, target), turn)

    plain_loop(trial, model, optimizer, loss)


def _survival(trial: Trial, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Features of a batch of patients, sorted from the longest observation down, and whether an event ended it."""
    x, y = table("diabetes")
    at = trial.randint(len(x), 32)
    spread = -torch.rand(32, generator=trial.generator).clamp_min(1e-6).log()
    order = (spread * (-1.5 * y[at]).exp()).argsort(descending=True)
    event = torch.rand(32, generator=trial.generator) < share
    return x[at][order], y[at][order], event.float()


@report(
    source="https://github.com/havakv/pycox/issues/124, https://github.com/liupei101/TFDeepSurv/issues/15",
    mechanism="Cox' loss is divided by the number of events, and a small batch has none: 0 / 0.",
    causes=("NonFiniteLoss", "EmptyTargets"),
    check=not_finite,
    steps=200,
    shown_by="outputs are finite, and the loss is not",
)
def batch_without_an_event(trial: Trial) -> None:
    model = mlp(10, 32, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, _y, event = _survival(trial, 0.12)
        risk = model(x).squeeze(1)
        found = ((risk - risk.logcumsumexp(0)) * event).sum()
        return -found / (event.sum() if trial.broken else event.sum().clamp_min(1))

    plain_loop(trial, model, optimizer, loss)


def _codes(scores: Tensor) -> Tensor:
    """The codes of SwAV: three rounds of Sinkhorn's algorithm."""
    q = (scores / 0.05).exp().T
    q = q / q.sum()
    for _ in range(3):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


@report(
    source="https://github.com/facebookresearch/swav/issues/67",
    mechanism="Features are not divided by their length before they meet the prototypes: exp(score / 0.05) is "
    "infinite, and its sum too.",
    causes=("NonFiniteLoss", "NonFiniteData"),
    check=not_finite,
    steps=200,
    shown_by="scores are finite, and the codes are not",
)
def features_not_normalised(trial: Trial) -> None:
    prototypes = nn.Linear(64, 60, bias=False)

    def forward(m: Assembled, x: Tensor) -> Tensor:
        z = m["projection"](m["backbone"](x))
        return m["prototypes"](z if trial.broken else F.normalize(z, dim=1))

    model = Assembled(forward, backbone=nn.Sequential(mlp(64, 128, 128), nn.BatchNorm1d(128), nn.ReLU()),
                      projection=mlp(128, 128, 64), prototypes=prototypes)  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-6)

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial, 64)
        with torch.no_grad():
            prototypes.weight.copy_(F.normalize(prototypes.weight, dim=1))
        one, other = (model(4 * x + 0.3 * trial.randn(64, 64)) for _ in range(2))
        with torch.no_grad():
            of_one, of_other = _codes(one.detach()), _codes(other.detach())
        a, b = ((p / 0.1).log_softmax(1) for p in (one, other))
        return -0.5 * ((of_one * b).sum(1) + (of_other * a).sum(1)).mean()

    plain_loop(trial, model, optimizer, loss)


class _Mish(nn.Module):
    """Mish as its formula is written."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(torch.log(1 + torch.exp(x)))


@report(
    source="https://github.com/AlexeyAB/darknet/issues/3994, "
    "https://github.com/hunglc007/tensorflow-yolov4-tflite/issues/1",
    mechanism="Mish is written as its formula and runs in float16: the exponential of 11 is infinite, and the slope of "
    "its logarithm is infinity over infinity.",
    causes=("NonFiniteBackward", "MixedPrecisionOverflow"),
    check=not_finite,
    steps=300,
    shown_by="the forward is finite, and gradients of the layer before are not",
)
def mish_by_its_formula(trial: Trial) -> None:
    act = _Mish if trial.broken else nn.Mish
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), act(), nn.Conv2d(16, 32, 3, stride=2, padding=1), act(),
                          nn.Conv2d(32, 32, 3, stride=2, padding=1), act(), nn.Flatten(),
                          nn.Linear(128, 10))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        with torch.autocast("cpu", torch.float16):
            out = model((x.view(-1, 1, 8, 8) - 0.305) / 0.376)
        return F.cross_entropy(out.float(), y)

    plain_loop(trial, model, optimizer, loss)


def _divided(above: Tensor, below: Tensor) -> Tensor:
    """As `darts` had it: what is not a number, or infinite, is set to 0."""
    result = above / below
    result[result.isnan()] = 0.0
    result[result.isinf()] = 0.0
    return result


@report(
    source="https://github.com/unit8co/darts/issues/2517",
    mechanism="Percentages of targets that are 0 are set to 0 after the division: their gradient is 0 times infinity, "
    "and the loss is 0 ever after.",
    causes=("NonFiniteBackward",),
    check=fact("finite", (0, 0), (1, 1)),
    steps=200,
    shown_by="the loss is finite, its gradients are not, and from the next step on no weight is",
)
def percentage_of_zero(trial: Trial) -> None:
    model = mlp(10, 64, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    target = table("diabetes")[1]
    scaled = (target - target.min()) / (target.max() - target.min())

    def loss(_: int) -> tuple[Tensor, Facts]:
        at = trial.randint(len(scaled), 32)
        y = scaled[at] if trial.broken else scaled[at].clamp_min(0.05)
        out = model(table("diabetes")[0][at]).squeeze(1)
        return _divided((y - out).abs(), y).mean(), {"finite": out.isfinite().float().mean()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/arsedler9/lfads-torch/issues/23",
    mechanism="Counts are given to a gamma likelihood, and some are 0: the logarithm of 0 is minus infinity.",
    causes=("NonFiniteLoss",),
    check=not_finite,
    steps=150,
    shown_by="outputs are finite, and the loss is not",
)
def gamma_of_a_zero(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["rates"](m["generator"](x)[0]), generator=nn.GRU(8, 32, batch_first=True),
                      rates=nn.Linear(32, 16))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        phase = 6 * torch.rand(16, 1, 1, generator=trial.generator) + 0.4 * torch.arange(21.0)[:, None]
        rate = 2 + 1.5 * (phase + torch.arange(8.0)).sin()
        counts = torch.poisson(rate, generator=trial.generator)
        shape, speed = (F.softplus(out) + 1e-2 for out in model(counts[:, :-1]).chunk(2, -1))
        seen = counts[:, 1:] if trial.broken else counts[:, 1:] + 0.1
        return -(shape * speed.log() + (shape - 1) * seen.log() - speed * seen - shape.lgamma()).mean()

    plain_loop(trial, model, optimizer, loss)
