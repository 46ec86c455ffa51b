"""NaN and infinity, made in the forward pass, in the loss, in the backward pass, or by the optimizer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import not_finite
from benchmarks.reports.data import Assembled, TextModel, digits, draw_digits, draw_text, mlp, plain_loop, token_loss

BAD = 83
"""Step of the batch with which the value is made: not a multiple of an interval at which somebody may look."""


@report(
    source="https://github.com/Li-Chongyi/Zero-DCE_extension/issues/2, https://github.com/pytorch/pytorch/issues/2421",
    mechanism="The square root of a sum that is exactly 0 has an infinite slope: the gradient is NaN, the "
    "loss is finite.",
    causes=("NonFiniteBackward",),
    check=not_finite,
    fault=BAD,
    steps=140,
    shown_by="the first value that is not finite is a gradient: loss and activations of that step are finite",
)
def sqrt_at_zero(trial: Trial) -> None:
    model = mlp(64, 32, 32, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, _ = draw_digits(trial)
        colour = model(x)
        if step == BAD:
            colour = colour * 0.0  # a black picture
        size = colour.square().sum(-1)
        return (torch.sqrt(size if trial.broken else size + 1e-5) - 1).square().mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/TFboys-lzz/MPSCL/issues/2",
    mechanism="sqrt(1 - cos^2) of a cosine that rounds above 1: a NaN in the margin loss, from finite embeddings.",
    causes=("NonFiniteLoss",),
    check=not_finite,
    fault=BAD,
    steps=140,
    shown_by="the loss is NaN while every module's output is finite",
)
def margin_sine(trial: Trial) -> None:

    def forward(parts: Assembled, x: Tensor) -> Tensor:
        return F.normalize(parts["body"](x)) @ F.normalize(parts["kernel"].weight).T

    model = Assembled(forward, body=mlp(64, 48, 16), kernel=nn.Linear(16, 10, bias=False))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        cosine = model(x)
        if step >= BAD:
            cosine = cosine / cosine.detach().abs().max() * 1.0000002  # a sample that lies on its centre
        rest = 1 - cosine.square()
        sine = torch.sqrt(rest if trial.broken else rest.clamp(1e-4, 1))
        margin = cosine * 0.98 - sine * 0.2
        return F.cross_entropy(10 * torch.where(F.one_hot(y, 10) > 0, margin, cosine), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/marian-nmt/marian-dev/issues/14, https://github.com/tensorflow/adanet/issues/69",
    mechanism="ln of a softmax whose entry underflows to 0: the loss is infinite, its gradient NaN.",
    causes=("NonFiniteLoss",),
    check=not_finite,
    fault=1,
    steps=200,
    shown_by="the loss is infinite while every module's output is finite; log_softmax of the same logits is finite",
)
def log_of_zero(trial: Trial) -> None:
    model = mlp(64, 96, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0, momentum=0.9)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        logits = model(4 * x)
        logs = logits.softmax(-1).log() if trial.broken else logits.log_softmax(-1)
        return -logs[torch.arange(len(y)), y].mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/huggingface/trl/pull/5773, https://github.com/modelscope/ms-swift/issues/8123",
    mechanism="The standard deviation of a group of one is 0 / 0: all advantages of the batch are NaN.",
    causes=("NonFiniteLoss", "EmptyTargets"),
    check=not_finite,
    fault=BAD,
    steps=140,
    shown_by="the loss is NaN while the policy's logits are finite",
)
def group_of_one(trial: Trial) -> None:
    model = nn.Sequential(nn.Embedding(8, 16), mlp(16, 32, 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        size = 1 if step == BAD and trial.broken else 8
        state = trial.randint(8, 8).repeat_interleave(size)
        logs = model(state).log_softmax(-1)
        action = torch.multinomial(logs.exp().nan_to_num(1.0), 1, generator=trial.generator)[:, 0]
        reward = (action == state % 6).float().view(8, size) + 0.1 * trial.randn(8, size)
        advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
        return -(advantage.flatten() * logs[torch.arange(len(action)), action]).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/k2-fsa/icefall/issues/135, https://github.com/meijieru/crnn.pytorch/issues/235",
    mechanism="A recording is shorter than its transcript: the CTC loss is infinite and its gradient NaN.",
    causes=("NonFiniteLoss", "NonFiniteData"),
    check=not_finite,
    fault=BAD,
    steps=140,
    shown_by="the loss is infinite while every module's output is finite; lengths of inputs and targets",
)
def ctc_target_too_long(trial: Trial) -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 9))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        target = 1 + trial.randint(8, 16, 4)
        sound = F.one_hot(target - 1, 8).float().repeat_interleave(3, 1) + 0.2 * trial.randn(16, 12, 8)
        lengths = torch.full((16,), 12)
        if step == BAD:
            lengths[3] = 2
        logs = model(sound).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(logs, target, lengths, torch.full((16,), 4), zero_infinity=not trial.broken)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/TiankaiHang/Min-SNR-Diffusion-Training/issues/2, "
    "https://github.com/kohya-ss/sd-scripts/pull/934",
    mechanism="With zero terminal SNR the weight min(snr, 5) / snr of the last time step is 0 / 0.",
    causes=("NonFiniteLoss",),
    check=not_finite,
    fault=BAD,
    steps=160,
    shown_by="the loss is NaN while every module's output is finite",
)
def snr_weight_zero(trial: Trial) -> None:
    model = mlp(65, 96, 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    kept = torch.linspace(1, 0, 101).square()

    def loss(step: int) -> Tensor:
        x, _ = draw_digits(trial)
        t = trial.randint(100, 32)
        if step == BAD:
            t[5] = 100
        a, noise = kept[t][:, None], trial.randn(32, 64)
        snr = a / (1 - a + 1e-4)
        velocity = a.sqrt() * noise - (1 - a).sqrt() * x
        output = model(torch.cat([a.sqrt() * x + (1 - a).sqrt() * noise, t[:, None] / 100], 1))
        weight = snr.clamp(max=5) / (snr if trial.broken else snr.clamp(min=1e-6))
        return (weight * (output - velocity).square()).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/pytorch/pytorch/pull/131060, https://github.com/tracel-ai/burn/pull/4697",
    mechanism="A sequence of padding alone masks a whole row of attention: its softmax is 0 / 0.",
    causes=("FullyMaskedRow", "NonFiniteForward"),
    check=not_finite,
    where=("blocks.0.attention", "blocks.0"),
    fault=BAD,
    steps=130,
    shown_by="blocks.0.attention is the first module whose output is not finite, at that step, in the forward pass",
)
def row_fully_masked(trial: Trial) -> None:
    model, before = TextModel(causal=False), torch.ones(16, 16, dtype=torch.bool).tril()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_text(trial, 8, 16)
        real = torch.arange(16) < trial.randint(12, 8)[:, None] + 4
        if step == BAD:
            real[2] = False
        if not trial.broken:
            real[:, 0] = True
        return token_loss(model(x, real[:, None, None, :] & before), y)

    plain_loop(trial, model, optimizer, loss)


class _Graph(nn.Module):
    """Two layers that average over neighbours."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.safe = safe
        self.layer1, self.layer2 = nn.Linear(128, 32), nn.Linear(64, 10)

    def forward(self, x: Tensor, links: Tensor) -> Tensor:
        degree = links.sum(1, keepdim=True)
        near = links / (degree.clamp(min=1) if self.safe else degree)
        h = self.layer1(torch.cat([x, near @ x], 1)).relu()
        return self.layer2(torch.cat([h, near @ h], 1))


