"""Lines of free text in the form `name: value`, where trainers and people write them otherwise."""

from __future__ import annotations

import re

from stabwatch.analysis.readers.names import number

_RESTORED = re.compile(r"Restoring model weights from the end of the best epoch: \d+\.?")
"""Keras, behind the bar that it ends."""
_TWO_COLUMNS = re.compile(
    r"\s{0,8}([A-Za-z][\w.-]{0,40}/[\w/.() -]{0,60}?)\s{2,}([-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|nan|inf))\s*", re.IGNORECASE
)
"""`trainer/QF1 Loss      0.53`, a row of two columns."""
_REMARK = re.compile(r"\s+(?:<-{1,3}|<={1,3}|←)\s.*$", re.DOTALL)
"""What somebody wrote behind a line when it was pasted: `loss 9.1  <-- spike (step 4)`."""
_VALUE_FIRST = re.compile(r"\s*\d+ (?:[\d.]+ [A-Za-z][\w ]*, )*(?:\d+\.\d+(?:e[+-]?\d+)?|-?nan|inf) loss,")
_FIELD = re.compile(r"(?<![\w.])(-?\d+\.\d+(?:e[+-]?\d+)?|-?nan|-?inf) ([A-Za-z][A-Za-z /]*)(?=,|$)")
"""tinygrad's `7 4.32 s run, 11.875 loss, 0.001 LR`."""
_OBJECTIVE = re.compile(
    r"objective function for '([\w-]+)' for minibatches \d+-(\d+) is (-?[\d.]+(?:e[+-]?\d+)?|-?nan|-?inf)\b"
)
"""Kaldi's nnet3. It is maximised."""
_AVERAGE_OBJECTIVE = re.compile(r"\b((?:average|current batch) )objf: (-?[\d.]+(?:e[+-]?\d+)?|-?nan|-?inf)\b")
"""The same in Kaldi's Python."""
_YOLO = re.compile(r"\s*all\s+\d+\s+\d+" + r"\s+(\d\S*|nan)" * 4 + r"(?:\s+(?:\d\S*|nan))*\s*")
"""The scores of all classes, as the YOLO trainers print them under `Class Images Instances P R mAP50 mAP50-95`."""
SCORES = ("val/precision", "val/recall", "val/mAP50", "val/mAP50_95")
"""Their names."""
_COCO = re.compile(
    r"\s*Average (?:Precision|Recall)\s+\((A[PR])\) @\[ ?IoU=([\d.]+)(:[\d.]+)?\s*\|\s*area=\s*(\w+)\s*\|"
    r"\s*maxDets=\s*\d+\s*\] ?= (-?\d\S*|nan)\s*"
)
"""A line of COCO's evaluation."""
_NUMBERS = r"[-+\d.einaf]+(?:, [-+\d.einaf]+){0,63}"
_OF_ALL = re.compile(r"\bProcess (?=\d+/\d+ )")
"""The word before its batches."""
_COUNTED_VALUE = re.compile(
    r"^(\W{0,8})([A-Za-z][\w ]{1,40}?) (?:in|at|for|of|after) (episode|epoch|iteration|step) (\d+)"
    r"(?:,? (?:and )?(?:at |in )?(batch|iteration|iter|step) (\d+))? (?:is|was) (?=[-\d.ni])",
    re.IGNORECASE,
)
"""`Total rewards in episode 73 is 3.8`, `Loss at epoch 3 and iteration 500 is 0.2`."""
_VALUE_AT = re.compile(
    r"^((?:.{0,60}[:\]|>] )?\W{0,8})((?:[A-Za-z][\w-]* ){0,4}?(?:loss|cost|error|acc(?:uracy)?|reward|return|score"
    r"|objective|perplexity|ppl|elbo|m[sa]e|rmse|energy)) (?:in|at|for|of|on|after|@) (?:the )?"
    r"(episode|epoch|iteration|iter|step) *#?(\d+)(?: ?/ ?\d+| of \d+)?\)? *(?::|=|->| -) *(?=[-\d.ni])",
    re.IGNORECASE,
)
"""The same with a colon: `Cost after iteration 100: 0.69`, `Average loss at step  2000 :  4.7`."""
_GLUED = re.compile(r"(?<!\w)(?:(loss)_(?=-?\d+\.\d+(?:\s|,|$))|(step|iter|epoch)_(?=\d{1,12}[:,]\s))")
"""WaveGlow's `step_78540:\tloss_-4.065`."""
_TOLD_AT = re.compile(r" (?:in|at|for|of|on|after|@) (?:the )?(?:ep|it|st)", re.IGNORECASE)
_PAIRS = re.compile(
    r"\s*((?:[A-Za-z][\w /-]{0,30}, ?[-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|nan|inf)(?:, ?|\s*$)){2,12})", re.IGNORECASE
)
_PAIR = re.compile(r"([A-Za-z][\w /-]*), ?([-+\w.]+)")
"""Names and values in cells of their own: `epoch,3,loss,0.5`."""
_BY_CLASS = re.compile(
    r"\b((?:[A-Za-z]\w* ){0,4}(?:dice|iou|accuracy|f1|precision|recall)) ?[:=]? ?"
    r"\[((?:[\d.]+|nan|np\.float\d+\([\d.nan]+\)|[\s,]){1,4000})\]",
    re.IGNORECASE,
)
"""A score of each class: `Pseudo dice [0.91, 0.87]`."""
_DEEPXDE = re.compile(rf"^\s*(\d{{1,9}}) +\[({_NUMBERS})\] +\[({_NUMBERS})\] +\[(?:{_NUMBERS})?\]\s*$", re.IGNORECASE)
"""DeepXDE's step, the terms of its training and its test loss, and its metrics."""
_TOGETHER = re.compile(r"([A-Za-z][\w ]{0,60}?) \((\w+(?:, ?\w+){1,4})\): ?\(([^()]+)\)")
"""`train loss (min, avg, max): (0.1, nan, 2.5)`."""
_YOLACT = re.compile(r"^\[\s*(\d+)\]\s+(\d+) \|\|((?: [A-Z]: \S+ \|)+) T: (\S+) \|\|")
"""YOLACT's `[ 13]  1950 || B: 2.1 | C: 3.1 | T: 5.2 || ETA: ...`: parts of the loss by their letters, and the total."""
_OF_DL4J = re.compile(r"^.*\bScore at iteration (\d+) is (\S+)\s*$")
"""Deeplearning4j's score is the loss."""
_OF_BATCHES = re.compile(r" (?:of|over|for|on|in|from) \d+ (?:batches|samples|examples|images|sentences)(?=\s*[:=])")
"""`Mean test loss of 258 batches: 0.79`."""
_TRAX = re.compile(r"^Step +(\d+): (train|eval) +(\w+) \| +(-?[\d.]+(?:e[+-]?\d+)?|-?nan|-?inf)\s*$", re.IGNORECASE)
_OF_TFLEARN = re.compile(r" -- iter: *\d+/\d+\s*$")
"""The samples of an epoch, after the values of a step that is told on the line before."""
_BAR_ENDS = re.compile(r"(?<=it/s\]|s/it\])(?=\[)")
_ESCAPED = re.compile(r"\\{1,2}(?=[\[\]_*|<>()#+.!=-])|\\{1,2}$")
"""Backslashes of Markdown, before its signs and at the end of a line."""
_ARROW = re.compile(r"(?<=[A-Za-z_]) -> (?=[-+]?(?:\d|\.\d|nan|inf))", re.IGNORECASE)
"""XLM's `valid_en_mlm_ppl -> 7.2`; not from one number to another."""
_OF_BUCKET = re.compile(r"\bbucket (\d{1,3}) perplexity (?=[\d.ni])")
"""Evaluations of TensorFlow's `translate`: `eval: bucket 0 perplexity 6.22`."""
_CTIME = re.compile(
    r"^\[?(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} +\d{1,2} \d\d:\d\d:\d\d (?:[A-Z]{3,4} )?\d{4}\]?:? +"
    r"\[(\d{1,12})\] "
)
"""A time as C prints it, before a count in brackets: `Mon May  4 10:20:30 2020 [12] loss: 0.5`."""
_COMMENTED = re.compile(r"^\s*#+(?=Epoch \d|epoch \d|Step \d|step \d)")
"""A record in a comment of a script: `#Epoch 1/10`."""
_ALLENNLP = re.compile(r"\ballennlp[\w.]* - ([A-Za-z][\w/.-]{0,60}) *\| *(\S+) *\| *(\S+)\s*$")
"""A row of AllenNLP's table after an epoch: a name, and its value in training and in validation."""
_SAID = re.compile(
    r"\s{0,8}((?:[A-Za-z]\w* ){0,3}(?:rewards?|return|loss))(?: \([^()]{1,40}\))? (-?\d+\.\d+|nan|-?inf)\s*"
)
"""A name and its value with a blank between, alone in a line: `mean reward (100 episodes) -19.5`."""
_TIMESTEP = re.compile(r"\s{0,8}(?:[Tt]ime_?[Ss]tep|time step) (\d{1,12})\s*")
"""The line above them."""
_STAMPS = re.compile(r"(?<=\s)(?=\[?\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d:\d\d)")
"""A time, before which another record begins, in a log that lost its line breaks."""


