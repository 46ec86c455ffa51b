"""A third reading of reports: data, losses and the model itself. Causes were noted before stabwatch saw a run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.cases.fresh_setup import FAULTS
from benchmarks.reports.checks import all_of, fact, loss_hurt, not_finite
from benchmarks.reports.data import (
    VOCABULARY,
    Assembled,
    Facts,
    draw_digits,
    draw_images,
    draw_text,
    mlp,
    plain_loop,
    table,
    token_loss,
)


class _Reader(nn.Module):
    """Says of padded sequences whether a sign is in them: a transformer encoder with a mask of the padding."""

    def __init__(self, inverted: bool) -> None:
        super().__init__()
        self.inverted = inverted
        self.embed, self.head = nn.Embedding(32, 32), nn.Linear(32, 2)
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.inner = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        pad = tokens == 0
        mask = ~pad if self.inverted else pad
        return self.head(self.inner(self.embed(tokens), src_key_padding_mask=mask)[:, 0])


@report(
    source="https://github.com/mlwithme/TransformerTranslation/issues/6, https://github.com/speechbrain/speechbrain/issues/2276",
    mechanism="The mask of the padding is inverted: attention sees the padding and not one of the words.",
    causes=("NotLearning",),
    check=loss_hurt,
    steps=300,
    shown_by="the loss stays at ln(2)",
)
def padding_mask_inverted(trial: Trial) -> None:
    model = _Reader(trial.broken)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        tokens = 3 + trial.randint(29, 64, 16)
        y = trial.randint(2, 64)
        at = 1 + trial.randint(7, 64)
        tokens[torch.arange(64), at] = torch.where(y == 1, 2, tokens[torch.arange(64), at])
        length = 9 + trial.randint(6, 64)
        tokens = tokens.masked_fill(torch.arange(16)[None] >= length[:, None], 0)
        tokens[:, 0] = 1
        return F.cross_entropy(model(tokens), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://discuss.pytorch.org/t/torch-round-gradient/28628",
    mechanism="Codes are rounded inside of the model, and rounding has no slope: the encoder is never trained.",
    causes=("PartWithZeroGradient", "ZeroGradients", "PartWithoutGradient"),
    check=all_of(loss_hurt, fact("moved", (0, 0), (1e-3, 9))),
    where=("encode",),
    shown_by="the gradients of the encoder are exactly zero from the first step on",
)
def rounded_inside(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        code = 2 * m["encode"](x).tanh()
        rounded = code.round() if trial.broken else code + (code.round() - code).detach()
        return m["decode"](rounded)

    model = Assembled(forward, encode=nn.Linear(64, 12), decode=mlp(12, 64, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    start = model["encode"].weight.detach().clone()

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial)
        return F.mse_loss(model(x), x)

    plain_loop(
        trial, model, optimizer, loss, after=lambda _: {"moved": (model["encode"].weight.detach() - start).abs().mean()}
    )


@report(
    source=FAULTS + " (activation of the last layer)",
    mechanism="The last layer of a regression is a sigmoid, and the targets go from -2 to 3: what is outside of 0 to 1 "
    "cannot be said.",
    causes=("TargetsOutOfReach", "TargetsNotScaled", "SaturatedUnits"),
    check=loss_hurt,
    shown_by="half of the targets lie outside of the range that outputs ever have",
)
def sigmoid_on_regression(trial: Trial) -> None:
    x, y = table("diabetes")
    model = mlp(10, 32, 1)
    if trial.broken:
        model.append(nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 32)
        return F.mse_loss(model(x[at])[:, 0], y[at])

    plain_loop(trial, model, optimizer, loss)


@report(
    source=FAULTS + " (activation of the last layer)",
    mechanism="A softmax over a single output is always 1: the model says the same of every sample.",
    causes=("OutputsConstant", "ZeroGradients", "LossConstant"),
    check=loss_hurt,
    shown_by="all outputs are 1; all gradients are exactly zero",
)
def softmax_of_one(trial: Trial) -> None:
    x, y = table("cancer")
    model = nn.Sequential(*mlp(30, 32, 1), nn.Softmax(1) if trial.broken else nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 32)
        return F.binary_cross_entropy(model(x[at])[:, 0], y[at].float())

    plain_loop(trial, model, optimizer, loss)


@report(
    source=FAULTS + " (missing or redundant layer)",
    mechanism="A layer norm over a single number gives zero, whatever comes in: only its bias is ever learned.",
    causes=("OutputsConstant", "ZeroGradients", "PartWithoutGradient", "NotLearning"),
    check=loss_hurt,
    where=("0", "2"),
    shown_by="all outputs are the bias; the gradients of all layers before are exactly zero",
)
def layer_norm_of_one(trial: Trial) -> None:
    x, y = table("diabetes")
    model = mlp(10, 32, 1)
    if trial.broken:
        model.append(nn.LayerNorm(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 32)
        return F.mse_loss(model(x[at])[:, 0], y[at])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/sherjilozair/char-rnn-tensorflow/pull/64",
    mechanism="A language model reads both ways: the backward half has seen the next token; the loss falls to zero.",
    causes=("CausalMaskMissing", "TargetInInput", "LossTooGood"),
    check=lambda broken, twin: broken.final() < 0.3 * twin.final(),
    steps=300,
    shown_by="outputs depend on later inputs",
)
def reads_both_ways(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](m["embed"](x))[0][..., : m["head"].in_features]),
                      embed=nn.Embedding(VOCABULARY, 32), head=nn.Linear(128 if trial.broken else 64, VOCABULARY),
                      body=nn.LSTM(32, 64, batch_first=True, bidirectional=trial.broken))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_text(trial, 16, 32)
        logits = model(x)
        return token_loss(logits, y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/BAAI-DCAI/M3D/issues/52, https://github.com/bowang-lab/BLEEP/issues/5",
    mechanism="Similarities are multiplied by the temperature and not divided: logits are within 0.07 of each other.",
    causes=("NotLearning",),
    check=loss_hurt,
    steps=300,
    shown_by="the loss stays at ln(64) less 0.1",
)
def temperature_multiplied(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        one, two = F.normalize(m["upper"](x[:, :32]), dim=-1), F.normalize(m["lower"](x[:, 32:]), dim=-1)
        return one @ two.T * (0.07 if trial.broken else 1 / 0.07)

    model = Assembled(forward, upper=mlp(32, 64, 32), lower=mlp(32, 64, 32))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    plain_loop(trial, model, optimizer, lambda _: F.cross_entropy(model(draw_digits(trial, 64)[0]), torch.arange(64)))


class _Rows(nn.Module):
    """Transformer over the rows of a picture: (batch, rows, columns) -> (batch, classes)."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=batch_first)
        self.inner, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 10)
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(torch.randn(8, 32) / 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.embed(x) + self.place)[:, 0])


