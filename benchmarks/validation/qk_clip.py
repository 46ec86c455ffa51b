"""Does QK-clip hold the attention logits, and do the signals see it?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.demo_gpt import train_gpt_into
from benchmarks.report import table
from stabwatch.analysis import analyze
from stabwatch.demo import GPT
from stabwatch.runlog import read_run

TITLE = "QK-clip and the largest attention logit (Kimi K2)"
CLAIM = """Kimi K2, arXiv:2507.20534 [abstract]: QK-clip takes the instability from training with Muon: a head whose largest logit is above tau has its
query and key weights scaled after the step, so that it would be tau. (Their tau is 100, their models have 10^12 parameters.)"""
SETUP = """The demo's GPT (width 64, 3 layers, 4 heads of 16, context 64) on the standard library's sources, AdamW, 80 steps, no warm-up, no clipping of
gradients. QK-clip as in the paper with tau 30: after each step, each head's queries and keys by sqrt(tau / largest logit of the step). From the log:
the largest `attention_logit_max` of all steps and of the last 10, the smallest mean entropy of a head at the end, whether `AttentionLogitGrowth` fired, the loss."""
STEPS, LAYERS, WIDTH, HEADS, TAU = 80, 3, 64, 4, 30.0
RATES = (3e-3, 3e-2)


class Clip:
    """QK-clip of the demo's attention: notes each head's largest logit in the forward, and scales after the step."""

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.attention: list[Any] = [block.attn for block in blocks]
        self.clipped = 0
        """How often a head was clipped."""
        self.largest: list[Tensor] = [torch.zeros(HEADS) for _ in blocks]
        for i, attention in enumerate(self.attention):
            attention.qkv.register_forward_hook(lambda m, x, out, i=i: self._note(i, out.detach()))

    def _note(self, i: int, out: Tensor) -> None:
        b, t, _ = out.shape
        q, k = (y.view(b, t, HEADS, -1).transpose(1, 2) for y in out.chunk(3, dim=-1)[:2])
        scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -torch.inf)
        self.largest[i] = scores.amax(dim=(0, 2, 3))

    @torch.no_grad()
    def step(self) -> None:
        """Scale the heads above tau."""
        for attention, largest in zip(self.attention, self.largest, strict=True):
            factor = (TAU / largest.clamp(min=TAU)).sqrt().repeat_interleave(WIDTH // HEADS).repeat(2)
            attention.qkv.weight[: 2 * WIDTH] *= factor[:, None]
            attention.qkv.bias[: 2 * WIDTH] *= factor
            self.clipped += int((largest > TAU).sum())


def train(rate: float, clip: bool) -> tuple[float, float, float, bool, float, int]:
    """One training, watched: what the table says of it, and how often a head was clipped."""
    clippers: list[Clip] = []

    def step() -> None:
        clippers[0].step()

    def change(model: GPT) -> None:
        clippers.append(Clip(model.blocks))

    with tempfile.TemporaryDirectory() as folder:
        path = train_gpt_into(Path(folder) / "run", rate, LAYERS, STEPS, change, step if clip else int)
        run = read_run(path)
        fired = {incident.condition for incident in analyze(path).incidents}
    clipped = clippers[0].clipped
    sites = [f"blocks.{i}.attn" for i in range(LAYERS)]
    logits = [run.series("attention_logit_max", site)[1] for site in sites]
    entropy = min(run.series("attention_entropy_min", site)[1][-1] for site in sites)
    return (
        float(max(v.max() for v in logits)), float(max(v[-10:].max() for v in logits)), float(entropy),
        "AttentionLogitGrowth" in fired, float(run.series("loss")[1][-10:].mean()), clipped,
    )  # fmt: skip


def main() -> str:
    """Table and verdict."""
    found = {(rate, clip): train(rate, clip) for rate in RATES for clip in (False, True)}
    rows = [
        (
            f"{rate:g}, {'QK-clip' if clip else 'plain'}",
            peak,
            last,
            entropy,
            "fired" if fired else "silent",
            loss,
            heads,
        )
        for (rate, clip), (peak, last, entropy, fired, loss, heads) in found.items()
    ]
    head = (
        "AdamW",
        "largest logit",
        "in the last 10 steps",
        "least entropy of a head",
        "AttentionLogitGrowth",
        "loss",
        "heads clipped",
    )
    plain, clipped = ([found[rate, clip] for rate in RATES] for clip in (False, True))
    held = all(c[1] < 2 * TAU for c in clipped)
    grew = [f"{rate:g}" for rate, p in zip(RATES, plain, strict=True) if p[1] > 2 * TAU]
    better = [f"{rate:g}" for rate, p, c in zip(RATES, plain, clipped, strict=True) if c[4] < p[4] - 0.02]
    worse = [f"{rate:g}" for rate, p, c in zip(RATES, plain, clipped, strict=True) if c[4] > p[4] + 0.02]
    rule = all(p[3] == (p[1] > 100.0) for p in plain) and not any(c[3] for c in clipped)
    return f"""{table(head, rows)}

**Verdict.** Without it the logits pass twice tau at {" and ".join(grew) or "no rate"}; QK-clip {"holds them below twice tau at every rate" if held else "does not hold them below twice tau at every rate"} (a step may
pass tau: it is clipped after it). The rule {"fires where they pass 100, and not with QK-clip" if rule else "does not follow the logits alone: see the table"}. The loss is lower with QK-clip at {" and ".join(better) or "no rate"}, higher
at {" and ".join(worse) or "none"}. Muon and models of the paper's size are not tried."""
