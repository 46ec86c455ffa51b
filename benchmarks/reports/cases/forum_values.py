"""What is asked in forums, once more: values that are not finite, losses, masks. Causes were noted before a run."""

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
    digits_loss,
    draw_digits,
    draw_images,
    mlp,
    plain_loop,
    table,
    token_loss,
)


@report(
    source="Asked often: the IoU loss becomes NaN after some batches",
    mechanism="A box of one batch has no area, nor has the one that is predicted by a ReLU: 0 / 0.",
    causes=("NonFiniteLoss",),
    check=not_finite,
    fault=90,
    steps=140,
    shown_by="predictions are finite, and the loss is not",
)
def boxes_without_area(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 2), nn.Softplus())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(step: int) -> Tensor:
        size = 1 + trial.randint(7, 32, 2)
        if trial.broken and step == 90:
            size[3] = 0
        images = torch.zeros(32, 1, 8, 8)
        for image, (high, wide) in zip(images, size.tolist(), strict=True):
            image[0, :high, :wide] = 1
        sides = model(images) * (size > 0)
        both = torch.minimum(sides, size).prod(1)
        return 1 - (both / (sides.prod(1) + size.prod(1) - both)).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: NaN with autocast, log(p + 1e-8)",
    mechanism="The epsilon of a logarithm, 1e-8, is zero in float16: the logarithm of zero, or its slope, is infinite.",
    causes=("NonFiniteLoss", "NonFiniteBackward", "MixedPrecisionUnderflow"),
    check=not_finite,
    steps=200,
    shown_by="probabilities are finite, and the loss is not",
)
def epsilon_rounds_to_zero(trial: Trial) -> None:
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    epsilon = 1e-8 if trial.broken else 1e-4

    def loss(_: int) -> Tensor:
        x, y = draw_digits(trial)
        p = model(x).softmax(-1).half()
        return -(p + epsilon).log().gather(1, y[:, None]).float().mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: the gradient of var().sqrt() is NaN where all numbers are equal",
    mechanism="Rows are divided by their standard deviation + 1e-5; those of a blank picture are equal, and its slope "
    "is 0 / 0.",
    causes=("NonFiniteBackward",),
    check=not_finite,
    where=("encoder",),
    fault=70,
    steps=110,
    shown_by="the forward is finite, and gradients of the layer before are not",
)
def spread_of_equal_numbers(trial: Trial) -> None:
    def forward(m: Assembled, x: Tensor) -> Tensor:
        h = m["encoder"](x)
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True).sqrt() + 1e-5)
        return m["head"](h)

    model = Assembled(forward, encoder=nn.Linear(64, 48, bias=False), head=nn.Linear(48, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(step: int) -> Tensor:
        x, y = draw_digits(trial)
        if trial.broken and step == 70:
            x = x.clone()
            x[5] = 0
        return F.cross_entropy(model(x), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: a mean over the words of a sentence is NaN",
    mechanism="A sentence of one batch has no words: the sum over its words is divided by their number, 0.",
    causes=("NonFiniteForward", "EmptyTargets"),
    check=not_finite,
    where=("pool", "body", "head"),
    fault=100,
    steps=150,
    shown_by="the attention is finite, and what the head is given is not",
)
def sentence_without_words(trial: Trial) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True)
    parts = {"embed": nn.Embedding(50, 32), "body": nn.TransformerEncoder(layer, 2), "head": nn.Linear(32, 2)}

    def forward(m: Assembled, words: Tensor, padding: Tensor) -> Tensor:
        states = m["body"](m["embed"](words), src_key_padding_mask=padding)
        there = ~padding[..., None]
        return m["head"]((states * there).sum(1) / there.sum(1))

    model = Assembled(forward, **parts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def loss(step: int) -> Tensor:
        words, length = trial.randint(50, 24, 12), 4 + trial.randint(9, 24)
        if trial.broken and step == 100:
            length[7] = 0
        padding = torch.arange(12) >= length[:, None]
        y = ((words < 10) & ~padding).sum(1) > 1
        return F.cross_entropy(model(words, padding), y.long())

    plain_loop(trial, model, optimizer, loss)


def _masked_language_model(trial: Trial, mask: Tensor) -> None:
    layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(m: Assembled, tokens: Tensor) -> Tensor:
        places = m["place"](torch.arange(tokens.shape[1]))
        return m["head"](m["body"](m["embed"](tokens) + places, mask=mask))

    model = Assembled(forward, embed=nn.Embedding(16, 32), place=nn.Embedding(12, 32), body=body,
                      head=nn.Linear(32, 16))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)

    def loss(_: int) -> Tensor:
        tokens = [trial.randint(16, 32)]
        for _ in range(12):
            tokens.append((3 * tokens[-1] + trial.randint(4, 32)) % 16)
        rows = torch.stack(tokens, 1)
        return token_loss(model(rows[:, :-1]), rows[:, 1:])

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: a mask for nn.Transformer made by torch.tril",
    mechanism="True means 'may not be seen' to nn.TransformerEncoder, and the mask has it where it may: all that is "
    "seen is what comes later.",
    causes=("CausalMaskMissing",),
    check=fact("loss", (0, 0.9), (1.2, 9)),
    steps=350,
    shown_by="a change of a later token changes what is said of an earlier one",
)
def mask_means_the_opposite(trial: Trial) -> None:
    below = torch.ones(12, 12, dtype=torch.bool).tril()
    _masked_language_model(trial, below if trial.broken else ~below)


