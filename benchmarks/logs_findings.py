"""Are the labelled events of real logs found, named right, and are healthy logs left alone?

    python -m benchmarks.logs_findings FOLDER                     FOLDER/index.tsv names the logs and their labels
    python -m benchmarks.logs_findings FOLDER --write docs/log-findings.md

index.tsv has a header and the columns name, label and file (a path that begins with FOLDER's own name). A label
that begins with 'healthy' or 'overflow-benign' wants silence: no incident above information. Any other names events:
'spikes at 7100, 13800', 'diverged at 71, inf at 73', 'stuck'. An event is found if a incident above information of the
right kind begins within five steps or one percent of the run's length.
With --write, the shapes of logs in benchmarks/pasted are judged too.
Exit code 1 if an event was missed or more than one healthy log in twenty was warned about.
"""

from __future__ import annotations

import argparse
import csv
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.report import table
from stabwatch.alerts.incidents import Incident
from stabwatch.analysis import Analysis, analyze_source, open_source
from stabwatch.errors import LogError

WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"re-?initiali[sz]", ("Reinitialisation",)),
    (r"scale[ -]collapse|scale stuck", ("LossScaleCollapse",)),
    (r"grad(?:ient)?[- ]norm (?:explosion|blow)", ("GradientNormExplosion",)),
    (r"spike", ("LossSpike",)),
    (r"diverg", ("LossDivergence",)),
    (r"\bnan\b|\binf\b|blank", ("NonFinite",)),
    (r"stuck|plateau|not learning", ("NotLearning", "LossPlateau")),
    (r"too good|collapse to 0", ("LossTooGood",)),
)
PASTED = Path(__file__).parent / "pasted"
"""Shapes of logs in public bug reports, with other numbers."""
READ_ONCE = Path(__file__).parent / "read_once.tsv"
"""Excerpts of public bug reports, which are not kept: label, and what was said at the first reading, by hand."""
CALM = re.compile(r"healthy|overflow-benign|multi-run|no loss", re.IGNORECASE)


@dataclass(frozen=True)
class Expected:
    """An event of a label. step: None where the label does not say."""

    kinds: tuple[str, ...]
    step: int | None


def expected(label: str) -> list[Expected]:
    """The events of a label; none for a healthy log."""
    if CALM.match(label):
        return []
    label = re.sub(r"\([^)]*\)", " ", label)
    label = re.sub(r"[\d.]+ *-> *[\d.]+", " ", label)  # from one value to another
    pattern = "|".join(f"(?P<k{i}>{word})" for i, (word, _) in enumerate(WORDS))
    places = list(re.finditer(pattern, label, re.IGNORECASE))
    events: list[Expected] = []
    for place, end in zip(places, [m.start() for m in places[1:]] + [len(label)], strict=True):
        kinds = WORDS[int(place.lastgroup[1:])][1] if place.lastgroup else ()
        steps = [int(n) for n in re.findall(r"(?<![\d.-])\d+(?![\d.]*\d)(?!\.\d)", label[place.end() : end])]
        named = [Expected(kinds, step) for step in steps] or [Expected(kinds, None)]
        events += [event for event in named if event.step is not None or not any(e.kinds == kinds for e in events)]
    return events


def found(event: Expected, run: Analysis) -> bool:
    """Whether a run has the event."""
    near = max(5, 0.01 * ((run.last_step or 0) - (run.first_step or 0)))
    problems = [i for i in run.incidents if i.is_problem and i.condition in event.kinds]
    return any(event.step is None or abs(i.first_step - event.step) <= near for i in problems)


def _shown(incident: Incident) -> str:
    end = "end" if incident.last_step is None else incident.last_step
    return f"{incident.condition} {incident.first_step}-{end}"


