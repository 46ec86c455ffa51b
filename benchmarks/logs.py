"""How fast training logs are read: MB/s per format, peak memory, TensorBoard's own reader beside ours.

python -m benchmarks.logs                 64 MB of text; three minutes
python -m benchmarks.logs --megabytes 2048
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import table

MEGATRON = (
    " iteration {i:8}/  159576 | consumed samples: {i:12} | elapsed time per iteration (ms): 18802.1 | learning rate: "
    "6.000E-05 | global batch size:    96 | lm loss: {x:.6E} | loss scale: 4096.0 | grad norm: {x:.3f} | num zeros: "
    "0.0 | number of skipped iterations:   0 | number of nan iterations:   0 |\n"
)
SHORT = "step:{i}/20344 train_loss:{x:.4f} train_time:17306686ms step_avg:1703.25ms\n"
BAR = (
    "Epoch 0:  50%|{bar}| {i}/9000000 [02:10<02:10,  4.47it/s, loss={y:.3f}, v_num=19]{end}"
    "Epoch 0:  50%|{bar}| {i}/9000000 [02:10<02:10,  4.47it/s, loss={x:.3f}, v_num=19]{end}"
)
"""A bar is drawn again when its values are known; in one line, or line by line in a file of a job."""
BARS = {
    "progress bars, redrawn in one line": BAR.replace("{bar}", "█" * 30 + "▌" + " " * 29).replace("{end}", "\r"),
    "progress bars, a line each": BAR.replace("{bar}", "█" * 30 + "▌" + " " * 29).replace("{end}", "\n"),
}
TALK = "2025-12-11 00:27:01,586 INFO worker {i}: fetched shard, nothing to report about it, going on\n"


def write_lines(path: Path, form: str, size: int) -> None:
    """A file of about `size` bytes."""
    with path.open("w") as out:
        i = 0
        while out.tell() < size:
            out.writelines(form.format(i=j, x=3 - (j % 1000) / 1000, y=2.5) for j in range(i, i + 1000))
            out.write("\n" * form.endswith("\r"))
            i += 1000


def write_json(path: Path, size: int, evaluations: bool = False) -> None:
    """The same as JSON lines. evaluations: every hundredth is one, with other keys."""
    with path.open("w") as out:
        i = 0
        while out.tell() < size:
            out.writelines(json.dumps(_record(j, evaluations)) + "\n" for j in range(i, i + 1000))
            i += 1000


def _record(step: int, evaluations: bool) -> dict[str, float]:
    if evaluations and step % 100 == 99:
        return {"step": step, "eval_loss": 2.6}
    return {"step": step, "loss": 2.5, "grad_norm": 1.0, "lr": 1e-4}


def write_events(folder: Path, points: int) -> None:
    """TensorBoard scalars."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for i in range(points):
            for tag in ("train/loss", "optim/grad_norm", "lr"):
                writer.add_scalar(tag, i * 0.5, i)


def ours(path: str) -> None:
    """Read with stabwatch."""
    from stabwatch.analysis.readers import read_log

    read_log(path)


def floor(path: str) -> None:
    """What Python's own means cannot be faster than: a regular expression that finds the numbers, and no more."""
    numbers = re.compile(rb"[-+]?[\d.]+(?:[eE][-+]?\d+)?")
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            numbers.findall(chunk)


def theirs(path: str) -> None:
    """Read with TensorBoard's accumulator."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    EventAccumulator(path, size_guidance={"scalars": 0}).Reload()


def _child(read: Callable[[str], None], path: str, out: multiprocessing.Queue[tuple[float, float]]) -> None:
    import tensorboard.backend.event_processing.event_accumulator  # noqa: F401 -- the time of starting is not what counts

    import stabwatch.analysis.readers.any_log  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    read(path)
    seconds = time.process_time() - began
    out.put((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def measure(read: Callable[[str], None], path: Path, rounds: int = 3) -> tuple[float, float]:
    """Median seconds of the processor and most MiB above the start, each round in a process of its own."""
    context, found = multiprocessing.get_context("spawn"), []
    for _ in range(rounds):
        out = context.Queue()
        child = context.Process(target=_child, args=(read, str(path), out))
        child.start()
        found.append(out.get())
        child.join()
    return statistics.median(s for s, _ in found), max(m for _, m in found)


def main(argv: list[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--points", type=int, default=50_000, help="steps of TensorBoard scalars, three each")
    options = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, form in (("Megatron lines", MEGATRON), ("short lines", SHORT), ("lines without a metric", TALK)):
            path = folder / f"{name.split()[0]}.log"
            write_lines(path, form, options.megabytes << 20)
            if form is TALK:
                path.open("a").write(SHORT.format(i=1, x=1.0) * 3)
            if form is not TALK:
                rows.append(_row(f"{name}: only to find the numbers", path, floor))
            rows.append(_row(name, path))
            path.unlink()
        for name, form in BARS.items():
            path = folder / "bars.log"
            write_lines(path, form, options.megabytes << 20)
            rows.append(_row(name, path))
        for name, evaluations in (("JSON lines", False), ("JSON lines, an evaluation in a hundred", True)):
            path = folder / "log.jsonl"
            write_json(path, options.megabytes << 20, evaluations)
            rows.append(_row(name, path))
        write_events(folder / "events", options.points)
        rows.append(_row("TensorBoard", folder / "events"))
        rows.append(_row("by EventAccumulator", folder / "events", theirs))
    print(table(("log", "MB", "seconds", "MB/s", "MiB of memory"), rows))
    print(f"TensorBoard scalars: {float(rows[-1][2]) / float(rows[-2][2]):.1f} times faster than EventAccumulator.")
    return 0


def _row(name: str, path: Path, read: Callable[[str], None] = ours) -> tuple[str, ...]:
    seconds, memory = measure(read, path)
    size = sum(p.stat().st_size for p in ([path] if path.is_file() else path.iterdir())) / 1e6
    row = (name, f"{size:.0f}", f"{seconds:.3f}", f"{size / seconds:.1f}", f"{memory:.0f}")
    print(*row, file=sys.stderr)
    return row


if __name__ == "__main__":
    raise SystemExit(main())
