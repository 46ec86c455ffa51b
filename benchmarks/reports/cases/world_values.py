"""Threads that users opened, one case for each: values that are not finite. Causes were noted before a run."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import not_finite
from benchmarks.reports.data import Assembled, TextModel, draw_images, draw_text, plain_loop, token_loss


@report(
    source="https://github.com/kornia/kornia/issues/918, https://github.com/fizyr/keras-retinanet/issues/706, "
    "https://github.com/clcarwin/focal_loss_pytorch/issues/13",
    mechanism="The focal loss has a gamma of 0.5: where a probability is exactly 1 the slope of (1 - p) ** 0.5 is "
    "infinite.",
    causes=("NonFiniteBackward",),
    check=not_finite,
    steps=250,
    shown_by="outputs and loss are finite, and gradients are not",
)
def focal_gamma_below_one(trial: Trial) -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
                          nn.Conv2d(16, 1, 1))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    floor = 0.0 if trial.broken else 1e-6

    def loss(_: int) -> Tensor:
        x, _y = draw_images(trial)
        mask = (x > 0.5).float()
        p = model(x).sigmoid()
        hit = p * mask + (1 - p) * (1 - mask)
        return -((1 - hit + floor) ** 0.5 * (hit + 1e-8).log()).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/tonyduan/mixture-density-network/pull/4, "
    "https://github.com/keras-team/keras/issues/2586, https://github.com/keras-team/keras/issues/1061",
    mechanism="The densities of a mixture are added up and then their logarithm is taken: far from all means they "
    "underflow to 0.",
    causes=("NonFiniteLoss",),
    check=not_finite,
    steps=300,
    shown_by="outputs are finite, and the loss is not",
)
def densities_underflow(trial: Trial) -> None:
    model = Assembled(lambda m, x: m["head"](m["lstm"](x)[0]), lstm=nn.LSTM(1, 32, batch_first=True),
                      head=nn.Linear(32, 9))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss(_: int) -> Tensor:
        start = 6 * torch.rand(16, 1, generator=trial.generator)
        wave = (start + 0.5 * torch.arange(25)).sin() + 0.02 * trial.randn(16, 25)
        wave = torch.where(torch.rand(16, 25, generator=trial.generator) < 0.005, wave - 3, wave)
        weight, mean, raw = model(wave[:, :-1, None]).chunk(3, -1)
        deviation = raw.exp() + 0.02
        far = -0.5 * ((wave[:, 1:, None] - mean) / deviation) ** 2
        scale = weight.softmax(-1) / deviation / math.sqrt(2 * math.pi)
        if trial.broken:
            return -(scale * far.exp()).sum(-1).log().mean()
        return -(scale.log() + far).logsumexp(-1).mean()

    plain_loop(trial, model, optimizer, loss)


class _GraphConvolution(nn.Module):
    """A graph convolution, normalised by the roots of the degrees."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inner, outer)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        root = edges.sum(-1).pow(-0.5)
        root = root.masked_fill(root.isinf(), 0)
        return self.linear((root[:, :, None] * edges * root[:, None]) @ x)