@dataclass
class Score:
    """Figures of the logs in one folder."""

    rows: list[tuple[str, ...]] = field(default_factory=list)
    events: int = 0
    missed: int = 0
    healthy: int = 0
    warned: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether all events were found, all logs read, and at most one healthy log in twenty warned about."""
        return not self.missed and not self.unread and len(self.warned) * 20 <= self.healthy

    def add(self, name: str, label: str, path: Path) -> None:
        """Judge one log."""
        begun = time.perf_counter()
        try:
            runs = [analyze_source(source) for source in open_source(path)]
        except LogError:
            runs = []
            self.unread.append(name)
        seconds = time.perf_counter() - begun
        wanted = expected(label)
        got = [event for event in wanted if any(found(event, run) for run in runs)]
        problems = [i for run in runs for i in run.incidents if i.is_problem]
        notes = sum(len(run.incidents) for run in runs) - len(problems)
        self.events, self.missed = self.events + len(wanted), self.missed + len(wanted) - len(got)
        self.healthy += not wanted
        if not wanted and problems:
            self.warned.append(name)
        shown = ", ".join(dict.fromkeys(map(_shown, problems))) or "-"
        score = f"{len(got)} of {len(wanted)}" if wanted else "calm" if not problems else "WARNED"
        self.rows.append((name, label, score if runs else "NOT READ", shown, str(notes), f"{seconds:.2f}"))

    def text(self, times: bool) -> str:
        """The figures and the table."""
        found = self.events - self.missed
        warned = f"{len(self.warned)} of {self.healthy} healthy logs warned about"
        figures = f"{found} of {self.events} labelled events found and named right. {warned}"
        figures += f": {', '.join(self.warned)}." if self.warned else "."
        figures += f" Not read: {', '.join(self.unread)}." if self.unread else ""
        head = ("log", "label", "found", "warnings and worse", "notes", "s")
        return f"{figures}\n\n{table(head if times else head[:-1], [r if times else r[:-1] for r in self.rows])}"


def judge(folder: Path) -> tuple[Score, dict[str, str]]:
    """Judge the logs that FOLDER/index.tsv lists; also the source of each, where the list has one."""
    with open(folder / "index.tsv", newline="") as file:
        listed = list(csv.DictReader(file, delimiter="\t"))
    score = Score()
    for entry in listed:
        score.add(entry["name"], entry["label"], folder / Path(entry["file"]).relative_to(folder.name))
    return score, {entry["name"]: entry["source"] for entry in listed if entry.get("source")}


def read_once() -> str:
    """The figures and the table of the excerpts in `READ_ONCE`."""
    with open(READ_ONCE, newline="") as file:
        listed = list(csv.DictReader(file, delimiter="\t"))
    figures = []
    for number in dict.fromkeys(entry["round"] for entry in listed):
        mine = [entry for entry in listed if entry["round"] == number]
        trouble = [entry for entry in mine if not CALM.match(entry["label"])]
        got = sum(entry["first"].startswith("found") for entry in trouble)
        warned = sum(entry["first"] == "warned" for entry in mine)
        unread = sum(entry["first"] == "not read" for entry in mine)
        figures.append(
            (number, str(len(mine)), f"{got} of {len(trouble)}", f"{warned} of {len(mine) - len(trouble)}", str(unread))
        )
    rows = [(e["round"], _linked(e["name"], e["source"]), e["label"], e["first"]) for e in listed]
    head = ("round", "excerpts", "trouble found", "others warned about", "not read")
    begin = THIRD.format(rounds=len(figures))
    listing = table(("round", "excerpt", "label", "at the first reading"), rows)
    return f"{begin}{table(head, figures)}\n\n{REMAINS}\n{listing}"


def _linked(name: str, source: str) -> str:
    """The name, with a link where the source has an address."""
    return f"[{name}]({source})" if source.startswith("http") else name


def main() -> int:
    """Print the tables and the figures, or write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", type=Path, help="a Markdown file instead of the terminal")
    options = parser.parse_args()
    score, _ = judge(options.folder)
    if not options.write:
        print(score.text(times=True))
        return int(not score.good)
    pasted, sources = judge(PASTED)
    places = "\n".join(f"- {name}: <{url}>" for name, url in sources.items())
    ends = f"## Where these shapes are from\n\n{places}\n"
    tables = f"{SECOND}{pasted.text(times=False)}\n\n{ends}\n{read_once()}\n"
    options.write.write_text(f"{HEADER}{score.text(times=True)}\n\n{tables}")
    return int(not score.good)


