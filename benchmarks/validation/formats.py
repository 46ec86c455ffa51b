"""Errors of narrow formats, and what rotations and scales do to them: of known distributions, and of a real model."""

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

TITLE = "Relative error of narrow formats, and what would change it"
CLAIM = """OCP MX 1.0, NVFP4, HiFloat4 and papers on the design space of FP4 [abstract]: smaller blocks and finer scales lose less, and outliers decide; a random
Hadamard rotation spreads outliers; scales in UE5M3 need no scale of the tensor. FP4 All the Way, arXiv:2505.19115 [abstract]: training with FP4 stops to work
where the gradient is less than sqrt(3) times the noise of (stochastic) rounding."""
SETUP = """Five distributions of 512 x 1024 numbers, and GPT-2 of transformers with random weights (width 64, 2 layers) on the standard library's sources,
AdamW 3e-3, 64 steps: medians over layers and measurements of `..._error_ratio`, which looks at 8,192 numbers of a tensor at most (whole blocks, evenly
spread). `rotated`: after a random Hadamard rotation of each 16 numbers; `no scale`: without the scale of the tensor. Nothing is trained in a narrow format here.
HiF4 is bit for bit that of its authors' code. Then the medians of `..._snr_db`, the squares of the numbers over those of the errors, in dB."""
FORMATS = {
    "fp8_e4m3": "e4m3", "fp8_e5m2": "e5m2", "int8": "int8", "mxfp4": "MXFP4", "nvfp4": "NVFP4", "hif4": "HiF4",
    "fp4_ue5m3": "UE5M3", "mxfp4_rotated": "MXFP4, rotated", "nvfp4_rotated": "NVFP4, rotated",
    "nvfp4_unscaled": "NVFP4, no scale",
}  # fmt: skip
SQRT3 = 3**0.5
SNR = ("fp8_e4m3", "fp8_e5m2", "int8", "mxfp4", "nvfp4", "hif4", "fp4_ue5m3")
"""Formats with a signal-to-noise ratio."""


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
        ("16-fold spread of sizes", wide), ("normal x 1e-7", normal * 1e-7),
    ]  # fmt: skip


def measured() -> tuple[list[tuple[str, list[float]]], list[tuple[str, list[float]]], list[float]]:
    """Of a real model, by kind of tensor, errors and signal-to-noise ratios; its gradients over the noise in MXFP4 and NVFP4."""
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

    def middle(signal: str) -> float:
        return float(
            np.nanmedian(np.concatenate([run.series(k.signal, k.layer)[1] for k in run.keys if k.signal == signal]))
        )

    kinds = ("activation", "gradient", "weight")
    errors = [(f"GPT-2, {kind}", [middle(f"{kind}_{name}_error_ratio") for name in FORMATS]) for kind in kinds]
    ratios = [(f"GPT-2, {kind}", [middle(f"{kind}_{name}_snr_db") for name in SNR]) for kind in kinds]
    return errors, ratios, [middle(f"gradient_{name}_to_noise_ratio") for name in ("mxfp4", "nvfp4")]


def main() -> str:
    """Table and verdict."""
    rows = []
    for name, x in drawn():
        _, squares, *errors = rounding(x).tolist()
        rows.append((name, *((e / squares) ** 0.5 for e in errors[: len(FORMATS)])))
    real, ratios, noise = measured()
    decibels = table(("SNR, dB", *(FORMATS[name] for name in SNR)), [(name, *values) for name, values in ratios])
    weight = ratios[2][1]
    rows += [(name, *values) for name, values in real]
    at = {name: i + 1 for i, name in enumerate(FORMATS)}
    finer = all(row[at["nvfp4"]] < row[at["mxfp4"]] for row in rows)
    outliers, small, gradient = rows[2], rows[4], dict(real)["GPT-2, gradient"]
    best = min(("mxfp4", "nvfp4", "hif4", "fp4_ue5m3"), key=lambda name: rows[0][at[name]])
    return f"""{table(("relative error", *FORMATS.values()), rows)}

{decibels}

**Verdict.** NVFP4 loses {"less than MXFP4 everywhere" if finer else "less than MXFP4 in most rows"}; of normal numbers {FORMATS[best]} loses least of the four-bit formats. With outlier channels the rotation takes
MXFP4 from {outliers[at["mxfp4"]]:.3f} to {outliers[at["mxfp4_rotated"]]:.3f}, but NVFP4 from {outliers[at["nvfp4"]]:.3f} to {outliers[at["nvfp4_rotated"]]:.3f}: its short blocks keep outliers apart already, and the error of the large numbers decides the sum.
Numbers as small as gradients are lost without a scale of the tensor: {small[at["nvfp4_unscaled"]]:.2f} with e4m3 scales, and {small[at["fp4_ue5m3"]]:.2f} with UE5M3, which reaches down to 7.6e-6 only. So
that UE5M3 needs none holds for larger numbers. The gradients of this model have a relative error of {gradient[at["mxfp4"] - 1]:.3f} in MXFP4 and {gradient[at["nvfp4"] - 1]:.3f} in NVFP4, and are {noise[0]:.1f} and
{noise[1]:.1f} times the noise of stochastic rounding, {"above" if min(noise) > SQRT3 else "not always above"} sqrt(3). That training fails below it is not tried: no rule.
A bit of the mantissa is worth 6.02 dB: weights have {weight[0] - weight[1]:.1f} dB more in e4m3 than in e5m2. No threshold of a signal-to-noise ratio is known below which training fails: no rule."""