@report(
    source="Asked often: the loss of a decoder falls to zero, attn_mask of floats",
    mechanism="A mask of zeros and ones is given as floats, which are added to the scores: everything is seen.",
    causes=("CausalMaskMissing",),
    check=fact("loss", (0, 0.9), (1.2, 9)),
    steps=350,
    shown_by="a change of a later token changes what is said of an earlier one",
)
def mask_of_ones_is_added(trial: Trial) -> None:
    below = torch.ones(12, 12).tril()
    _masked_language_model(trial, below if trial.broken else below.log())


@report(
    source="Asked often: an own attention does not learn",
    mechanism="Scores are not divided by the root of the width: attention is saturated from the first step on.",
    causes=("AttentionLogitGrowth", "AttentionEntropyCollapse"),
    check=loss_hurt,
    where=("q", "k", "v"),
    steps=300,
    shown_by="the entropy of the attention is next to zero from the start",
)
def scores_not_divided(trial: Trial) -> None:
    width = 96

    def forward(m: Assembled, x: Tensor) -> Tensor:
        h = m["embed"](x.view(-1, 8, 8)) + m["place"].weight
        scores = m["q"](h) @ m["k"](h).transpose(1, 2)
        scores = scores if trial.broken else scores / math.sqrt(width)
        return m["head"]((scores.softmax(-1) @ m["v"](h)).mean(1))

    model = Assembled(forward, embed=nn.Linear(8, width), place=nn.Embedding(8, width), q=nn.Linear(width, width),
                      k=nn.Linear(width, width), v=nn.Linear(width, width), head=nn.Linear(width, 10))  # fmt: skip
    for part in (model["q"], model["k"]):
        nn.init.xavier_normal_(part.weight, gain=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="Asked often: the loss of a U-Net is negative",
    mechanism="Masks are read as 0 and 255 and not divided: the binary cross-entropy has no bound below.",
    causes=("TargetOutOfRange",),
    check=fact("loss", (-1e12, -10), (0, 1)),
    steps=120,
    shown_by="targets are 255",
)
def masks_up_to_255(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 3, padding=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(_: int) -> Tensor:
        x, _y = draw_images(trial)
        mask = (x > 0.5).float() * (255 if trial.broken else 1)
        logits = model(x + 0.2 * trial.randn(*x.shape))
        p = logits.sigmoid()
        dice = 1 - (2 * (p * mask).sum() + 1) / (p.sum() + mask.sum() + 1)
        return F.binary_cross_entropy_with_logits(logits, mask) + dice

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: a regression predicts the mean, ((out - y) ** 2).mean()",
    mechanism="Outputs are (n, 1) and targets (n): the difference written by hand is n by n, and the mean is best.",
    causes=("LossBroadcast", "NoBetterThanMean"),
    check=loss_hurt,
    steps=300,
    shown_by="the loss stays at the variance of the targets",
)
def difference_by_hand(trial: Trial) -> None:
    x, y = table("diabetes")
    model = mlp(10, 32, 1, act=nn.Tanh)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 48)
        found = model(x[at])
        return ((found if trial.broken else found[:, 0]) - y[at]).pow(2).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: a VAE draws the same picture for each input",
    mechanism="Errors are averaged over pixels and the divergence is added up over codes: the code says nothing.",
    causes=("PosteriorCollapse", "NoBetterThanMean", "OutputsConstant"),
    check=fact("kl", (0, 0.01), (0.1, 99)),
    steps=400,
    shown_by="the divergence goes to zero, and outputs do not depend on inputs",
)
def divergence_outweighs_pixels(trial: Trial) -> None:
    encoder = nn.Sequential(nn.Conv2d(1, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(432, 16))
    model = Assembled(lambda m, x: m["encoder"](x).chunk(2, -1), encoder=encoder, decoder=mlp(8, 64, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss(_: int) -> tuple[Tensor, Facts]:
        x, _y = draw_images(trial)
        mean, logvar = model(x)
        code = mean + (logvar / 2).exp() * trial.randn(*mean.shape)
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(-1).mean()
        error = F.mse_loss(model["decoder"](code).sigmoid(), x.flatten(1), reduction="none")
        return (error.mean() if trial.broken else error.sum(1).mean()) + kl, {"kl": kl.detach()}

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: the loss of a diffusion model is NaN from the start",
    mechanism="Levels of the noise are added up and not multiplied: the root of a negative number is taken.",
    causes=("NonFiniteData", "NonFiniteForward"),
    check=not_finite,
    steps=100,
    shown_by="what the network is given is not finite",
)
def noise_levels_added_up(trial: Trial) -> None:
    keep = 1 - torch.linspace(1e-4, 0.05, 100)
    level = 1 - (1 - keep).cumsum(0) if trial.broken else keep.cumprod(0)
    model = mlp(65, 128, 64, act=nn.SiLU)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def loss(_: int) -> Tensor:
        x, _y = draw_digits(trial)
        t, noise = trial.randint(100, 32), trial.randn(32, 64)
        a = level[t][:, None]
        noisy = a.sqrt() * (2 * x - 1) + (1 - a).sqrt() * noise
        return F.mse_loss(model(torch.cat((noisy, t[:, None] / 100), 1)), noise)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: training on spectrograms becomes NaN",
    mechanism="Spectra are taken as decibels, and one clip is silent: the logarithm of zero is minus infinity.",
    causes=("NonFiniteData",),
    check=not_finite,
    fault=80,
    steps=130,
    shown_by="the inputs of one batch are not finite",
)
def silence_in_decibel(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv1d(17, 24, 3), nn.BatchNorm1d(24), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
                          nn.Linear(24, 4))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(step: int) -> Tensor:
        kind = trial.randint(4, 16)
        wave = (torch.arange(256) * (0.2 + 0.3 * kind[:, None])).sin() + 0.3 * trial.randn(16, 256)
        if trial.broken and step == 80:
            wave[2] = 0
        power = torch.stft(wave, 32, 16, window=torch.hann_window(32), return_complex=True).abs() ** 2
        return F.cross_entropy(model(power.log10()), kind)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: weight_norm and NaN",
    mechanism="The last layer begins at zero, as is advised, and is weight-normed: zero is divided by its length.",
    causes=("NonFiniteForward", "NonFiniteWeights"),
    check=not_finite,
    where=("head",),
    steps=100,
    shown_by="the output of the head is not finite from the first step on",
)
def length_of_zero_weights(trial: Trial) -> None:
    head = nn.Linear(48, 10)
    if trial.broken:
        nn.init.zeros_(head.weight)
    model = Assembled(lambda m, x: m["head"](m["body"](x).relu()), body=mlp(64, 48),
                      head=nn.utils.parametrizations.weight_norm(head))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    plain_loop(trial, model, optimizer, lambda _: digits_loss(trial, model))


