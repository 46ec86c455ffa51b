"""What launchers and collectors write before each line hides nothing: the same records with and without it."""

# ruff: noqa: E501 -- lines as trainers print them
from __future__ import annotations

import pytest

from stabwatch.analysis.readers import read_log

N = 40
BARE = "".join(f"{i} train {8 - i / 10:.6f}\n" for i in range(N))
FORMS = {
    "bare numbers": BARE,
    "a table of commas": "step,loss,grad_norm\n" + "".join(f"{i},{4 - i / 20},0.5\n" for i in range(N)),
    "a table of bars": "".join(f"| loss | {4 - i / 20} |\n| step | {i} |\n---------------\n" for i in range(N)),
    "a table of blanks": "step      loss    lr\n" + "".join(f"{i:4}    {4 - i / 20:.3f}    0.001\n" for i in range(N)),
    "JSON lines": "".join(f'{{"step": {i}, "loss": {4 - i / 20}}}\n' for i in range(N)),
    "Hugging Face": "".join(f"{{'loss': {4 - i / 20}, 'step': {i}}}\n" for i in range(N)),
    "keys": "".join(f"iteration {i:4}/ 99 | lm loss: {4 - i / 20:.4E} | grad norm: 0.5 |\n" for i in range(N)),
    "several lines": "".join(f"[step={i}/99,epoch=0]\n    train/loss={4 - i / 20}\n    optim/grad_norm=0.5\n" for i in range(N)),
    "counts first": "".join(f"{100 * i} | loss {4 - i / 20:.3f} | lr 1e-4\n" for i in range(N)),
    "an error": BARE + "Traceback (most recent call last):\nRuntimeError: CUDA out of memory\n",
}  # fmt: skip
PREFIXES = {
    "ISO 8601": "2026-03-04T05:06:{s:02}.123Z ",
    "with a zone": "2026-03-04T05:06:{s:02}+01:00 ",
    "logging": "2026-03-04 05:06:{s:02},123 - trainer - INFO - ",
    "Hydra": "[2026-03-04 05:06:{s:02},123][__main__][INFO] - ",
    "loguru": "2026-03-04 05:06:{s:02}.123 | INFO     | train:main:42 - ",
    "basicConfig": "INFO:root:",
    "absl": "I0304 05:06:{s:02}.123456 140 train.py:42] ",
    "syslog": "Mar  4 05:06:{s:02} node7 python[4711]: ",
    "syslog with a priority": "<14>Mar 14 05:06:{s:02} node7 slurmd: ",
    "CRI": "2026-03-04T05:06:{s:02}.123456789Z stdout F ",
    "Kaggle": "12.{s}s\t{s}\t",
    "Kaggle, pasted": "12.{s}s | {s} | ",
    "kubectl": "[pod/train-0/pytorch] ",
    "kubectl with times": "[pod/train-0/pytorch] 2026-03-04T05:06:{s:02}.123Z ",
    "Docker Compose": "trainer-1  | ",
    "pdsh": "node12: ",
    "torchrun": "[default0]:",
    "Open MPI": "[1,0]<stdout>: ",
    "Ray": "(RayTrainWorker pid=4711, ip=10.0.0.7) ",
}


def _run(tmp_path, text):
    path = tmp_path / "train.log"
    path.write_text(text)
    return read_log(path).runs[0]


def _points(run):
    return {c.name: (c.role, c.steps.tolist(), c.values.tolist(), c.lines.tolist()) for c in run.columns}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("form", FORMS)
def test_the_same_records_with_and_without_a_prefix(form, prefix, tmp_path):
    lines = FORMS[form].splitlines()
    plain = _run(tmp_path, FORMS[form])
    wrapped = _run(tmp_path, "".join(PREFIXES[prefix].format(s=i % 60) + line + "\n" for i, line in enumerate(lines)))
    assert len(plain.of("loss")) == N
    assert _points(wrapped) == _points(plain)
    assert [(r.kind, r.line) for r in wrapped.remarks] == [(r.kind, r.line) for r in plain.remarks]


def test_the_times_of_a_prefix_are_the_times_of_records(tmp_path):
    run = _run(tmp_path, "".join(f"2026-03-04T05:{i:02}:00Z {line}\n" for i, line in enumerate(BARE.splitlines())))
    assert (run.times[1:] - run.times[:-1]).tolist() == [60.0] * (N - 1)


def test_of_several_pods_one_is_read(tmp_path):
    lines = [
        line for i in range(N) for line in (f"[pod/t-0/x] step {i} loss {4 - i / 20}", f"[pod/t-1/x] step {i} loss 9.0")
    ]
    path = tmp_path / "train.log"
    path.write_text("\n".join(lines) + "\n")
    log = read_log(path)
    assert log.runs[0].of("loss").values.tolist() == [4 - i / 20 for i in range(N)]
    assert any("ranks other than" in note for note in log.notes)


@pytest.mark.parametrize("name", ["time", "step"])
def test_a_first_column_is_no_prefix(name, tmp_path):
    cell = "2026-03-04 05:06:{:02}" if name == "time" else "{}"
    table = f"{name}\tloss\tlr\n" + "".join(f"{cell.format(i)}\t{4 - i / 20}\t0.1\n" for i in range(N))
    assert _run(tmp_path, table).of("loss").values.tolist() == [4 - i / 20 for i in range(N)]


def test_counts_before_a_colon_are_steps_and_no_ranks(tmp_path):
    run = _run(tmp_path, "".join(f"{10 * i}: loss {4 - i / 20} gnorm 0.5\n" for i in range(N)))
    assert run.of("loss").steps.tolist() == [10 * i for i in range(N)]
    for many in (2, 8):
        text = "".join(f"{r}: step {i} loss {4 - i / 20 + r}\n" for i in range(N) for r in range(many))
        ranks = _run(tmp_path, text)
        assert ranks.of("loss").steps.tolist() == list(range(N))
        assert ranks.of("loss").values.tolist() == [4 - i / 20 for i in range(N)]