@report(
    source="https://github.com/pyg-team/pytorch_geometric/issues/61, "
    "https://github.com/pyg-team/pytorch_geometric/issues/2073",
    mechanism="Edges are correlations, some below zero: the root of a degree that is negative is NaN.",
    causes=("NonFiniteForward",),
    check=not_finite,
    where=("first",),
    steps=200,
    shown_by="the output of the first graph convolution is not finite",
)
def edge_weights_below_zero(trial: Trial) -> None:
    parts = {"first": _GraphConvolution(12, 32), "second": _GraphConvolution(32, 32), "head": nn.Linear(32, 3)}

    def forward(m: Assembled, x: Tensor, edges: Tensor) -> Tensor:
        h = m["first"](x, edges).relu()
        return m["head"](m["second"](h, edges).relu().mean(1))

    model = Assembled(forward, **parts)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(_: int) -> Tensor:
        kind = trial.randint(3, 24)
        signals = (torch.arange(12) * (0.4 + 0.5 * kind[:, None])).sin()[:, None] + trial.randn(24, 10, 12)
        centred = F.normalize(signals - signals.mean(-1, keepdim=True), dim=-1)
        edges = centred @ centred.transpose(1, 2)
        return F.cross_entropy(model(signals, edges if trial.broken else edges.abs()), kind)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/xiangwang1223/neural_graph_collaborative_filtering/issues/17",
    mechanism="The loss of ranked pairs is the logarithm of a sigmoid: of a pair that is ranked far the wrong way "
    "it is that of 0.",
    causes=("NonFiniteLoss", "NonFiniteBackward"),
    check=not_finite,
    steps=300,
    shown_by="scores are finite, and the loss is not",
)
def logarithm_of_a_sigmoid(trial: Trial) -> None:
    parts = {"users": nn.Embedding(120, 512), "goods": nn.Embedding(200, 512)}
    model = Assembled(lambda m, u, i: (m["users"](u) * m["goods"](i)).sum(-1), **parts)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def loss(_: int) -> Tensor:
        user, other = trial.randint(120, 256), trial.randint(200, 256)
        liked = (user % 20 + 20 * trial.randint(10, 256)) % 200
        apart = model(user, liked) - model(user, other)
        return -apart.sigmoid().log().mean() if trial.broken else F.softplus(-apart).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/Unity-Technologies/ml-agents/pull/4664",
    mechanism="Probabilities of moves that are not allowed are set to 0 and the rest is divided by its sum: in a "
    "state without a move that is 0 / 0.",
    causes=("NonFiniteLoss",),
    check=not_finite,
    fault=90,
    steps=140,
    shown_by="outputs are finite, and the loss is not",
)
def state_without_a_move(trial: Trial) -> None:
    model = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 6))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    worth = trial.randn(10, 6)

    def loss(step: int) -> Tensor:
        state = trial.randn(64, 10)
        allowed = torch.rand(64, 6, generator=trial.generator) < 0.6
        allowed[:, 0] = True
        if trial.broken and step == 90:
            allowed[11] = False
        logits = model(state)
        chance = torch.rand(64, 6, generator=trial.generator).clamp(1e-6, 1 - 1e-6)
        noise = -(-chance.log()).log()
        move = (logits.detach() + noise).masked_fill(~allowed, -torch.inf).argmax(-1)
        reward = (state @ worth).gather(1, move[:, None])[:, 0]
        p = logits.softmax(-1) * allowed
        p = p / p.sum(-1, keepdim=True)
        return -((reward - reward.mean()) * p.gather(1, move[:, None])[:, 0].log()).mean()

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/pytorch/audio/issues/993, https://github.com/speechbrain/speechbrain/pull/184, "
    "https://github.com/KinWaiCheuk/nnAudio/issues/138",
    mechanism="Magnitudes of spectra are roots of squares, and one clip is digital silence: the slope at 0 is "
    "infinite.",
    causes=("NonFiniteBackward",),
    check=not_finite,
    fault=80,
    steps=130,
    shown_by="outputs and loss are finite, and gradients are not",
)
def magnitude_of_silence(trial: Trial) -> None:
    mask = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.PReLU(), nn.Conv2d(16, 2, 3, padding=1))
    model = Assembled(lambda m, x: x * m["mask"](x).sigmoid(), mask=mask)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def spectrum(wave: Tensor) -> Tensor:
        return torch.view_as_real(torch.stft(wave, 32, 16, window=torch.hann_window(32), return_complex=True)).permute(
            0, 3, 1, 2
        )

    def loss(step: int) -> Tensor:
        tone = 0.1 + torch.rand(12, 1, generator=trial.generator)
        clean = (tone * torch.arange(256)).sin()
        noisy = clean + 0.3 * trial.randn(12, 256)
        if trial.broken and step == 80:
            clean[4], noisy[4] = 0, 0
        found, truth = model(spectrum(noisy)), spectrum(clean)
        return F.l1_loss(found.square().sum(1).sqrt(), truth.square().sum(1).sqrt()) + F.l1_loss(found, truth)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/pbloem/former/issues/10, https://github.com/pytorch/pytorch/issues/24816",
    mechanism="The causal mask hides the diagonal as well: the first place sees nothing, and its softmax is 0 / 0.",
    causes=("NonFiniteForward", "FullyMaskedRow"),
    check=not_finite,
    where=("blocks.0",),
    steps=120,
    shown_by="the first attention's output is not finite from the first step on",
)
def diagonal_is_hidden(trial: Trial) -> None:
    model = TextModel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    seen = torch.ones(32, 32, dtype=torch.bool).tril(-1 if trial.broken else 0)

    def loss(_: int) -> Tensor:
        x, y = draw_text(trial)
        return token_loss(model(x, seen), y)

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/facebookresearch/pytext/pull/1698, https://github.com/sooftware/kospeech/issues/37, "
    "https://github.com/harvardnlp/annotated-transformer/issues/109",
    mechanism="Words that cannot come have a logit of minus infinity, and label smoothing gives each word a share: the "
    "loss is infinite.",
    causes=("NonFiniteLoss", "NonFiniteForward"),
    check=not_finite,
    steps=120,
    shown_by="minus infinity is meant among the logits, and the loss is infinite from the first step on",
)
def smoothed_over_hidden_words(trial: Trial) -> None:
    hidden = torch.arange(128) < 9

    def forward(m: Assembled, tokens: Tensor) -> Tensor:
        return m["head"](m["gru"](m["embed"](tokens))[0]).masked_fill(hidden, -torch.inf)

    model = Assembled(forward, embed=nn.Embedding(128, 32), gru=nn.GRU(32, 64, batch_first=True),
                      head=nn.Linear(64, 128))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    smoothing = 0.1 if trial.broken else 0.0

    def loss(_: int) -> Tensor:
        x, y = draw_text(trial)
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), label_smoothing=smoothing)

    plain_loop(trial, model, optimizer, loss)


