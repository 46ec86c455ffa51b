"""Parses a line of free text into keys and numbers. Lines that differ only in their numbers are parsed once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from stabwatch.analysis.readers.keys import LOGGER, MAIN_ROLES, SEPARATOR, key_of
from stabwatch.analysis.readers.log import Role
from stabwatch.analysis.readers.names import (
    ENVIRONMENT,
    EPOCH_KEYS,
    NUMBER,
    STEP_KEYS,
    factor,
    is_error,
    is_eval,
    is_of_policy,
    is_perplexity,
    is_score,
    number,
    plain,
    role_of,
    step_rank,
)

_SPLIT = re.compile(f"({NUMBER.pattern})", NUMBER.flags)
_TENSOR = re.compile(r",? ?\b(?:dtype=[\w.]+|device=['\w]+:?'?|grad_fn=<\w+>|requires_grad=\w+)")
_CODE = re.compile(
    r"\b(?:def|self|import|return|class|assert|elif|lambda|torch|nn|parser|args)\b[ .(]|[^=\[]==[^=>]|\+=|\(\*\*\w|//\s"
    r"|\{[\w.()/ -]+: [defg]\}|\bimproved? from\b|\bNCCL INFO\b|^\s*Averaged stats:"
)
_WIDE = str.maketrans("：，；（）［］｜＝％　", ":,;()[]|=% ")
"""Punctuation of full width."""
_POWER = re.compile(r"[\w)]\*\*$")
"""Source code, `x**2`; after a number, `**` ends bold text."""
_SETTINGS = re.compile(
    r"\b(?:config\w*|Namespace|hyp(?:er)?_?-?param\w*|arguments|args)\b[^{(=]{0,40}(?:= *)?(?:[{(]|: *\w+=)"
)
"""The configuration of a run in one line."""
_SWITCHES = re.compile(r"\b\w+=(?:True|False|None)\b")
_MANY_SWITCHES = 4
"""Settings that are no numbers, from which a line is the configuration of a run."""
_ASSIGNS = re.compile(r"\s{4,}[A-Za-z_]\w* =")
"""An indented assignment: source code at the start of a log."""
_EVAL_LINE = re.compile(
    r"\b(valid|validate|validation|validating|eval|evaluation|evaluating|test|testing|dev)\b(?!/)|(?:iter|poch)\(val\)"
)
_SECTION = re.compile(
    r"\b(?:(train(?:ing)?)|val(?:id(?:ation)?)?|test(?:ing)?|eval(?:uat(?:e|ion|ing))?|dev|cv)\b"
    r"(?:=\w+\s|\s*(?:[:|\])>]|=>)+\s*(?=[A-Za-z*'\"{(\[])|\s+(?:Batch|Epoch|Step|Iter(?:ation)?)\b)",
    re.IGNORECASE,
)
"""A label for the values after it: `val: loss 0.5`."""
_BAR = re.compile(r"(%\|[^|]*\||^Z?|\n|[|\]:)]|\bprogress)\s*$")
_BESIDE = re.compile(r"\s*[,;|-]\s*")
_TRAINS = re.compile(r"epoch|train|step|iter|batch|update|\bep\b|fit|progress|round", re.IGNORECASE)
_PREPARES = re.compile(
    r"load|map\b|token|filter|fetch|download|shard|dataset|captur|sanity|prompt|files|caching|example|saving|compil|rollout",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[A-Za-z]{2}[^|]*$")
_NEXT = re.compile(r"[\]:)]*\s*[\[(]\s*")
"""Text between an epoch and the count within it."""
_LAST = float(len(STEP_KEYS))
_BATCH, _STEP = step_rank("batch"), step_rank("step")
_ITER = float(step_rank("iter") or 0)
_UNNAMED = (step_rank("s") or 0) + 0.5
"""Rank of `[50/1000]`: above batches, whose size is printed as well."""
_CLOSES = re.compile(r"[^()\[\]:=|]{0,16}\)\s*[:=]\s*$")
"""The end of a name with a number in it: `Reward (100 ep): 22.6`."""
_DURATION = re.compile(r"\s?(?:s|ms|sec|secs|seconds|min|hours)\b(?!:)")
_MODE = re.compile(r"(?<=Iter|poch)\((?:train|val|test)\)")
"""mmengine's `Epoch(train) [1][50/200]`."""
_LLMC = re.compile(r"\bt[re]l:")
_COUNTED = re.compile(r"\s*(epoch|batch|iteration|iter|step|update)s?\s*[,|]", re.IGNORECASE)
_LETTERS = re.compile(r"[A-Za-z](?!poch|atch|ter|tep)[A-Za-z]*\s*$")
"""A name behind its count, as in `0 epoch, 152 batch, loss`; and text before it that has a name."""
_GLUED = re.compile(r"(?<![\w./-])(iteration|iter|step|epoch)(?=\d{1,12}(?:[,:;|\])/]|$))", re.IGNORECASE)
"""A count without a blank before it: `iteration100, loss`."""


