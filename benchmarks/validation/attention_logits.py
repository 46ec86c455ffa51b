"""Attention-logit growth and output-logit divergence at small scale."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch
from benchmarks.report import table
from stabwatch.demo import GPT, DemoConfig, batches, corpus
from stabwatch.runlog import read_run

TITLE = "Attention logits and output logits (small-scale proxies)"
CLAIM = """Wortsman et al. 2023, arXiv:2309.14322 [abstract]: two instabilities of large models show in small ones at high learning
rates: growth of attention logits, cured by QK-norm, and divergence of output logits, cured by the z-loss. Both cures lower
the sensitivity to the learning rate; the growth can be extrapolated to wider models; gradient RMS falls towards Adam's epsilon."""
SETUP = """The demo's GPT (2 layers, heads of 16, context 64) on the standard library's sources, AdamW, 80 steps, no warm-up, no clipping;
all figures from the run log, largest of the last 10 steps. Sensitivity: mean over the learning rates of min(loss, first loss) less
the best loss."""
WIDTHS = (32, 64, 128)
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
STEPS = 80


class NormedAttention(nn.Module):
    """The demo's attention with queries and keys normalised."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = inner.qkv, inner.proj, inner.heads
        self.norms = nn.ModuleList(nn.LayerNorm(width // self.heads) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        q, k = (norm(y) for norm, y in zip(self.norms, (q, k), strict=True))
        return self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, d))


@dataclass(frozen=True)
class Outcome:
    """Of one training."""

    first: float
    loss: float
    attention: float
    drift: float
    gradient: float


def train(width: int, rate: float, qk_norm: bool = False, z_loss: float = 0.0) -> Outcome:
    """One training, watched; the outcome from its log."""
    torch.manual_seed(0)
    config = DemoConfig(width=width, layers=2, heads=width // 16, context=64, batch=8, seed=0)
    model, draw = GPT(config), batches(corpus(1 << 20), config)
    if qk_norm:
        for block in model.blocks:
            block.attn = NormedAttention(block.attn, width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    with tempfile.TemporaryDirectory() as folder:
        with stabwatch.attach(
            model, optimizer, run_dir=Path(folder) / "run", agent=False, verbose=False, every_step=True
        ):
            for _ in range(STEPS):
                tokens, following = draw()
                logits = model(tokens).flatten(0, 1)
                loss = F.cross_entropy(logits, following.flatten())
                penalty = z_loss * torch.logsumexp(logits, dim=-1).square().mean() if z_loss else 0.0
                optimizer.zero_grad()
                (loss + penalty).backward()
                optimizer.step()
        run = read_run(Path(folder) / "run")
    losses = run.series("loss")[1]
    attention = [run.series("attention_logit_max", f"blocks.{i}.attn")[1][-10:].max() for i in range(2)]
    drift = np.abs(run.series("output_logit_logsumexp")[1][-10:]).max()
    gradient = run.series("gradient_rms", "blocks.1.mlp")[1][-10:].mean()
    return Outcome(losses[0], losses[-10:].mean(), max(attention), drift, gradient)


def sensitivity(outcomes: list[Outcome]) -> float:
    """Mean over learning rates of how far the loss lies above the best one, at most at the first."""
    losses = [min(o.loss, o.first) if math.isfinite(o.loss) else o.first for o in outcomes]
    return float(np.mean(losses) - min(losses))


def main() -> str:
    """Tables and verdict."""
    plain = {width: [train(width, rate) for rate in RATES] for width in WIDTHS}
    normed = {width: [train(width, rate, qk_norm=True) for rate in RATES] for width in WIDTHS}
    rates = [f"{rate:g}" for rate in RATES]
    logits = table(
        ("largest attention logit", *rates, "sensitivity of the loss"),
        (
            (f"width {w}, {name}", *(float(o.attention) for o in runs[w]), sensitivity(runs[w]))
            for name, runs in (("plain", plain), ("QK-norm", normed))
            for w in WIDTHS
        ),
    )
    z = [train(64, rate, qk_norm=True, z_loss=1e-2) for rate in RATES]
    drift = table(
        ("width 64, QK-norm: largest size of the output logits' logsumexp", *rates),
        (
            ("without z-loss", *(float(o.drift) for o in normed[64])),
            ("z-loss 1e-2", *(float(o.drift) for o in z)),
        ),
    )
    hot = RATES.index(3e-2)
    sizes = [math.log(plain[w][hot].attention) for w in WIDTHS]
    guess = math.exp(2 * sizes[1] - sizes[0])
    real = plain[WIDTHS[2]][hot].attention
    falls = [float(plain[w][0].gradient) for w in WIDTHS]
    grows = all(plain[w][-2].attention > 5 * plain[w][0].attention for w in WIDTHS)
    cured = all(normed[w][i].attention < plain[w][i].attention for w in WIDTHS for i in (2, 3, 4))
    calmer = all(sensitivity(normed[w]) < sensitivity(plain[w]) for w in WIDTHS)
    held = all(a.drift < b.drift for a, b in zip(z[2:], normed[64][2:], strict=True))
    return f"""{logits}

{drift}

Extrapolated from widths 32 and 64 at 3e-2 (a straight line in the logarithms): {guess:.0f} at width 128; measured {real:.0f}.
Gradient RMS of the last MLP at 1e-3, by width: {", ".join(f"{g:.2e}" for g in falls)}.

**Verdict.** Growth with the learning rate {"reproduces" if grows else "does not reproduce"}; QK-norm holds the logits down at high
rates: {"yes" if cured else "no"}; it lowers the sensitivity: {"yes" if calmer else "not at every width"}; the z-loss holds the output
logits' logsumexp: {"yes" if held else "not at every rate"}; gradient RMS falls with width: {"yes" if falls == sorted(falls)[::-1] else "no"}."""