class _InstanceNorm(nn.Module):
    """A norm over the pixels of each channel, written by hand."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels, 1, 1)), nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance = x.var((2, 3), keepdim=True)
        return self.weight * (x - x.mean((2, 3), keepdim=True)) / (variance + 1e-5).sqrt() + self.bias


@report(
    source="https://github.com/switchablenorms/Switchable-Normalization/issues/5, "
    "https://github.com/digantamisra98/EvoNorm/issues/4",
    mechanism="A branch is pooled to one pixel before its norm: the unbiased variance of one number is 0 / 0.",
    causes=("NonFiniteForward",),
    check=not_finite,
    where=("pooled",),
    steps=120,
    shown_by="the norm of the pooled branch gives NaN from the first step on",
)
def variance_of_one_pixel(trial: Trial) -> None:
    norm = _InstanceNorm(16) if trial.broken else nn.Identity()
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), norm, nn.ReLU())
    body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), _InstanceNorm(16), nn.ReLU())

    def forward(m: Assembled, x: Tensor) -> Tensor:
        h = m["body"](x)
        return m["head"](torch.cat((h, m["pooled"](h).expand_as(h)), 1))

    model = Assembled(forward, body=body, pooled=pooled, head=nn.Conv2d(32, 1, 3, padding=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def loss(_: int) -> Tensor:
        x, _y = draw_images(trial)
        return F.binary_cross_entropy_with_logits(model(x + 0.3 * trial.randn(*x.shape)), (x > 0.5).float())

    plain_loop(trial, model, optimizer, loss)


@report(
    source="https://github.com/huggingface/transformers/issues/5651, "
    "https://github.com/huggingface/transformers/issues/9295, "
    "https://github.com/huggingface/transformers/issues/14189",
    mechanism="A T5 whose feed-forward outputs are large, as after its bfloat16 training, runs in float16: they pass "
    "65,504.",
    causes=("NonFiniteForward", "MixedPrecisionOverflow"),
    check=not_finite,
    where=("encoder.block.1",),
    steps=150,
    shown_by="the second feed-forward layer of the encoder gives infinity",
)
def t5_in_half(trial: Trial) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
                 decoder_start_token_id=0)
    )  # fmt: skip
    with torch.no_grad():
        model.encoder.block[1].layer[1].DenseReluDense.wo.weight.mul_(2e4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    kind = torch.float16 if trial.broken else torch.bfloat16

    def loss(_: int) -> Tensor:
        words = 2 + trial.randint(38, 16, 8)
        with torch.autocast("cpu", kind):
            return model(input_ids=words, labels=words.flip(1)).loss

    plain_loop(trial, model, optimizer, loss)
