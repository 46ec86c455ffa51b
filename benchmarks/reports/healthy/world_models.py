"""Healthy workloads in the manner of programs that people publish: language models and odd ones."""

from __future__ import annotations

import copy
import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reports.case import Trial, healthy
from benchmarks.reports.checks import falls
from benchmarks.reports.data import VOCABULARY, TextModel, draw_text, mlp, right, text, token_loss


class _Cells(nn.Module):
    """One update of a neural cellular automaton: perception by fixed filters, a rule, half of the cells at a time."""

    filters: Tensor

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
        same = torch.zeros(3, 3)
        same[1, 1] = 1
        self.register_buffer("filters", torch.stack((same, sobel, sobel.T)).repeat(channels, 1, 1)[:, None])
        self.channels = channels
        self.hidden, self.change = nn.Conv2d(3 * channels, 48, 1), nn.Conv2d(48, channels, 1, bias=False)
        nn.init.zeros_(self.change.weight)

    def forward(self, x: Tensor) -> Tensor:
        alive = F.max_pool2d(x[:, 3:4], 3, 1, 1) > 0.1
        seen = F.conv2d(x, self.filters, padding=1, groups=self.channels)
        x = x + self.change(F.relu(self.hidden(seen))) * (torch.rand(len(x), 1, *x.shape[2:]) < 0.5)
        return x * (alive & (F.max_pool2d(x[:, 3:4], 3, 1, 1) > 0.1))


@healthy(learns=falls(0.4), steps=400)
def growing_cells(trial: Trial) -> None:
    """A cellular automaton grows a ring from one cell: a pool of states, gradients divided by their norm."""
    at = torch.arange(12) - 5.5
    far = (at[:, None] ** 2 + at**2).sqrt()
    alpha = ((far > 2) & (far < 5)).float()
    goal = torch.stack((alpha * (at > 0), alpha * (at[:, None] > 0), alpha * 0.5, alpha))
    seed = torch.zeros(8, 12, 12)
    seed[3:, 6, 6] = 1
    pool = seed.repeat(64, 1, 1, 1)
    model = _Cells()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [300], 0.1)
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        rows = torch.randperm(64)[:8]
        x = pool[rows]
        worst = ((x[:, :4] - goal) ** 2).mean((1, 2, 3)).argsort(descending=True)
        rows, x = rows[worst], x[worst]
        x[0] = seed
        for _ in range(random.randint(16, 24)):
            x = model(x)
        loss = ((x[:, :4] - goal) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        for p in model.parameters():
            assert p.grad is not None
            p.grad.div_(p.grad.norm() + 1e-8)
        optimizer.step()
        schedule.step()
        pool[rows] = x.detach()
        trial.log(loss)


@healthy(learns=lambda run: run.final() < 0.05, steps=1000)
def modular_sums(trial: Trial) -> None:
    """Sums modulo 59 by a transformer of one layer: the whole half of the table in each step, weight decay of 1."""
    p = 59
    pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
    order = torch.randperm(p * p, generator=trial.generator)
    seen = pairs[order[: p * p // 3]]
    tokens = torch.cat((seen, torch.full((len(seen), 1), p)), 1)
    answer = seen.sum(1) % p

    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(p + 1, 48)
            self.place = nn.Parameter(torch.randn(3, 48) / 48**0.5)
            self.attention = nn.MultiheadAttention(48, 4, bias=False, batch_first=True)
            self.feed = mlp(48, 128, 48)
            self.head = nn.Linear(48, p, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x) + self.place
            x = x + self.attention(x[:, -1:], x, x, need_weights=False)[0]
            return self.head((x + self.feed(x))[:, -1])

    model = Sums()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / 10, 1))
    trial.attach(model, optimizer)
    for _ in range(trial.steps):
        logits = model(tokens)
        loss = F.cross_entropy(logits, answer)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        trial.log(loss, accuracy=right(logits, answer))


class _Dictionary(nn.Module):
    """A sparse autoencoder: 4 times as many features as inputs, unit columns in the decoder."""

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        decoder = torch.randn(features, width)
        decoder = decoder / decoder.norm(dim=1, keepdim=True)
        self.encoder, self.decoder = nn.Parameter(decoder.T.clone()), nn.Parameter(decoder)
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(features)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = F.relu((x - self.b_dec) @ self.encoder + self.b_enc)
        return code @ self.decoder + self.b_dec, code


@healthy(learns=falls(0.6), steps=600)
def features_of_a_model(trial: Trial) -> None:
    """A sparse autoencoder of a language model's activations: L1 warmed up, unit columns, features that died again."""
    language = TextModel().eval()
    kept: list[Tensor] = []
    language.blocks[0].register_forward_hook(lambda _m, _i, out: kept.append(out.detach()))
    sae = _Dictionary(32, 128)
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-3)
    trial.attach(sae, optimizer)
    used = torch.zeros(128)
    for step in range(trial.steps):
        with torch.no_grad():
            language(draw_text(trial, 16)[0])
        x = kept.pop().flatten(0, 1)
        x = x * (32**0.5 / x.norm(dim=1).mean())
        out, code = sae(x)
        error = (out - x).pow(2).sum(1).mean()
        loss = error + min(1.0, step / 100) * 0.3 * code.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            assert sae.decoder.grad is not None
            unit = sae.decoder / sae.decoder.norm(dim=1, keepdim=True)
            sae.decoder.grad -= (sae.decoder.grad * unit).sum(1, keepdim=True) * unit
            optimizer.step()
            sae.decoder.div_(sae.decoder.norm(dim=1, keepdim=True))
            used += (code > 0).float().sum(0)
            if step in (200, 400):
                dead = (used == 0).nonzero()[:, 0]
                fresh = x[torch.randint(len(x), (len(dead),))]
                fresh = fresh / fresh.norm(dim=1, keepdim=True)
                sae.decoder[dead], sae.encoder[:, dead], sae.b_enc[dead] = fresh, 0.2 * fresh.T, 0.0
                used.zero_()
        trial.log(loss)


