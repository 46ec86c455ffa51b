"""The bytes of a record are those that Arrow writes, though Arrow writes only the first of each width."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabwatch.runlog import Accumulator, RecordLayout
from stabwatch.runlog.folder import Segment
from stabwatch.runlog.frame import written_width

LAYOUTS = [
    RecordLayout.build([Accumulator("loss", "", "mean")]),
    RecordLayout.build([Accumulator("activation", f"blocks.{i}", "moments") for i in range(37)]),
]


@given(
    st.sampled_from(LAYOUTS),
    st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(), st.integers(0, 2**32 - 1)), min_size=2),
)
def test_records_are_what_arrow_writes(tmp_path_factory, layout, records):
    path = tmp_path_factory.mktemp("frame") / "signals-000.arrows"
    segment = Segment(path, layout)
    start = path.stat().st_size
    expected = b""
    for step, time, seed in records:
        rng = np.random.default_rng(seed)
        values = rng.integers(0, 2**32, layout.width, dtype=np.uint32).view(np.float32)
        values[rng.integers(0, layout.width + 1) :] = np.nan
        segment.append(step, time, values)
        expected += segment._batch(step, time, values[: written_width(values)]).serialize().to_pybytes()
    segment.close()
    assert path.read_bytes()[start:] == expected


def test_another_number_of_values_is_refused(tmp_path):
    layout = LAYOUTS[0]
    segment = Segment(tmp_path / "signals-000.arrows", layout)
    segment.append(0, 0.0, np.zeros(layout.width, np.float32))
    size = (tmp_path / "signals-000.arrows").stat().st_size
    for width in (layout.width - 1, layout.width + 1):
        with pytest.raises(ValueError, match="values for a record of"):
            segment.append(1, 0.0, np.zeros(width, np.float32))
    assert (tmp_path / "signals-000.arrows").stat().st_size == size
    segment.close()


@given(st.integers(1, 100_000), st.floats(0, 1))
def test_a_record_ends_after_its_last_number_and_records_have_few_widths(width, share):
    values = np.full(width, np.nan, np.float32)
    last = int(share * width)
    values[:last][-1:] = 0.0
    written = written_width(values)
    assert last <= written <= min(width, last + max(16, last // 8))
    assert written == width or written % 16 == 0
    assert written == width or written.bit_length() <= 5 or written % (1 << (written.bit_length() - 5)) == 0
