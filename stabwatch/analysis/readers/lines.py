"""Parses free text of any trainer line by line; see `templates.py` for keys and numbers."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

from stabwatch.analysis.readers import epoch_rows, messages
from stabwatch.analysis.readers.cell_tables import CellTables
from stabwatch.analysis.readers.epoch_ends import EpochEnds
from stabwatch.analysis.readers.fractions import Fractions
from stabwatch.analysis.readers.lines_above import HEADING, LinesAbove
from stabwatch.analysis.readers.nameless import Row, cells_of, columns_of, is_odd, lone_tensor, nameless
from stabwatch.analysis.readers.names import EPOCH_KEYS, is_eval, number, plain, role_of
from stabwatch.analysis.readers.ranks import split_rank
from stabwatch.analysis.readers.rewriting import parts_of, rewritten
from stabwatch.analysis.readers.row_counts import RowCounts
from stabwatch.analysis.readers.run_builder import RunBuilder
from stabwatch.analysis.readers.templates import Template, Templates, count
from stabwatch.analysis.readers.unread import Unread
from stabwatch.analysis.readers.unstepped import (
    Unstepped,
    add_before,
    add_to,
    counts_records,
    instructs,
    left_out,
)
from stabwatch.analysis.readers.unstepped import values_are_above as steps_are_below

_EPOCH_BATCHES = re.compile(r"(\d+)epoch:train:\d+-(\d+)batch:")
_EPOCH_TOLD = re.compile(r"(\d+)(?:epoch results: |/\d+epoch started)")
_MOST_UNSTEPPED, _MOST_BARE = 400_000, 1_000_000
"""Most records without a step, which are numbered at the end of the file; further ones are not read."""
_MANY = 4
"""Ratio of records without a step to records with one, from which the step is spurious."""
_PASSED = 3
"""Epochs through which the step went on, from which one that falls is of another training."""
_TOLD = 3
"""Lines with a step that say how a training goes, from which the steps of others must fit them."""
_NEAR = 200
"""A line without a step belongs to the last step if it is within this many lines of its first."""


class Parser:
    """The state between lines."""

    def __init__(self, head: str = "") -> None:
        """head: the first lines, which show whether numbers at the start of lines count records."""
        self.builder = RunBuilder()
        self.unread = Unread()
        self._leading = counts_records(head)
        self.templates = Templates(is_odd, self._leading)
        self.rank: int | None = None
        self.epoch: int | None = None
        self.unstepped: list[Unstepped] = []
        self.repeated: list[Unstepped] = []
        """Records without a step, near a step that already has all their keys."""
        self._fractions = Fractions()
        self._updates = False
        """Whether a step that counts updates was found."""
        self.bare: list[tuple[int, int, float]] = []
        self.columns: list[Row] = []
        self.tables = CellTables(self._named)
        self.rows = epoch_rows.EpochRows()
        self._above_line = LinesAbove()
        self._raw = -1
        self._offset = 0
        self._passed = 0  # epochs that began while the step went on, which counts through them
        self._with_values, self._apart = -1, 1
        self._at = -_NEAR
        self._keys: set[str] = set()
        self._epoch_of_step: int | None = None
        self.others = 0
        self.latest: Template | None = None  # see `line_runs.Parser`
        self._step_estimated = False
        self._told = 0  # lines with a step that say how a training goes
        self._calls = 0
        """Calls of one epoch each, if nothing else tells the epoch."""
        self._evaluation = False
        """Whether the last heading was of an evaluation."""
        self._remarked = -1  # the last line that is a remark
        self._length: int | None = None  # steps of an epoch, if the log says how many there are
        self._ends = EpochEnds()
        self._whole = True
        """Whether no epoch had a fraction. With fractional epochs, steps count over all epochs."""
        self._above = steps_are_below(head)
        self._row_counts = RowCounts()
        self._pending: dict[str, float] = {}
        """Values whose step follows."""
        self._pending_at = -1

    def take(self, line: int, text: str) -> None:
        """One line, or the parts of a line in which something follows a progress bar at once."""
        self.latest = None
        for at, whole in self._above_line.take(line, text):
            usual = rewritten(whole)
            read = [self._understands(at, part) for part in parts_of(usual)]
            self.latest = self.latest if usual is text else None
            if any(read):
                self.unread.understood(any(map(str.isdigit, whole)))
            else:
                self.skip(whole.encode("utf-8", "replace"))

    def skip(self, raw: bytes) -> None:
        """One line that is not worth parsing."""
        self.unread.miss(raw)

    def _understands(self, line: int, text: str) -> bool:
        self.latest = None
        self.tables.close_before(line, text)
        row = self.rows.row(text) if "/" in text[:16] else None
        if row is not None:
            if row[1]:
                self.builder.unit = "epoch"
                self._step(line, row[0], False, row[1])
            return True
        number_of_rank, text = split_rank(text, self._leading)
        found = self.templates.of(text)
        if (found is None or found[0].odd) and self._special(line, text, number_of_rank):
            return True
        if self.tables.header and self.tables.row(line, text):
            return True
        if found is None or not found[0].tells:
            return self._remarked == line or (found is None and (self.rows.header(text) or self._heading(text)))
        template, numbers = found
        plain = (template.values or template.of_epoch) and template.step is not None and not template.odd
        if number_of_rank is not None and template.values and self._other_rank(number_of_rank):
            return True
        self.latest = template if plain and not self.tables.header else None
        if "[Rank 0] step=" in text or "RunningAvgSamplesPerSec=" in text:
            template = self._of_deepspeed(template, numbers)
        self._record(line, template, numbers)
        return True

    def _heading(self, text: str) -> bool:
        """Whether the line says only what follows: `Training:` or `Validation:`."""
        found = HEADING.fullmatch(text)
        if found:
            self._evaluation = found[1] is None
        return found is not None

    def _of_deepspeed(self, template: Template, numbers: list[str]) -> Template:
        """DeepSpeed counts optimizer steps. If the script counts batches, DeepSpeed's lines belong to its record."""
        behind = (count(numbers, template.step) or 0) < self._raw and any(role_of(key) == "loss" for key in self._keys)
        return replace(template, step=None, epoch=None) if behind else template

    def _special(self, line: int, text: str, rank: int | None) -> bool:
        if self._remarks(line, text, rank) or self._odd(line, text):
            return True
        before = self.tables.header
        if not self.tables.take(line, text):
            return False
        if self.tables.header is not before:
            self.rows.header(text)
        return True

    def _other_rank(self, rank: int) -> bool:
        self.rank = rank if self.rank is None else self.rank
        self.others += rank != self.rank
        return rank != self.rank

    def _record(self, line: int, template: Template, numbers: list[str]) -> None:
        template = self._pair(template, numbers)
        if self._raw == self._length and self.epoch == self._epoch_of_step and self.epoch is not None:
            template = template.of_evaluation(numbers, self._raw)
        values = template.fill(numbers)
        if values.get("count") == 0:  # darknet's means over no object at all
            values = {key: value for key, value in values.items() if not math.isnan(value)}
        if template.step is not None or template.epoch is not None:
            self._evaluation = False
        elif self._evaluation and not template.evaluates:
            values = {key if is_eval(key) else f"eval/{key}": value for key, value in values.items()}
        epoch, step = count(numbers, template.epoch), count(numbers, template.step)
        if step is not None and (self._strays(template, step) or (not values and instructs(template, step))):
            return
        if template.is_only_epoch(numbers):
            epoch = self._only_epoch()
        elif epoch is not None:
            self._calls = 0
        if self._above and step is None and epoch is None and not template.evaluates:
            self._pending_at = self._pending_at if self._pending else line
            self._pending |= values
            return
        if step is not None and self._pending:
            line, values, self._pending = self._pending_at, {**self._pending, **values}, {}
        if epoch is not None:
            self.epoch = epoch
            self._whole = self._whole and not (number(numbers[template.epoch or 0]) or 0.0) % 1
        if step is not None and self._is_no_step(line, template, numbers):
            step = None
        own = step is not None and step < self._raw and self.epoch is not None and self.epoch == self._epoch_of_step
        if step is not None and template.evaluates and self._raw >= 0 and (own or template.of_epoch):
            self.builder.add(self._offset + self._raw, line, values)
        elif step is not None:
            if values or not template.of_epoch or step >= self._raw:  # otherwise the progress bar of an evaluation
                self._updates = self._updates or not template.of_environment
                self._ends.at_end = template.of_epoch and step == count(numbers, template.length)
                self._step(line, step, template.of_epoch, values)
        elif values:
            self._without_step(line, template, values)
        length = count(numbers, template.length)
        self._length = self._length if length is None else length
        told = any(role_of(key) != "other" for key in values)  # not only the time that is left
        ends = template.of_epoch and step == length
        if step is None and self._ends.at_end and line - self._at <= _NEAR:
            step, ends = self._raw, True  # the record of a bar goes on below
        if told and step is not None and not template.evaluates:
            self._ends.add(step, self._offset + step, self.epoch, ends=ends, told=epoch is not None)

    def _strays(self, template: Template, step: int) -> bool:
        """Whether the step of a line that tells nothing is far from those of lines that do: it is in prose, or of
        something else."""
        if template.of_training:
            self._told += 1
            return False
        nearby = self._raw <= step <= self._raw + 2 * max(self._apart, 1)
        return self._told >= _TOLD and not (nearby or template.evaluates or template.of_epoch)

    def _only_epoch(self) -> int:
        """The epoch of `Epoch 1/1`: the one told above, as in `epoch: 7`; otherwise such calls are counted."""
        if self.epoch is None or self._calls:
            self._calls += 1
            return self._calls
        return self.epoch

    def _is_no_step(self, line: int, template: Template, numbers: list[str]) -> bool:
        """Whether the step of a line counts something else: episodes within a step, or seconds in brackets."""
        if template.unnamed:
            return not numbers[template.step or 0].isdigit()
        return template.of_environment and self._updates and line - self._at <= _NEAR

    def _without_step(self, line: int, template: Template, values: dict[str, float]) -> None:
        if template.beside and self._raw >= 0 and (line - self._at > _NEAR or self._keys & values.keys()):
            return
        ended = template.epoch is not None and self._whole and self._with_values < 0 <= self._raw == self._length
        if self._raw >= 0 and line - self._at <= _NEAR and not ended:
            if not self._keys & values.keys():
                self._keys |= values.keys()
                self._with_values = self._raw if self._ends.at_end else self._with_values
                self.builder.add(self._offset + self._raw, line, values)
            elif self._remarked != line and self.builder.turns_nan(values):  # a summary, whose NaN is told
                self.builder.add(self._offset + self._raw, line, values, new=True)
            elif template.rounded or (template.epoch is not None and not self._whole):
                # the next record, whose step was rounded, or was missing in the bar before it
                self._step(line, self._raw + self._apart, template.of_epoch, values)
                self._step_estimated = True
            elif len(self.repeated) < _MOST_UNSTEPPED:
                self.repeated.append((line, self.epoch, values))
        elif (self._raw < 0 or ended) and len(self.unstepped) < _MOST_UNSTEPPED:
            self.unstepped.append((line, self.epoch, values))

    def _pair(self, template: Template, numbers: list[str]) -> Template:
        """`Batch 3/4000` is batch 3 of 4,000, or batch 4,000 of epoch 3 if the second number changes."""
        before = self._fractions.before(template, numbers)
        if before is None:
            return template
        pair = replace(template, epoch=template.step, step=template.total, of_epoch=True, total=None, length=None)
        self._length = None  # it was the batch
        self.templates.correct(template, pair)
        if self._raw == before[0]:
            self._raw = self._with_values = before[1] or 0
            self.epoch = self._epoch_of_step = before[0]
            self.builder.last_step_was(self._raw)
        return pair

    def _step(self, line: int, step: int, of_epoch: bool, values: dict[str, float], new: bool = False) -> None:
        began = self._epoch_of_step
        began = -1 if began is None and (of_epoch or (self.epoch or 0) > 1) and self._with_values >= 0 else began
        later = self._whole and self.epoch is not None and began is not None and self.epoch > began
        if self._whole and of_epoch and step == self._raw and None not in (self.epoch, self._epoch_of_step):
            later = self.epoch != began  # the only record of another epoch, also where training begins again
        of_bar = of_epoch and self.epoch is None and self._raw == self._length
        ended = of_bar and (step < self._raw or (step == self._raw and self._ends.is_another(values)))
        self._passed += later and step > self._raw
        if ended or (later and step <= self._raw and self._passed < _PASSED):
            known = self._length is not None and self._length >= self._raw
            counted = self._raw + (self._apart if step == 0 else 0)  # the count restarts with each epoch
            self._offset += self._length or 0 if known else counted
        elif step < self._raw and not of_epoch and self._offset:
            self._offset = 0
        if values and step - self._with_values > 0:
            self._apart = step - self._with_values
        if values:
            self._with_values = step
            self._ends.draw(values, self.epoch)
        if values or not self._step_estimated or step != self._raw:
            again = step == self._raw and self._epoch_of_step == self.epoch and not new
            self._keys = set(values) | (self._keys if again else set())
        self._step_estimated = False
        self._raw, self._at, self._epoch_of_step = step, line, self.epoch
        if values:
            self.builder.add(self._offset + step, line, values, new=new)

    def _remarks(self, line: int, text: str, rank: int | None) -> bool:
        found = messages.kind_of(text)
        if found is None:
            return False
        kind, value = found
        if kind == "overflow" and rank is not None and self._other_rank(rank):
            return True  # all ranks have one scale
        step = self._offset + self._raw if self._at == line else None  # that of the progress bar on the same line
        self.builder.remark(kind, line, text.strip(), value, step)
        self._remarked = line
        return kind == "overflow" and "loss" not in text.replace("loss scale", "").replace("loss_scale", "")

    def _odd(self, line: int, text: str) -> bool:
        """Formats whose numbers have no names, or whose epoch is printed before its name."""
        told = _EPOCH_TOLD.search(text) if "epoch " in text else None
        if told:
            rest = self.templates.of(text[told.end() :])
            values = {} if rest is None or "started" in told[0] else rest[0].fill(rest[1])
            if self._raw >= 0:
                self.builder.add(self._offset + self._raw, line, values)
            elif values:
                self.unstepped.append((line, int(told[1]), values))
            return True
        found = _EPOCH_BATCHES.search(text) if "epoch:train" in text else None
        if found:
            self.epoch = int(found[1])
            rest = self.templates.of(text[found.end() :])
            if rest is not None:
                self._step(line, int(found[2]), True, rest[0].fill(rest[1]))
            return True
        value = lone_tensor(text) if "tensor(" in text else None
        if value is not None and len(self.bare) < _MOST_BARE:
            self.bare.append((line, len(self.bare), value))
            return True
        record = nameless(text)
        if record is None:
            return self._in_columns(line, text)
        if record.name and "/" in record.name and not self._raw <= record.step <= self._raw + _NEAR * self._apart >= 0:
            return False
        if record.name:
            self._step(line, record.step, False, {record.name: record.value})
        elif len(self.bare) < _MOST_BARE:
            self.bare.append((line, record.step, record.value))
        return True

    def _in_columns(self, line: int, text: str) -> bool:
        """Whether the line is a row of columns without names."""
        row = None if self.tables.header or len(self.columns) >= _MOST_UNSTEPPED else cells_of(text)
        if row is not None:
            self.columns.append((line, row))
        return row is not None

    def _named(self, line: int, row: dict[str, float]) -> None:
        key, row = self._row_counts.of(row, self._raw >= 0)
        epoch = next((int(row[k]) for k in row if plain(k) in (*EPOCH_KEYS, "e") and abs(row[k]) < 1 << 62), None)
        if key is not None and abs(row[key]) < 1 << 62:
            self._row_counts.counts(key)
            self._raw = -1  # steps are rounded in such tables, so an equal step is another record
            self._step(line, int(row.pop(key)), False, row, new=True)
        elif self._raw >= 0 and line - self._at <= _NEAR and epoch is None and not self._keys & row.keys():
            self._keys |= row.keys()
            self.builder.add(self._offset + self._raw, line, row)
        else:
            epoch = self.epoch if epoch is None else epoch
            self.unstepped.append((line, epoch, {k: v for k, v in row.items() if plain(k) not in (*EPOCH_KEYS, "e")}))

    def end(self) -> list[str]:
        """Number records without any step, or use the epoch. Returns notes."""
        if self._above_line.parts:
            self.take(-1, "")
        self.tables.close(-1)
        notes = []
        rises = sum(a[1] < b[1] for a, b in pairwise(self.bare))
        if len(self.bare) > 2 * (len(self.builder) + len(self.unstepped)) and 5 * (rises + 1) >= 4 * len(self.bare):
            notes.append("Its numbers have no names: one in each line is taken for the loss.")
            if all(step == at for at, (_, step, _) in enumerate(self.bare)):
                self.builder.unit = "ordinal"
            for line, step, value in self.bare:
                self._step(line, step, False, {"loss": value})
        if len(self.columns) > 2 * (len(self.builder) + len(self.unstepped)) and (rows := columns_of(self.columns)):
            notes.append("Its columns have no names, so none is taken for the loss: only NaN shows.")
            for line, step, values in rows:
                self._step(line, step, False, values)
        if len(self.unstepped) == _MOST_UNSTEPPED or len(self.bare) == _MOST_BARE:
            notes.append("There are too many records without a step: the later ones are left out.")
        if self.others:
            what = "line" if self.others == 1 else "lines"
            notes.append(f"Of ranks other than {self.rank}, {self.others} {what} left out.")
        notes += self._end_repeated()
        ends = self._ends.epochs()
        if len(set(ends.values())) == len(ends) > 1 and self.builder.renumber(ends):
            self.builder.unit = "epoch"
            notes.append("One record per epoch: epochs count.")
        if add_before(self.builder, self.unstepped):
            return [
                *notes,
                "Its first record has no step: it is placed as far before the second as the third is behind.",
            ]
        if len(self.builder) < 3 and len(self.unstepped) > len(self.builder):
            return [*notes, add_to(self.builder, self.unstepped)]
        return notes + left_out(self.unstepped, self.builder.keys)

    def _end_repeated(self) -> list[str]:
        """Records that repeat the keys of a step: numbered if they are nearly the whole log, otherwise left out."""
        if len(self.repeated) > _MANY * len(self.builder):
            remarks = self.builder.remarks
            self.builder = RunBuilder()
            self.builder.remarks = remarks
            self.unstepped += self.repeated
            return []
        if not self.repeated:
            return []
        what = "record without a separate step is" if len(self.repeated) == 1 else "records without a separate step are"
        return [f"{len(self.repeated)} {what} left out."]
