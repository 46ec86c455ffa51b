"""Recall, lead, false alarms and causes on real trainings, beside the detectors in use today.

    python -m benchmarks.detection                       both halves; half an hour or more on two cores
    python -m benchmarks.detection --quick               a few runs of half A, five minutes at most
    python -m benchmarks.detection --write docs/detection.md
    python -m benchmarks.detection --keep FOLDER         keep the runs there, and take those that are there

Exit code 1 if a quick run misses an unstable run, names a wrong cause, or raises a false alarm.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path

import torch

from benchmarks.detection.others import OTHERS
from benchmarks.detection.runs import SEEDS, pairs, trained
from benchmarks.detection.score import OURS, Verdict, figures, judge, lead_over, right_causes
from benchmarks.report import table

QUICK = (
    "gpt_hot", "gpt_lr_spike", "cnn_labels", "gpt_bit_flip", "cnn_nan", "mlp_dead", "mlp_louder",
    "mlp", "regression", "table_classes", "warm_restarts",
)  # fmt: skip
CALM = 10.0
"""False alarms per 10,000 healthy steps up to which a detector can be listened to."""


def run_half(half: str, folder: Path, only: tuple[str, ...] = ()) -> list[Verdict]:
    """Train and judge a half; with `only`, those cases with one seed."""
    out = []
    for case, seed in pairs(half):
        if only and (case.name not in only or seed != SEEDS[half][0]):
            continue
        began = time.perf_counter()
        verdict = judge(trained(case, seed, folder))
        out.append(verdict)
        said = verdict.cause or "nothing"
        print(f"{half} {case.name:18} {seed} {time.perf_counter() - began:6.1f} s  {said}", flush=True)
    return out


def summary(verdicts: list[Verdict]) -> str:
    """One row per detector."""
    natural, rows = _natural(verdicts), []
    for name in (OURS, *OTHERS):
        f = figures(verdicts, name)
        if name == OURS:
            last = (f"{right_causes(verdicts):.2f}", "", "")
        else:
            last = ("", f"{lead_over(natural, name):.0f}", f"{lead_over(verdicts, name):.0f}")
        rows.append((name, f"{f.recall:.2f}", f"{f.lead:.0f}", f"{f.false:.1f}", *last))
    head = (
        "detector", "recall", "median lead", "false alarms per 10,000 steps", "cause right",
        "stabwatch earlier: by nature", "all",
    )  # fmt: skip
    return table(head, rows)


def _natural(verdicts: list[Verdict]) -> list[Verdict]:
    return [v for v in verdicts if v.run.case.causes and v.run.case.fault is None]


def unstable_table(verdicts: list[Verdict]) -> str:
    """One row per unstable run."""

    def row(v: Verdict) -> tuple[object, ...]:
        best = max(OTHERS, key=v.lead)
        steps = ["never" if s is None else s for s in (v.hurt, v.first[OURS], v.first[best])]
        cause = (v.cause or "nothing") + ("" if v.right else " (WRONG)")
        return (v.run.case.name, v.run.seed, v.run.case.fault or "", *steps, best, cause, ", ".join(v.rules))

    head = ("run", "seed", "fault at", "loss hurt at", "stabwatch at", "best other at", "which", "first cause", "rules")
    return table(head, (row(v) for v in verdicts if v.run.case.causes))


def healthy_table(verdicts: list[Verdict]) -> str:
    """Alarms on healthy steps, by detector."""
    names = (OURS, *OTHERS)
    rows = [
        (v.run.case.name, v.run.seed, v.healthy_steps, *(v.false[name] or "" for name in names))
        for v in verdicts
        if v.healthy_steps
    ]
    return table(("run", "seed", "healthy steps", *names), rows)


def half_text(title: str, verdicts: list[Verdict]) -> str:
    """One half."""
    bad, natural = [v for v in verdicts if v.run.case.causes], _natural(verdicts)
    calm = [name for name in OTHERS if figures(verdicts, name).false <= CALM]
    steps = sum(v.healthy_steps for v in verdicts)
    unannounced = sum(v.unannounced for v in verdicts)
    return f"""## {title}

{len(bad)} unstable runs ({len(natural)} by nature), {len(verdicts) - len(bad)} healthy ones, {steps:,} healthy steps
(those before an injected fault and those of the twins among them).

