"""Instability of generations: against the definition, in every format, and against labels."""

from __future__ import annotations

import gzip
import itertools
import json
import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy as scipy_entropy

from stabwatch.analysis.traces.file import read_traces
from stabwatch.analysis.traces.instability import divergence, entropy, instability
from stabwatch.analysis.traces.labels import is_right, separation
from stabwatch.analysis.traces.steps import NoTraceError, traces_of
from stabwatch.errors import LogError

WORDS = ("a", "b", "c", "d")


def dense(seed=0, steps=12, size=4, sharp=2.0):
    """Probabilities (steps, size)."""
    x = sharp * np.random.default_rng(seed).standard_normal((steps, size))
    return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)


def top(p, most=4):
    """[(word, log-probability)] of a step, the most probable first."""
    return [(WORDS[i], math.log(p[i])) for i in np.argsort(-p)[:most]]


def openai(p):
    content = [
        {
            "token": top(row)[0][0], "logprob": top(row)[0][1], "bytes": [97],
            "top_logprobs": [{"token": t, "logprob": lp, "bytes": None} for t, lp in top(row)],
        }
        for row in p
    ]  # fmt: skip
    message = {"role": "assistant", "content": "abc"}
    return {"id": "chat-1", "choices": [{"index": 0, "message": message, "logprobs": {"content": content}}]}


FORMATS = {
    "OpenAI chat": openai,
    "OpenAI batch": lambda p: {"custom_id": "q", "response": {"status_code": 200, "body": openai(p)}},
    "OpenAI responses": lambda p: {
        "output": [{"type": "message", "content": [
            {"type": "output_text", "text": "x", "logprobs": openai(p)["choices"][0]["logprobs"]["content"]}
        ]}]
    },
    "OpenAI completions": lambda p: {
        "choices": [{"text": "abc", "logprobs": {
            "tokens": [top(row)[0][0] for row in p], "token_logprobs": [top(row)[0][1] for row in p],
            "top_logprobs": [dict(top(row)) for row in p], "text_offset": [0] * len(p),
        }}]
    },
    "vLLM": lambda p: {
        "request_id": "7", "prompt": "hi", "prompt_logprobs": [None, {"5": {"logprob": -0.1, "rank": 1}}],
        "outputs": [{"index": 0, "text": "abc", "token_ids": [1] * len(p), "logprobs": [
            {str(WORDS.index(t)): {"logprob": lp, "rank": 1, "decoded_token": t} for t, lp in top(row)} for row in p
        ]}],
    },
    "vLLM, the prompt only": lambda p: {
        "prompt_logprobs": [None, *({t: {"logprob": lp} for t, lp in top(row)} for row in p)], "outputs": [{"text": ""}]
    },
    "SGLang": lambda p: {
        "text": "abc",
        "meta_info": {"output_top_logprobs": [[[lp, WORDS.index(t), t] for t, lp in top(row)] for row in p]},
    },
    "TGI": lambda p: {
        "generated_text": "abc", "details": {
            "tokens": [{"id": 1, "text": "a", "logprob": -0.1} for _ in p],
            "top_tokens": [[{"id": WORDS.index(t), "text": t, "logprob": lp} for t, lp in top(row)] for row in p],
        }
    },
    "llama.cpp": lambda p: {
        "content": "abc", "completion_probabilities": [
            {"content": "a", "probs": [{"tok_str": t, "prob": math.exp(lp)} for t, lp in top(row)]} for row in p
        ]
    },
    "transformers": lambda p: {"scores": (np.log(p) + 3).tolist()},
    "transformers, a batch of one": lambda p: {"scores": [[row] for row in (np.log(p) - 1).tolist()]},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_the_same_numbers(name, tmp_path):
    p = dense()
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(FORMATS[name](p)) + "\n")
    (trace,) = read_traces(path, 0.5).traces
    truth = [jensenshannon(a, b) ** 2 + 0.5 * scipy_entropy(b) for a, b in itertools.pairwise(p)]
    values = trace.found.values[-len(truth) :]
    assert values == pytest.approx(truth, abs=1e-9) and np.isnan(trace.found.values[0])
    assert trace.found.peak == pytest.approx(max(truth)) and trace.found.covered == pytest.approx(1)