@dataclass(frozen=True)
class Template:
    """Meaning of the numbers of a line. values: index, key, factor. epoch, step: indices of numbers."""

    values: tuple[tuple[int, str, float], ...]
    step: int | None
    epoch: int | None
    of_epoch: bool
    """Whether the step counts within the epoch."""
    evaluates: bool
    """Whether the line is of an evaluation, whose count is not a step."""
    tells: bool
    """Whether such lines may be part of a training log."""
    odd: bool
    """Whether it may be a remark, a row of a table, or numbers without names. Then each line is inspected."""
    unnamed: bool = False
    """Whether the step is an unnamed number at the start of the line."""
    rounded: bool = False
    """Whether the printed step is rounded, as in `10K`."""
    of_environment: bool = False
    """Whether the step counts samples, such as episodes, not updates."""
    total: int | None = None
    """Index of M in `N/M`, whose N is the step."""
    length: int | None = None
    """Index of M in `N/M` for any step, also one within the epoch."""
    of_training: bool = False
    """Whether a value says how a training goes."""
    beside: bool = False
    """Whether it has only quantities that belong to the record of other lines, such as a reward."""
    texts: tuple[str, ...] = ()
    """Texts between the numbers."""

    def of_evaluation(self, numbers: list[str], before: int) -> Template:
        """The template of an evaluation, if a full bar of another length follows that of one epoch, as in Keras."""
        step = count(numbers, self.step)
        if not self.of_epoch or self.evaluates or self.epoch is not None or step in (None, before):
            return self
        if step != count(numbers, self.length):
            return self
        values = tuple((at, key if is_eval(key) else f"eval/{key}", times) for at, key, times in self.values)
        return replace(self, values=values, evaluates=True)

    def is_only_epoch(self, numbers: list[str]) -> bool:
        """Whether the line has the epoch as `1/1`."""
        at = self.epoch
        return at is not None and numbers[at : at + 2] == ["1", "1"] and self.texts[at + 1].strip() == "/"

    def fill(self, numbers: list[str]) -> dict[str, float]:
        """Values by key, the first of each; values that were not measured are left out."""
        out: dict[str, float] = {}
        for at, key, times in self.values:
            if key in out:
                continue
            try:
                out[key] = float(numbers[at]) * times
            except ValueError:
                value = number(numbers[at])
                if value is not None:
                    out[key] = value * times
        return out


class Templates:
    """The templates of parsed lines."""

    _MOST = 20_000

    def __init__(self, odd: Callable[[str], bool] = lambda line: False, leading: bool = False) -> None:
        """odd: whether a line may have more than keys and numbers. leading: numbers at line starts count records."""
        self._known: dict[tuple[str, ...], Template] = {}
        self._odd, self._leading = odd, leading

    def of(self, line: str) -> tuple[Template, list[str]] | None:
        """The template of a line, and its numbers; None without a number."""
        if not line.isascii():
            line = line.translate(_WIDE)
        parts = _SPLIT.split(_GLUED.sub(r"\1 ", line))
        if len(parts) < 3:
            return None
        texts = tuple(map(str.rstrip, parts[0::2]))
        template = self._known.get(texts)
        if template is None:
            if len(self._known) >= self._MOST:
                self._known.clear()
            template = self._known[texts] = _understand(texts, parts[1::2], self._odd(line), self._leading)
        return template, parts[1::2]

    def correct(self, template: Template, corrected: Template) -> None:
        """Replace a template whose lines turned out to be something else."""
        self._known = {key: corrected if known is template else known for key, known in self._known.items()}


