"""Changes of the query-key products: do steps collapse to few directions before attention logits explode?"""

from __future__ import annotations

import numpy as np

from benchmarks.demo_gpt import train_gpt
from benchmarks.report import table
from stabwatch.runlog import Run

TITLE = "Spectrum of query-key increments (mechanism-driven monitors)"
CLAIM = """arXiv:2606.28116 [abstract]: the spectral entropy of the first-order change of the query-key product, dWq Wk' + Wq dWk', reacts thousands of
steps before a divergence, under a biased bfloat16 attention, too high rates, and both. (The paper's models train for tens of thousands of steps.)"""
SETUP = """The demo's GPT (width 64, 3 layers, 4 heads of 16, context 64) on the standard library's sources, AdamW, 240 steps at rates up to one at which
attention logits pass 1,000. The participation ratio (32 at most: twice the head width), mean over heads and layers, and beside it the
largest logit and the loss, in four parts of the run. The biased attention of the paper has a section of its own."""
STEPS, PARTS, LAYERS = 240, 4, 3
RATES = (1e-3, 1e-2, 1e-1)


def parts(run: Run, signal: str, layers: list[str], most: bool = False) -> list[float]:
    """Mean (or largest value) of a signal in each part of the run."""
    steps, values = (np.concatenate(x) for x in zip(*(run.series(signal, layer) for layer in layers), strict=True))
    within = [values[steps * PARTS // STEPS == i] for i in range(PARTS)]
    return [float(v.max() if most else v.mean()) for v in within]


def main() -> str:
    """Table and verdict."""
    rows, ranks, logits = [], {}, {}
    layers = [f"blocks.{i}.attn" for i in range(LAYERS)]
    for rate in RATES:
        run = train_gpt(rate, LAYERS, STEPS)
        ranks[rate] = parts(run, "query_key_increment_rank", layers)
        logits[rate] = parts(run, "attention_logit_max", layers, most=True)
        rows.append((f"{rate:g}: participation ratio", *ranks[rate]))
        rows.append((f"{rate:g}: largest logit", *logits[rate]))
        rows.append((f"{rate:g}: loss", *parts(run, "loss", [""])))
    calm, wild = ranks[RATES[0]], ranks[RATES[-1]]
    lower = all(w < c for w, c in zip(wild, calm, strict=True))
    fell = wild[-1] < wild[0]
    head = ("rate", *(f"steps {i * STEPS // PARTS} to {(i + 1) * STEPS // PARTS}" for i in range(PARTS)))
    return f"""{table(head, rows)}

**Verdict.** At the rate whose logits explode (largest {max(logits[RATES[-1]]):.3g}) the steps have {"fewer" if lower else "not fewer"} directions than at the calm rate in
{"every part" if lower else "each part"} ({wild[0]:.2f} against {calm[0]:.2f} in the first, {wild[-1]:.2f} against {calm[-1]:.2f} in the last), and the number {"falls" if fell else "does not fall"} over that run. A lead of
thousands of steps cannot be seen in {STEPS}; so there is no rule, and the signals are evidence."""
