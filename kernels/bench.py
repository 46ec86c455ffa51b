"""How fast the reductions are: fused against plain torch, and against what the device's memory can do.

    python kernels/bench.py            prints a table and writes kernels/results/<device>.md
    python kernels/bench.py --small    sizes for a CPU, also on a GPU

Bytes are those that must be read (and, for changes, written) once; `of copy` compares their rate with that of
`Tensor.copy_` between tensors as large, measured in the same run. Attention is compared with the forward of
`scaled_dot_product_attention` on the same tensors.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from stabwatch.kernels.attention_scores import largest_logit, score_statistics
from stabwatch.kernels.column_moments import column_sums
from stabwatch.kernels.dispatch import VARIABLE, choose
from stabwatch.kernels.exponent_histogram import exponent_histogram
from stabwatch.kernels.moments import moments, moments_full
from stabwatch.kernels.multi_tensor import grouped_change, grouped_moments

RESULTS = Path(__file__).with_name("results")
WARM, REPEATS = 3, 15
IN_A_ROW = 10
"""Calls that are timed together on an accelerator: the host queues them while it works, as in a training."""
ENOUGH = 0.02
"""Seconds that a measurement may take; of slow calls fewer are timed together."""
FORMS = {"plain torch": "eager", "fused": ""}


@dataclass(frozen=True)
class Case:
    """One reduction of one input. bytes: what it must move. against: a call that its time is compared with."""

    name: str
    input: str
    call: Callable[[], object]
    bytes: int = 0
    against: Callable[[], object] | None = None


@dataclass(frozen=True)
class Sizes:
    tensor: tuple[int, int, int]
    list_of: int
    attention: tuple[tuple[int, int, int, int, int], ...]  # B, H, G, T, D of each call


LARGE = Sizes(tensor=(16, 4096, 4096), list_of=64, attention=((4, 32, 8, 4096, 128), (16, 16, 16, 2048, 64)))
SMALL = Sizes(tensor=(4, 512, 512), list_of=16, attention=((1, 4, 4, 512, 64),))


def cases(sizes: Sizes, device: torch.device) -> list[Case]:
    """Every reduction that has a fused form, in the types that models compute in."""
    found = []
    for kind in (torch.bfloat16, torch.float32):
        x = torch.randn(sizes.tensor, device=device).to(kind)
        label = f"{'x'.join(map(str, x.shape))} {str(kind).removeprefix('torch.')}"
        for reduce in (moments, moments_full, exponent_histogram, column_sums):
            found.append(Case(reduce.__name__, label, lambda f=reduce, x=x: f(x), x.nbytes))
        parts = [p.clone() for p in x.flatten().chunk(sizes.list_of)]
        group = [i // 4 for i in range(len(parts))]
        rows = torch.zeros(len(parts) // 4, 4, device=device)
        label = f"{len(parts)} of {parts[0].numel()} {str(kind).removeprefix('torch.')}"
        found.append(
            Case("grouped_moments", label, lambda p=parts, g=group, r=rows: grouped_moments(p, g, r), x.nbytes)
        )
        rows, before = rows[:, :3].clone(), [p.clone() for p in parts]
        change = lambda b=before, p=parts, g=group, r=rows: grouped_change(b, p, g, r)  # noqa: E731
        found.append(Case("grouped_change", label, change, 3 * x.nbytes))
    return found + [case for call in sizes.attention for case in _attention(*call, device)]


def _attention(b: int, h: int, g: int, t: int, d: int, device: torch.device) -> list[Case]:
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    q, k = torch.randn(b, h, t, d, device=device).to(kind), torch.randn(b, g, t, d, device=device).to(kind)
    whole = k.repeat_interleave(h // g, dim=1)

    def forward() -> Tensor:
        backend = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if device.type == "cuda" else nullcontext()
        with backend, torch.no_grad():
            return F.scaled_dot_product_attention(q, whole, whole, is_causal=True)

    label = f"{b}x{h}/{g}x{t}x{d} {str(kind).removeprefix('torch.')} causal"
    return [
        Case("largest_logit", label, lambda: largest_logit(q, k, None, True, None), against=forward),
        Case("score_statistics", label, lambda: score_statistics(q, k, None, True, None), against=forward),
    ]


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median time of one call, on the device's own clock where it has one."""
    for _ in range(WARM):
        call()
    count = max(1, min(IN_A_ROW, int(ENOUGH / _once(call, device, 1)))) if device.type == "cuda" else 1
    return statistics.median(_once(call, device, count) for _ in range(REPEATS))


def _once(call: Callable[[], object], device: torch.device, count: int) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / count


def copy_rate(sizes: Sizes, device: torch.device) -> float:
    """Bytes per second that a copy reads and writes."""
    x = torch.empty(sizes.tensor, device=device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / seconds(lambda: y.copy_(x), device)


def table(sizes: Sizes, device: torch.device) -> Iterator[str]:
    """The results, as lines of Markdown, each as soon as it is known."""
    rate = copy_rate(sizes, device)
    fused = choose(torch.empty(0, device=device))
    forms = FORMS if fused.fused else {"plain torch": "eager"}
    yield f"Copy: {rate / 1e9:,.1f} GB/s. Fused kernels: {fused.reason}."
    yield ""
    yield "| reduction | input | form | ms | GB/s | of copy | / attention forward |"
    yield "|---|---|---|---|---|---|---|"
    for case in cases(sizes, device):
        forward = seconds(case.against, device) if case.against else 0.0
        for form, wish in forms.items():
            os.environ[VARIABLE] = wish
            took = seconds(case.call, device)
            moved = [f"{case.bytes / took / 1e9:,.1f}", f"{case.bytes / took / rate:.0%}"] if case.bytes else ["", ""]
            ratio = f"{took / forward:.2f}" if forward else ""
            yield "| " + " | ".join([case.name, case.input, form, f"{took * 1e3:.3f}", *moved, ratio]) + " |"
    os.environ.pop(VARIABLE, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    sizes = SMALL if options.small or device.type != "cuda" else LARGE
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / (re.sub(r"\W+", "-", name).strip("-").lower() + ".md")
    with path.open("w", encoding="utf-8") as out:
        out.write(f"# {name}\n\ntorch {torch.__version__}{threads}. Median of {REPEATS}. ")
        for line in table(sizes, device):
            print(line, flush=True)
            print(line, file=out, flush=True)
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
