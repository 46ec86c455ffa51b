"""Representations that become one point, codes and experts of which one is used."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, report
from benchmarks.reports.checks import fact
from benchmarks.reports.data import Assembled, TextModel, draw_digits, draw_text, mlp, token_loss


@report(
    source="https://github.com/omoindrot/tensorflow-triplet-loss/issues/6, "
    "https://github.com/xiaolonw/caffe-video_triplet/issues/8",
    mechanism="The hardest negatives push all embeddings into one point: the loss stays at the margin.",
    causes=("EmbeddingCollapse", "LossConstant"),
    check=fact("spread", (0, 0.02), (0.2, 1e3)),
    steps=300,
    shown_by="loss 0.5003 to 0.5000 in 28 of 28 points, gradient_norm 0.02 -> 4e-5; token_similarity is not "
    "measured for outputs (batch, features)",
)
def triplet_collapse(trial: Trial) -> None:
    model = mlp(64, 64, 64, 64, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_digits(trial, 96)
        optimizer.zero_grad()
        e = model(x)
        apart = (e[:, None] - e[None]).square().sum(-1)
        same = y[:, None] == y
        positive = (apart * same).amax(1)
        negative = (apart + 1e3 * same).amin(1) if trial.broken else (apart * ~same).sum(1) / (~same).sum(1)
        loss = (positive - negative + 0.5).relu().mean()
        loss.backward()
        optimizer.step()
        trial.log(loss, spread=e.detach().std(0).mean())


@report(
    source="https://github.com/PatrickHua/SimSiam/issues/39, https://github.com/Tian0426/CL-HAR/issues/4",
    mechanism="Without the stop of the gradient both views are drawn together: all embeddings become one direction.",
    causes=("EmbeddingCollapse",),
    check=fact("spread", (0, 0.08), (0.12, 1)),
    steps=300,
    shown_by="the loss is its least value, -1; the similarity of outputs (batch, features) is not measured",
)
def stop_gradient_missing(trial: Trial) -> None:
    encoder = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 16))
    if not trial.broken:
        encoder.append(nn.BatchNorm1d(16, affine=False))

    def forward(parts: Assembled, x: Tensor) -> tuple[Tensor, Tensor]:
        z = parts["encoder"](x)
        return z, parts["predictor"](z)

    model = Assembled(forward, encoder=encoder, predictor=mlp(16, 32, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, _ = draw_digits(trial, 64)
        z, p = zip(*(model(x + 0.1 * trial.randn(64, 64)) for _ in range(2)), strict=True)
        optimizer.zero_grad()
        loss = torch.zeros(())
        for guess, other in ((p[0], z[1]), (p[1], z[0])):
            loss = loss - F.cosine_similarity(guess, other if trial.broken else other.detach()).mean() / 2
        loss.backward()
        optimizer.step()
        trial.log(loss, spread=F.normalize(z[0].detach()).std(0).mean())


class _Quantised(nn.Module):
    """An autoencoder whose code is the nearest of 32 vectors."""

    def __init__(self, far: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(64, 64, 8), mlp(8, 64, 64)
        self.codebook = nn.Embedding(32, 8)
        nn.init.normal_(self.codebook.weight, 3.0 if far else 0.0, 1.0 if far else 0.2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(x)
        code = torch.cdist(z, self.codebook.weight).argmin(-1)
        q = self.codebook(code)
        loss = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return self.decoder(z + (q - z).detach()), loss, code


@report(
    source="https://github.com/EdoardoBotta/RQ-VAE-Recommender/issues/65, "
    "https://github.com/LatentActionPretraining/LAPA/issues/50",
    mechanism="The codebook begins far from the encoder's outputs: one code is nearest to all, and no other "
    "is trained.",
    causes=("CodebookCollapse",),
    check=fact("codes", (1, 3), (6, 32)),
    where=("codebook",),
    steps=300,
    shown_by="code_unused_ratio: rows of `codebook` that were never looked up",
)
def codebook_collapse(trial: Trial) -> None:
    model = _Quantised(far=trial.broken)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, _ = draw_digits(trial, 64)
        optimizer.zero_grad()
        output, commit, code = model(x)
        loss = F.mse_loss(output, x) + commit
        loss.backward()
        optimizer.step()
        trial.log(loss, codes=len(code.unique()))


class Experts(nn.Module):
    """A mixture of feed-forward experts, each token to one."""

    def __init__(self, width: int, count: int = 8) -> None:
        super().__init__()
        self.router = nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList(mlp(width, 2 * width, width, act=nn.GELU) for _ in range(count))
        self.balance = torch.zeros(())
        self.load = torch.zeros(count)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        share = self.router(rows).softmax(-1)
        value, chosen = share.max(-1)
        y = torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            at = (chosen == i).nonzero()[:, 0]
            y = y.index_add(0, at, expert(rows[at]) * value[at, None])
        self.load = F.one_hot(chosen, share.shape[1]).float().mean(0)
        self.balance = share.shape[1] * (self.load * share.mean(0)).sum()
        return y.view_as(x)


@report(
    source="https://github.com/NVIDIA/Megatron-LM/issues/1545, "
    "https://github.com/mindspore-ai/hyper-parallel/issues/752",
    mechanism="The load-balancing loss is never added to the loss: the router sends nearly all tokens to a "
    "few experts.",
    causes=("RouterCollapse",),
    check=fact("load", (0.5, 1), (0.1, 0.45)),
    where=("blocks.0", "blocks.1"),
    steps=220,
    shown_by="router_max_violation 5 to 7 of at most 7, at 9 points; RouterCollapse waits for more",
)
def router_collapse(trial: Trial) -> None:
    model = TextModel()
    for block in model.blocks:
        block.feed = Experts(32)
        nn.init.normal_(block.feed.router.weight, 0, 0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        x, y = draw_text(trial, 6)
        optimizer.zero_grad()
        guess = token_loss(model(x), y)
        loss = guess if trial.broken else guess + 0.1 * sum(block.feed.balance for block in model.blocks)
        loss.backward()
        optimizer.step()
        trial.log(guess, load=max(float(block.feed.load.max()) for block in model.blocks))
