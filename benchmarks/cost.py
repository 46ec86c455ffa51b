"""What each signal costs: the time of its probe over the time of a bare step.

    python -m benchmarks.cost            about two minutes; writes benchmarks/results/cost-cpu.json
    python -m benchmarks.cost --gpu      about a minute; writes benchmarks/results/cost-gpu.json
    python -m benchmarks.cost --print    only prints

On the CPU the model is that of overhead.py and time is the host's; on a GPU it is that of overhead_gpu.py and time is
the device's, between events before and after what the probe queues. A figure is the cost of measuring a signal on a
step that measures it; where sites take turns, of the mean turn. Signals of one reduction share it. What the GPT has not
(experts, low-rank adapters) is measured on a Mixtral of transformers with adapters of PEFT; sharpness, which takes as
long as several steps, on a small GPT; the Jacobian and skip connections on a convolutional map; and loops on a block
that is called eight times. These are on the CPU only.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import stabwatch
from benchmarks import large
from benchmarks.report import machine, table
from stabwatch.demo import GPT, Block, DemoConfig, batches, corpus
from stabwatch.hooks.base.flags import PHASES
from stabwatch.hooks.base.isolation import Isolation
from stabwatch.hooks.base.probe import PROBES
from stabwatch.signals import CATALOGUE, Signal

RESULTS = Path(__file__).parent / "results"
ROUNDS = 2
OTHERS = (
    "experts and adapters: a Mixtral of 14 M; sharpness: a GPT of 0.5 M; Jacobian, skips: convolutions; "
    "loops: a block called eight times"
)
"""What signals that the GPT does not have are measured on."""
AHEAD = 0.05
"""Seconds that a device sleeps before each step, so that the host is ahead of it. Where the host falls behind, its time
is counted."""


def probe_of(signal: Signal) -> str | None:
    """Name of the probe that measures a signal; None for numbers that no probe measures."""
    probe = PROBES.find(signal.tap, signal.reduction)
    return None if probe is None else probe.name


class HostClock:
    """Marks are this thread's processor seconds, as the isolation counts them; other jobs do not change them."""

    def mark(self) -> float:
        """Now."""
        return time.thread_time()

    def between(self, first: float, second: float) -> float:
        """Seconds from one mark to the other."""
        return second - first

    def step_begins(self) -> None:
        """Nothing has to be prepared."""

    def wait(self) -> None:
        """The host's marks are known at once."""


class DeviceClock:
    """Marks are events on the device, which is kept behind the host by a sleep before each step."""

    def __init__(self) -> None:
        begin, some = self.mark(), 10_000_000
        torch.cuda._sleep(some)
        end = self.mark()
        self.wait()
        self._cycles = int(AHEAD * some / self.between(begin, end))

    def mark(self) -> Any:
        """An event at the end of what is queued."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, second: Any) -> float:
        """Seconds of the device from one event to the other."""
        return first.elapsed_time(second) / 1e3

    def step_begins(self) -> None:
        """Let the host run ahead."""
        self.wait()
        torch.cuda._sleep(self._cycles)

    def wait(self) -> None:
        """Until every event has come."""
        torch.cuda.synchronize()


class Meter:
    """Takes the time of each probe that a guard runs, less that of the probes inside it."""

    def __init__(self, guard: Isolation, clock: HostClock | DeviceClock) -> None:
        self._run, self._clock = guard.run, clock
        self._inside: list[list[tuple[Any, Any]]] = [[]]
        self._seen: list[tuple[str, Any, Any, list[tuple[Any, Any]]]] = []
        guard.run = self.run  # type: ignore[method-assign]

    def run(self, probe: str, *args: Any) -> None:
        """In place of the guard's."""
        begin = self._clock.mark()
        self._inside.append([])
        self._run(probe, *args)
        inside = self._inside.pop()
        end = self._clock.mark()
        self._inside[-1].append((begin, end))
        self._seen.append((probe, begin, end, inside))

    def take(self) -> dict[str, float]:
        """Seconds by probe since the last call."""
        self._clock.wait()
        out: defaultdict[str, float] = defaultdict(float)
        for probe, begin, end, inside in self._seen:
            out[probe] += self._clock.between(begin, end) - sum(self._clock.between(*pair) for pair in inside)
        self._seen.clear()
        return dict(out)