HEADER = """# What is found in real training logs

Generated by `python -m benchmarks.logs_findings FOLDER --write docs/log-findings.md`. The logs are public ones of other
people's trainers, with labels by hand; they are not part of this repository. Rules and detectors run together, as in
`stabwatch analyze`. `found`: labelled events with an incident of the right condition within five steps or one percent
of the run. `notes`: incidents that are information only. `s`: reading and judging, on one core of a busy machine.

The thresholds were chosen watching these logs, so other logs tell more. By hand, once: 449 files that look like
logs, from 54 public repositories, read without a look at them first; 195 of them have 20 losses or more, and some
180 of these were plotted and looked at. 25 were warned about, of which one is doubtful (two trainings that write
into one file, called a slow-down) and the others have what is said: NaN, spikes, losses that leave for good,
trainings that never learn, crashes. Of what the eye calls trouble, missed were seven of eight spikes in the first
sixty records of one log, each two to four records long, and two single records of 28 times the loss at a cadence of
a hundred steps, which are told as information. At first some fifteen of these files were read wrongly or not at
all, and spikes of four logs were missed; their shapes are tests now. So these figures are in-sample too.

A second time, much later: 37 logs with 17 losses or more out of 53 log-like files of 24
other repositories, drawn by chance. Of eight with trouble (labelled first, but for one) five were found and named
right, one was not read (its scalars are called `train_L_vae`), and two in which the validation loss ends 28 and 31 %
above its best beside a noisy training loss were missed. Of 28 healthy ones four were warned about: three whose
validation losses only scatter (`Overfitting`), one a DQN. Since then a rise counts beside the scatter of single
evaluations, and none of these is warned about.

A third time: 28 files of 21 more repositories. Of 13 logs with losses one has trouble (overfitting, found); warned
about were three healthy ones (losses of single samples with long tails, called a spike; two files of four trainings
whose step begins again with each, called a start from scratch) and a table of a genetic algorithm whose fitness was
taken for a loss. Mended since.

A fourth time: 44 files of 36 more repositories. Of 22 logs with losses four have trouble, and these were found and
named right (a loss at ln 2, one that flies off it, a learning by heart, 0.1 to 0.8 at the end); warned about were two
of 18 healthy ones, both GANs whose losses have other names (`D_A`, `loss_dis`). Not read were lists of numbers
(`RNN:[0.5, 0.6, ...]`), and two trainings that write steps and values by turns.

A fifth time, with what was mended after the fourth: 39 files of 35 more repositories. Of 17 logs with losses four have
trouble (NaN, two that stay where they began, a crash), and these were found and named right; of 13 healthy ones none
was warned about. Not read was a file of one bare number in each line; lists and such files are read since.

A sixth time, with all that: 35 files of 27 more repositories. Of four with trouble one was found (nothing is learned);
missed were a loss that has its level after ten of 173 records (told since), an accuracy of 54 validation images that
falls from 0.61 to 0.41 while the training loss falls, and five short runs near ln 2. Of 15 healthy ones one that
restarts from scratch 23 times, with spikes in some of them, was warned about.

"""

