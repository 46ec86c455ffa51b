"""Many lines at once give what they give one by one: steps, values, line numbers, remarks, notes."""

# ruff: noqa: E501 -- lines as trainers print them

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.logs import MEGATRON, SHORT, TALK
from stabwatch.analysis.readers import file, lines, text
from stabwatch.analysis.readers.file import LogFile
from stabwatch.analysis.readers.line_runs import _pattern, floats
from stabwatch.analysis.readers.prefilter import worth_parsing
from stabwatch.analysis.readers.templates import Templates

FORMS = {
    "megatron": MEGATRON,
    "short": SHORT,
    "talk": TALK,
    "nanogpt": "iter {i}: loss {x:.4f}, time {i}.50ms, mfu 12.34%\n",
    "padded": "| epoch   1 | step {i:7d} | loss {x:9.4f} | ppl {x:9.2f} |\n",
    "commas": "step: {i},{i} loss: {x:.3f}\n",
    "minus": "step {i}-{i} loss={x:.3f}\n",
    "epochs": "epoch 3 iter {i} train loss {x:.3e} lr 1e-4\n",
    "bars": "Epoch 1:  50%|#####     | {i}/9000 [00:10<00:10,  5.00it/s, loss={x:.3f}]\n",
    "ranks": "[rank 1]: step {i} loss {x:.3f}\n",
    "bare": "{i} {x:.4f}\n",
    "remark": "saved checkpoint at step {i}\n",
    "bad": "step {i} loss nan grad_norm inf\n",
    "odd": "iter {i}: loss N/A, time 1,234.5ms, mfu 12.34%\n",
    "titan": "[rank0]:[titan] 2026-05-18 16:04:46,338 - root - INFO - step: {i:2}  loss: {x:.5f}  l2_norm: {x:.1e}  tps: {i},282\n",
    "other rank": "[rank1]:[titan] 2026-05-18 16:04:46,338 - root - INFO - step: {i:2}  loss: {x:.5f}  l2_norm: 0.5  tps: {i},282\n",
    "coloured": "\x1b[32mstep {i}\x1b[0m loss \x1b[1m{x:.4f}\x1b[0m\n",
    "windows": "step {i} loss {x:.4f}\r\n",
    "redrawn": "\rEpoch 1:  50%|███▎  | {i}/9000 [00:10<00:10,  5.00it/s, loss=2.5]\rEpoch 1:  50%|███▎  | {i}/9000 [00:10<00:10,  5.00it/s, loss={x:.3f}]",
    "redrawn lines": "Epoch 2:  50%|█▎    | {i}/9000 [00:10<00:10,  5.00it/s, loss=2.5]\nEpoch 2:  50%|#3    | {i}/9000 [00:10<00:10,  5.00it/s, loss={x:.3f}]\n",
    "another epoch": "\nEpoch 3:  50%|██▎   | {i}/900 [1:00:10<00:10,  5.00s/it, loss={x:.3f}]\r\n",
    "no epoch": " 50%|██▎   | {i}/9000 [00:10<00:10,  5.00it/s, loss={x:.3f}, lr=1e-4]\r",
    "only a bar": " 50%|██▎   | {i}/9000 [00:10<00:10,  5.00it/s]\r",
    "a record below it": "\n{{'loss': {x:.4f}, 'learning_rate': 1e-05, 'epoch': 0.5}}\n",
    "evaluation": "\rValidating: 50%|██▎   | {i}/90 [00:10<00:10,  5.00it/s]\r",
    "a heading": "\nValidation:\n",
    "another length": "Epoch 1:  50%|██▎   | {i}/{i} [00:10<00:10,  5.00it/s, loss={x:.3f}]\r",
}


def _both(path):
    s = LogFile(path)
    return text._read(s), text.read_lines(s, s.lines(worth_parsing))


def _same(path):
    one, other = _both(path)
    assert one.notes == other.notes
    (a,), (b,) = one.runs, other.runs
    assert [(c.name, c.role) for c in a.columns] == [(c.name, c.role) for c in b.columns]
    for c, d in zip(a.columns, b.columns, strict=True):
        np.testing.assert_array_equal(c.steps, d.steps)
        np.testing.assert_array_equal(c.lines, d.lines)
        np.testing.assert_array_equal(c.values, d.values)
    np.testing.assert_array_equal(a.steps, b.steps)
    np.testing.assert_array_equal(a.lines, b.lines)
    np.testing.assert_array_equal(a.times, b.times)
    assert (a.remarks, a.step_unit) == (b.remarks, b.step_unit)
    return a


parts = st.lists(
    st.tuples(st.sampled_from(sorted(FORMS)), st.integers(1, 40), st.integers(0, 300), st.integers(1, 9)), max_size=8
)


