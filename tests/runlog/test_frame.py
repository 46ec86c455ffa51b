"""The bytes of a record are those that Arrow writes, though Arrow writes only the first of a segment."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stabwatch.runlog import Accumulator, RecordLayout
from stabwatch.runlog.writer import Segment

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
        values = np.random.default_rng(seed).integers(0, 2**32, layout.width, dtype=np.uint32).view(np.float32)
        segment.append(step, time, values)
        expected += segment._batch(step, time, values).serialize().to_pybytes()
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
