"""`stabwatch analyze`: what people read, what scripts read, and the exit codes."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from stabwatch.analysis import analyze
from stabwatch.cli.app import app
from stabwatch.cli.render.analysis import Report
from stabwatch.cli.render.console import console
from stabwatch.runlog import Event, Meta, RunFolder, append_event

DOCS = Path(__file__).parents[3] / "docs"


def rendered(run, width: int = 100, **options) -> str:
    out = console(file=StringIO(), width=width, **{"color_system": None, **options})
    out.print(Report([analyze(run)]))
    return out.file.getvalue()


def invoke(*args: object):
    return CliRunner().invoke(app, ["analyze", *map(str, args)])


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_report_fits(sick_run, width):
    assert max(map(len, rendered(sick_run, width).splitlines())) <= width


def test_the_report_begins_with_the_verdict(sick_run, healthy_run):
    for run in (sick_run, healthy_run):
        words = rendered(run, 1000).splitlines()[0].rstrip()
        assert words == analyze(run).diagnosis.verdict


def test_the_report_of_a_sick_run(sick_run):
    text = rendered(sick_run)
    for part in ("1. ", "What to do", "What happened, in order", "Attention", "loss", "Not measured", "The run"):
        assert part in text
    assert "onset" in text
    assert "blocks.0.attn" in text
    assert "attention at blocks.9.attn: its forward never ran" in text
    assert "GPT, 1,200,000 parameters" in text


def test_the_report_of_a_healthy_run(healthy_run):
    text = rendered(healthy_run)
    assert "What to do" not in text
    assert "onset" not in text


def test_the_report_says_what_of_the_log_could_not_be_read(new_run, healthy_run, tmp_path):
    run = new_run(tmp_path / "run", sick=False)
    with open(next(run.glob("*.arrows")), "ab") as file:
        file.write(b"torn")
    with open(run / "events.jsonl", "ab") as file:
        file.write(b"{broken\n")
    words = "1 unreadable event skipped, an incomplete record of 4 bytes at the end"
    assert words in rendered(run, 200)
    assert "damage" not in rendered(healthy_run)


def test_colours_on_a_terminal_and_none_elsewhere(sick_run):
    assert "\x1b[" in rendered(sick_run, force_terminal=True, color_system="truecolor")
    assert "\x1b" not in invoke(sick_run).output


def test_exit_codes(sick_run, healthy_run):
    assert invoke(sick_run).exit_code == invoke(sick_run, "--json").exit_code == 1
    assert invoke(healthy_run).exit_code == invoke(healthy_run, "--json").exit_code == 0


def test_json_is_the_analysis(sick_run):
    result = invoke(sick_run, "--json")
    data = json.loads(result.output, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["schema_version"] == 2
    assert data["runs"] == [json.loads(json.dumps(analyze(sick_run).to_dict()))]


def test_the_json_is_what_its_schema_says(sick_run, healthy_run, tmp_path):
    """docs/analysis.schema.json is frozen: it names every field, and allows no other."""
    schema = json.loads((DOCS / "analysis.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n" + "".join(f"{i},{2 + 0.01 * (i % 7) if i < 150 else 'nan'}\n" for i in range(200)))
    data = json.loads(invoke(sick_run, healthy_run, log, tmp_path / "none", "--json").stdout)
    jsonschema.validate(data, schema)
    assert len(data["runs"]) == 3 and len(data["unreadable"]) == 1
    assert data["runs"][0]["alerts"] and data["runs"][2]["incidents"][0]["line"] == 152
    spoiled = {**data, "runs": [{**data["runs"][0], "colour": "red"}]}
    with pytest.raises(jsonschema.ValidationError, match="colour"):
        jsonschema.validate(spoiled, schema)


def test_every_field_of_the_json_is_documented():
    schema = json.loads((DOCS / "analysis.schema.json").read_text())
    page = (DOCS / "json.md").read_text()
    names = {name for part in (schema, *schema["$defs"].values()) for name in part["properties"]}
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def test_hostile_names(new_run, tmp_path):
    hostile = "a\x1b[2J[red]b\nc\u202e\x9b0m"
    run = new_run(tmp_path / "run", sick=True, layers=[hostile], run=hostile, model={"name": hostile})
    append_event(run, Event("error", 1.0, 3, {"probe": hostile, "message": hostile, "traceback": hostile}))
    append_event(run, Event("coverage", 1.0, 3, {"missing": [{"tap": hostile, "site": hostile, "reason": hostile}]}))
    text = rendered(run)
    assert "a[red]b c" in text
    assert not set(text) & set("\x1b\x9b\u202e\r\x07")


@pytest.mark.parametrize("missing", ["text", 7, [1, None, {"tap": []}], {"a": 1}])
def test_nonsense_in_the_log_is_survived(new_run, tmp_path, missing):
    run = new_run(tmp_path / "run", sick=True, steps=30, end=None, versions=[], model="text")
    append_event(run, Event("coverage", 1.0, None, {"missing": missing}))
    append_event(run, Event("error", 1.0, None, {}))
    append_event(run, Event("end", 1.0, None, {}))
    with open(run / "events.jsonl", "ab") as file:
        file.write(b"\xff\xfe{\n[]\n")
    result = invoke(run)
    assert result.exit_code in (0, 1), result.output


def test_a_run_without_records(tmp_path):
    folder = RunFolder(tmp_path / "run", Meta(run="new", created=0, host="h", pid=1, pid_started=0))
    result = invoke(folder.path)
    assert result.exit_code in (0, 1), result.output
    assert "0 recorded" in result.output


def test_a_folder_that_is_no_run(tmp_path):
    result = invoke(tmp_path)
    assert result.exit_code == 2
