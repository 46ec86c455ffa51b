"""The command line as a whole: its surface, its exit codes, and what it does not import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from stabwatch import __version__
from stabwatch.cli.app import app, guarded
from stabwatch.errors import StabwatchError
from tests.processes import run_python

GOLDEN = Path(__file__).parent / "surface.json"
HOW_TO_CHANGE = (
    "The commands or options of `stabwatch` changed. If that is on purpose: run `python tests/cli/test_app.py`, "
    "look at the difference in tests/cli/surface.json, and add a line to CHANGELOG.md."
)


def surface() -> dict[str, list[str]]:
    """Every command with its arguments and options."""
    root = typer.main.get_command(app)
    groups = {name: c.commands for name, c in root.commands.items() if hasattr(c, "commands")}
    inner = {f"{group} {name}": command for group, found in groups.items() for name, command in found.items()}
    commands = {"": root, **root.commands, **inner}
    return {
        name: sorted(" ".join([*p.opts, *p.secondary_opts]) for p in command.params)
        for name, command in commands.items()
    }


def stabwatch(*args: object, **options) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "stabwatch", *args, timeout=60, **options)


def test_the_surface_is_frozen():
    assert surface() == json.loads(GOLDEN.read_text()), HOW_TO_CHANGE


def test_every_command_explains_itself():
    for name in surface():
        result = CliRunner().invoke(app, [*name.split(), "--help"])
        assert result.exit_code == 0
        assert "..." not in result.output.split("Commands:")[-1] or name, "a summary is too long for one line"


def test_help_has_a_short_form_everywhere():
    for name in surface():
        long, short = (CliRunner().invoke(app, [*name.split(), flag]) for flag in ("--help", "-h"))
        assert (short.exit_code, short.output) == (0, long.output), name


def test_the_command_alone_shows_the_latest_runs(new_run, tmp_path):
    done = stabwatch(cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("No runs in stabwatch-runs.") and "analyze" in done.stdout
    for number in range(12):
        new_run(tmp_path / f"stabwatch-runs/run{number:02d}", sick=True, steps=30, name="a name", tags=["x", "y"])
    (tmp_path / "stabwatch-runs/bad").mkdir()
    (tmp_path / "stabwatch-runs/bad/meta.json").write_text("{")
    done = stabwatch(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "Runs in stabwatch-runs, the newest 10 of 13"
    assert lines[2].split()[:2] == ["bad", "unreadable"]
    assert lines[3].split()[:2] == ["run11", "finished"] and " 29 " in lines[3] and "a name #x #y" in lines[3]


COMPLETION = """
printf '#!/bin/sh\\nexec "%s" -m stabwatch "$@"\\n' "$PYTHON" > stabwatch; chmod +x stabwatch; PATH=$PWD:$PATH
eval "$(stabwatch --show-completion bash)"
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _stabwatch_completion stabwatch; echo "${COMPREPLY[*]}"; }
ask stabwatch ana
ask stabwatch export --par
ask stabwatch grafana pu
ask stabwatch analyze some
complete -p stabwatch
"""


def test_shells_complete_commands_options_and_files(tmp_path):
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        ["bash", "-c", COMPLETION], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    *answers, declared = done.stdout.splitlines()
    assert answers == ["analyze", "--parquet", "push", ""], done.stderr
    assert "-o default" in declared, "bash completes files where there is no answer"


def test_version():
    assert stabwatch("--version").stdout == f"stabwatch {__version__}\n"


HEAVY = ("torch", "numpy", "pyarrow", "rich", "prometheus_client")


def imported(*args: object, first: str = "") -> tuple[set[str], int]:
    """Heavy packages that a command imports, and its exit code. first: a line to run before it."""
    code = (
        f"import sys\n{first}\n"
        "from stabwatch.cli import main\n"
        "try:\n"
        f"    sys.argv = ['stabwatch', *{list(map(str, args))!r}]; main()\n"
        "except SystemExit as end:\n"
        "    code = end.code or 0\n"
        f"print('\\nIMPORTED', int(code), *(m for m in {HEAVY!r} if m in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "IMPORTED" in done.stdout, done.stderr
    exit_code, *modules = done.stdout.rpartition("IMPORTED ")[2].split()
    return set(modules), int(exit_code)


def test_help_imports_nothing_heavy():
    assert imported("--help") == (set(), 0)
    assert imported("analyze", "--help") == (set(), 0)
    assert imported("demo", "--help") == (set(), 0)


@pytest.mark.parametrize("command", ["analyze", "top --once", "doctor", "signals", "analyze --json"])
def test_no_command_imports_torch(command, sick_run):
    run = [] if command == "signals" else [sick_run]
    modules, code = imported(*command.split(), *run)
    assert "torch" not in modules
    assert code in (0, 1)


def test_the_import_test_can_fail(tmp_path):
    """Meta-test: a command in a process that does import torch is caught."""
    (tmp_path / "torch.py").write_text("")
    first = f"sys.path.insert(0, {str(tmp_path)!r}); import torch"
    assert imported("--version", first=first) == ({"torch"}, 0)


def test_help_answers_at_once():
    command = [sys.executable, "-m", "stabwatch", "--help"]
    subprocess.run(command, capture_output=True, check=True)  # compiles
    taken = []
    for _ in range(5):
        start = os.times()
        subprocess.run(command, capture_output=True, check=True)
        end = os.times()  # of the processor: others may be busy beside this test
        taken.append(end.children_user + end.children_system - start.children_user - start.children_system)
    assert min(taken) < 0.5, "goal is 0.2 s; the bound leaves room for a slow machine"


@pytest.mark.parametrize("command", ["analyze", "top", "doctor", "agent"])
def test_what_is_not_a_run_is_one_line_on_stderr(command, tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        done = stabwatch(command, path)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("stabwatch: ")
        assert done.stderr.count("\n") == 1
        assert str(path) in done.stderr


def test_a_broken_meta_is_one_line_on_stderr(tmp_path):
    for text in ("{", "[]", '{"schema": 99}', '{"schema": 1}', "\x00"):
        (tmp_path / "meta.json").write_text(text)
        done = stabwatch("analyze", tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr


def test_a_wrong_option_is_exit_2():
    assert stabwatch("analyze", "--jason").returncode == 2
    assert stabwatch("nonsense").returncode == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (StabwatchError("no\x1b[2J"), 2), (OSError("disk"), 2), (KeyError("x"), 3)],
)
def test_every_end_has_its_exit_code(error, code, capsys):
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as end:
        guarded(command)()
    assert end.value.exit_code == code
    stderr = capsys.readouterr().err
    assert ("Traceback" in stderr) == (code == 3)
    assert "\x1b" not in stderr


def test_a_reader_that_leaves_early_is_no_error():
    line = f"{sys.executable} -m stabwatch signals | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")


def test_a_closed_pipe_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "stabwatch", "signals"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_inside_an_exec_of_text_has_the_exit_code_too(tmp_path):
    lines = "import stabwatch.cli.app as a\na.app = lambda prog_name: exec('raise KeyboardInterrupt')\n"
    (tmp_path / "ctrl_c.py").write_text(f"{lines}from stabwatch.cli import main\nmain()\n")
    done = subprocess.run([sys.executable, "-m", "ctrl_c"], cwd=tmp_path, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(surface(), indent=1) + "\n")
