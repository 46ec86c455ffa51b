"""Finds the name that belongs to a number in free text."""

from __future__ import annotations

import re

from stabwatch.analysis.readers.names import EPOCH_KEYS, is_of_policy, is_perplexity, plain, role_of, step_rank

_DELIMITER = re.compile(r"[|,;\t{}\[\]()<>]|\s{2,}|(?<=[:=])\s|\s[-/—–]\s|\s--\s")
SEPARATOR = re.compile(r"['\"`*_]*\s*[:=][*`]*\s*[\[({<*`]*['\"]?$")
"""Text between a name and its number."""
_WRAPPER = re.compile(r"(?:(?:<?tf\.)?Tensor\b[^<>=]*(?:\w+=[^<>=]*)*numpy=|[\w.]*(?:[tT]ensor|Array|float\d*)\()\[*$")
"""Text that a framework prints around a number: `tensor(`, `Array(`, `np.float32(`."""
_DEVICE = re.compile(r"\bdevice='?\w+:$")
_WITH_UNIT = re.compile(r"([\w./%-]+(?: [\w./%-]+)* \([^()]{1,12}\))$")
MAIN_ROLES = ("loss", "eval_loss", "grad_norm", "learning_rate", "loss_scale")
_SETTING = re.compile(
    r"\b(?:total|max|num|episode|optimi[sz]ation|accumulation|warm-?up|save|eval|logging|log|per|val|decay|of) steps$",
    re.IGNORECASE,
)
"""A setting, not a count."""
_FILE = re.compile(r"\.(?:py|cpp|cu|cc|h|json|ya?ml|safetensors|txt|bin)$|^--")
_STATISTIC_OF = re.compile(r"(?:^|[,;|] ?)\s*([A-Z]\w*(?: [A-Za-z]\w*){0,2}):\s+(mean|avg|average)$")
_BRACKETED = re.compile(r"\[([A-Za-z_][A-Za-z_ ]{1,30})\]\s*$")
_RULE = re.compile(r"[-=*#~_]{3,}")
"""A line drawn on both sides of a title."""
_UNIT = re.compile(
    r"^(?:[KMBGT]|m?s|secs?|s/it| ?(?:it|samples|images?|img|batch|tok|tokens|steps|examples)/s(?:ec)?) (?=[A-Za-z])"
)
"""The unit of the number before: `per-step time 0.8s loss=2.5`."""
_NUMBERED = re.compile(r"\b([Ee]poch|[Ss]tep|[Ii]ter(?:ation)?) ?#(?=\s*$)")
"""`Epoch #3`."""
_ARTICLE = re.compile(r"^(?:The|the) (?=\w)")
_VERB = re.compile(r"(?:\s+so far)?\s+(?:is|was)$")
_SENTENCE = re.compile(r"^.*[a-z]{5}\. (?=[A-Za-z])")
"""A sentence before a name: `Epoch 3 finished. Training Loss: 0.5`."""
LOGGER = re.compile(r"^[\s>]*(?:INFO|WARNING|DEBUG|ERROR):[\w.-]+:")
_ELAPSED = re.compile(r"\btime[ _-]?cost$", re.IGNORECASE)
_OTHER_NORM = re.compile(r"(?:param|weight|update|activation|embed|layer|batch)\w*$", re.IGNORECASE)
"""The word before `norm` of a norm that is not the gradient's: `grad/param norm`."""
_IDENTIFIER = re.compile(r"[A-Za-z]\w*[_/.]\w+")
_OF_A_SPLIT = re.compile(r"(?:train|val|valid|test)[_/]", re.IGNORECASE)
_LOSS_OF = re.compile(r"loss (?:of|for|on|in) (?!step\b|iter|epoch\b|batch\b)", re.IGNORECASE)
"""`Loss of the value function`, `loss on the test set`."""
_KL_BETWEEN = re.compile(r"KL (?:divergence )?between (?!step)", re.IGNORECASE)
"""`KL between old and new distribution`."""
_FITTED = frozenset(("mse", "rmse", "mae", "logloss", "bce", "elbo", "auc", "acc", "accuracy"))
"""What is fitted and what it scores, in a line such as `step 200 lr 0.001 logloss 0.19`."""
_LONGEST_NAME = 48
_CLOCK = re.compile(r"T\d\d(?::\d\d)?|(?:.*\s)?pid")
"""Text before the numbers of `2024-05-01T12:00:00Z` and `(Worker pid=12345)`."""
_MARK = re.compile(r"[^\w#%]+")
"""What is left of the text before a name: `(phase 1). loss`."""
_LEVELS = frozenset(("INFO", "WARNING", "DEBUG", "INFO:", "root:INFO"))


def _in_brackets(text: str) -> str | None:
    """The name of `[Loss] 2.5 | [step] 10` and `[loss]: 2.5`, if it is known."""
    found = _BRACKETED.search(text)
    known = found and (
        step_rank(found[1]) is not None or role_of(found[1]) in MAIN_ROLES or plain(found[1]) in EPOCH_KEYS
    )
    return found[1] if found and known else None