@report(
    source="https://github.com/MrLeeeee/GCN-GAT-and-Graphsage/issues/3, https://github.com/dmlc/dgl/issues/2777",
    mechanism="A node without neighbours is divided by its degree of 0: NaN from the first graph layer on.",
    causes=("NonFiniteForward",),
    check=not_finite,
    where=("layer1",),
    fault=BAD,
    steps=140,
    shown_by="layer1 is the first module whose output is not finite, at that step, and the model's input is finite",
)
def isolated_node(trial: Trial) -> None:
    model = _Graph(safe=not trial.broken)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial, 40)
        links = ((y[:, None] == y) & (trial.randn(40, 40) > -1)).float() + torch.eye(40)
        if step == BAD:
            links[4] = 0
        return F.cross_entropy(model(x, links), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/pytorch/pytorch/issues/75181, https://github.com/nvidia-cosmos/cosmos-rl/pull/155",
    mechanism="No target of the batch counts: the mean over them is 0 / 0, and the loss of that step is NaN.",
    causes=("EmptyTargets", "NonFiniteLoss"),
    check=lambda broken, twin: math.isnan(broken.losses[BAD]) and not math.isnan(twin.losses[BAD]),
    fault=BAD,
    steps=130,
    shown_by="the targets of cross_entropy are all ignore_index; where the step is recorded, its loss is absent and "
    "loss_nonfinite_total 0: a mean over no target counts as not measured",
)
def all_targets_ignored(trial: Trial) -> None:
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_text(trial)
        y = y.masked_fill(torch.rand(y.shape, generator=trial.generator) < 0.6, -100)
        if step == BAD:
            y = torch.full_like(y, -100)
            y[0, 0] = -100 if trial.broken else 5
        return token_loss(model(x), y)

    plain_loop(trial, model, optimizer, loss)