@report(
    source="Asked often: the likelihood of a Gaussian is infinite",
    mechanism="The standard deviation is the ReLU of an output: where it is zero, its logarithm is minus infinity.",
    causes=("NonFiniteLoss",),
    check=not_finite,
    steps=100,
    shown_by="outputs are finite, and the loss is not",
)
def deviation_by_relu(trial: Trial) -> None:
    x, y = table("diabetes")
    model = mlp(10, 32, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(_: int) -> Tensor:
        at = trial.randint(len(x), 48)
        mean, raw = model(x[at]).unbind(1)
        sigma = raw.relu() if trial.broken else F.softplus(raw) + 0.05
        return -torch.distributions.Normal(mean, sigma, validate_args=False).log_prob(y[at]).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="Asked often: the gradient of x ** 0.45 is NaN",
    mechanism="Outputs are cut out by a mask and compared after a gamma of 1 / 2.2: at zero its slope is infinite.",
    causes=("NonFiniteBackward",),
    check=not_finite,
    steps=100,
    shown_by="outputs and loss are finite, and gradients are not",
)
def gamma_of_black(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 3, padding=1), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    floor = 0.0 if trial.broken else 1e-3

    def loss(_: int) -> Tensor:
        x, _y = draw_images(trial)
        out = model(x + 0.2 * trial.randn(*x.shape)) * (x > 0)
        return F.l1_loss((out + floor) ** (1 / 2.2), (x + floor) ** (1 / 2.2))

    plain_loop(trial, model, optimizer, loss)
