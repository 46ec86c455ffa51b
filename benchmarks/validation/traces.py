"""Instability of generations: is its peak a sign of a wrong answer, and does its place matter?"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import table
from stabwatch.analysis.traces.file import Traces, read_traces
from stabwatch.demo import GPT, DemoConfig

TITLE = "Instability of generations (reasoning instability)"
CLAIM = """Reasoning instability [abstract]: the divergence of successive next-token distributions plus their entropy, summarised by its peak,
predicts wrong answers; late peaks are destructive, early ones corrective. (Lambda and the models are not in the abstract.)"""
SETUP = """The demo's GPT (width 64, 2 layers) learns to add: two numbers of two digits, then the digits of the sum from the last to the first.
AdamW 3e-3, 800 steps of 64 sums. At three times 400 new sums are answered by sampling, with all log-probabilities written as OpenAI's API does;
`stabwatch traces` reads them, lambda 1. Area under the ROC curve as signs of a wrong answer, with 95 % intervals."""
DIGITS, STEPS, ASKED = 2, 800, 400
AT = (400, 600, 800)
PLUS, EQUALS = 10, 11


def sums(count: int, draw: torch.Generator) -> Tensor:
    """int64 (count, 12): a + b = the sum from its last digit on."""
    a, b = (torch.randint(10**DIGITS, (count,), generator=draw) for _ in range(2))

    def digits(x: Tensor, most: int) -> Tensor:
        return torch.stack([x // 10**i % 10 for i in range(most)], dim=1)

    ones = torch.ones(count, 1, dtype=torch.int64)
    return torch.cat((digits(a, DIGITS), PLUS * ones, digits(b, DIGITS), EQUALS * ones, digits(a + b, DIGITS + 1)), 1)


def answers(model: GPT, draw: torch.Generator, path: Path) -> Traces:
    """Sample answers to new sums, and read them as a file of traces."""
    whole = sums(ASKED, draw)
    start = 2 * DIGITS + 2
    tokens, steps = whole[:, :start], []
    with torch.no_grad():
        for _ in range(DIGITS + 1):
            logs = model(tokens)[:, -1, :12].log_softmax(-1)
            steps.append(logs)
            tokens = torch.cat((tokens, torch.multinomial(logs.exp(), 1, generator=draw)), dim=1)
    right = (tokens == whole).all(dim=1).tolist()
    with path.open("w") as out:
        for i in range(ASKED):
            content = [
                {"top_logprobs": [{"token": str(k), "logprob": v} for k, v in enumerate(s[i].tolist())]} for s in steps
            ]
            out.write(json.dumps({"correct": right[i], "choices": [{"logprobs": {"content": content}}]}) + "\n")
    return read_traces(path)


def main() -> str:
    """Table and verdict."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    model = GPT(DemoConfig(width=64, layers=2, heads=4, context=16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    start = 2 * DIGITS + 1
    rows, peaks, entropies, places = [], [], [], []
    for step in range(1, STEPS + 1):
        data = sums(64, draw)
        loss = F.cross_entropy(model(data[:, :-1])[:, start:].flatten(0, 1), data[:, start + 1 :].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step not in AT:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = answers(model, torch.Generator().manual_seed(1), Path(folder) / "answers.jsonl")
        by = {s.name: s for s in found.separations}
        shown = [f"{s.auc:.2f} ({s.low:.2f} to {s.high:.2f})" for s in by.values()]
        share = sum(bool(t.right) for t in found.traces) / ASKED
        rows.append((f"step {step}", f"{share:.0%}", *shown))
        peaks.append(by["peak"])
        entropies.append(by["mean entropy"])
        places.append(by["place of the peak"])
    some = all(p.low > 0.5 for p in peaks)
    better = sum(p.auc > e.auc for p, e in zip(peaks, entropies, strict=True))
    told = [p.auc for p in places if not p.low <= 0.5 <= p.high]
    return f"""{table(("", "right", *by), rows)}

**Verdict.** The peak {"tells wrong answers from right ones each time" if some else "does not tell wrong answers from right ones each time"}; it is better than the mean entropy, which needs no divergence, in {better} of {len(peaks)}.
The place of the peak tells {"nothing at any time" if not told else f"something {len(told)} times"}; in answers of three tokens it could hardly. They say nothing about reasoning."""
