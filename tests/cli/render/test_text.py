"""Numbers and foreign names."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabwatch.cli.render.text import clean, count, duration, number, size, tail


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.0, "0"),
        (2.5, "2.5"),
        (99.95, "100"),
        (999.9, "1,000"),
        (3851.2, "3,851"),
        (99999.0, "1e5"),
        (123456.0, "1.23e5"),
        (1e300, "1e300"),
        (0.00316, "0.00316"),
        (0.000999999, "0.001"),
        (3.4e-5, "3.4e-5"),
        (-4000.0, "-4,000"),
        (math.nan, "NaN"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
    ],
)
def test_number(value, shown):
    assert number(value) == shown


@given(st.floats(-1e300, 1e300))
def test_number_is_short_and_near(value):
    text = number(value)
    assert len(text) <= 10
    assert float(text.replace(",", "")) == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (190, "3 min 10 s"),
        (7500, "2 h 05 min"),
        (273600, "3 d 4 h"),
        (math.nan, "?"),
        (-3, "0.0 s"),
    ],
)
def test_duration(seconds, shown):
    assert duration(seconds) == shown


def test_size_and_count():
    assert [size(3), size(640 * 1024), size(3.2 * 2**30), size(5 * 2**40)] == ["3 B", "640 KiB", "3.2 GiB", "5 TiB"]
    assert [count(1, "layer"), count(1200, "layer")] == ["1 layer", "1,200 layers"]


def test_tail_keeps_the_end_of_a_path():
    assert tail("model.layers.31.self_attn", 14) == "….31.self_attn"
    assert tail("wte", 14) == "wte"


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jcleared", "cleared"),
        ("a\rb\nc\td", "a b c d"),
        ("bell\x07back\x08", "bellback"),
        ("\u202egpj.exe", "gpj.exe"),
        ("zero\u200bwidth", "zerowidth"),
        ("half \ud800 surrogate", "half surrogate"),
        ("[bold]not markup[/bold]", "[bold]not markup[/bold]"),
        ("Schicht λ 层", "Schicht λ 层"),
        ("\x1b", ""),
        ("\x1bPq#0;2;0;0;0\x1b\\sixel", "sixel"),
    ],
)
def test_clean(hostile, shown):
    assert clean(hostile) == shown


@given(
    st.text(alphabet=st.characters(categories=["Cc", "Cf", "Cs", "Lu", "Zs", "Zl"]) | st.sampled_from("\x1b[]m;0\x9b"))
)
def test_clean_leaves_nothing_that_a_terminal_obeys(text):
    shown = clean(text)
    assert all(c.isprintable() for c in shown)
    shown.encode()
