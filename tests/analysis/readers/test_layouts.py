"""Numbers reckoned by columns are those that float() reads; lines that do not fit are left to others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stabwatch.analysis.readers.fixed_format import FixedFormat
from stabwatch.analysis.readers.layouts import LEAST, Lengths
from stabwatch.analysis.readers.templates import Templates

PRINTED = ("d", ".1f", ".4f", ".2e", ".6E", "g", ".12g", "+.3f", "8.3f", "012.5f", "r")


def _uniform(line: str) -> FixedFormat:
    found = Templates().of(line)
    assert found is not None
    return FixedFormat(found[0], line.encode())


def _print(value: float, how: str) -> str:
    return repr(value) if how == "r" else format(int(value) if how == "d" else value, how)


values = st.one_of(
    st.floats(-1e3, 1e3), st.floats(1e-12, 1e-3), st.floats(-1e18, 1e18), st.sampled_from([0.0, -0.0, 1e22, 1e-22])
)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(PRINTED), st.sampled_from(PRINTED), st.lists(st.tuples(values, values), min_size=40, max_size=80)
)
def test_every_number_is_what_float_reads(one, other, drawn):
    """However it is printed; float() is the oracle, bit by bit."""
    lines = [f"step {i} loss: {_print(a, one)} grad_norm: {_print(b, other)}" for i, (a, b) in enumerate(drawn, 1000)]
    uniform = _uniform(lines[0])
    assert uniform.works
    found = uniform.read("\n".join(lines).encode())
    assert found is not None
    same, numbers = found
    wanted = np.array([[float(words[k]) for k in (1, 3, 5)] for words in (line.split() for line in lines)])
    np.testing.assert_array_equal(numbers, wanted[same])
    np.testing.assert_array_equal(np.signbit(numbers), np.signbit(wanted[same]))


def test_a_layout_that_is_another_kind_of_line_is_not_read():
    lines = [f"step {i} loss 2.{i}" if i % 2 else f"step {i} lass 2.{i}" for i in range(100, 300)]
    found = _uniform(lines[1]).read("\n".join(lines).encode())
    assert found is not None
    same, numbers = found
    assert same.tolist() == [i % 2 == 1 for i in range(100, 300)]
    assert numbers[:, 0].tolist() == list(range(101, 300, 2))


@pytest.mark.parametrize("digits", [15, 16, 17, 19])
def test_more_digits_than_a_float_holds(digits):
    numbers = ["9" * (digits - 1) + str(i % 10) for i in range(2 * LEAST)]
    found = _uniform(f"step 1 loss {numbers[0]}").read("\n".join(f"step 1 loss {n}" for n in numbers).encode())
    assert found is not None and found[1][:, 1].tolist() == [float(n) for n in numbers]


def test_thousands_and_carried_exponents():
    numbers = [f"{1000 + i:,}.25e{'-' if i % 2 else '+'}{i % 23:02}" for i in range(200)]
    found = _uniform("step 1 loss 1,000.25e+00").read("\n".join(f"step 1 loss {n}" for n in numbers).encode())
    assert found is not None and found[0].all()
    assert found[1][:, 1].tolist() == [float(n.replace(",", "")) for n in numbers]


@pytest.mark.parametrize("odd", ["1.2.3", "1..23", "1e2e3", "1.2.3e4"])
def test_what_only_looks_like_a_number_is_left_to_others(odd):
    """It is not taken for the number that its digits would be: None has the block read line by line."""
    lines = [f"step {i} loss 2.5" for i in range(100, 140)] + [f"step {i} loss {odd}" for i in range(140, 180)]
    assert _uniform(lines[0]).read("\n".join(lines).encode()) is None


def test_lengths_keep_every_line():
    block = b"\n".join([b"a", b"", b"bb", *[b"c%02d" % i for i in range(LEAST)], b""])
    lines = Lengths(block)
    assert len(lines) == LEAST + 4
    assert lines.text(np.arange(len(lines))) == block
    (group,) = lines.groups()
    assert [row.tobytes() for row in lines.rows(group)] == [b"c%02d" % i for i in range(LEAST)]