@settings(max_examples=150, deadline=None)
@given(parts, st.sampled_from([200, 1000, 1 << 20]))
def test_the_same_is_read_whatever_the_lines_are(tmp_path_factory, drawn, chunk):
    """Stretches of all kinds, with steps that go on or go back, in blocks of any size."""
    path = tmp_path_factory.mktemp("log") / "train.log"
    text = "".join(
        FORMS[name].format(i=first + apart * k, x=3 - k / 100)
        for name, count, first, apart in drawn
        for k in range(count)
    )
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "_CHUNK", chunk)
        _same(path)


_BARS = [name for name, form in FORMS.items() if "%|" in form]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(_BARS), st.integers(1, 40), st.integers(0, 30), st.integers(0, 2)), max_size=8),
    st.sampled_from([500, 1 << 20]),
)
def test_the_same_is_read_of_progress_bars(tmp_path_factory, drawn, chunk):
    """Bars that are drawn again, in the same line or below, begin again, or have other epochs and lengths."""
    path = tmp_path_factory.mktemp("log") / "train.log"
    text = "".join(
        FORMS[name].format(i=first + apart * k, x=3 - k / 100)
        for name, count, first, apart in drawn
        for k in range(count)
    )
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "_CHUNK", chunk)
        _same(path)


@pytest.mark.parametrize("drawing", ["███▎  ", "      ", "##4   ", "######"])
@pytest.mark.parametrize("name", ["redrawn", "redrawn lines", "no epoch", "another epoch", "only a bar"])
def test_what_a_bar_draws_says_nothing(name, drawing, tmp_path, monkeypatch):
    form = re.sub(r"%\|[^|]*\|", f"%|{drawing}|", FORMS[name]) + FORMS["a record below it"] * (name == "only a bar")
    path = tmp_path / "train.log"
    path.write_text("".join(form.format(i=i, x=3 - i / 100) for i in range(40)))
    without = text._read(LogFile(path)).runs[0]
    monkeypatch.setattr(file, "_without_bars", lambda block: block)
    drawn = text._read(LogFile(path)).runs[0]
    assert [c.name for c in without.columns] == [c.name for c in drawn.columns]
    for c, d in zip(without.columns, drawn.columns, strict=True):
        assert (c.steps.tolist(), c.values.tolist(), c.lines.tolist()) == (
            d.steps.tolist(),
            d.values.tolist(),
            d.lines.tolist(),
        )


@pytest.mark.parametrize("name", ["redrawn", "redrawn lines"])
def test_bars_are_read_at_once(name, tmp_path, monkeypatch):
    path = tmp_path / "train.log"
    path.write_text("".join(FORMS[name].format(i=i, x=2.5) for i in range(3000)))
    taken = []
    take = lines.Parser.take
    monkeypatch.setattr(lines.Parser, "take", lambda self, *a: taken.append(1) or take(self, *a))
    log = text._read(LogFile(path))
    assert len(taken) < 600 and log.runs[0].steps.tolist() == list(range(3000))


@pytest.mark.parametrize("name", ["megatron", "short", "nanogpt"])
def test_a_long_log_is_read_at_once(name, tmp_path, monkeypatch):
    """Nearly all of it, and a restart and a spike inside it are where they are."""
    path = tmp_path / "train.log"
    steps = [*range(3000), *range(2000, 6000)]
    path.write_text("".join(FORMS[name].format(i=i, x=9.0 if k == 5000 else 2.5) for k, i in enumerate(steps)))
    monkeypatch.setattr(file, "_CHUNK", 1 << 14)
    taken = []
    take = lines.Parser.take
    monkeypatch.setattr(lines.Parser, "take", lambda self, *a: taken.append(1) or take(self, *a))
    log = text._read(LogFile(path))
    assert len(taken) < 0.1 * len(steps)
    run = _same(path)
    assert run.steps.tolist() == steps and log.runs[0].steps.tolist() == steps
    assert run.of("loss").lines[np.argmax(run.of("loss").values)] == 5001


@pytest.mark.parametrize(
    "line",
    ["step 4 loss: 1,2", "step 4 loss 1 2 ", "[rank 3]: step 4 loss 2", "7: step 4 loss 2", "loss\u00b5 3 step 4"],
)
def test_lines_that_could_be_split_otherwise_are_read_one_by_one(line):
    found = Templates().of(line)
    assert found is not None and found[0].texts
    pattern = _pattern(found[0])
    assert pattern is None or re.fullmatch(pattern, b"step 4 loss 12 ") is None


def test_numbers_are_those_that_float_gives():
    words = [b"1", b"-2.5", b"6.000E-05", b".5", b"1.", b"nan", b"NaN", b"inf", b"-inf", b"1e308", b"0.1", b"+3"]
    np.testing.assert_array_equal(floats(words), [float(w) for w in words])
    with pytest.raises(ValueError, match="could not convert"):
        floats([b"1", b"3e"])
