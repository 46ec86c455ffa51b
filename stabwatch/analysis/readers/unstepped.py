"""Records of a text without steps: whether epochs number them, and which lines are records."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from stabwatch.analysis.readers.names import is_of_policy, is_score, role_of
from stabwatch.analysis.readers.run_builder import RunBuilder
from stabwatch.analysis.readers.templates import Template, Templates

Unstepped = tuple[int, int | None, dict[str, float]]
"""Line, epoch, values."""

_TELL = ("loss", "eval_loss", "grad_norm")
_RISES = 0.8
"""Share of pairs of lines in which the count at their start rises."""
_LEADING = re.compile(r"\s*[\[(#|]{0,2}\s*(\d{1,9})(?![\d.,/%-])(?=[\])|:]|\s)")
_ALONE = re.compile(r"\s*\d{1,9}: -?\d+\.\d+(?:e[+-]?\d+)?\s*", re.IGNORECASE)
"""`1200: 2.5`."""
_METRIC = re.compile(
    r"\b(?:l[12]|rmse|mse|mae|logloss|error|auc|elbo|nll|reward|return|ppl|learn(?=:))\b", re.IGNORECASE
)
_INSTRUCTIONS = 30
"""Most steps of instructions in prose."""
_INSTRUCTS = re.compile(r"[*_]{0,2}[:.)][*_]{0,2}(?:\s+[^\W\d_][\w'-]*){3}")


def instructs(template: Template, step: int) -> bool:
    """Whether a line without values is prose, as a language model writes it: `Step 2: Divide both sides`."""
    at = template.step
    if at is None or template.epoch is not None or step > _INSTRUCTIONS:
        return False
    return template.texts[at].strip(" *_#-").lower() == "step" and _INSTRUCTS.match(template.texts[at + 1]) is not None


def add_to(builder: RunBuilder, records: list[Unstepped]) -> str:
    """Add records without steps: epochs count if they number them, otherwise the records do. Returns a note."""
    records = without_copies(records)
    epochs = by_epoch(records)
    if epochs:
        records = _with_first_epoch(in_blocks(records))
    else:
        records = without_settings(in_turn(records))
        records = [record for record in records if not all(map(_is_beside, record[2]))] or records
    builder.unit = "epoch" if epochs else "ordinal"
    begun, before = 0, 0
    for at, (line, epoch, values) in enumerate(records):
        if epoch is None:
            if epochs:
                continue  # settings, above the first epoch
        else:
            begun = at if epoch < 2 <= before - epoch else begun  # another training
            before = epoch
        builder.add(epoch if epochs and epoch is not None else at - begun, line, values)
    return "It has no step: " + ("epochs count." if epochs else "records are numbered, and their lines are given.")


def add_before(builder: RunBuilder, records: list[Unstepped]) -> bool:
    """Add the record whose step was cut off above the first of two others with its keys. Returns whether it did."""
    steps, line = builder.first_steps, builder.first_line
    keys = [key for _, _, values in records for key in values]
    if len(steps) != 2 or not keys or set(keys) != builder.keys or len(set(keys)) < len(keys):
        return False
    if records[-1][0] >= line or not 0 < steps[1] - steps[0] <= steps[0]:
        return False
    builder.add_first(
        2 * steps[0] - steps[1], records[0][0], {k: v for _, _, values in records for k, v in values.items()}
    )
    return True


def left_out(records: list[Unstepped], keys: set[str]) -> list[str]:
    """A note on records without a step in a log with steps. Losses of other names are settings."""
    many = sum(values.keys() <= keys and any(role_of(key) == "loss" for key in values) for _, _, values in records)
    what = "1 record is" if many == 1 else f"{many} records are"
    return [f"{what} left out, because no step is printed above."] if many else []


def _is_beside(key: str) -> bool:
    return role_of(key) == "other" and (is_of_policy(key) or is_score(key))


def by_epoch(records: list[Unstepped]) -> bool:
    """Whether epochs number the records: nearly all have one, and few keys repeat within one epoch.

    The lines of an only epoch are one record if no key repeats.
    """
    records = records[1:] if len(records) > 2 and records[0][1] is None else records
    epochs = [epoch for _, epoch, _ in records if epoch is not None]
    if 5 * len(epochs) < 4 * len(records) or not epochs:
        return False
    if len(set(epochs)) < 2:
        times = Counter(key for _, _, values in records for key in values)
        return max(times.values(), default=0) == 1
    last: int | None = None
    seen, again, count = set[str](), 0, 0
    for _, epoch, values in records:
        if epoch != last:
            last, seen = epoch, set()
        told = {key for key in values if role_of(key) != "other"}
        again += len(seen & told)
        count += len(told)
        seen |= told
    return again <= 0.2 * count


def without_copies(records: list[Unstepped]) -> list[Unstepped]:
    """Records without those that are equal to the one before, if all hosts print each record of an epoch."""
    copies = [i for i, (a, b) in enumerate(pairwise(records), 1) if a[1] is not None and a[1:] == b[1:]]
    if 2 * len(copies) < len(records) - 1:
        return records
    skipped = set(copies)
    return [record for i, record in enumerate(records) if i not in skipped]


def in_turn(records: list[Unstepped]) -> list[Unstepped]:
    """Records of which the lines of a block are one: lines without a gap, until a key comes again."""
    out: list[Unstepped] = []
    last = -2
    for line, epoch, values in records:
        if out and line - last <= 1 and out[-1][1] == epoch and not out[-1][2].keys() & values.keys():
            out[-1] = (out[-1][0], epoch, {**out[-1][2], **values})
        else:
            out.append((line, epoch, values))
        last = line
    return out


def in_blocks(records: list[Unstepped]) -> list[Unstepped]:
    """Records whose epoch is printed below some of its values: the values above the first epoch, if they come again
    above each later one, belong to the epoch that follows."""
    first = next((i for i, (_, epoch, _) in enumerate(records) if epoch is not None), 0)
    above = {key for _, _, values in records[:first] for key in values}
    times = Counter(key for _, _, values in records for key in values)
    epochs = list(dict.fromkeys(epoch for _, epoch, _ in records if epoch is not None))
    above = {key for key in above if times[key] == len(epochs)}
    if len(epochs) == 1 and any(role_of(key) == "eval_loss" for key in above):
        return [(line, epochs[0] if values.keys() <= above else epoch, values) for line, epoch, values in records]
    if not above or len(epochs) < 2:
        return records
    following = dict(pairwise([None, *epochs, epochs[-1] + 1]))
    return [
        (line, following.get(epoch, epoch) if values.keys() <= above else epoch, values)
        for line, epoch, values in records
    ]


def _with_first_epoch(records: list[Unstepped]) -> list[Unstepped]:
    """Records of which the first has no epoch, but the keys of the second: an excerpt began between the two lines."""
    if len(records) < 2 or records[0][1] is not None or records[0][2].keys() != records[1][2].keys():
        return records
    second = records[1][1]
    return records if not second else [(records[0][0], second - 1, records[0][2]), *records[1:]]


def without_settings(records: list[Unstepped]) -> list[Unstepped]:
    """Records with a key that occurs again. Values that are printed once are not records; a loss after such is one."""
    times = Counter(key for _, _, values in records for key in values)
    again = [any(times[key] > 1 for key in values) for _, _, values in records]
    first = again.index(True) if any(again) else -1  # without any, the losses of one record
    told = [i > first and any(role_of(key) in _TELL for key in values) for i, (_, _, values) in enumerate(records)]
    return [r for r, more, loss in zip(records, again, told, strict=True) if more or loss] or records


def counts_records(head: str) -> bool:
    """Whether the numbers at the start of lines with a loss rise from line to line. Steps rise; ranks do not."""
    lines = head.splitlines()
    found = [_LEADING.match(x) for x in lines if "loss" in x.lower() or _METRIC.search(x) or _ALONE.fullmatch(x)]
    numbers = [int(match[1]) for match in found if match]
    if len(numbers) < 2 or 2 * len(numbers) < len(found):
        return False
    steps = list(pairwise(numbers))
    distinct = len(set(numbers)) >= _RISES * len(numbers)
    return distinct and sum(a < b for a, b in steps) >= _RISES * len(steps)


def values_are_above(head: str) -> bool:
    """Whether steps are printed below the values that belong to them."""
    return _lines_alternate(head) or _blocks_end_with_step(head)


def _lines_alternate(head: str) -> bool:
    """Whether the lines at the beginning of a log alternate: a loss without a step, then a step without a loss.

    So are lines that were broken in two. Complete lines may stand between them.
    """
    templates, pairs, whole, open_ = Templates(), 0, 0, False
    for line in head.splitlines():
        found = templates.of(line)
        if found is None or not found[0].tells:
            continue
        counts, loses = found[0].step is not None, _has_loss(found[0])
        if (open_ and (loses or not counts)) or not (open_ or loses):
            return False
        pairs, whole = pairs + open_, whole + (counts and loses)
        open_ = loses and not counts
        if open_ and found[0].epoch is not None:
            return False
    return pairs > 1 or (pairs == 1 and whole > 0)


def _blocks_end_with_step(head: str) -> bool:
    """Whether blocks of lines end with their step: the first two have the same keys, and none above has a step."""
    templates, blocks = Templates(), [list[str]()]
    for line in head.splitlines():
        found = templates.of(line)
        if found is None or not found[0].tells:
            continue
        keys = [key for _, key, _ in found[0].values]
        if found[0].step is None and found[0].epoch is None:
            blocks[-1] += keys
        elif keys or found[0].epoch is not None:
            return False
        else:
            blocks.append([])
    return len(blocks) > 2 and len(blocks[0]) > 2 and blocks[0] == blocks[1]


def _has_loss(template: Template) -> bool:
    return any(role_of(key) in ("loss", "component") for _, key, _ in template.values)
