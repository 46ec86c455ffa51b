"""Errors of narrow formats: of known distributions, and of what a real model has."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

import stabwatch
from benchmarks.report import table
from stabwatch.demo import DemoConfig, batches, corpus
from stabwatch.kernels.precision import rounding
from stabwatch.runlog import read_run

TITLE = "Relative error of float8, MXFP4 and NVFP4"
CLAIM = """OCP MX 1.0, NVFP4 and papers on the design space of FP4 [abstract]: smaller blocks and finer scales lose less, and outliers decide. FP4 All the Way,
arXiv:2505.19115 [abstract]: training with FP4 stops to work where the gradient is less than sqrt(3) times the noise of rounding, that is where the
relative error is above 0.58. (The paper rounds stochastically, which makes the noise 1.4 times as large.)"""
SETUP = """Four distributions of 512 x 1024 numbers, and GPT-2 of transformers with random weights (width 64, 2 layers) on the standard library's sources,
AdamW 3e-3, 64 steps: medians over layers and measurements of `..._error_ratio`, which looks at
16,384 numbers of a tensor at most (whole blocks, evenly spread). Nothing is trained in a narrow format here."""
FORMATS = ("fp8_e4m3", "fp8_e5m2", "mxfp4", "nvfp4")


def drawn() -> list[tuple[str, torch.Tensor]]:
    """Names and numbers."""
    draw = torch.Generator().manual_seed(0)
    normal = torch.randn(512, 1024, generator=draw)
    chi = torch.randn(3, 512, 1024, generator=draw).square().mean(dim=0).sqrt()
    channels = normal.clone()
    channels[:, ::100] *= 50
    wide = normal * torch.exp2(4 * torch.randn(512, 1024, generator=draw))
    return [
        ("normal", normal), ("Student's t, 3", normal / chi), ("1 % of channels x 50", channels),
        ("16-fold spread of sizes", wide),
    ]  # fmt: skip


def measured() -> list[tuple[str, list[float]]]:
    """Of a real model, by kind of tensor."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=256, n_positions=64)
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = batches(corpus(1 << 20), DemoConfig(context=64, batch=4))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        with stabwatch.attach(model, optimizer, run_dir=path, agent=False, verbose=False, every_step=True):
            for _ in range(64):
                tokens = draw()[0]
                optimizer.zero_grad()
                model(input_ids=tokens, labels=tokens).loss.backward()
                optimizer.step()
        run = read_run(path)
    out = []
    for kind in ("activation", "gradient", "weight"):
        signals = [f"{kind}_{name}_error_ratio" for name in FORMATS]
        values = [
            np.concatenate([run.series(k.signal, k.layer)[1] for k in run.keys if k.signal == s]) for s in signals
        ]
        out.append((f"GPT-2, {kind}", [float(np.nanmedian(v)) for v in values]))
    return out


def main() -> str:
    """Table and verdict."""
    rows = []
    for name, x in drawn():
        _, squares, *errors = rounding(x).tolist()
        rows.append((name, *((e / squares) ** 0.5 for e in errors)))
    real = measured()
    rows += [(name, *values) for name, values in real]
    finer = all(row[4] < row[3] for row in rows)
    gradient = dict(real)["GPT-2, gradient"]
    return f"""{table(("relative error", "e4m3", "e5m2", "MXFP4", "NVFP4"), rows)}

**Verdict.** NVFP4 loses {"less than MXFP4 everywhere" if finer else "less than MXFP4 in most rows"}. The gradients of this model have a relative error of {gradient[2]:.3f} in MXFP4 and {gradient[3]:.3f} in NVFP4: {1 / gradient[2]:.1f}
and {1 / gradient[3]:.1f} times the noise, {"above" if gradient[2] < 3**-0.5 else "below"} sqrt(3). That training fails below it is not tried."""
