"""The next-token distributions in a record of a generation, as OpenAI, vLLM, SGLang, TGI, llama.cpp and others say it.

A step is one generated token: the tokens that were listed for it with their log-probabilities, or the scores of the
whole vocabulary. A trace is a list of steps. Where it is in a record is not fixed: it is searched below the keys that
servers and libraries use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Step = Mapping[str, float] | Array
"""Probabilities: by token, of those that were listed; or of the whole vocabulary."""

GENERATED = (
    "content", "top_logprobs", "logprobs", "output_top_logprobs", "top_tokens", "completion_probabilities", "scores",
    "logits",
)  # fmt: skip
"""Keys below which a trace of generated tokens may be, in the order in which they are tried."""
PROMPT = ("prompt_logprobs", "prompt_top_logprobs", "input_top_logprobs")
WHOLE = ("scores", "logits")
"""Keys whose lists of numbers are scores of the whole vocabulary."""
_NAMES = ("id", "token_id", "token", "text", "tok_str", "decoded_token")
_ALTERNATIVES = ("top_logprobs", "probs", "top_probs")
_TOLERANCE = 1e-3
"""How far above 0 rounding may put a log-probability."""
_DEEPEST = 12


class NoTraceError(ValueError):
    """Why a record has no trace that can be used."""


def traces_of(record: Any) -> list[list[Step | None]]:
    """All traces in a record: those of generated tokens, else those of the prompt. None: a step that is not known.

    Raises NoTraceError with the reason in words.
    """
    found = list(_walk(record, "logprobs", GENERATED, _DEEPEST)) or list(_walk(record, "", PROMPT, _DEEPEST))
    if not found:
        raise NoTraceError("it has no log-probabilities of several tokens per step")
    return found


def _walk(x: Any, key: str, keys: Sequence[str], depth: int) -> Iterator[list[Step | None]]:
    """x: the value of `key`; the search ends where a trace is found."""
    if depth == 0 or not isinstance(x, dict | list):
        return
    if isinstance(x, list) and key in keys and (traces := _as_traces(x, key)):
        yield from traces
        return
    if isinstance(x, list):
        for item in x:
            yield from _walk(item, "", keys, depth - 1)
        return
    other = GENERATED + PROMPT
    named = [k for k in keys if k in x]
    for k in named:
        mine = list(_walk(x[k], k, keys, depth - 1))
        if mine:
            yield from mine
            return
    for k, value in x.items():
        if k not in other:
            yield from _walk(value, k, keys, depth - 1)


def _as_traces(x: list[Any], key: str) -> list[list[Step | None]]:
    """The traces that a list holds; empty if its items are no steps."""
    whole = key in WHOLE
    if whole and all(isinstance(item, list) and item and isinstance(item[0], list) for item in x):
        samples = min(map(len, x))  # (step, sample, vocabulary)
        return [[_step(item[i], whole) for item in x] for i in range(samples)]
    steps = [None if item is None else _step(item, whole) for item in x]
    return [steps] if any(step is not None for step in steps) else []


def _step(x: Any, whole: bool) -> Step | None:
    """One step; None if this is none, or if its numbers are not known."""
    if isinstance(x, dict):
        listed = next((x[k] for k in _ALTERNATIVES if isinstance(x.get(k), list)), None)
        if listed is not None:
            return _of_pairs([*map(_pair, listed), _pair(x)] if listed else [])
        return _of_pairs([(str(k), _logprob(v)) for k, v in x.items()])
    if not isinstance(x, list) or not x:
        return None
    if whole and all(isinstance(v, int | float) or v is None for v in x):
        return _softmax(x)
    return _of_pairs([_pair(item) for item in x])


def _pair(x: Any) -> tuple[str, float] | None:
    """(token, log-probability) of an entry of a list of alternatives: an object, or [log-probability, token, ...]."""
    if isinstance(x, dict):
        name = next((str(x[k]) for k in _NAMES if x.get(k) is not None), None)
        return None if name is None or not {"logprob", "prob"} & x.keys() else (name, _logprob(x))
    if isinstance(x, list) and len(x) >= 2 and isinstance(x[0], int | float):
        return str(x[1]), float(x[0])
    return None


def _logprob(x: Any) -> float:
    """NaN: there is none. null stands for minus infinity, which JSON has not."""
    if isinstance(x, dict):
        if isinstance(p := x.get("prob"), int | float):
            return math.log(p) if p > 0 else -math.inf
        return _logprob(x["logprob"]) if "logprob" in x else math.nan
    if x is None:
        return -math.inf
    return float(x) if isinstance(x, int | float) and not isinstance(x, bool) else math.nan


def _of_pairs(pairs: Sequence[tuple[str, float] | None]) -> Step | None:
    known = {token: lp for pair in pairs if pair is not None for token, lp in [pair]}
    if not known or any(math.isnan(lp) or lp > _TOLERANCE for lp in known.values()):
        return None
    found = {token: math.exp(lp) for token, lp in known.items()}
    total = sum(found.values())
    if total <= 0:
        return None
    return {token: p / total for token, p in found.items()} if total > 1 else found


def _softmax(scores: Sequence[float | None]) -> Step | None:
    x = np.array([-math.inf if v is None else v for v in scores], np.float64)
    top = x.max()
    if len(x) < 2 or not np.isfinite(top):
        return None
    weights: Array = np.exp(x - top)
    return weights / weights.sum()