def is_code(line: str) -> bool:
    """Whether a line looks like source code or a configuration."""
    return _CODE.search(line) is not None or _SETTINGS.search(line) is not None


def numbers_of(line: str) -> list[str]:
    """The numbers of a line, as they are written."""
    return _SPLIT.split(line)[1::2]


def count(numbers: list[str], at: int | None) -> int | None:
    """The number at an index as an integer; None without an index."""
    value = None if at is None else number(numbers[at])
    return int(value) if value is not None and abs(value) < 1 << 62 else None


def _understand(texts: tuple[str, ...], numbers: list[str], odd: bool, leading: bool) -> Template:
    nothing = Template((), None, None, of_epoch=False, evaluates=False, tells=False, odd=odd)
    whole = _TENSOR.sub("", LOGGER.sub("", " ".join(texts)))
    if len(texts) > 400 or _CODE.search(whole) or _SETTINGS.search(whole) or _ASSIGNS.fullmatch(texts[0]):
        return nothing
    if whole.count("=") > 2 * _MANY_SWITCHES and len(_SWITCHES.findall(whole)) >= _MANY_SWITCHES:
        return nothing
    if any(map(_POWER.search, texts[:-1])):
        return nothing
    evaluates = bool(_EVAL_LINE.search(whole.lower())) and not any(w in whole.lower() for w in ("train", "learn:"))
    printed, texts = texts, tuple(_MODE.sub(" ", LOGGER.sub("", text)) for text in texts)
    values: list[tuple[int, str, float]] = []
    roles: list[Role] = []
    steps: list[tuple[float, int]] = []
    epoch = within = None
    other_bar: object = None
    rounded, section = False, evaluates
    for i, text in enumerate(texts[:-1]):
        after = texts[i + 1]
        section = _section(text, section)
        if after.startswith("%|"):  # the progress of a bar
            label = " ".join(texts[: i + 1])
            other_bar = (
                "examples/s" in whole or _PREPARES.search(label) or (_LABEL.search(label) and not _TRAINS.search(label))
            )
            continue
        if i == 0 and leading and _begins(text, after):
            steps.append((_UNNAMED, i))
            continue
        place, place_rank = _fraction(texts, i) if after.strip() == "/" else ("", 0.0)
        if place == "step":
            steps.append((place_rank, i))
            continue
        if place and epoch is None:
            epoch, within = (i, within) if place == "epoch" else (i - 1, i)
            values = [value for value in values if value[0] != epoch]
            continue
        if "logging_writer.py" in " ".join(texts[: i + 1]) and text.endswith("] [") and after.startswith("]"):
            steps.append((_LAST, i))  # Flax's and AlgoPerf's `[100] loss=2.5`
            continue
        key = key_of(text)
        if i and texts[i - 1].rstrip().endswith("(") and _CLOSES.fullmatch(text):
            key = key_of(f"{texts[i - 1].rstrip()[:-1].rstrip()}: ")
        if key is None and (named := _COUNTED.match(after)) and not _LETTERS.search(text.rpartition("]")[2]):
            if plain(named[1]) == "epoch":
                epoch = i if epoch is None else epoch
            else:
                steps.append((step_rank(named[1]) or 0, i))
            continue
        if key is None:
            beside = epoch is not None and i == epoch + 1 and after.strip() == "/" and _BESIDE.fullmatch(text)
            if (
                beside
                or (text == "%" and after.strip() == "/" and "".join(texts[i + 2 : i + 3]).strip() == "[")
                or (after.strip() == "/" and within is None and _BAR.search(text) and not _date(texts, i))
                or (
                    epoch is not None
                    and (i == epoch + 1 or (i == epoch + 2 and texts[i - 1].strip() == after.strip() == "/"))
                    and _NEXT.fullmatch(text)
                    and (text.rstrip().endswith("[") or after.strip() == "/")
                    and after.strip()[:1] not in ("-", "%")  # a date, a share
                )
            ):
                within = i
            continue
        rank = step_rank(key)
        if rank is not None and i and numbers[i - 1].lower() == "nan" and texts[i - 1].endswith(" of"):
            values.append((i, "number of nan iterations", 1.0))  # its `nan` was parsed as a number
            roles.append("nan_steps")
            continue
        if rank is not None and re.match(r"[KMB]\b", after):
            rounded = True  # the step of such a record is estimated from those before
            continue
        whole_number = (number(numbers[i]) or 0.0) % 1 == 0
        meter = "." in numbers[i] and after.lstrip().startswith("(")  # `Batch 0.818 (3.887)`: seconds
        timed = after[:1] in ("s", "m") and _DURATION.match(after)  # `Step: 52ms` of a bar
        if rank is not None and timed and plain(key) != "s":
            values.append((i, f"{key} time", 1.0))
            roles.append("other")
        elif rank is not None and not meter and whole_number and _is_count(key, text, whole):
            steps.append((rank, i))
        elif plain(key) in EPOCH_KEYS:
            epoch = i if epoch is None and not _DURATION.match(after) else epoch
        else:
            role = role_of(key)
            if role in ("loss", "eval_loss") and i + 1 < len(numbers) and _is_before(text, after, numbers[i : i + 2]):
                steps.append((_UNNAMED, i))  # `Train loss 100 2.5`
                values.append((i + 1, key, 1.0))
                roles.append(role)
                continue
            if role == "loss" and _DURATION.match(after):  # `Cost 7.2 sec`
                key, role = f"{key} time", "other"
            if section and not is_eval(key):
                key, role = f"eval/{key}", "eval_loss" if role == "loss" else "other"
            values.append((i, key, factor(after, role, key)))
            roles.append(role)
    if {"D", "G"} <= {key for _, key, _ in values}:
        values = [(at, f"{key}_loss" if key in ("D", "G") else key, times) for at, key, times in values]
        roles = [role_of(key) for _, key, _ in values]
    if evaluates and _also_trains(values):
        values = [(at, key.removeprefix("eval/"), times) for at, key, times in values]
        roles, evaluates, section = [role_of(key) for _, key, _ in values], False, False
    if plain(texts[0]) in ("iteration", "iter") and not steps:
        steps.append((0, 0))
    if other_bar and not any(role in MAIN_ROLES for role in roles):
        return nothing
    if not any(role in ("loss", "component", "eval_loss") for role in roles):  # `batch = 64` is a size
        steps = [(rank, i) for rank, i in steps if rank != _BATCH or texts[i + 1].lstrip()[:1] in ("/", "]")]
    rank_of_step, step = min(steps, default=(0.0, within))
    if step is not None and rank_of_step == _STEP and (_ITER, step - 1) in steps:
        rank_of_step, step = _ITER, step - 1  # `iter 7 | step 2`: several records of one step
    if not values and step is None and epoch is None:
        return nothing
    alone = not any(role != "other" for role in roles) and step is None and epoch is None
    tells = not alone or any(is_of_policy(key) or is_score(key) for _, key, _ in values) or _is_score(values, whole)
    tells = tells or any((is_error(k) or is_perplexity(k)) and not numbers[at].isdigit() for at, k, _ in values)
    followed = step is not None and step + 1 < len(numbers) and texts[step + 1].strip() == "/"
    within_epoch = step is not None and (step == within or (followed and rank_of_step == _BATCH))
    total = step + 1 if step is not None and followed else None
    return Template(
        tuple(values), step, epoch, within_epoch, (evaluates or section) and bool(values), tells, odd,
        unnamed=bool(steps) and rank_of_step == _UNNAMED, rounded=rounded,
        of_environment=bool(steps) and ENVIRONMENT <= rank_of_step < _LAST,
        total=total if steps else None, length=total, of_training=any(role != "other" for role in roles), beside=alone,
        texts=printed,
    )  # fmt: skip