_LABEL = re.compile(r"[A-Za-z][\w./ -]{1,30}[:=] ?(?=[-+\d.])")
ALONE = 80
"""Longest line of one value."""
GLUED, OFTEN = 400, 8
"""Fewest characters of a line, and fewest times that it begins with the same name, from which each is a record."""


def _glued(text: str) -> list[str]:
    """The records of a line without any line break: `PSNR: 19.2 dB===> PSNR: 13.6 dB===> ...`."""
    name = _LABEL.search(text)
    times = 0 if name is None else text.count(name[0])
    if name is None or times < OFTEN or 2 * times < len(_LABEL.findall(text)):
        return [text]
    return [name[0] + part for part in text[name.start() :].split(name[0])[1:]]


def parts_of(text: str) -> list[str]:
    """The records of a line: of several bars behind one another, or in a log that lost its line breaks."""
    if len(text) > GLUED and len(parts := _glued(text)) > 1:
        return parts
    if "#015" in text:
        return [part for part in text.replace("#033[A", "").split("#015") if part.strip()]
    ends = _BAR_ENDS if "][" in text else _STAMPS if text.count("loss") > 1 else None
    return [text] if ends is None else ends.split(text)


def rewritten(text: str) -> str:
    """The line in the usual form; the same object if it is in that form already."""
    if "<" in text or "←" in text:
        text = _without_remark(text)
    if text.lstrip()[:1] == "#":
        text = _COMMENTED.sub("", text)
    if len(text) < ALONE:
        text = _said(text)
    if " | " in text and "allennlp" in text and (row := _ALLENNLP.search(text)):
        return f"training_{row[1]}: {row[2]}, validation_{row[1]}: {row[3]}"
    if "est epoch: " in text:
        text = _RESTORED.sub("", text)
    if "/" in text[:48] and text.count("  ") and (row := _TWO_COLUMNS.fullmatch(text)):
        return f"{row[1]}: {row[2]}"
    if "\\" in text:
        text = _ESCAPED.sub("", text)
    if "] " in text and text[:1] in "[MTWFS":
        text = _CTIME.sub(r"step \1: ", text)
    if " loss," in text and _VALUE_FIRST.match(text):
        step, _, rest = text.strip().partition(" ")
        return f"step {step} " + _FIELD.sub(r"\2: \1", rest)
    scores = _YOLO.fullmatch(text) if "all " in text[:40] else None
    if scores:
        return ", ".join(f"{name}: {value}" for name, value in zip(SCORES, scores.groups(), strict=True))
    if "IoU=" in text and (coco := _COCO.fullmatch(text)):
        at = "" if coco[3] else f"_{round(100 * float(coco[2]))}"
        return f"val/{coco[1]}{at}{'' if coco[4] == 'all' else f'/{coco[4]}'}: {coco[5]}"
    if " -> " in text:
        text = _ARROW.sub(": ", text)
    if "bucket " in text:
        text = _OF_BUCKET.sub(r"bucket_\1 perplexity: ", text)
    if " is " in text or " was " in text:
        text = _OF_DL4J.sub(r"iteration \1 loss: \2", text)
        text = _COUNTED_VALUE.sub(_counted, text)
    if "loss_" in text:
        text = _GLUED.sub(lambda found: f"{found[1] or found[2]}: ", text)
    if _TOLD_AT.search(text):
        text = _VALUE_AT.sub(r"\1\3 \4 \2: ", text)
    if "]" in text:
        text = _of_lists(text)
    elif text.count(",") > 2 and (pairs := _PAIRS.fullmatch(text)):
        text = _PAIR.sub(r"\1: \2", pairs[1])
    if " -- iter:" in text:
        text = _OF_TFLEARN.sub("", text)
    if "es:" in text or "es =" in text:
        text = _OF_BATCHES.sub("", text)
    told = _TRAX.match(text) if text.startswith("Step ") and " | " in text else None
    if told:
        return f"step {told[1]}, {told[2]}/{told[3]}: {told[4]}"
    if "): (" in text or "):(" in text:
        text = _TOGETHER.sub(_apart, text)
    parts = _YOLACT.match(text) if " || " in text and " T: " in text else None
    if parts:
        losses = parts[3].replace(": ", "_loss: ").replace("|", ",")
        return f"epoch {parts[1]}, iteration {parts[2]},{losses} total_loss: {parts[4]}"
    found = _OBJECTIVE.search(text) if "objective function" in text else None
    if found:
        value = found[3][1:] if found[3].startswith("-") else f"-{found[3]}"
        return f"iteration {found[2]} {found[1]}/negative_objective = {value}"
    return _AVERAGE_OBJECTIVE.sub(_negated, _OF_ALL.sub("batch ", text)) if " objf: " in text else text