@report(
    source="https://github.com/Exorust/TorchLeet/issues/5, https://github.com/asteroid-team/asteroid/issues/380, "
    "https://github.com/DaoyuanLi2816/Molecule-Generator/pull/22",
    mechanism="`batch_first=True` is forgotten: attention mixes the samples of a batch, not the places of a sample.",
    causes=("SamplesMixed",),
    check=loss_hurt,
    steps=300,
    shown_by="the output of a sample depends on the other samples of its batch",
)
def batch_first_forgotten(trial: Trial) -> None:
    model = _Rows(not trial.broken)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        return F.cross_entropy(model(x.view(-1, 8, 8)), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source=FAULTS + " (preprocessing of training data)",
    mechanism="Pixels are divided by 255 twice: inputs are next to zero, and nothing is seen of them.",
    causes=("InputsNotScaled", "InputsConstant"),
    check=loss_hurt,
    steps=300,
    shown_by="the root mean square of the input is a thousandth",
)
def pixels_divided_twice(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss(_: int) -> Tensor:
        x, y = draw_images(trial)
        return F.cross_entropy(model(x / 255 if trial.broken else x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source=FAULTS + " (missing activation)",
    mechanism="No activation lies between the linear layers: three of them are one.",
    causes=("NoNonlinearity",),
    check=loss_hurt,
    steps=300,
    shown_by="each linear layer's output is the next one's input",
)
def activation_missing(trial: Trial) -> None:
    model = mlp(2, 32, 32, 2, act=nn.Identity if trial.broken else nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        x = trial.randn(64, 2)
        return F.cross_entropy(model(x), (x[:, 0] * x[:, 1] > 0).long())

    plain_loop(trial, model, optimizer, loss)


@report(
    source=FAULTS + " (preprocessing of training data)",
    mechanism="A column of the table has no spread, and its standard deviation is divided by: 0 / 0 is NaN.",
    causes=("NonFiniteData",),
    check=lambda broken, twin: not_finite(broken, twin) and broken.losses[0] != broken.losses[0],
    shown_by="the first input is NaN",
)
def column_without_spread(trial: Trial) -> None:
    x, y = table("cancer")
    x = torch.cat((x, torch.ones(len(x), 1)), 1)
    x = (x - x.mean(0)) / (x.std(0) if trial.broken else x.std(0) + 1e-6)
    model = mlp(31, 32, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 32)
        return F.cross_entropy(model(x[at]), y[at])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/seathiefwang/RankPose/issues/4, https://github.com/pytorch/pytorch/issues/23782",
    mechanism="A loss that takes -1 and 1 is given 0 and 1: samples of the class 0 have no gradient at all.",
    causes=("TargetOutOfRange",),
    check=fact("right", (0, 0.8), (0.9, 1)),
    shown_by="half of the targets are 0, which is neither -1 nor 1",
)
def margin_of_zero_and_one(trial: Trial) -> None:
    x, y = table("cancer")
    model = mlp(30, 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> tuple[Tensor, Facts]:
        at = trial.randint(len(x), 32)
        labels = y[at].float() if trial.broken else 2.0 * y[at] - 1
        out = model(x[at])[:, 0]
        return F.soft_margin_loss(out, labels), {"right": ((out > 0) == (y[at] > 0)).float().mean()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/espnet/espnet/issues/700, https://github.com/baidu-research/warp-ctc/issues/31",
    mechanism="Labels begin at 0, which is the blank of the CTC loss: one letter is the blank.",
    causes=("TargetOutOfRange",),
    check=lambda broken, twin: broken.final() < 0 < twin.final(),
    steps=300,
    shown_by="the targets contain the blank",
)
def blank_is_a_letter(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["body"](x)[0]), body=nn.GRU(8, 48), head=nn.Linear(48, 6))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    table = trial.randn(5, 8)

    def loss(_: int) -> Tensor:
        words = trial.randint(5, 16, 4)
        frames = table[words.repeat_interleave(4, 1)].transpose(0, 1) + 0.2 * trial.randn(16, 16, 8)
        labels = words if trial.broken else words + 1
        return F.ctc_loss(model(frames).log_softmax(-1), labels, torch.full((16,), 16), torch.full((16,), 4))

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/labmlai/annotated_deep_learning_paper_implementations/issues/146, "
    "https://github.com/PetrochukM/PyTorch-NLP/issues/2",
    mechanism="The softmax of an attention with one query per sample goes over the queries: each weight is 1.",
    causes=("PartWithZeroGradient",),
    check=loss_hurt,
    steps=300,
    shown_by="the softmax is taken over a dimension of size 1",
)
def softmax_over_queries(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        keys = m["key"](x)
        scores = keys @ m["query"](x[:, :1]).transpose(1, 2) / 6  # (batch, keys, one query)
        weights = scores.softmax(2 if trial.broken else 1)
        return m["head"]((weights * m["value"](x)).sum(1))

    model = Assembled(forward, key=nn.Linear(24, 36), query=nn.Linear(24, 36), value=nn.Linear(24, 36),
                      head=nn.Linear(36, 10))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    signs = torch.randn(10, 12, generator=trial.generator) * 2

    def loss(_: int) -> Tensor:
        x = trial.randn(64, 12, 24)
        names, at = trial.randint(10, 64, 12), 1 + trial.randint(11, 64)
        x[..., :12] = signs[names]
        rows = torch.arange(64)
        x[:, 0, 12:] = x[rows, at, 12:]  # the first place asks for the one with the same second half
        return F.cross_entropy(model(x), names[rows, at])

    plain_loop(trial, model, optimizer, loss)
