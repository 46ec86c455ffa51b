"""Settings: keywords over environment over file over defaults, and errors that say the way out."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stabwatch
from stabwatch.config import PREFIX, VARIABLES, Config, variable_of
from stabwatch.errors import ConfigError, MissingExtraError, RuleError

ROOT = Path(__file__).parents[1]


def test_keywords_win_over_environment_over_file(tmp_path):
    path = tmp_path / "stabwatch.yaml"
    path.write_text("port: 1\nlinger: 2\noverhead_budget: 0.03\n")
    environ = {"STABWATCH_PORT": "5", "STABWATCH_LINGER": "6", "UNRELATED": "x"}
    config = Config.load(path, environ, linger=7)
    assert (config.port, config.linger, config.overhead_budget) == (5, 7.0, 0.03)


@pytest.mark.parametrize(("text", "value"), [("0", False), ("off", False), ("True", True), ("yes", True)])
def test_switches_are_read_as_people_write_them(text, value):
    assert Config.load(None, {"STABWATCH_AGENT": text}).agent is value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prot": 1}, r"There is no setting `prot`\. Settings: .*port"),
        ({"port": "web"}, "`port` must be a whole number, and is 'web'"),
        ({"port": 70000}, "`port` must be between 0 and 65535, and is 70000"),
        ({"agent": "perhaps"}, "`agent` must be true or false, and is 'perhaps'"),
        ({"reduce": "mean"}, "`reduce` must be 'auto' or 'never', and is 'mean'"),
        ({"linger": -1}, "`linger` must be zero or more seconds"),
        ({"include": "("}, "`include` must be a regular expression"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config.load(settings, {})


def test_a_file_that_is_missing_or_no_mapping_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        Config.load(tmp_path / "nowhere.yaml", {})
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="must hold `name: value` lines, and holds a list"):
        Config.load(tmp_path / "list.yaml", {})
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.load(tmp_path / "broken.yaml", {})


def test_all_mistakes_are_named_at_once_with_what_was_meant(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("prot: 1\nlinger: -2\nworst: many\n")
    environ = {"STABWATCH_OVERHEAD_BUDGT": "0.1", "STABWATCH_MAX_SERIES": "few", "STABWATCH_PORT": "0"}
    with pytest.raises(ConfigError) as error:
        Config.load(path, environ, guard="tailor")
    said = str(error.value)
    for part in (
        "(1) There is no setting STABWATCH_OVERHEAD_BUDGT. Did you mean STABWATCH_OVERHEAD_BUDGET?",
        "settings.yaml: There is no setting `prot`.", "Did you mean `port`?",
        "settings.yaml: `linger` must be zero or more seconds, and is -2.0.",
        "settings.yaml: `worst` must be a whole number, and is 'many'.",
        "STABWATCH_MAX_SERIES: `max_series` must be a whole number, and is 'few'.",
        "`guard` must be made of taylor", "(6)",
    ):  # fmt: skip
        assert part in said, part
    assert "(7)" not in said


def test_a_single_mistake_keeps_its_kind(tmp_path):
    with pytest.raises(RuleError):
        Config.load({"rules": str(tmp_path / "none.yaml")}, {})
    with pytest.raises(ConfigError, match=r"^STABWATCH_SINKS: No sink is called 'oltp'. Did you mean 'otlp'"):
        Config.load(None, {"STABWATCH_SINKS": "oltp"})
    with pytest.raises(ConfigError, match="`port` must be between .* `worst` must be"):
        Config(port=-1, worst=-1)


def test_every_variable_that_the_code_reads_is_known():
    """Also those of the manifests and the compose file."""
    files = [*ROOT.glob("stabwatch/**/*.py"), *ROOT.glob("exporters/*"), *ROOT.glob("docs/*.md")]
    named = {n for file in files for n in re.findall(rf"\b{PREFIX}([A-Z_]*[A-Z])\b", file.read_text(encoding="utf-8"))}
    assert {"PASSWORD", "WEBHOOK_FILE", "GUARD"} <= named
    known = {*VARIABLES, *(f.removeprefix(PREFIX) for f in map(variable_of, Config.__dataclass_fields__))}
    assert named - known == set()


def test_tags_are_words():
    assert Config.load(None, {"STABWATCH_TAGS": "a, b,,a"}).tags == ("a", "b", "a")
    assert Config.load({"tags": ["a", 2]}, {}).tags == ("a", "2")
    with pytest.raises(ConfigError, match="`tags` must be a list of words, and is 3"):
        Config.load({"tags": 3}, {})


def test_a_training_goes_on_with_a_mistake_outside_of_its_code(tmp_path, monkeypatch, caplog):
    path = tmp_path / "settings.yaml"
    path.write_text("prot: 1\noverhead_budget: 7\nlinger: 3\nagent: false\n")
    monkeypatch.setenv("STABWATCH_VERBOS", "0")
    monkeypatch.setenv("STABWATCH_LINGER", "soon")
    monkeypatch.setenv("STABWATCH_SINKS", "oltp")
    with caplog.at_level(logging.ERROR, "stabwatch"):
        watch = stabwatch.attach(torch.nn.Linear(2, 2), config=path, run_dir=tmp_path / "run")
    watch.detach()
    assert (watch.config.linger, watch.config.overhead_budget, watch.config.sinks) == (3.0, 0.01, None)
    said = caplog.text
    for part in (
        "Did you mean `port`?", "Did you mean STABWATCH_VERBOSE?", "STABWATCH_LINGER: `linger` must be a number",
        "settings.yaml: `overhead_budget` must be between 0 and 1", "STABWATCH_SINKS: No sink",
    ):  # fmt: skip
        assert part in said, part
    with pytest.raises(ConfigError, match="no setting `every_stp`"):
        stabwatch.attach(torch.nn.Linear(2, 2), every_stp=True)


def test_the_command_line_refuses_a_misspelt_variable(tmp_path):
    env = {**os.environ, "STABWATCH_PASWORD": "x", "STABWATCH_ROT": "y"}
    command = [sys.executable, "-m", "stabwatch"]
    options = {"env": env, "cwd": tmp_path, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([*command, "signals"], **options)
    assert done.returncode == 2 and done.stdout == ""
    assert "Did you mean STABWATCH_PASSWORD?" in done.stderr and "Did you mean STABWATCH_ROOT?" in done.stderr
    assert subprocess.run([*command, "signals", "-h"], **options).returncode == 0, "help is always there"


def test_a_missing_extra_in_the_environment_does_not_end_the_training(monkeypatch, tmp_path, caplog):
    from stabwatch.exporters import registry
    from stabwatch.exporters.sink import SinkDeclaration

    absent = SinkDeclaration(name="absent", help="", make=lambda: None, live=True, modules=("not_there",), extra="x")
    monkeypatch.setitem(registry.SINKS, "absent", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'stabwatch\[x\]'"):
        Config.load(None, {"STABWATCH_SINKS": "absent"})
    monkeypatch.setenv("STABWATCH_SINKS", "absent")
    stabwatch.attach(torch.nn.Linear(2, 2), run_dir=tmp_path / "run", agent=False).detach()
    assert "pip install 'stabwatch[x]'" in caplog.text
