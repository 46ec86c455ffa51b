"""Mixtures of experts across widths: what keeps its size where the width, the experts and the choice grow?"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import transformers

import stabwatch
from benchmarks.report import table
from stabwatch.analysis.compare.curve_set import load_curve_sets
from stabwatch.analysis.compare.widths import OF_EXPERTS, widths
from stabwatch.analysis.sources import open_sources
from stabwatch.demo import DemoConfig, batches, corpus

TITLE = "Mixtures of experts across widths (MSSP)"
CLAIM = """Vankadara et al. 2026, arXiv:2605.14200 [abstract]: mixtures of experts have several scaling regimes (width, number of experts, number of chosen
experts); a parametrisation whose learning rates transfer keeps the sums of experts and the router's logits the same size in each, and the
usual one (muP) leaves the aggregation dependent on the scale. (Their parametrisation is not public and is not tried here.)"""
SETUP = """Mixtral of transformers with random weights in the standard parametrisation (2 layers, one head per 16 of width), bytes of the standard
library, AdamW 3e-3, 60 steps of 4 x 32 tokens. Widths 32, 64, 128; in the first regime 4 experts and 2 chosen, in the second 4, 8, 16 experts and
1, 2, 4 chosen. Exponents over the width, median over the layers, as `stabwatch compare` shows them."""
STEPS, WIDTHS = 60, (32, 64, 128)


def train(path: Path, width: int, experts: int, chosen: int) -> None:
    """One run log."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=width // 16,
        num_key_value_heads=width // 16, vocab_size=256, num_local_experts=experts, num_experts_per_tok=chosen,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = batches(corpus(1 << 20), DemoConfig(context=32, batch=4))
    with stabwatch.attach(model, optimizer, run_dir=path, agent=False, verbose=False, every_step=True):
        for _ in range(STEPS):
            tokens = draw()[0]
            loss = model(input_ids=tokens, labels=tokens).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main() -> str:
    """Table and verdict."""
    rows, sums = [], {}
    for name, sizes in (("width alone", ((4, 2),) * 3), ("width, experts, chosen", ((4, 1), (8, 2), (16, 4)))):
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / str(width) for width in WIDTHS]
            for path, width, size in zip(paths, WIDTHS, sizes, strict=True):
                train(path, width, *size)
            found = widths(load_curve_sets(open_sources(paths)))
            assert found is not None
            exponents = {signal: found.summary(found.experts[signal])[0] for signal in OF_EXPERTS}
            first = found.experts["expert_combine_rms"][0].values
        rows.append((name, *exponents.values(), *first))
        sums[name] = exponents
    head = ("regime", *(f"exponent of {s}" for s in OF_EXPERTS), *(f"combine RMS, first layer, {w}" for w in WIDTHS))
    alone, both = sums.values()
    free = all(abs(e) < 0.1 for found in sums.values() for e in found.values())
    apart = abs(alone["expert_combine_rms"] - both["expert_combine_rms"]) > 0.1
    return f"""{table(head, rows)}

**Verdict.** In the standard parametrisation the sizes {"are independent of" if free else "depend on"} the scale: the sum of the experts grows as width^{alone["expert_combine_rms"]:.2f} with
the width alone and as width^{both["expert_combine_rms"]:.2f} with all three; the signal {"tells the regimes apart" if apart else "does not tell the regimes apart"}. Three widths and sixty steps are no scaling law."""
