"""What do sums of attention weights do where they need not be one?"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.demo_gpt import train_gpt
from benchmarks.report import table
from stabwatch.demo import GPT

TITLE = "Sums of attention weights that are not normalised (affine-scaled attention)"
CLAIM = """Affine-Scaled Attention, arXiv:2602.23057 [abstract]: weights that add up to one limit a model, and may let attention become concentrated or unstable;
an input-dependent scale and a bias of the softmax's weights let the model choose their sum, and make training more stable. (Their models are large.)"""
SETUP = """The demo's GPT (width 64, 3 layers, heads of 16, context 64) on the standard library's sources, AdamW, 200 steps, with the attention written out. `affine`: each
query and head has a scale, 2 sigmoid(w x), which is 1 at the beginning, and each head a bias that all of a query's keys share, 0 at the beginning; both are our
reading of the abstract. From the log, means over the layers of the last three measurements: `attention_row_weight` and its extremes, `attention_logit_max`,
`attention_concentration_ratio` (of the softmax, before the scale), and the loss of the last 20 steps."""
STEPS, LAYERS, WIDTH, HEADS = 200, 3, 64, 4
RATES = (3e-3, 1e-2, 3e-2)
ROW = ("attention_row_weight", "attention_row_weight_max", "attention_row_weight_min")
OTHER = ("attention_logit_max", "attention_concentration_ratio")


class Attention(nn.Module):
    """The demo's attention, written out; `affine`: its weights are scaled and shifted after the softmax."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Linear(WIDTH, HEADS) if affine else None
        if self.scale is not None:
            self.bias = nn.Parameter(torch.zeros(HEADS, 1, 1))
            nn.init.zeros_(self.scale.weight)
            nn.init.zeros_(self.scale.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same."""
        b, t, d = x.shape
        q, k, v = (y.view(b, t, HEADS, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf).softmax(-1)
        if self.scale is not None:
            each = 2 * self.scale(x).sigmoid().transpose(1, 2).unsqueeze(-1)
            share = self.bias / torch.arange(1, t + 1)[:, None]
            weights = (each * weights + share).masked_fill(hidden, 0.0)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, t, d))


def train(rate: float, affine: bool) -> list[float]:
    """What the table says of one training; NaN where a signal was not measured."""

    def change(model: GPT) -> None:
        for block in model.blocks:
            block.attn = Attention(affine)

    run = train_gpt(rate, LAYERS, STEPS, change)
    keys = {(key.signal, key.layer) for key in run.keys}

    def last(signal: str) -> float:
        sites = [f"blocks.{i}.attn" for i in range(LAYERS)]
        values = [run.series(signal, site)[1][-3:].mean() for site in sites if (signal, site) in keys]
        return float(np.mean(values)) if values else float("nan")

    return [*map(last, (*ROW, *OTHER)), float(run.series("loss")[1][-20:].mean())]


def main() -> str:
    """Table and verdict."""
    found = {(rate, affine): train(rate, affine) for rate in RATES for affine in (False, True)}
    rows = [
        (f"{rate:g}, {'affine' if affine else 'plain'}", *("" if np.isnan(v) else v for v in values))
        for (rate, affine), values in found.items()
    ]
    head = ("AdamW", *(s.removeprefix("attention_") for s in (*ROW, *OTHER)), "loss")
    sums = {rate: found[rate, True][0] for rate in RATES}
    free = [f"{rate:g}" for rate, value in sums.items() if abs(value - 1) > 0.1]
    spread = {rate: found[rate, True][1] - found[rate, True][2] for rate in RATES}
    logits = [f"{rate:g}" for rate in RATES if found[rate, True][3] < 0.9 * found[rate, False][3]]
    better = [f"{rate:g}" for rate in RATES if found[rate, True][5] < found[rate, False][5] - 0.02]
    silent = all(np.isnan(found[rate, False][0]) for rate in RATES)
    return f"""{table(head, rows)}

**Verdict.** The model uses the freedom: the mean sum is {", ".join(f"{value:.2f} at {rate:g}" for rate, value in sums.items())} (more than 0.1 from one at {", ".join(free) or "no rate"}), and sums of
single queries are apart by {min(spread.values()):.2f} and more. {"Of the plain softmax no sum is measured, as it is one by construction. " if silent else ""}The largest logit is lower with it at {" and ".join(logits) or "no rate"}, and the
loss at {" and ".join(better) or "no rate"}: that it makes training more stable {"shows there" if logits and better else "does not show at this size"}. What sum is wrong is not known: no rule."""