def test_what_was_not_listed_is_one_token():
    p, q = {"a": 0.5, "b": 0.2}, {"a": 0.1, "c": 0.6}
    assert entropy(p) == pytest.approx(scipy_entropy([0.5, 0.2, 0.3]))
    truth = jensenshannon([0.5, 0.2, 0, 0.3], [0.1, 0, 0.6, 0.3]) ** 2
    assert divergence(p, q) == pytest.approx(truth)
    assert divergence({"a": 1.0}, {"b": 1.0}) == pytest.approx(math.log(2)) and divergence(p, p) == 0


def test_a_gap_makes_two_values_unknown_and_an_even_trace_has_its_place():
    steps = [{"a": 0.9}, {"a": 0.9}, None, {"b": 0.5, "c": 0.5}, {"b": 0.9}]
    found = instability(steps)
    assert np.isnan(found.values).tolist() == [True, False, True, True, False]
    assert (found.at, found.place, found.tokens) == (4, 1.0, 5)
    assert instability([{"a": 1.0}]) is None and instability([{"a": 1.0}, None]) is None


@pytest.mark.parametrize(
    "record",
    [
        {"text": "abc"}, {"usage": {"tokens": 3}, "scores": [1.0, 2.0]}, {"embedding": [[0.1, 0.2], [0.3, 0.1]]}, [], 3,
        {"choices": [{"logprobs": None}]},
        {"logprobs": {"content": [{"token": "a", "logprob": -1, "top_logprobs": []}]}},
        {"logprobs": [{"a": 4.2, "b": 1.0}]}, {"token_logprobs": [-0.1, -0.2]},
    ],
)  # fmt: skip
def test_what_has_no_distributions_is_refused(record):
    with pytest.raises(NoTraceError):
        traces_of(record)


def test_a_chosen_token_without_a_number_and_a_step_with_nan(tmp_path):
    alternatives = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]
    broken = [{"token": "a", "logprob": math.nan}, {"token": "b", "logprob": -1.5}]
    steps = [{"token": "a", "top_logprobs": x} for x in (broken, alternatives, alternatives, alternatives)]
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"logprobs": {"content": steps}}))
    (trace,) = read_traces(path).traces
    assert np.isnan(trace.found.values).tolist() == [True, True, False, False]


def test_a_file_of_many_kinds_of_lines(tmp_path):
    path = tmp_path / "t.jsonl.gz"
    many = openai(dense())
    many["choices"].append(openai(dense(1))["choices"][0])
    lines = [json.dumps({"text": "no"}), "{broken", "", json.dumps(many | {"correct": [True, False]})]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    found = read_traces(path)
    assert [(t.name, t.line, t.right) for t in found.traces] == [("chat-1/0", 4, True), ("chat-1/1", 4, False)]
    assert found.left_out == {"it has no log-probabilities of several tokens per step": 1, "it is no JSON": 1}
    assert found.label == "correct" and {s.name for s in found.separations} >= {"peak", "mean"}
    json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(LogError, match="No record of .* has a label in the field 'grade'"):
        read_traces(path, label="grade")


@pytest.mark.parametrize("indent", [None, 2])
def test_one_document(indent, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps([openai(dense(i)) | {"meta": {"ok": i}} for i in range(3)], indent=indent))
    found = read_traces(path, label="meta.ok")
    assert [t.right for t in found.traces] == [False, True, True] and len(found.separations) == 4
    path.write_text(json.dumps(openai(dense()), indent=indent))
    assert len(read_traces(path).traces) == 1
    path.write_text(json.dumps(openai(dense())["choices"][0]["logprobs"]["content"], indent=indent))
    assert len(read_traces(path).traces) == 1, "the steps themselves"


@pytest.mark.parametrize("text", ["", "hello\n", '{"a": 1}\n'])
def test_a_file_without_traces_is_refused(text, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(LogError, match="has no trace of a generation"):
        read_traces(path)


def test_the_area_is_that_of_all_pairs_and_its_interval_holds_the_truth():
    assert separation("x", [2, 3], [1, 2]).auc == pytest.approx(3.5 / 4)
    whole = separation("x", [3.0] * 5, [1.0] * 5)
    assert whole.auc == 1 and whole.high == 1 and 0.5 < whole.low < 0.8, "five of each prove little"
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        found = separation("x", rng.normal(1, 1, 20), rng.normal(0, 1, 30))
        held += found.low <= 0.7602 <= found.high
    assert 0.92 <= held / 200 <= 0.99


@pytest.mark.parametrize(
    ("value", "right"),
    [(True, True), (0, False), (0.7, True), ("Correct", True), ("wrong", False), ("?", None), (None, None)],
)  # fmt: skip
def test_labels(value, right):
    assert is_right(value) is right
