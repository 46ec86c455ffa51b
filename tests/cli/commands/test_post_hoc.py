"""`replay`, `export`, `compare` and `forecast` as people call them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.test_app import imported, stabwatch


@pytest.mark.parametrize("command", ["replay", "compare", "forecast", "export --csv"])
def test_none_of_them_imports_torch(command, sick_run, healthy_run, tmp_path):
    runs = [sick_run] if "export" in command else [sick_run, healthy_run]
    options = ["-o", tmp_path / "x"] if "export" in command else []
    modules, code = imported(*command.split(), *runs, *options)
    assert "torch" not in modules and code in (0, 1)


def test_replay_says_how_often_and_where(sick_run, healthy_run):
    done = stabwatch("replay", sick_run, healthy_run)
    assert done.returncode == 1
    assert "AttentionLogitGrowth would have fired 1 time in 1 of 2 runs (1 critical):" in done.stdout
    silent = [*map(str.strip, done.stdout.partition("Silent in 2 runs: ")[2].partition(".")[0].split(","))]
    assert "NonFinite" in silent and "AttentionLogitGrowth" not in silent
    assert "no alert was recorded during the run" in done.stdout
    calm = stabwatch("replay", healthy_run, "--json")
    assert calm.returncode == 0 and json.loads(calm.stdout)["runs"][0]["incidents"] == 0


def test_a_folder_of_runs_is_all_its_runs(sick_run, healthy_run):
    assert json.loads(stabwatch("replay", sick_run.parent, sick_run, "--json").stdout)["schema_version"] == 2
    done = stabwatch("compare", sick_run, sick_run, env=os.environ | {"COLUMNS": "100"})
    assert done.returncode == 2 and "two or more runs" in done.stderr


def test_compare_names_what_parted(sick_run, healthy_run):
    done = stabwatch("compare", healthy_run, sick_run)
    assert done.returncode == 0, done.stderr
    assert "Verdict of each run" in done.stdout and "Attention logits have grown beyond a safe size" in done.stdout
    assert "learning_rate  0.001 at first" in " ".join(done.stdout.split()) or "0.03 at most" in done.stdout
    assert "The losses are the same at all 300 common steps." in done.stdout
    assert "First to diverge: learning_rate, at step 0" in done.stdout
    data = json.loads(stabwatch("compare", healthy_run, sick_run, "--json").stdout)
    assert {p["signal"] for p in data["pairs"][0]["diverged"]} >= {"attention_logit_lower"}


def test_forecast_refuses_in_words(sick_run, healthy_run):
    done = stabwatch("forecast", sick_run, healthy_run)
    assert done.returncode == 1 and "No forecast: 2 runs have it" in done.stdout


@pytest.mark.parametrize(
    "options",
    [["--csv", "--parquet"], [], ["--openmetrics", "--wide"], ["--csv", "--interval", "1"], ["--parquet", "-o", "-"]],
)
def test_what_does_not_go_together_is_one_line(options, sick_run, tmp_path):
    done = stabwatch("export", sick_run, *options, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])


def test_exports_lie_beside_and_go_through_pipes(sick_run, tmp_path):
    for form, name in (("csv", "sick.csv"), ("parquet", "sick.parquet"), ("openmetrics", "sick.om")):
        done = stabwatch("export", sick_run, f"--{form}", cwd=tmp_path)
        assert done.returncode == 0 and (tmp_path / name).stat().st_size > 1000, done.stderr
    piped = stabwatch("export", sick_run, "--csv", "--wide", "-o", "-")
    assert piped.stdout.splitlines()[0].startswith('"step","time","loss"') and len(piped.stdout.splitlines()) == 301


def test_hostile_names_and_empty_runs(tmp_path, new_run):
    layers = ["<b>\x1b[31m\n", 'a"b\\', "\ud800"]
    hostile = [
        new_run(tmp_path / "runs" / f"{i}", sick=True, steps=20, layers=layers, run="\x1b[2J<i>") for i in (1, 2)
    ]
    empty = new_run(tmp_path / "runs" / "empty", sick=True, steps=0, end=None)
    for command in ("replay", "compare", "forecast"):
        done = stabwatch(command, *hostile, empty)
        assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
        assert "\x1b" not in done.stdout
    for run in (hostile[0], empty):
        for form in ("--csv", "--parquet", "--openmetrics", "--tensorboard"):
            done = stabwatch("export", run, form, "-o", tmp_path / f"{run.name}{form}")
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("form", ["openmetrics", "csv", "parquet", "tensorboard"])
def test_an_interrupted_export_leaves_nothing(form, tmp_path, new_run):
    run = new_run(tmp_path / "runs" / "long", sick=True, steps=3000)
    out = tmp_path / "out"
    out.mkdir()
    often = ["--interval", "0.01"] if form == "openmetrics" else []
    _interrupted(out, ["export", str(run), f"--{form}", "-o", str(out / "x"), *often], lambda _: any(out.iterdir()))


@pytest.mark.parametrize("command", [["analyze"], ["report", "-o", "out/x.html"], ["replay"]], ids=lambda c: c[0])
def test_an_interrupted_reader_of_logs_leaves_nothing(command, tmp_path):
    """While it reads a log of bars, which takes seconds."""
    log, out = tmp_path / "train.log", tmp_path / "out"
    out.mkdir()
    with log.open("w") as file:
        file.writelines(
            f"Epoch 1:  50%|##   | {i}/900000 [00:10<00:10, 5.00it/s, loss={i % 7}.1]\r" for i in range(600_000)
        )
    _interrupted(out, [command[0], str(log), *command[1:]], lambda process: _reads(process, log))


def _interrupted(out: Path, command: list[str], ready: Callable[[subprocess.Popen[str]], bool]) -> None:
    """Ctrl-C, once it is at work: exit code 130, no word, nothing in the folder."""
    for _ in range(8):
        code, said = _interrupt(out, command, ready)
        if code != 0:  # 0: it had finished by then
            break
        shutil.rmtree(out)
        out.mkdir()
    assert (code, list(out.iterdir())) == (130, []), said
    assert "Traceback" not in said


def _interrupt(out: Path, command: list[str], ready: Callable[[subprocess.Popen[str]], bool]) -> tuple[int, str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "stabwatch", *command], cwd=out.parent, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    end = time.monotonic() + 60
    while not ready(process) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    try:
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
        process.wait(10)
    return process.returncode, said


def _reads(process: subprocess.Popen[str], path: Path) -> bool:
    for link in Path(f"/proc/{process.pid}/fd").glob("*"):
        with suppress(FileNotFoundError):  # it was closed meanwhile
            if os.readlink(link) == str(path):
                return True
    return False