class _Norm(nn.Module):
    """Root mean square norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-5)).type_as(x) * self.weight


class _LlamaBlock(nn.Module):
    """Rotary attention with grouped keys, and a gated feed-forward network."""

    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.wq = nn.Linear(width, width, bias=False)
        self.wk, self.wv = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))
        self.wo = nn.Linear(width, width, bias=False)
        self.w1, self.w3 = (nn.Linear(width, 96, bias=False) for _ in range(2))
        self.w2 = nn.Linear(96, width, bias=False)
        self.attention_norm, self.ffn_norm = _Norm(width), _Norm(width)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        batch, length, width = x.shape
        h = self.attention_norm(x)
        q, k, v = (w(h).view(batch, length, -1, self.size) for w in (self.wq, self.wk, self.wv))
        q, k = (
            torch.view_as_real(torch.view_as_complex(t.float().unflatten(-1, (-1, 2))) * turn).flatten(3).type_as(v)
            for t in (q, k)
        )
        k, v = (t.repeat_interleave(self.heads // self.groups, 2) for t in (k, v))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.wo(y.transpose(1, 2).reshape(batch, length, width))
        h = self.ffn_norm(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


class _Llama(nn.Module):
    """A small Llama with tied embeddings."""

    turn: Tensor

    def __init__(self, width: int = 48, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(_LlamaBlock(width, heads, 2) for _ in range(depth))
        self.norm, self.output = _Norm(width), nn.Linear(width, VOCABULARY, bias=False)
        self.output.weight = self.tok_embeddings.weight
        angle = torch.outer(torch.arange(64.0), 1 / 10000 ** (torch.arange(0, width // heads, 2) / (width // heads)))
        self.register_buffer("turn", torch.polar(torch.ones_like(angle), angle)[:, None], persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, 0, 0.02 / (math.sqrt(2 * depth) if name.endswith(("wo.weight", "w2.weight")) else 1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, self.turn[: tokens.shape[1]])
        return self.output(self.norm(x))


@healthy(learns=falls(0.75), steps=400)
def llama_by_hand(trial: Trial) -> None:
    """A Llama in one file: four micro-batches, autocast to bfloat16, decay groups, cosine, evaluation, a checkpoint."""
    model = _Llama()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=5e-3, betas=(0.9, 0.95))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    trial.attach(model, optimizer)
    checkpoint: dict[str, object] = {}
    for step in range(trial.steps):
        warm = (step + 1) / 40
        rate = 5e-3 * (warm if warm < 1 else 0.5 * (1 + math.cos(math.pi * (step - 40) / (trial.steps - 40))))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if step % 100 == 0:
            model.eval()
            with torch.no_grad():
                held = [float(token_loss(model(x), y)) for x, y in (draw_text(trial) for _ in range(8))]
            model.train()
            checkpoint = {"model": copy.deepcopy(model.state_dict()), "loss": sum(held) / 8}
        for _ in range(4):
            x, y = draw_text(trial, 4)
            with torch.autocast("cpu", torch.bfloat16):
                loss = token_loss(model(x), y) / 4
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        trial.log(4 * loss)
    assert checkpoint


class _Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal by a polynomial before the step."""

    def __init__(self, params: list[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(buffer, group["momentum"]).bfloat16()
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    square = x @ x.T
                    x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
                x = x.T if tall else x
                p.add_(x.float(), alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


@healthy(learns=falls(0.7), steps=500)
def orthogonal_updates(trial: Trial) -> None:
    """A speed-run of a language model: Muon for matrices, Adam for the rest, zeros at the outputs, capped logits."""

    class Speed(nn.Module):
        def __init__(self, width: int = 48) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY, bias=False)
            self.qkv = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(3))
            self.proj = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))
            self.up = nn.ModuleList(nn.Linear(width, 4 * width, bias=False) for _ in range(3))
            self.down = nn.ModuleList(nn.Linear(4 * width, width, bias=False) for _ in range(3))
            self.mix = nn.Parameter(torch.tensor([[1.0, 0.0]] * 3))
            for layer in (*self.proj, *self.down, self.head):
                nn.init.zeros_(layer.weight)

        def forward(self, tokens: Tensor) -> Tensor:
            x = first = F.rms_norm(self.embed(tokens), (48,))
            for i in range(3):
                x = self.mix[i, 0] * x + self.mix[i, 1] * first
                q, k, v = (t.unflatten(2, (4, 12)).transpose(1, 2)
                           for t in self.qkv[i](F.rms_norm(x, (48,))).chunk(3, -1))  # fmt: skip
                q, k = F.rms_norm(q, (12,)), F.rms_norm(k, (12,))
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                x = x + self.proj[i](y.transpose(1, 2).flatten(2))
                x = x + self.down[i](F.relu(self.up[i](F.rms_norm(x, (48,)))).square())
            return 15 * torch.tanh(self.head(F.rms_norm(x, (48,))) / 15)

    model = Speed()
    of_blocks = [p for n, p in model.named_parameters() if n.startswith(("qkv", "proj", "up", "down"))]
    optimizers = [
        torch.optim.Adam([{"params": [model.embed.weight], "lr": 0.03}, {"params": [model.head.weight], "lr": 2e-3},
                          {"params": [model.mix], "lr": 5e-3}], betas=(0.8, 0.95), fused=True),
        _Muon(of_blocks, 0.02),
    ]  # fmt: skip
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda n: min(1.0, (trial.steps - n) / (0.4 * trial.steps)))
        for o in optimizers
    ]
    trial.attach(model, optimizers)
    for _ in range(trial.steps):
        x, y = draw_text(trial)
        loss = token_loss(model(x), y)
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad(set_to_none=True)
        trial.log(loss)


