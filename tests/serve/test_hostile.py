"""A run folder that somebody has spoiled hides no other run, shows no file from elsewhere, and keeps nobody waiting."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.agent.test_server import get

SECRET = "TOPSECRET"


def _replace_by_pipe(file: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        (run / file).unlink(missing_ok=True)
        os.mkfifo(run / file)

    return spoil


def _replace_by_link(file: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        elsewhere = run.parents[1] / f"elsewhere-{file}"
        (run / file).replace(elsewhere) if (run / file).exists() else elsewhere.touch()
        if file == "events.jsonl":
            elsewhere.write_text(json.dumps({"kind": "alert", "time": 1.0, "rule": SECRET, "severity": "critical",
                                             "state": "firing", "summary": SECRET}) + "\n")  # fmt: skip
        if file == "labels.json":
            elsewhere.write_text(json.dumps({"name": SECRET, "tags": [], "notes": SECRET}))
        (run / file).symlink_to(elsewhere)

    return spoil


def _meta(**facts: object) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        meta = json.loads((run / "meta.json").read_text())
        (run / "meta.json").write_text(json.dumps({**meta, **facts}))

    return spoil


def _text(file: str, text: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        with open(run / file, "w" if file == "meta.json" else "a", encoding="utf-8") as out:
            out.write(text)

    return spoil


SEGMENT = "signals-000.arrows"
SPOILT = {
    "pipe-events": _replace_by_pipe("events.jsonl"), "pipe-segment": _replace_by_pipe(SEGMENT),
    "pipe-labels": _replace_by_pipe("labels.json"), "pipe-lease": _replace_by_pipe("agent.lock"),
    "link-events": _replace_by_link("events.jsonl"), "link-segment": _replace_by_link(SEGMENT),
    "link-labels": _replace_by_link("labels.json"), "link-lease": _replace_by_link("agent.lock"),
    "not-finite": _meta(created=float("nan"), world_size=float("inf")),
    "model-not-finite": _meta(model={"name": float("nan"), "parameters": float("inf")}),
    "types": _meta(config="abc", model=[1], created="x", versions=3, pid="p"),
    "nothing": _meta(run=None, host=None), "signals": _meta(signals=[7, None, {"name": 5}]),
    "long": _meta(run="x" * 2_000_000, notes="n" * 3_000_000, tags=["t" * 100_000] * 500),
    "deep": _text("meta.json", '{"run": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "number": _text("meta.json", '{"schema": 3, "pid": ' + "9" * 6000 + "}"),
    "surrogate": _meta(run="\ud800<script>"),
    "event-types": _text("events.jsonl", '{"kind": "alert", "time": 1, "step": "x", "rule": {"a": 1}, "layer": 5,'
                         ' "severity": [], "state": "firing"}\n{"kind": "end", "time": "soon", "step": []}\n'),
    "event-numbers": _text("events.jsonl", '{"kind": "alert", "time": NaN, "step": NaN, "rule": "R", "state": "firing",'
                           ' "severity": "critical", "onset": NaN, "value": Infinity}\n'),
    "event-parts": _text("events.jsonl", '{"kind": "optimizer", "time": 1, "groups": 5}\n{"kind": "start"}\n'),
}  # fmt: skip


def test_spoilt_folders_hide_no_other_run(runs, root, serving):
    runs("good", config={"agent": False}).write(range(20))
    for name, spoil in SPOILT.items():
        log = runs(name, config={"agent": False})
        log.write(range(20))
        log.folder.close()
        spoil(log.path)
    service = serving(root)
    service.round()
    assert service.service.errors == 0
    status, _, body = get(service.url + "api/runs.json")
    assert status == 200 and len(body) < 100_000
    found = {row["folder"]: row for row in json.loads(body)["rows"]}
    assert found.keys() == {"good", *SPOILT}
    assert (found["good"]["state"], found["good"]["step"], found["good"]["judged"]) == ("running", 19, True)
    for name in ("not-finite", "types", "nothing", "deep", "number"):
        assert found[name]["state"] == "unreadable"
    for path in ("metrics", "sd", "healthz", "api/clusters.json", "api/settings.json"):
        status, _, body = get(service.url + path)
        assert status == 200 and SECRET.encode() not in body, path
    assert b'stabwatch_loss{run="good"}' in get(service.url + "metrics")[2]
    for row in found.values():
        for path in ("", "metrics", "api/state.json"):
            status, _, body = get(f"{service.url}runs/{row['id']}/{path}")
            assert status in (200, 503) and SECRET.encode() not in body, (row["folder"], path)
    assert SECRET not in json.dumps(found)


@pytest.mark.parametrize("query", ["since=" + "9" * 5000, "since=%D9%A3", "since=-1", "since=1e9"])
def test_a_strange_number_is_none(runs, root, serving, query):
    runs("a").write(range(2))
    service = serving(root)
    assert get(f"{service.url}api/runs.json?{query}")[0] == 200
    assert get(f"{service.url}runs/{service.row('a')['id']}/api/state.json?{query}.{query[6:]}")[0] == 200
