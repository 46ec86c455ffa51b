"""Pushing to a server that keeps Grafana's contract: tokens, folders, versions."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("grafana_foundation_sdk")
pytest.importorskip("grafana_client")

from stabwatch.errors import GrafanaError
from stabwatch.exporters.grafana import DASHBOARDS
from stabwatch.exporters.grafana.server import Server
from stabwatch.runlog import Meta, RunFolder
from tests.processes import run_python

TOKEN = "glsa_secret"


class Grafana(BaseHTTPRequestHandler):
    """As much of Grafana's HTTP API as a push needs (https://grafana.com/docs/grafana/latest/developers/http_api)."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        if not self._allowed():
            return
        state = self.server.state
        if self.path.startswith("/api/folders"):
            self._say(200, [{"uid": uid, "title": title} for uid, title in state["folders"].items()])
        elif found := re.fullmatch(r"/api/dashboards/uid/([\w-]+)", self.path):
            there = state["dashboards"].get(found[1])
            self._say(200, {"dashboard": there, "meta": {}}) if there else self._say(404, {"message": "Not found"})
        else:
            self._say(404, {"message": "Not found"})

    def do_POST(self):
        if not self._allowed():
            return
        state = self.server.state
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if state.get("viewer"):
            self._say(403, {"message": "You'll need additional permissions"})
        elif self.path == "/api/folders":
            state["folders"]["f1"] = body["title"]
            self._say(200, {"uid": "f1", "title": body["title"]})
        elif self.path == "/api/dashboards/db":
            board = body["dashboard"]
            there = state["dashboards"].get(board["uid"])
            if there and not body.get("overwrite") and board.get("version") != there["version"]:
                self._say(412, {"status": "version-mismatch", "message": "changed by someone else"})
                return
            assert body["folderUid"] in state["folders"]
            version = there["version"] + 1 if there else 1
            state["dashboards"][board["uid"]] = {**board, "id": 7, "version": version}
            state["writes"] += 1
            self._say(200, {"status": "success", "uid": board["uid"], "version": version})

    def _allowed(self):
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self._say(401, {"message": "Invalid API key"})
        return False

    def _say(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def grafana():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Grafana)
    server.state = {"folders": {}, "dashboards": {}, "writes": 0}
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_push_creates_all_and_a_second_one_nothing(grafana):
    server = Server(grafana.url, TOKEN)
    assert {d.state for d in server.differences(DASHBOARDS)} == {"new"}
    server.push(DASHBOARDS, "Training")
    assert grafana.state["folders"] == {"f1": "Training"}
    assert grafana.state["dashboards"].keys() == {page.uid for page in DASHBOARDS}
    assert {d.state for d in server.push(DASHBOARDS, "Training")} == {"same"}
    assert grafana.state["writes"] == len(DASHBOARDS)


def test_what_was_changed_is_brought_back_in_its_version(grafana):
    server = Server(grafana.url, TOKEN)
    server.push(DASHBOARDS, "stabwatch")
    board = grafana.state["dashboards"]["stabwatch-run"]
    board["title"], board["version"] = "Mine", 5
    changed = [d.page.uid for d in server.push(DASHBOARDS, "stabwatch") if d.state == "changed"]
    assert changed == ["stabwatch-run"]
    assert grafana.state["dashboards"]["stabwatch-run"]["version"] == 6


def test_refusals_are_told_in_words(grafana):
    with pytest.raises(GrafanaError, match="not accepted"):
        Server(grafana.url, "wrong").push(DASHBOARDS, "x")
    grafana.state["viewer"] = True
    with pytest.raises(GrafanaError, match="may not edit"):
        Server(grafana.url, TOKEN).push(DASHBOARDS, "x")
    with pytest.raises(GrafanaError, match="does not answer"):
        Server("http://127.0.0.1:9", TOKEN, timeout=2).push(DASHBOARDS, "x")


def _run(*arguments, **environment):
    return run_python("-m", "stabwatch", "grafana", *arguments, timeout=60, env={"PATH": "", **environment})


def test_the_command_never_shows_the_token(grafana, tmp_path):
    done = _run("push", "--url", grafana.url, GRAFANA_TOKEN=TOKEN)
    assert done.returncode == 0 and done.stdout.count("created") == len(DASHBOARDS), done.stderr
    refused = _run("diff", "--url", grafana.url, GRAFANA_TOKEN="other-" + TOKEN)
    assert refused.returncode == 2 and "not accepted" in refused.stderr
    none = _run("push", "--url", grafana.url)
    assert none.returncode == 2 and "GRAFANA_TOKEN" in none.stderr
    assert TOKEN not in done.stdout + done.stderr + refused.stderr + none.stderr
    assert _run("export", "-o", str(tmp_path)).stdout.count(".json") == len(DASHBOARDS)


def test_a_run_brings_the_panels_of_its_plugins(grafana, tmp_path):
    declared = [{"name": "negative_ratio", "help": "Share below zero.", "unit": "ratio", "scope": "layer"}]
    RunFolder(tmp_path / "run", Meta(run="r", created=0.0, host="h", pid=1, pid_started=0.0, signals=declared)).close()
    options = ("--url", grafana.url, "--run", str(tmp_path / "run"))
    assert _run("push", *options, GRAFANA_TOKEN=TOKEN).returncode == 0
    assert "stabwatch_negative_ratio" in json.dumps(grafana.state["dashboards"]["stabwatch-layers"])
    assert _run("diff", *options, GRAFANA_TOKEN=TOKEN).returncode == 0
    none = _run("export", "-o", str(tmp_path), "--run", str(tmp_path / "none"))
    assert none.returncode == 2 and "none" in none.stderr