def _said(text: str) -> str:
    """A line of a name and its value, as another line has them."""
    if step := _TIMESTEP.fullmatch(text):
        return f"step: {step[1]}"
    found = _SAID.fullmatch(text)
    return text if found is None else f"{found[1]}: {found[2]}"


def _counted(found: re.Match[str]) -> str:
    """The count, or the epoch and the count within it, before the value."""
    within = f", {found[5]} {found[6]}," if found[5] else ""
    return f"{found[1]}{found[3]} {found[4]}{within} {found[2]}: "


def _of_lists(text: str) -> str:
    """Lists as one number: the mean of the scores of all classes, and the sum of the terms of a loss."""
    terms = _DEEPXDE.match(text) if "]  " in text or "] [" in text else None
    if terms:
        return f"step {terms[1]}, train loss: {_sum(terms[2])}, test loss: {_sum(terms[3])}"
    return _BY_CLASS.sub(_mean, text)


def _sum(terms: str) -> float:
    return sum(number(term) or 0.0 for term in terms.split(","))


def _mean(found: re.Match[str]) -> str:
    told = [number(cell) for cell in found[2].split(",")]
    known = [value for value in told if value is not None and value == value]
    return f"{found[1]}: {sum(known) / len(known):g}" if known else found[0]


def _apart(found: re.Match[str]) -> str:
    """`loss (min, avg): (0.1, 2.5)` as `loss/min: 0.1, loss/avg: 2.5`."""
    names, values = found[2].split(","), found[3].split(",")
    if len(names) != len(values):
        return found[0]
    return ", ".join(f"{found[1]}/{n.strip()}: {v.strip()}" for n, v in zip(names, values, strict=True))


def _negated(found: re.Match[str]) -> str:
    """`average objf: -2.5` as `negative objective: 2.5`; that of the current batch is a part."""
    name = "negative_objective" if found[1] == "average " else "batch_negative_objective"
    return f"{name}: {found[2][1:] if found[2].startswith('-') else '-' + found[2]}"


def _without_remark(text: str) -> str:
    shorter = _REMARK.sub("", text)
    return text if len(shorter) == len(text) else shorter