_FUNCTION = re.compile(r"(?:^|[\s,;|])([DG]\([a-z](?:\([a-z]\))?\)|D\(G\(z\)\))$")
"""`D(x)` and `D(G(z))`, the output of a discriminator for real and made samples."""


def key_of(text: str) -> str | None:
    """The name that belongs to a number, from the text between it and the number before."""
    text = _RULE.sub("  ", _NUMBERED.sub(r"\1", _UNIT.sub("", text)))
    text = LOGGER.sub("", _WRAPPER.sub("", text))
    if _DEVICE.search(text):
        return None
    found = SEPARATOR.search(text)
    if found:
        output = _FUNCTION.search(text[: found.start()])
        if output:
            return output[1]
        told = _STATISTIC_OF.search(text[: found.start()])
        if told:
            return f"{told[1].strip()}/{told[2]}"  # `Reward: mean=3.06`
        return _in_brackets(text[: found.start()]) or _name(text[: found.start()])
    text = _VERB.sub("", text)
    stripped = text.strip()
    if stripped.endswith("|") and stripped.count("|") == 2:  # a cell of a table
        return _name(stripped.strip("|"))
    bracketed = _in_brackets(text)
    if bracketed:
        return bracketed
    words = _DELIMITER.split(text.rstrip(" [({<*`'\""))[-1].split()
    if stripped.endswith(("[", "(")) and not (words and _may_open(words[-1], stripped[-1])):
        return None
    if text.startswith("it ["):
        return None  # the count of a bar without a total is before it
    words = [word.strip("*`") for word in words]
    if _is_other_norm(words):
        return " ".join(words[-2:])
    for count in (3, 2, 1):
        name = " ".join(words[-count:]) if len(words) >= count else ""
        if name and (step_rank(name) is not None or plain(name) in EPOCH_KEYS or role_of(name) in MAIN_ROLES):
            bare = name.lstrip("#- ")
            return bare or (name if text.strip() == name else None)
    last = words[-1] if words else ""
    if len(words) == 1 and is_of_policy(last):
        return last  # `| reward 1.5`
    known = role_of(last) == "component" or is_of_policy(last) or _OF_A_SPLIT.match(last) is not None
    if is_perplexity(last) or last.lower() in _FITTED or (_IDENTIFIER.fullmatch(last) and known):
        return last
    return None


def _is_other_norm(words: list[str]) -> bool:
    return len(words) > 1 and words[-1].lower() == "norm" and _OTHER_NORM.search(words[-2]) is not None


def _may_open(word: str, bracket: str) -> bool:
    """Whether a bracket after a word holds its number: `epoch [3`, `step (3`, `loss [0.5`."""
    if plain(word) in EPOCH_KEYS or (bracket == "[" and step_rank(word) is not None):
        return True
    return role_of(word) in ("loss", "eval_loss", "grad_norm")


def _name(text: str) -> str | None:
    text = _SENTENCE.sub("", _ARTICLE.sub("", text.strip().strip("'\"").lstrip("-%. ")))
    text = _VERB.sub("", text)
    if text.endswith(")") and (unit := _WITH_UNIT.search(text)):
        text = unit[1]
        words = text.rsplit(" (", 1)[0].split()
        name = " ".join(words[-4:]) + " (" + text.rsplit(" (", 1)[1]
    else:
        words = [w for w in _DELIMITER.split(text)[-1].split() if w not in _LEVELS]
        words = words[1:] if len(words) > 1 and _MARK.fullmatch(words[0]) else words
        name = " ".join(words)
        if (_LOSS_OF.match(name) or _KL_BETWEEN.match(name)) and len(name) <= _LONGEST_NAME:
            return name
        if _ELAPSED.search(name):
            return name
        if _is_other_norm(words):
            return " ".join(words[-2:])
        if len(words) <= 3 and role_of(name) == "component" and not _FILE.search(name):
            return name.strip("'\"`*> ")
        if (
            role_of(" ".join(words[-2:])) == "other"
            and role_of(words[-1] if words else "") == "loss"
            and len(words) > 1
        ):
            return " ".join(words[-3:]).strip("'\"`*> ")  # `entropy loss`, `best loss`
        for count in range(min(len(words), 4), 0, -1):
            last = " ".join(words[-count:])
            if role_of(last) not in ("other", "component") or step_rank(last) is not None or plain(last) in EPOCH_KEYS:
                name = last
                if _SETTING.search(" ".join(words)):
                    name = " ".join(words[-3:])
                break
        else:
            name = " ".join(words[-3:])
    name = re.sub(r"^- ", "", name.strip("'\"`*> "))
    if _FILE.search(name) or _CLOCK.fullmatch(name):
        return None
    return name if 0 < len(name) <= _LONGEST_NAME and re.search(r"[^\W\d_]", name) else None