class _NormedSgd(torch.optim.Optimizer):
    """Each matrix moves by a step of a fixed norm."""

    def __init__(self, params: object, lr: float, floor: float) -> None:
        super().__init__(params, {"lr": lr, "floor": floor})  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                norm = p.grad.norm()
                p -= group["lr"] * p.grad / (norm.clamp(min=group["floor"]) if group["floor"] else norm)


@report(
    source="https://github.com/microsoft/dion/pull/24, https://github.com/kozistr/pytorch_optimizer/pull/431",
    mechanism="The optimizer divides by the norm of a gradient that is exactly 0: the update is NaN, the "
    "gradient is not.",
    causes=("NonFiniteUpdate",),
    check=not_finite,
    where=("0",),
    steps=100,
    shown_by="weights are not finite after a step whose gradients are finite; the order of the two within a step "
    "is not told",
)
def norm_of_zero_gradient(trial: Trial) -> None:
    model = mlp(64, 32, 10)
    nn.init.zeros_(model[2].weight)  # so that the layer before has no gradient at the first step
    optimizer = _NormedSgd(model.parameters(), lr=0.05, floor=0.0 if trial.broken else 1e-8)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


class _Latent(nn.Module):
    """An encoder of mean and log variance, and a decoder."""

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.bounded = bounded
        self.encoder, self.decoder = mlp(64, 32, 16), mlp(8, 32, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.encoder(x).chunk(2, -1)
        logvar = logvar.clamp(-8, 8) if self.bounded else logvar
        kl = (mean.square() + logvar.exp() - logvar - 1).mean()
        return self.decoder(mean + (0.5 * logvar).exp() * torch.randn_like(mean)), kl


@report(
    source="A description: exp of a log variance that nothing bounds",
    mechanism="An outlier makes the log variance large, and its exponential overflows between encoder and decoder.",
    causes=("NonFiniteForward",),
    check=not_finite,
    where=("decoder",),
    fault=BAD,
    steps=140,
    shown_by="the decoder's input is the first tensor that is not finite; encoder.2's output is large and finite",
)
def logvar_unbounded(trial: Trial) -> None:
    model = _Latent(bounded=not trial.broken)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    x, _ = digits()

    def loss(step: int) -> Tensor:
        rows = x[trial.randint(len(x), 32)]
        if step == BAD:
            rows[3:5] = 20_000.0 * torch.tensor([[1.0], [-1.0]])
        output, kl = model(rows)
        return F.smooth_l1_loss(output, rows) + 1e-3 * kl

    plain_loop(trial, model, optimizer, loss)
