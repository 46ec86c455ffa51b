"""The most usual reports, read a fourth time: values that are not finite, set-ups. Causes were noted before a run."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import all_of, fact, loss_hurt, not_finite
from benchmarks.reports.data import Assembled, digits, digits_loss, draw_digits, mlp, plain_loop, table


@report(
    source="https://github.com/pytorch/pytorch/issues/68425, https://github.com/pytorch/pytorch/issues/187297",
    mechanism="`torch.where` hides the root of a negative number, and the slope of the hidden branch is NaN.",
    causes=("NonFiniteBackward",),
    check=not_finite,
    where=("encode",),
    shown_by="the gradient of the head is finite, that of the layer before the root is not",
)
def root_hidden_by_where(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        z = m["encode"](x)
        root = (z if trial.broken else z.clamp(min=1e-6)).sqrt()
        return m["head"](torch.where(z > 0, root, z))

    model = Assembled(forward, encode=nn.Linear(64, 32), head=nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="https://github.com/VainF/pytorch-msssim/issues/7, https://github.com/jorge-pessoa/pytorch-msssim/issues/2",
    mechanism="The loss takes a similarity to the power of a fraction: where it is negative, that is NaN.",
    causes=("NonFiniteLoss",),
    check=not_finite,
    fault=60,
    shown_by="all that the model returned is finite, the loss is not",
)
def power_of_a_negative(trial: Trial) -> None:
    model = mlp(64, 16, 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        x, _ = draw_digits(trial)
        out = model(-x if step == 60 else x)
        similar = F.cosine_similarity(out, x, dim=1)
        if not trial.broken:
            similar = similar.relu() + 1e-6
        return (F.mse_loss(out, x) + (1 - (similar if step >= 60 else similar.abs() + 1e-6) ** 0.3)).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/huggingface/trl/issues/7221, https://github.com/kkirchheim/pytorch-ood/issues/84",
    mechanism="An entropy is computed as p log p: where a probability is 0, that is 0 times minus infinity.",
    causes=("NonFiniteLoss",),
    check=not_finite,
    fault=83,
    shown_by="the logits are finite, the loss is not",
)
def entropy_of_a_zero(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        logits = model(60 * x if step == 83 else x)
        p = logits.softmax(-1)
        entropy = -(p * (p if trial.broken else p.clamp(min=1e-8)).log()).sum(-1).mean()
        return F.cross_entropy(logits, y) - 0.01 * entropy

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/pytorch/pytorch/issues/89543, a description: missing targets and a mask",
    mechanism="Missing targets are NaN and their errors are multiplied by a mask: NaN times 0 is NaN.",
    causes=("NonFiniteData", "NonFiniteLoss"),
    check=not_finite,
    shown_by="the targets of the loss hold NaN; the inputs and the weights do not",
)
def missing_targets_times_zero(trial: Trial) -> None:
    x, y = table("diabetes")
    model = mlp(10, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    gone = torch.rand(len(y), generator=trial.generator) < 0.02

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 32)
        wanted, known = y[at].masked_fill(gone[at], torch.nan), ~gone[at]
        out = model(x[at])[:, 0]
        if trial.broken:
            return ((out - wanted) ** 2 * known).sum() / known.sum()
        return F.mse_loss(out[known], wanted[known])

    plain_loop(trial, model, optimizer, loss)


class _Query(nn.Module):
    """Attention of one learned query over the rows of a picture."""

    def __init__(self, filled: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, 32))
        nn.init.normal_(self.weight)
        if not filled:  # what torch.empty finds in memory: mostly small numbers, some enormous, some NaN
            self.weight.data[0, 3], self.weight.data[0, 17] = torch.nan, 3e38

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ self.weight.T).softmax(1) * x).sum(1)


@report(
    source="https://github.com/gordicaleksa/pytorch-GAT/issues/11, https://github.com/tail-unica/hopwise/issues/271, "
    "https://discuss.pytorch.org/t/nn-parameter-contains-nan-when-initializing/44559",
    mechanism="A parameter is made by `torch.empty` and never filled: it holds what was in memory.",
    causes=("NonFiniteWeights",),
    check=lambda broken, twin: not_finite(broken, twin) and math.isnan(broken.losses[0]),
    where=("query",),
    shown_by="a weight is NaN before the first step",
)
def parameter_never_filled(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["query"](m["embed"](x.view(-1, 8, 8)))),
                      embed=nn.Linear(8, 32), query=_Query(not trial.broken), head=nn.Linear(32, 10))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="https://stats.stackexchange.com/questions/594738, https://mejorcodigo.com/p/45698.html",
    mechanism="A linear regression of numbers up to 1000 by SGD at 0.01: each step overshoots until the loss is NaN.",
    causes=("InputsNotScaled", "LearningRateTooHigh"),
    check=not_finite,
    steps=100,
    shown_by="the input's root mean square is hundreds; updates are many times the weights from the first step on",
)
def regression_of_large_numbers(trial: Trial) -> None:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def loss(_: int) -> Tensor:
        x = 1000 * torch.rand(32, 1, generator=trial.generator)
        y = 3 * x + 20 + 5 * trial.randn(32, 1)
        if not trial.broken:
            x, y = (x - 500) / 290, (y - 1520) / 870
        return F.mse_loss(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/opendataval/opendataval/issues/25",
    mechanism="A sigmoid before cross_entropy: ten logits between 0 and 1 cannot say more than 23 per cent.",
    causes=("DoubleSoftmax", "DoubleSigmoid"),
    check=loss_hurt,
    shown_by="all logits of cross_entropy are between 0 and 1; the loss stays above 1.46",
)
def sigmoid_before_cross_entropy(trial: Trial) -> None:
    model = mlp(64, 64, 10)
    if trial.broken:
        model.append(nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="https://github.com/ultralytics/yolov3/issues/191, https://github.com/darioizzo/dcgp/issues/86",
    mechanism="cross_entropy is given one output: the softmax of one number is 1, and the loss is 0 whatever it is.",
    causes=("ZeroGradients", "LossConstant", "OutputsConstant"),
    check=fact("right", (0, 0.7), (0.9, 1)),
    shown_by="the loss is 0 from the first step on, and so are all gradients",
)
def cross_entropy_of_one_output(trial: Trial) -> None:
    x, y = table("cancer")
    model = mlp(30, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        at = trial.randint(len(x), 32)
        out, wanted = model(x[at]), y[at, None].float()
        found = (F.cross_entropy if trial.broken else F.binary_cross_entropy_with_logits)(out, wanted)
        return found, {"right": ((out > 0) == (wanted > 0)).float().mean()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/senlinuc/caffe_ocr/issues/133, https://github.com/wenet-e2e/wenet/pull/2299",
    mechanism="All targets of ctc_loss are longer than their inputs, and zero_infinity makes each loss 0.",
    causes=("EmptyTargets", "ZeroGradients", "LossConstant"),
    check=lambda broken, twin: broken.final() == 0 < twin.final() < twin.first(),
    shown_by="the loss is exactly 0 and so are all gradients",
)
def infinite_losses_set_to_zero(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](x)[0]), body=nn.GRU(8, 32), head=nn.Linear(32, 6))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    signs = trial.randn(6, 8)

    def loss(_: int) -> Tensor:
        words = 1 + trial.randint(5, 8, 4)
        frames = signs[words.repeat_interleave(4, 1)].transpose(0, 1) + 0.3 * trial.randn(16, 8, 8)
        given = model(frames[::8] if trial.broken else frames).log_softmax(-1)
        lengths = torch.full((8,), len(given))
        return F.ctc_loss(given, words, lengths, torch.full((8,), 4), zero_infinity=True)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/ultralytics/ultralytics/issues/22228, https://github.com/meituan/YOLOv6/issues/869",
    mechanism="No labels are found beside the images: no box counts, and the head of the boxes is never trained.",
    causes=("PartWithZeroGradient", "PartWithoutGradient"),
    check=fact("boxes", (0, 0), (0.5, 1)),
    where=("box",),
    shown_by="the gradients of the head of the boxes are exactly zero from the first step on",
)
def no_labels_found(trial: Trial) -> None:
    model = Assembled(lambda m, x: (m["box"](z := m["body"](x).relu()), m["found"](z)[:, 0]),
                      body=nn.Linear(64, 48), box=nn.Linear(48, 4), found=nn.Linear(48, 1))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        x, y = draw_digits(trial)
        there = (y < 8) & (not trial.broken)
        box, found = model(x)
        wanted = x.view(-1, 8, 8).mean(2)[:, :4]
        errors = F.l1_loss(box, wanted, reduction="none").mean(1)
        boxes = (errors * there).sum() / there.sum().clamp(min=1)
        return boxes + F.binary_cross_entropy_with_logits(found, there.float()), {"boxes": there.float().mean()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in questions on diffusion: `randn_like` is called once more for the target",
    mechanism="The noise that should be found is drawn a second time: it is not the one that was added.",
    causes=("TargetsUnpaired", "OutputsConstant", "NotLearning", "NoBetterThanMean"),
    check=loss_hurt,
    steps=300,
    shown_by="the error stays at 1, the variance of the noise; the outputs shrink to zero",
)
def noise_drawn_twice(trial: Trial) -> None:
    model = mlp(65, 128, 64, act=nn.SiLU)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial, 64)
        noise, kept = trial.randn(64, 64), torch.rand(64, 1, generator=trial.generator)
        out = model(torch.cat((kept.sqrt() * x + (1 - kept).sqrt() * noise, kept), 1))
        return F.mse_loss(out, trial.randn(64, 64) if trial.broken else noise)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="A description, common in questions on graphs: the adjacency is not normalised",
    mechanism="Graph convolutions add up fifty neighbours and are not divided by their number: numbers grow fiftyfold "
    "in each of four layers.",
    causes=("InitialLossTooHigh", "ActivationOutlierGrowth", "OutputLogitDrift"),
    check=all_of(loss_hurt, lambda broken, twin: broken.first() > 20 * twin.first()),
    shown_by="the first loss is thousands of times ln(classes)",
)
def neighbours_added_up(trial: Trial) -> None:
    x, y = (part[:300] for part in digits())
    links = torch.zeros(300, 300).scatter_(1, torch.cdist(x, x).topk(50, largest=False).indices, 1.0)
    near = links if trial.broken else links / links.sum(1, keepdim=True)

    def forward(m: Assembled, x: Tensor) -> Tensor:
        for i in range(4):
            x = m[str(i)](near @ x)
            x = x.relu() if i < 3 else x
        return x

    widths = (64, 32, 32, 32, 10)
    model = Assembled(forward, **{str(i): nn.Linear(widths[i], widths[i + 1]) for i in range(4)})
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    plain_loop(trial, model, optimizer, lambda _: F.cross_entropy(model(x), y))