def _also_trains(values: list[tuple[int, str, float]]) -> bool:
    """Whether a line has a loss with and without a word for the evaluation: `Loss: 0.4, Valid Loss: 0.5`."""
    own = [key for _, key, _ in values if is_eval(key) and not key.startswith("eval/")]
    named = {re.sub(r"^(?:valid(?:ation)?|val|test|eval|dev)[ _/-]?", "", plain(key)) for key in own}
    return any(key.startswith("eval/") and plain(key[5:]) in named for _, key, _ in values)


def _is_score(values: list[tuple[int, str, float]], whole: str) -> bool:
    """Whether a line is a score and nothing else: `score: [[-1231.5]]`."""
    return len(values) == 1 and re.fullmatch(r"scores?\W*", whole.strip(), re.IGNORECASE) is not None


def _section(text: str, before: bool) -> bool:
    """Whether the values after a text are of an evaluation."""
    found = list(_SECTION.finditer(text))
    return found[-1][1] is None if found else before


def _begins(text: str, after: str) -> bool:
    """Whether the first number of a line is marked as its count: `[10] loss`, `10 | loss`, `#10: loss`."""
    before, rest = text.strip(), after.lstrip()
    if before in ("[", "(", "[#"):
        return rest.startswith((")", "]"))
    if after[:1] in ("-", "/"):
        return False  # a date
    return before in ("", "#", "|") and (
        rest[:1] in ("|", ":", ")", ".") or (rest == after and bool(rest)) or after[:1].isspace()
    )