{summary(verdicts)}

Had nobody announced the new task, stabwatch would have {1e4 * unannounced / steps:.1f} false alarms per 10,000 steps.
Over a detector that were, in each run, the first of those with at most {CALM:.0f} false alarms per 10,000
({", ".join(calm)}),
stabwatch's median lead is {lead_over(natural, *calm):.0f} steps by nature and {lead_over(bad, *calm):.0f} in all;
over the first of all five, {lead_over(natural, *OTHERS):.0f} and {lead_over(bad, *OTHERS):.0f}.
The median lead over the loss, of those that go wrong by nature: {figures(natural, OURS).lead:.0f} steps.

{unstable_table(verdicts)}

Alarms on healthy steps (blank: none):

{healthy_table(verdicts)}
"""


def page(command: str, halves: dict[str, list[Verdict]], seconds: float) -> str:
    """docs/detection.md."""
    where = f"{platform.system()}, {os.cpu_count()} cores of {platform.machine()}, torch {torch.__version__} on the CPU"
    titles = {"B": "Held out", "A": "Calibrated on"}
    parts = "\n".join(half_text(titles[half], halves[half]) for half in ("B", "A") if half in halves)
    return f"""# How well trouble is detected

`{command}`, {datetime.date.today()}, {where}, one thread, {seconds:.0f} s.

Real trainings of 400 steps (`benchmarks/detection/`): small language models, vision transformers, CNNs, recurrent
networks, stacks that predict noise, mixtures of experts, MLPs; on the text of the standard library, on scikit-learn's
digits and tables, and on made-up data. Everything is measured at every step. Unstable ones go wrong by nature
(learning rate, no warm-up, no norm, depth, float16, epsilon) or by an injected fault at step 200 (rate spike, corrupted
batches, wrong labels, a bit that turns over, NaN in the data, louder gradients). Among the healthy ones are traps: warm
restarts, a new task, a longer context, mixup, a GAN, a policy gradient.

Thresholds were chosen on half A (seeds {SEEDS["A"]}); half B has other architectures and seeds {SEEDS["B"]}.
B was looked at twice before, and its seeds are new each time.
Seeds (2, 3): recall 0.97, 3.3 false alarms per 10,000 steps, 0.84 of the causes right. Then VanishingGradients got its
third condition, that the loss stands still, because `rnn_text` had learned on; LossRisesWithRate was added, from half
A; and `new_task` announces its task (`watch.announce`), as four of the five false alarms were there.
Seeds (4, 5): recall 0.94, 3.3 false alarms (the twins' now among them), 0.88 of the causes right. Then LossShift was
added, as wrong labels had hidden in a noisy loss; VanishingGradients holds gradients against a level, and no longer
against one explosion; while the rate climbs to where it never was, it is blamed before the batch; and the rate of
`cnn_dead` begins at 0.1 (it was 0.3), as its twin had spikes of its own.

An alarm is a warning or a critical alert that is on; what is less than 20 steps apart is one, and one that a twin
(same seed, same batches, no fault) raises by the same rule within 20 steps as well finds no fault. *Loss hurt*: the
first step at which the loss is a tenth of what the twin has learned above that twin, for good or, after an injected
fault, in the median of eight steps: hindsight, earlier than anybody with the loss alone could say.
*Lead*: from the first alarm to that step; what never comes counts as the end. *stabwatch earlier*: median over runs of
its lead less the other's. An injected fault that hits the loss at once (a NaN, a wrong batch) leaves no lead to
anybody, and a third of the runs is such.

The others are written from their sources, with their defaults, on loss and gradient norm of every step (`others.py`).

{parts}"""


def main(argv: list[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder of runs that are kept")
    parser.add_argument("--write", type=Path, help="write the page to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # the models are small
    warnings.filterwarnings("ignore")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        only = QUICK if options.quick else ()
        halves = {half: run_half(half, folder, only) for half in (("A",) if options.quick else ("A", "B"))}
    command = "python -m benchmarks.detection" + (" --quick" if options.quick else "")
    text = page(command, halves, time.perf_counter() - began)
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    wrong = [v for v in halves["A"] if (v.run.case.causes and not v.right) or v.false[OURS]]
    return int(options.quick and bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