SECOND = """## Lines pasted into bug reports

Reports are shorter and in more shapes than whole logs. The files in `benchmarks/pasted` have the shapes of logs in
public reports, with other numbers; the labels were written before the first reading. At that first reading 25 of 28
events were found, 5 of 33 healthy logs were warned about (a norm that is NaN before the scaler found its scale, twice;
NaN before anything was trained; a value loss beside a reward that was not read; a loss of 0 in batches of one), and one
was not read. The table has the present state, so it is in-sample.

Another 44 excerpts that were pasted into public reports (detectors, speech, segmentation, translation, RL, GRPO,
DeepSpeed, Keras, Caffe, Megatron), each labelled before it was read: at the first reading trouble was found in 15 of
18, once at a wrong step, and 4 of 26 others were warned about (a scale search from 2^32 and one from 2^27, `Epoch
70/inf`, and noise in eight records). These four and the step are fixed, and their shapes are tests. Missed were a
value loss of 2e10 in a single record, two records of GRPO without any reward, and three overflows from a scale of
128.

"""

THIRD = """## Excerpts that were read once

Further excerpts that were pasted into public reports, in {rounds} rounds; from round 19 on also whole logs of public
repositories. Each was labelled before it was read. After a
round its kinds of mistakes were mended, then the next one was read. So the figures of a round are those of logs that
nobody had tried before. The excerpts are not kept; their shapes, with other numbers, are tests
(`test_broken_lines.py`, `test_named_trainers.py` and `test_pasted_shapes.py` in `tests/analysis/readers`, and
`test_siblings.py` and `test_few_lines.py` in `tests/analysis`).

"""