def _is_before(text: str, after: str, numbers: list[str]) -> bool:
    """Whether the first of two numbers after a name is a count, and the second the value."""
    whole, value = numbers
    return not SEPARATOR.search(text) and after.strip() in ("", ":") and whole.isdigit() and not value.isdigit()


def _is_count(key: str, text: str, whole: str) -> bool:
    """Whether a key of few letters is a count: `s:10 trl:2.5` and `it 10` are, seconds and `2 it/s` are not."""
    if plain(key) == "s":
        return text in ("s:", "s=") or (text.endswith(("s:", " s=")) and bool(_LLMC.search(whole)))
    return True


def _date(texts: tuple[str, ...], i: int) -> bool:
    """Whether number i begins a date, `2023/05/01` or `05/01 12:00:00`, and not `3/100`."""
    after = [text.strip() for text in texts[i + 2 : i + 5]]
    return after[:1] == ["/"] or after == ["", ":", ":"]


def _fraction(texts: tuple[str, ...], i: int) -> tuple[str, float]:
    """What `[N/M]` counts, where N is number i: 'step' and its rank, 'epoch', 'within' the epoch before it, or ''."""
    before = texts[i].rstrip(" [(")
    if before == texts[i].rstrip():
        return ("step", _LAST) if re.search(r"\bi\s?=$", before) else ("", 0.0)
    word = re.search(r"([A-Za-z]+)\W*$", before)
    rank = step_rank(word[1]) if word else None
    if rank is not None:
        return "step", rank
    closed = "".join(texts[i + 2 : i + 3]).lstrip()
    if not before and i and re.search(r"\btrain:$", texts[i - 1], re.IGNORECASE):
        return "within", 0.0  # `Train: 1 [50/600]`
    if not before and closed.startswith("]"):
        again = _NEXT.match(closed) and "".join(texts[i + 3 : i + 4]).strip() == "/"  # `[1/25][300/3183]`
        return ("epoch", 0.0) if again else ("step", _UNNAMED)
    if word is None or plain(word[1]) != "train":
        return "", 0.0
    if _NEXT.match(closed) and "".join(texts[i + 3 : i + 4]).strip() == "/":  # `Train: [1/300][20/600]`
        return "epoch", 0.0
    return "", 0.0