@dataclass(frozen=True)
class Subject:
    """What is trained: `loss` draws a batch and returns the loss of it; `few` are tokens for `watch.probe`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], Tensor]
    few: Tensor

    def step(self) -> None:
        """One step of training."""
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

    def steps(self, count: int, clock: HostClock | DeviceClock) -> list[float]:
        """Seconds of each of so many steps."""
        marks = []
        for _ in range(count):
            clock.step_begins()
            begin = clock.mark()
            self.step()
            marks.append((begin, clock.mark()))
        clock.wait()
        return [clock.between(*pair) for pair in marks]


def on_the_cpu(width: int = 384, layers: int = 6, context: int = 256) -> Subject:
    """The model of overhead.py."""
    torch.manual_seed(0)
    config = DemoConfig(width=width, layers=layers, heads=width // 64 or 1, context=context, batch=4)
    model, draw = GPT(config), batches(corpus(), config)

    def loss() -> Tensor:
        tokens, following = draw()
        return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())

    return Subject(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss, draw()[0][:1])


def of_experts(width: int = 256, layers: int = 4, context: int = 256) -> Subject:
    """Mixtral with random weights, eight experts of which two are chosen, and adapters of rank 8 on its attention."""
    import peft
    import transformers

    torch.manual_seed(0)
    heads = max(1, width // 64)
    config = transformers.MixtralConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=256, num_local_experts=8, num_experts_per_tok=2,
    )  # fmt: skip
    adapted = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(transformers.MixtralForCausalLM(config), adapted).requires_grad_(True)
    draw = batches(corpus(), DemoConfig(context=context, batch=4))

    def loss() -> Tensor:
        tokens = draw()[0]
        return model(input_ids=tokens, labels=tokens).loss

    return Subject(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss, draw()[0][:1])


class Join(nn.Module):
    """Convolutions of two feature maps, the second one from a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside, self.outside = nn.Conv1d(2 * width, width, 5, padding=2), nn.Conv1d(width, 1, 5, padding=2)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, width, length) each -> (B, 1, length)."""
        return self.outside(F.gelu(self.inside(torch.cat((x, skip), dim=1))))


class UShaped(nn.Module):
    """A map with one skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv1d(1, width, 5, padding=2), nn.Conv1d(width, width, 5, padding=2)
        self.join = Join(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, length) -> the same."""
        first = F.gelu(self.down(x))
        return self.join(F.gelu(self.middle(first)), first)


def as_a_map(width: int = 64, length: int = 256) -> Subject:
    """Convolutions that map a field of numbers to its next state, on 32 samples."""
    torch.manual_seed(0)
    model = UShaped(width)
    state = torch.randn(32, 1, length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Subject(model, optimizer, lambda: F.mse_loss(model(state), state.roll(1, -1)), state[:1])


class Looped(nn.Module):
    """A language model whose one block is called eight times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens, self.block, self.head = nn.Embedding(256, width), Block(width, width // 64), nn.Linear(width, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, 256)."""
        x = self.tokens(tokens)
        for _ in range(8):
            x = self.block(x)
        return self.head(x)


def in_a_loop(width: int = 256, context: int = 128) -> Subject:
    """A block that is called eight times in a forward."""
    torch.manual_seed(0)
    model, draw = Looped(width), batches(corpus(), DemoConfig(context=context, batch=4))

    def loss() -> Tensor:
        tokens, following = draw()
        return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())

    return Subject(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss, draw()[0][:1])


def on_a_gpu() -> Subject:
    """The model of overhead_gpu.py."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda")
    with device:
        model = large.Large()
    data = [large.rows(device, seed) for seed in range(8)]
    numbers = count()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    return Subject(model, optimizer, lambda: large.loss(model, *data[next(numbers) % len(data)]), data[0][0][:1])


def measure(subject: Subject, clock: HostClock | DeviceClock, *asked: str, rounds: int = ROUNDS) -> dict[str, float]:
    """Cost by probe, as a share of a bare step; and under 'worst step' the longest step over the median one.

    asked: settings of what must be asked for; where there are any, a fixed batch is tracked too.
    """
    bare = median(subject.steps(8, clock)[2:])
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(run_dir=Path(folder) / "run", agent=False, verbose=False, every_step=True)
        with stabwatch.attach(subject.model, subject.optimizer, **settings, **dict.fromkeys(asked, True)) as watch:
            if asked:
                watch.probe(subject.few)
            subject.steps(PHASES, clock)
            meter = Meter(watch._session.isolation, clock)
            seen = subject.steps(rounds * PHASES, clock)
            spent = meter.take()
    cost = {probe: seconds / (rounds * PHASES) / bare for probe, seconds in spent.items()}
    return {**cost, "worst step": max(seen) / median(seen)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="on the first CUDA device")
    parser.add_argument("--print", action="store_true", help="write no file")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject, clock = (on_a_gpu(), DeviceClock()) if options.gpu else (on_the_cpu(), HostClock())
    cost = measure(subject, clock, "taylor")
    if not options.gpu:
        small = measure(on_the_cpu(width=128, layers=2, context=64), clock, "sharpness")
        mapped = measure(as_a_map(), clock, "jacobian")
        cost = measure(of_experts(), clock) | {"sharpness": small["sharpness"], "jacobian": mapped["jacobian"]} | cost
        looped = measure(in_a_loop(), clock)
        cost |= {"skip": mapped["skip"], "loop": looped["loop"], "loop_step": looped["loop_step"]}
    print(table(("probe", "share of a step"), sorted(cost.items(), key=lambda item: -item[1])))
    if not options.print:
        size = sum(p.numel() for p in subject.model.parameters()) / 1e6
        kind = " in bfloat16" if options.gpu else ""
        also = "" if options.gpu else f" ({OTHERS})"
        where = f"GPT of {size:.1f} M parameters{kind}{also}, {machine(subject.few.device)}"
        found = {s.name: cost[p] for s in CATALOGUE if (p := probe_of(s)) in cost}
        options.results.mkdir(parents=True, exist_ok=True)
        path = options.results / f"cost-{'gpu' if options.gpu else 'cpu'}.json"
        path.write_text(json.dumps({"where": where, "cost": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