@healthy(learns=falls(0.7), steps=1500)
def letters_of_a_tutorial(trial: Trial) -> None:
    """Letters of a tutorial: one line at a time, a recurrent network by hand, steps by p.add_, no optimizer."""
    words = [line for line in bytes(text().tolist()).decode().split("\n") if 16 < len(line.strip()) < 60]
    kinds = ("def ", "return", "#", "if ", "self.")
    lines = [[w.strip() for w in words if w.strip().startswith(kind)] for kind in kinds]

    class Rnn(nn.Module):
        def __init__(self, hidden: int = 48) -> None:
            super().__init__()
            self.hidden_size = hidden
            self.i2h, self.h2h = nn.Linear(VOCABULARY, hidden), nn.Linear(hidden, hidden)
            self.h2o, self.softmax = nn.Linear(hidden, len(kinds)), nn.LogSoftmax(dim=1)

        def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
            hidden = torch.tanh(self.i2h(x) + self.h2h(hidden))
            return self.softmax(self.h2o(hidden)), hidden

    rnn, criterion = Rnn(), nn.NLLLoss()
    trial.attach(rnn)
    for _ in range(trial.steps):
        kind = random.randrange(len(kinds))
        line = random.choice(lines[kind])[:10]
        hidden = torch.zeros(1, rnn.hidden_size)
        rnn.zero_grad()
        for letter in line:
            output, hidden = rnn(F.one_hot(torch.tensor([ord(letter)]), VOCABULARY).float(), hidden)
        loss = criterion(output, torch.tensor([kind]))
        loss.backward()
        for p in rnn.parameters():
            assert p.grad is not None
            p.data.add_(p.grad.data, alpha=-0.02)
        trial.log(loss)
