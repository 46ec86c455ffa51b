"""Sparklines and charts."""

from __future__ import annotations

from io import StringIO

import numpy as np
from rich.console import Console

from stabwatch.cli.render.console import THEME
from stabwatch.cli.render.plot import ASCII_BLOCKS, Chart, Line, resample, sparkline

GOLDEN = [
    "16 │                ⢀⡴⠛⢦⡀               ",
    "   │              ⣠⠞⠉ ┊ ⠙⢦⡀             ",
    "   │          ⣀⡤⠖⠋⠁   ┊   ⠉⠓⠦⣄⡀         ",
    " 1 │⣀⣀⣠⠤⠤⠤⠖⠒⠋⠉⠁       ┊       ⠉⠉⠓⠒⠦⠤⠤⢤⣀⣀",
    "    step 0            ^ onset 4        8",
]


def drawn(chart: Chart, width: int = 50, encoding: str = "utf-8") -> str:
    class File(StringIO):
        pass

    File.encoding = encoding
    console = Console(width=width, file=File(), color_system=None, theme=THEME)
    console.print(chart)
    return console.file.getvalue()


def line(values, steps=None, style="line") -> Line:
    values = np.asarray(values, dtype=np.float64)
    return Line(np.arange(len(values)) if steps is None else np.asarray(steps), values, style)


def test_a_sparkline_spans_its_range():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 7], 4, ASCII_BLOCKS) == "  _#"
    assert sparkline([], 3) == "   "
    assert sparkline([2.5, 2.5], 2) == "▁▁"


def test_a_spike_of_one_step_survives_resampling():
    values = np.ones(10_000)
    values[777] = 50
    assert resample(values, 20).max() == 50
    assert "█" in sparkline(values, 20)


def test_what_is_not_finite_is_never_hidden():
    values = np.ones(1000)
    values[500] = np.nan
    values[900] = np.inf
    assert sparkline(values, 10).count("!") == 2


def test_noise_stays_flat_when_asked():
    assert sparkline([1.0, 1.02, 0.99, 1.01], 4, least=0.5) == "▁▁▁▁"


def test_a_chart():
    text = drawn(Chart([line([1, 2, 4, 8, 16, 8, 4, 2, 1])], height=4, mark=4), width=40)
    assert text.splitlines() == GOLDEN
    assert all(len(row) <= 40 for row in text.splitlines())


def test_a_chart_without_a_finite_value_says_so():
    assert "no finite value" in drawn(Chart([line([np.nan, np.inf])]))
    assert "no finite value" in drawn(Chart([]))


def test_one_value_constant_values_and_extreme_values():
    for values in ([3.0], [2.0, 2.0, 2.0], [-1e308, 1e308], [1e-300, 1e300], [0.0, -5.0, np.nan, 7.0]):
        for log in (False, True):
            assert "step 0" in drawn(Chart([line(values)], log=log, mark=0))


def test_ascii_terminals_get_ascii():
    text = drawn(Chart([line([1, 2, 3, 4])], mark=2), encoding="ascii")
    assert text.isascii()
    assert "*" in text


def test_a_mark_at_the_far_right_has_its_label_on_the_left():
    text = drawn(Chart([line(np.arange(100.0))], mark=80), width=60)
    assert "onset 80 ^" in text


def test_a_mark_at_the_far_left_is_named_too():
    text = drawn(Chart([line(np.arange(100.0))], mark=1), width=60)
    assert "step 0  onset 1" in text


def test_points_far_apart_are_joined():
    rows = drawn(Chart([line([1, 1], steps=[0, 1000])], height=1), width=40).splitlines()
    assert " " not in rows[0].split("│")[1]
