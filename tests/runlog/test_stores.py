"""Run logs in object stores: sent while they are written, and read from there."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path

import pytest
import torch

import stabwatch
from stabwatch.analysis.sources import open_sources
from stabwatch.errors import RunLogError
from stabwatch.runlog import find_run, folder, mirror, read_run, upload
from stabwatch.runlog.stores import Store, joined, parent_and_name, shown, url_of
from tests.agent.synthetic import Log


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Short pauses, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(upload, "EVERY_SECONDS", 0.02)
    monkeypatch.setattr(upload, "MOST_SECONDS", 0.05)
    monkeypatch.setattr(mirror, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(folder, "ROTATE_SECONDS", (0.05, 0.05))


def train(run_dir: str, steps: int = 5, pause: float = 0.0, **more) -> Path:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with stabwatch.attach(model, optimizer, run_dir=run_dir, agent=False, verbose=False, **more) as watch:
        for _ in range(steps):
            time.sleep(pause)
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return watch.run_dir


def until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_addresses():
    assert url_of("runs/a") is None and url_of(Path("/runs/s3/a")) is None and url_of("C:/x") is None
    assert url_of("s3://b/x/") == "s3://b/x" == url_of(Path("s3://b/x"))
    assert url_of(Path("file:///tmp/x")) == "file:///tmp/x"
    assert joined("s3://b/x?scheme=http", "y") == "s3://b/x/y?scheme=http"
    assert parent_and_name("s3://b/x/y?scheme=http") == ("s3://b/x?scheme=http", "y")
    assert shown("s3://key:secret@b/x?scheme=http") == "s3://b/x"
    with pytest.raises(RunLogError, match="cannot be opened"):
        Store("s3://bucket/x?no_such_option=1")


def test_a_run_is_sent_while_it_goes_on_and_read_there(tmp_path):
    url = f"file://{tmp_path}/store/runs/one"
    folder = train(url, steps=12, pause=0.03, tags="a")
    assert folder == Path("stabwatch-runs/one").absolute()
    sent = tmp_path / "store/runs/one"
    assert len(list(sent.glob("*.arrows"))) > 1
    assert all((sent / p.name).read_bytes() == p.read_bytes() for p in folder.glob("*.*") if p.name[0] != ".")
    there, here = read_run(find_run(url)), read_run(folder)
    assert there.steps.tolist() == here.steps.tolist() == list(range(12))
    assert there.events[-1].kind == "end" and there.meta.tags == ["a"]
    assert [log.meta.run for log in open_sources([Path(url)])] == [there.meta.run]
    assert stabwatch.open_run(url).series("loss", arrow=True).num_rows == 12
    assert stabwatch.runs(f"file://{tmp_path}/store/runs", verdict=False, arrow=True)["records"].to_pylist() == [12]
    (sent / "events.jsonl").unlink()
    assert not (find_run(url) / "events.jsonl").exists()


def test_another_run_is_never_overwritten(tmp_path, caplog):
    url = f"file://{tmp_path}/store/one"
    train(url)
    before = (tmp_path / "store/one/meta.json").read_bytes()
    Path("stabwatch-runs").rename("elsewhere")  # another machine
    with caplog.at_level(logging.WARNING):
        train(url)
    assert "has another run; this one is sent to" in caplog.text
    assert (tmp_path / "store/one/meta.json").read_bytes() == before
    assert len(read_run(tmp_path / "store/one-2").steps) == 5
    train(url)  # the same machine: it goes on with its own
    assert not (tmp_path / "store/one-3").exists()
    assert sum(e.kind == "start" for e in read_run(tmp_path / "store/one-2").events) == 2


def test_a_run_that_goes_on_is_still_sent(tmp_path):
    folder = train(f"file://{tmp_path}/store/one")
    train(None, resume=folder)
    assert sum(e.kind == "start" for e in read_run(tmp_path / "store/one").events) == 2


def test_runs_below_an_address(tmp_path):
    folder = train(None, root=f"file://{tmp_path}/store", run="named")
    assert folder == Path("stabwatch-runs/named").absolute()
    assert len(read_run(tmp_path / "store/named").steps) == 5


def test_a_store_that_is_away_is_told_once_retried_and_harms_nothing(tmp_path, caplog, monkeypatch):
    away = [True]
    write = Store.write

    def written(self, source, name):
        if away[0]:
            raise OSError("no route to host")
        write(self, source, name)

    monkeypatch.setattr(Store, "write", written)
    log = Log(tmp_path / "run", sick=False)
    told = []
    with caplog.at_level(logging.WARNING):
        sender = upload.Uploader(log.folder, f"file://{tmp_path}/store/run", lambda *a, **k: told.append((a, k)))
        log.write(range(3))
        until(lambda: sender.failed >= 3)
        assert caplog.text.count("no route to host") == 1 and [a[0] for a, _ in told] == ["error"]
        away[0] = False
        until(lambda: len(told) == 2)
        assert told[1][0][0] == "note" and f"{sender.failed} attempts had failed" in told[1][1]["text"]
        away[0] = True
        log.end(2)
        log.folder.close()
        sender.close()
    assert "2 files of the run log are not in" in caplog.text  # the segment that was open, and the events
    assert len(read_run(tmp_path / "run").steps) == 3


def test_a_store_that_hangs_does_not_hold_up_the_end(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(Store, "write", lambda *_: time.sleep(3))
    log = Log(tmp_path / "run", sick=False)
    sender = upload.Uploader(log.folder, f"file://{tmp_path}/store/run", lambda *a, **k: None)
    time.sleep(0.1)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        sender.close(0.1)
    assert time.monotonic() - began < 2.5 and "are not in file://" in caplog.text


def test_events_that_an_agent_adds_after_the_end_are_sent_too(tmp_path):
    folder = train(f"file://{tmp_path}/store/run")
    with open(folder / "events.jsonl", "a") as file:
        file.write('{"kind": "alert", "time": 1.0}\n')
    upload.send_events(folder)
    assert (tmp_path / "store/run/events.jsonl").read_bytes() == (folder / "events.jsonl").read_bytes()
    upload.send_events(tmp_path)  # nothing was sent from there


def test_an_address_without_anything_is_told(tmp_path):
    with pytest.raises(RunLogError, match="cannot be read"):
        find_run(f"file://{tmp_path}/nothing")
    (tmp_path / "log.csv").write_text("step,loss\n" + "\n".join(f"{i},{5 - i / 100}" for i in range(60)))
    (log,) = open_sources([Path(f"file://{tmp_path}/log.csv")])
    assert sum(map(len, log.stream())) == 60


def test_a_name_that_leads_out_of_the_copy_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/a").write_text("a")
    found = mirror.Mirror(f"file://{tmp_path}/store")
    files = Store.files
    monkeypatch.setattr(Store, "files", lambda self: files(self) | {"../../evil": files(self)["a"]})
    found.sync()
    assert [p.name for p in found.folder.iterdir()] == ["a"]


@pytest.fixture(scope="module")
def s3():
    """The address of a bucket of a server on this machine."""
    moto = pytest.importorskip("moto.server")
    boto = pytest.importorskip("boto3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
    boto.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **keys).create_bucket(Bucket="bucket")
    yield f"http://127.0.0.1:{port}"
    server.stop()


def test_s3(s3, monkeypatch):
    settings = {"ENDPOINT_URL": s3, "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    folder = train("s3://bucket/runs/one", steps=8, pause=0.03)
    there, here = read_run(find_run("s3://bucket/runs/one")), read_run(folder)
    assert there.steps.tolist() == here.steps.tolist() == list(range(8))
    assert stabwatch.runs("s3://bucket/runs", verdict=False, arrow=True)["records"].to_pylist() == [8]
    with pytest.raises(RunLogError, match="cannot be read"):
        find_run("s3://bucket/nothing")


def test_an_s3_that_is_not_there_costs_the_training_nothing(monkeypatch, caplog):
    monkeypatch.setattr("stabwatch.runlog.stores.CONNECT_SECONDS", 0.2)
    monkeypatch.setattr("stabwatch.runlog.stores.ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with caplog.at_level(logging.WARNING):
        folder = train("s3://bucket/one")
    assert len(read_run(folder).steps) == 5 and "files of the run log are not in s3://bucket/one" in caplog.text
