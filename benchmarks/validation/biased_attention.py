"""Does the spectrum of query-key increments tell a biased low-precision attention before the loss does?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.demo_gpt import train_gpt
from benchmarks.report import table
from stabwatch.demo import GPT, Attention
from stabwatch.runlog import Run

TITLE = "Biased low-precision attention (mechanism-driven monitors)"
CLAIM = """arXiv:2606.28116 [abstract]: under a flash attention with biased bfloat16 rounding the spectral entropy of the query-key increment becomes abnormal before
the loss collapses, thousands of steps before. arXiv:2510.04212 [abstract]: the fault is a rounding error of the attention's output that has one sign and enters
the backward through rowsum(dO * O)."""
STEPS, LAYERS, RATE = 320, 2, 6e-3
KINDS = (("exact", 0), ("8 bits", 8), ("4 bits", 4), ("2 bits", 2))
SETUP = f"""The demo's GPT (width 64, {LAYERS} layers, 4 heads of 16, context 64) on the standard library's sources, AdamW {RATE:g}, {STEPS} steps, attention by its formula. In
the backward the output in rowsum(dO * O) is cut toward zero to 8 bits of mantissa (bfloat16), and, as models and runs are small, to 4 and to 2.
`query_key_increment_entropy`, mean over heads and layers, and the loss, in four parts of the run. A run departs where the mean of 16 steps is outside of all that the exact
run has within 64 steps, from then on for 32 steps."""


class BiasedAttention(torch.autograd.Function):
    """Causal attention whose backward uses an output that is cut to some bits; bits 0: exact."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bits: int) -> Tensor:
        """(B, H, T, D) each."""
        scores = q @ k.mT * q.shape[-1] ** -0.5
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        weights = torch.softmax(scores.masked_fill(hidden, -torch.inf), dim=-1)
        out = weights @ v
        ctx.save_for_backward(q, k, v, weights, out)
        ctx.bits = bits
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """As flash attention does it."""
        q, k, v, weights, out = ctx.saved_tensors
        if ctx.bits:
            mantissa, exponent = torch.frexp(out)
            out = torch.ldexp((mantissa * 2**ctx.bits).trunc() / 2**ctx.bits, exponent)
        of_weights = gradient @ v.mT
        of_scores = weights * (of_weights - (gradient * out).sum(dim=-1, keepdim=True)) * q.shape[-1] ** -0.5
        return of_scores @ k, of_scores.mT @ q, weights.mT @ gradient, None


class Biased(Attention):
    """The demo's attention with the fault."""

    bits = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D)."""
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1))
        return self.proj(BiasedAttention.apply(q, k, v, self.bits).transpose(1, 2).reshape(b, t, d))


def train(bits: int) -> Run:
    """The run log of one training."""

    def spoil(model: GPT) -> None:
        for block in model.blocks:
            block.attn.__class__ = Biased
            block.attn.bits = bits

    return train_gpt(RATE, LAYERS, STEPS, spoil)


def course(run: Run, signal: str) -> np.ndarray:
    """Mean over layers at each step, carried on where it is not measured, over 16 steps: (STEPS,)."""
    keys = [key for key in run.keys if key.signal == signal]
    total = np.zeros(STEPS)
    for key in keys:
        steps, values = run.series(signal, key.layer)
        total += values[np.clip(np.searchsorted(steps, np.arange(STEPS), side="right") - 1, 0, None)]
    mean = np.cumsum(np.concatenate((np.zeros(1), total / len(keys))))
    first = np.maximum(np.arange(STEPS) - 15, 0)
    return (mean[1:] - mean[first]) / (np.arange(STEPS) + 1 - first)


def departs(found: np.ndarray, exact: np.ndarray) -> int | None:
    """First step from which a course is outside of the exact one's range for 32 steps."""
    outside = np.array([
        not exact[max(0, i - 64) : i + 65].min() <= x <= exact[max(0, i - 64) : i + 65].max() for i, x in enumerate(found)
    ])  # fmt: skip
    lasting = [i for i in range(16, STEPS - 32) if outside[i : i + 32].all()]
    return lasting[0] if lasting else None


def main() -> str:
    """Table and verdict."""
    rows, said = [], []
    exact: dict[str, np.ndarray] = {}
    for name, bits in KINDS:
        run = train(bits)
        now = {signal: course(run, signal) for signal in ("query_key_increment_entropy", "loss")}
        exact = exact or now
        for signal, values in now.items():
            rows.append((f"{name}: {signal.split('_')[-1]}", *(float(part.mean()) for part in np.split(values, 4))))
        if bits:
            entropy, loss = (departs(now[s], exact[s]) for s in now)
            said.append((name, entropy, loss))
    head = ("", *(f"steps {STEPS // 4 * i} to {STEPS // 4 * (i + 1)}" for i in range(4)))
    text = "; ".join(
        f"with {name} the entropy {f'at step {e}' if e is not None else 'never'} and the loss "
        f"{f'at step {x}' if x is not None else 'never'}"
        for name, e, x in said
    )
    leads = [x - e for _, e, x in said if e is not None and x is not None]
    only = any(e is not None and x is None for _, e, x in said)
    verdict = "the entropy comes first" if leads and min(leads) > 0 else "the entropy does not come first each time"
    if not leads:
        verdict = "the entropy departs where the loss does not" if only else "no lead is seen"
    return f"""{table(head, rows)}

**Verdict.** Departures from the exact run: {text}. So {verdict} at this size. The paper compares with a healthy run of the same model, too; a limit
that needs none is not known, and a lead of thousands of steps cannot be seen in {STEPS}: no rule, the signals are evidence."""