REMAINS = """When the excerpts of the first ten rounds were last read again,
trouble was found in 125 of those 137, none of
the 212 others was warned about, and 4 were not read. The kinds of mistakes that were left then have tests with
other numbers since (`tests/analysis/test_excerpt_kinds.py`): columns without names, a scale that falls from 128
to 32 while the loss doubles, one reward for all answers, an infinite perplexity, an evaluation far above
training, scores of 0 in one late evaluation or in two epochs, and an explosion in the last record or in a line
that was cut.

Of rounds 11 to 14, trouble was found in 35 of 40 when they were last read again, and none of the 71 others was warned
about. Missed are an accuracy of 0 beside a loss below ln 2, as a regression has it; one reward, the same in all
episodes, which may be the largest there is; a single record of GRPO without spread; and a warning of TRL about a
negative divergence.

Of round 15, trouble is found today in 14 of 15. Missed is a single record whose reward is -4e5. Of
round 16 it is found in 15 of 17; missed are an accuracy of chance in a single validation, and a loss that grows to
fifteen times its size from the first record to the second, where the excerpt ends (today twelve times are told). Of
round
17 it is found in 8 of 9; missed is an overlap of 1 % after a hundred epochs.

Round 18 was read once and nothing was mended after it: trouble was found in 2 of 6, none of the 20 others was warned
about. Missed are a loss scale of 0.016 in a single record and an accuracy of 0 in the first epoch, where a healthy run
of the same trainer has 0.0002 to 0.0013; not read are values in a list of arrays and CatBoost's `learn: 0.12`, which
is a loss or a score, as the user chose. Of these the scale is found today, and CatBoost is read: its
values are a loss where they fall.

Rounds 1 to 18 are mostly hard cases: single records, and curves that learn nothing. Rounds 19 to 21 took what
came: fresh excerpts of several records, whole logs of public repositories, and curves of AlgoPerf's submissions
drawn by chance. At the first reading trouble was found in 44 of 52, in 41 with the right kind and in 38 at the
right step too; 8 of the 101 others were warned about, and one log had nothing but messages. The warnings: a late
start (a loss that stands still), a first loss of 2e9, four overflows down from a scale of 128 at the start of a
log, a loss that rises and falls twice in forty steps (which may be called trouble), gradients that grow as
learning begins, a curriculum, a training loss that rises while the validation falls, and a new term of the loss.
Besides, 300 further curves of AlgoPerf were read and every warning was looked at: 37 had one, and 9 of these were
wrong, of the same kinds (six late starts, two bad first losses, and noise at the end).

After mending, trouble is found in 48 of those 52, of the right kind and at the right step in 46, and 3 of the 101
others are warned about: the four overflows, the loss that rises and falls twice, and the new term, in two of its
seven attempts. Missed are bursts and a jump in the first hundred steps, three times; a reward of 0 in all
episodes was missed too and is told today, and the restarts that were none are not told any more.

Rounds 22 to 24 took what came too: excerpts of reports, notebooks and posts, whole logs of public repositories, and
AlgoPerf's curves drawn by chance. At the first reading:

| round | logs | trouble found | of the right kind and step | healthy warned about | not read |
|---|---|---|---|---|---|
| 22 | 53 | 13 of 18 | 10 | 4 of 35 | 0 |
| 23 | 53 | 10 of 14 | 9 | 2 of 39 | 1 |
| 24 | 65 | 5 of 10 | 4 | 2 of 55 | 2 |

Three of the eight warned about were labelled healthy by mistake: their curves have the spikes that were told. The
other five were a reward with the name `avgR`, means over no object, a setting with the name `scale` above bars that
were not read, epochs of eight batches that were judged one by one, and a re-initialisation out of noise. Between the
rounds their kinds were mended. Steps were wrong where the count stands in brackets behind a time, where an epoch was
hard-wrapped, where a second training begins, and where a small rise comes just before an explosion.

After mending, trouble is found in 17 of 18, 13 of 14 and 6 of 10, none of the healthy ones is warned about but the
three that were labelled by mistake, and two logs are not read, which have no names, or `avg(utility)` (four more have
no record at all, and that is said). Missed are one validation at a loss of 1e-7 and an accuracy of 0.12, and five
curves that are two to three times as high from a cycle of the rate on, and slowly fall back, whose rate is not in the
log.

Before rounds 25 and 26 the misses of all rounds were put into classes: lines that nobody reads and curves that learn
nothing (a quarter each), records too few or too steep for the noise of all of them, rises that are slow, and messages
that were not heard. Each class got one mend that knows no trainer: columns of the most frequent kind of line where no
name is known, steps up that are judged in logarithms and by the records just before, a loss that ends above all
before it, a loss and an accuracy that stay where they began. At the first reading:

| round | logs | trouble found | of the right kind and step | healthy warned about | not read |
|---|---|---|---|---|---|
| 25 | 39 | 13 of 21 | 12 | 0 of 18 | 2 |
| 26 | 58 | 9 of 12 | 8 | 1 of 46 | 2 |

Missed in round 25: two tables of one policy whose reward falls below zero, `total: nan` beside a message that
gradients exploded, validations in columns beside those of training, one validation at 27 times the training, `Current
error: nan`, a summary of one epoch with its bests, and two losses of 1e-7 in one record; a cost in words was not read.
Missed in round 26: a box loss with the name `RpnL1`, and errors of words of 100 % and more; not read were a row of an
epoch that was still running, and values below their names. The one warned about is a warm restart whose rate is not
in the log. Round 26 has 20 curves of AlgoPerf drawn by chance, all of them healthy.

After mending, trouble is found in 18 of 21 and in 12 of 12, of the right kind and step in 18 and 11; one line of zeros
is not read, and the warm restart is still told. Of rounds 22 to 24, trouble is found today in 17 of 18, 13 of 14 and 7
of 10: a jump that falls back slowly is told now. Four of the missed are curves that are two to three times as high from
a cycle of the rate on.

One convention holds since round 27 for warm restarts whose rate is not in the log: **healthy, if the loss returns to
its best within the cycle**, however high it jumps. Looked up again, four logs of rounds 21 to 26 are of this kind
(three labelled trouble, one healthy), and all four return to less than their best: all are healthy, as the table says
now. With that, 4 of 6, 10 of 13 and 5 of 9 is what was found of rounds 21, 23 and 24 at the first reading; the
paragraphs above have the labels of their time. None of the four is told as trouble today.

Before round 27, siblings of given logs were made: 72 formats with curves of known trouble (NaN, spikes, divergence
with and without an early explosion, collapse, standing still at guessing, a scale, a reward, a divergence of the
policy) and 144 healthy ones, of 5 to 300 records, 562 in each of three sets. At the first reading trouble was found
in 280 of 418, 316 of 417 and 330 of 418 (in the first set the curves that stand still do so at no loss of guessing,
and 45 of the misses are of those), 1 of 432 healthy ones was warned about, and all were read. After mending of the
kinds: 394, 393 and 393. What the readers got from a format was right nearly always; what was missed were short,
steady descents that break off, which are judged by their own rises now, value losses and reconstruction losses, and a
cost that stands alone in its line.

Round 27 took what came from bug reports, forum pages, notebooks and files of public repositories. At the first
reading:

| round | logs | trouble found | of the right kind and step | healthy warned about | not read |
|---|---|---|---|---|---|
| 27 | 66 | 22 of 29 | 19 | 1 of 37 | 1 |

Missed: a test loss and an accuracy that are one number in all epochs (twice), parts of the loss of a detector that
are exactly 0, two accuracies at chance, a validation at ln 2 three times, two epochs at ln 10, and three records at
1.8. At another step: the first epoch of three Keras logs, which were counted in steps. The one warned about has
batches sorted by length; not read was one record as a JSON document. After mending 25 are found, 23 of the right kind
and step, none is warned about and all are read.

Round 28 was read after that, to see the gain: 16 excerpts that came, and 14 curves of AlgoPerf drawn by chance.

| round | logs | trouble found | of the right kind and step | healthy warned about | not read |
|---|---|---|---|---|---|
| 28 | 30 | 10 of 12 | 8 | 1 of 18 | 0 |

Missed: a loss that rises by a sixth in 13 records, and evaluations that are 1.4 times as high for a while. One spike
was told two records late, and of a loss on evaluations that diverges only the overfitting was told. The one warned
about is true: its steps become three times as slow, which the label, made from the losses, does not know. After
mending 10 are found, 9 of the right kind and step (of the log with a spike and a slow divergence, the spike).

Before round 29, siblings were made again: 73 further formats (detectors, speech, boosting, tables of notebooks, RL,
other languages), with other curves: NaN for a while and to the end, spikes that ebb, divergence at once, doubling and
slow, an early explosion, a step up to a flat end, a lost reward; 757 logs of 6 to 250 records. At the first reading
trouble was found in 484 of 538, in 429 of them of the right kind and at the step that was written down (a format that
prints an iteration or samples beside the epoch has another count), 3 of 219 healthy ones were warned about, all were
read. After mending, a set with another seed: 509 of 538, 469 so (486 and 429 before), 1 of 219 (a loss of a policy that
is one number, as the maker of these logs wrote it). With these curves in the 72 formats of before: 524 of 549, 511 so,
0 of 216. What is missed are steps up by a fifth and jumps in six to ten records, running means of short spikes, and
parts of a game whose total rises with them. Readers were wrong in a printed data frame, whose first column has no name,
and in the times of CatBoost.

Rounds 29 and 30 took what came from bug reports, forum pages, notebooks and files of public repositories, round 31
curves of AlgoPerf:

| round | logs | trouble found | of the right kind and step | healthy warned about | not read |
|---|---|---|---|---|---|
| 29 | 61 | 19 of 27 | 15 | 3 of 34 | 1 |
| 30 | 30 | 11 of 12 | 11 | 1 of 18 | 0 |
| 31 | 20 | 0 of 0 | 0 | 2 of 20 | 0 |

Missed in round 29: an evaluation at eight thousand times the training, perplexities of millions beside 1.01, the last
row of a table without names, a loss with the name `L_out`, a cost of 1e74 from the first line on, a discriminator that
has won in three records, and batches at ln 2; not read was a list of bare numbers below words. Three explosions were
called a spike or told a record late. The warned about: hard-wrapped lines of darknet without an object, squares that
fall to a thousandth at once, and a term of a game that is ten times as high for three epochs, which is so. After
mending 25 are found, 24 of the right kind and step, and only the last is warned about. Round 30 was read after that. It
is mostly NaN; missed was a loss at ln 2 with an accuracy below chance, and the one warned about is the loss of each
epoch's last batch. Both are put right: 12 of 12, none warned about. Round 31 is 20 curves of AlgoPerf drawn by chance,
which are all healthy; two of them were warned about, cycles of a rate that is not in the log, which come back to their
best after a quarter of the time before, as real spikes do. Their gradient norms are lower than before meanwhile, and
this tells them from spikes now: none is warned about.

Rounds 32 to 34 took what came from bug reports, a forum page and files of public repositories. The misses and false
warnings of all first readings, with those of the first two of these, are by kind: curves that learn nothing 41,
healthy logs warned about 35, rises and jumps 32, trouble in lines that nobody read 26, healthy logs that were not
read 21, NaN 15, evaluations 15, games 9, rewards 8, loss scales 3. Their list was read before anything was mended,
and the mends went to curves that learn nothing and to what a single record shows. At the first reading:

| round | logs | trouble found | of the right kind and step | healthy warned about | not read |
|---|---|---|---|---|---|
| 32 | 59 | 21 of 28 | 17 | 1 of 31 | 0 |
| 33 | 30 | 11 of 16 | 10 | 0 of 14 | 0 |
| 34 | 5 | 0 of 0 | 0 | 0 of 5 | 1 |

Missed in round 32: a loss at ln 7 (only usual numbers of classes were known), a record of GRPO over several lines,
parts of a detector that are 0 in steps, a record with a loss and a gradient of 0, a discriminator whose losses are
1e-8, Q losses of 1e19 in a table of two columns, and the first of two trials at ln 10. A loss that doubles in the
last three of eight epochs was called a spike, a fit that reaches 1e-12 too good to be true, of a loss of 0 the label
says NaN and the finding too good, and a validation that diverges was told as an evaluation apart. The one warned
about has messages `nan/inf/spiky gradient (norm=2.2)`. After mending 25 are found, 21 of the right kind and step,
none is warned about; the discriminator, the trial and the fit, which was called too good and is not told any more,
are missed.

Missed in round 33: two epochs with the same numbers, accuracies that are the same in each epoch, precision, recall
and F1 of 0 after three epochs, two high epochs after a steep descent, and an error of eight million that rises by an
eighth. One NaN has the number of a batch as its step. After mending 15 are found, none is warned about. Round 34 was
read after that, without trouble; not read was a perplexity behind an arrow (`valid_ppl -> 574`), which is read now.

Curves made for this (guessing among 2 to 200 classes, explosions, steps up, spikes and validations that explode, of 2
to 30 records, 961 logs) showed that one epoch at a hundred times the loss was no finding: an epoch is a mean, and is
judged as one now. Of guessing 257 of 279 are found (210 before), of explosions and steps up 391 of 460 (360), of
spikes 92 of 120 (50), of validations 54 of 81 (18). 1,500 healthy curves of epochs are warned about as often as
before.

Rounds 35 and 36 took whole logs of public repositories (37 and 26) beside excerpts of reports, notebooks, comments
and posts (37 and 17), round 37 only such excerpts. At the first reading:

| round | logs | trouble found | of the right kind and step | healthy warned about | not read |
|---|---|---|---|---|---|
| 35 | 74 | 20 of 30 | 18 | 0 of 44 | 4 |
| 36 | 43 | 6 of 12 | 5 | 1 of 31 | 1 |
| 37 | 14 | 2 of 4 | 1 | 0 of 10 | 1 |

Of the whole logs, trouble was found in 4 of 8 and 1 of 4, and 0 of 29 and 1 of 22 healthy ones were warned about.

Missed in round 35: three discriminators that won in few records, a fourth whose losses for real and for made samples
are 0, two records at fifty thousand times the loss (they were told as odd batches), a loss of 0 in four epochs, both
losses at seven times in the second of two epochs, outputs that are exactly 0 or 1 (a loss of 7.67 at an accuracy of
0.5), a running mean that stays, a utility whose name is in brackets, and a PSNR that falls from the first record
to the second, in a line of 58 records that was not read. Not read were also `Loss at epoch 0 and iteration 500 is
2.1`, and rows of losses without names, twice. A divergence was told 18 records late, and a NaN one. Of the calm ones,
steps were wrong where a language model writes steps in its answers, where each batch has a number of time steps, and
behind a date. After mending 27 are found, 25 of the right kind and step, all are read, and one log with jumps by warm
restarts, which its label allows to be told, is warned about. Missed are the running mean, the utility and the PSNR.

Missed in round 36: rewards that stay at -140 in two thousand episodes, a span of three hundred records at a thousand
times the loss (the curve is wild, and it was called its noise), a validation accuracy that falls in three epochs and
was not read, two epochs at ln 10 before another trial, and validations whose accuracy is 0 and whose loss rises from
the first on. A loss that goes to and fro between two levels was told as a divergence. Not read are numbers that were
printed over a progress bar. The one warned about is a table with an index, `,discriminator,Generator`, which was read
as numbers without names. A test for it showed that tables lost rows whose numbers are the widest: they were taken for
lines that a terminal broke. After mending 7 are found, all of the right kind and step, none is warned about, and the
numbers over the bar are not read.

Round 37 was read after that. Missed are an accuracy at 4 to 6 % without a loss, and one record of GRPO whose answers
are all cut off; AllenNLP's table after an epoch was not read and is now. One NaN has the batches of its epoch as its
step. In an excerpt that had been read in an earlier round and came up again, a regression with an accuracy of 0 was
warned about by a mend of round 36; that is put right, and is not in the figures.

Rounds 38 and 39 took whole logs of public repositories (28 and 7) beside excerpts of reports (32 and 19), round 40 only
such excerpts. At the first reading:

| round | logs | trouble found | of the right kind and step | healthy warned about | not read |
|---|---|---|---|---|---|
| 38 | 60 | 11 of 18 | 9 | 1 of 42 | 1 |
| 39 | 26 | 5 of 10 | 5 | 0 of 16 | 0 |
| 40 | 20 | 7 of 11 | 7 | 0 of 9 | 1 |

Missed in round 38: a lower bound of -1e25, a loss that goes from 17 to 31 and stays there, five batches that rise from
6.2 to 10, five epochs of overfitting, an accuracy of exactly 100 in each record, a `nan` without a name between bars,
and a reward of 0.016 in all of 14 records late in a training. Two are told at another step: an evaluation without one,
and a mean average precision of 0 from the first epoch on, where the label says the epoch at which it should have risen.
The one warned about is a reward that dips before it grows to hundreds of times as much. Not read was a table whose
steps have a colon. Of the calm ones, batches of a bar stood for steps, and rounds of boosting were not read. After
mending 13 are found, 11 of the right kind and step, none is warned about, and all are read.

Missed in round 39: losses that are told in prose, with an epoch in one sentence and the numbers in the next, a loss of
exactly 0 in the second of two records, twice, a last evaluation by COCO's summary whose scores are all 0, and an
accuracy of one in ten classes at epoch 9, in a table for each block of the model. After mending 8 are found, all of the
right kind and step, and none is warned about; the prose and the table are missed.

Round 40 was read after that. Missed are the AUC of a second evaluation, which falls from 0.98 to 0.46, gradients that
are 0 but for a NaN, a validation that is the margin of its triplets, and a loss that rises to eight times its first
record and stays there; not read was a line of terms such as `Lrec: 0.2` below a line of counts. After mending 10 are
found, all of the right kind and step, none is warned about, and all are read.
"""

if __name__ == "__main__":
    raise SystemExit(main())
