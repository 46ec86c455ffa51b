"""`stabwatch traces` as people call it."""

from __future__ import annotations

import json

import numpy as np

from tests.analysis.traces.test_traces import dense, openai
from tests.cli.test_app import imported, stabwatch


def test_the_table_and_what_labels_say(tmp_path):
    path = tmp_path / "t.jsonl"
    rows = []
    for i in range(24):
        p = dense(i, sharp=4.0)
        if i % 2:
            p[9] = 0.25  # late, and as uncertain as it can be
        rows.append(json.dumps(openai(p) | {"id": f"q\x1b[31m{i}", "correct": i % 2 == 0}))
    path.write_text("\n".join(rows))
    done = stabwatch("traces", path)
    assert done.returncode == 0, done.stderr
    assert "12 of 24 answers are right (field correct)" in done.stdout and "higher where wrong" in done.stdout
    assert "The 20 highest peaks of 24 traces" in done.stdout and "\x1b[31m" not in done.stdout
    data = json.loads(stabwatch("traces", path, "--json", "--lambda", "0").stdout)
    assert data["lambda"] == 0 and len(data["traces"]) == 24 and data["schema_version"] == 1
    assert max(t["peak"] for t in data["traces"]) <= np.log(2)
    modules, code = imported("traces", path)
    assert "torch" not in modules and code == 0


def test_a_file_without_traces_ends_with_two(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "hello"}\n')
    done = stabwatch("traces", tmp_path / "x.jsonl")
    assert done.returncode == 2 and "1 of its records: it has no log-probabilities" in done.stderr
    assert stabwatch("traces", tmp_path / "none.jsonl").returncode == 2
