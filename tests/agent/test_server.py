"""HTTP, on real sockets: what is served, to whom, and that nobody is kept waiting."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest

from stabwatch.agent import http as http_module
from stabwatch.agent import server
from stabwatch.agent.http import HttpServer
from stabwatch.agent.server import FILES, PAGE, App
from stabwatch.agent.state import Follower
from stabwatch.errors import AgentError
from tests.agent.conftest import get, until


@pytest.fixture
def follower(new_log):
    log = new_log("r")
    log.write(range(60))
    follower = Follower(log.path)
    follower.poll()
    yield follower
    follower.lease.release()


@pytest.fixture
def listen(follower):
    """An HttpServer that serves the follower."""
    made = []

    def start(host="127.0.0.1", port=0, token=None, **more) -> HttpServer:
        made.append(HttpServer(App(follower, token), host, port, **more))
        made[-1].start()
        return made[-1]

    yield start
    for http in made:
        http.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(certificate, key) for 127.0.0.1."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=stabwatch", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    return cert, key


def test_metrics_are_negotiated_and_packed(listen):
    url = listen().url + "metrics"
    status, headers, plain = get(url)
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    assert b'stabwatch_step{run="r"} 59.0' in plain
    _, headers, packed = get(url, headers={"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip"
    assert b'stabwatch_step{run="r"} 59.0' in gzip.decompress(packed)
    _, headers, body = get(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_a_scrape_may_ask_for_some_names(listen):
    url = listen().url + "metrics"
    _, _, whole = get(url)
    _, _, some = get(url + "?name[]=stabwatch_loss&name[]=stabwatch_gradient_norm")
    lines = [line for line in some.splitlines() if not line.startswith(b"#")]
    assert len(lines) == 2 and set(lines) < set(whole.splitlines())
    assert len([line for line in some.splitlines() if line.startswith(b"# TYPE")]) == 2


def test_health_says_whether_the_log_is_followed(listen, follower, monkeypatch):
    url = listen().url + "healthz"
    status, _, body = get(url)
    health = json.loads(body)
    assert (status, health["ok"], health["run"], health["step"], health["state"]) == (200, True, "r", 59, "running")
    monkeypatch.setattr(server, "HEALTHY_SECONDS", 0.0)
    status, _, body = get(url)
    assert (status, json.loads(body)["ok"]) == (503, False)


def test_page_data_comes_in_increments(listen, follower, new_log):
    url = listen().url + "api/state.json"
    whole = json.loads(get(url)[2])
    assert whole["points"]["steps"] == list(range(60))
    titles = [chart["title"] for chart in whole["charts"]]
    assert titles[:3] == ["Loss", "Gradient norm", "Attention logit"]
    attention = whole["charts"][2]["lines"]
    assert [line["layer"] for line in attention] == [f"blocks.{i}.attn" for i in range(4)]
    assert {"low", "exact"} <= attention[0].keys()
    points = whole["points"]
    rest = json.loads(get(f"{url}?since={points['epoch']}.{points['next']}")[2])["points"]
    assert (rest["from"], rest["steps"]) == (59, [59])
    for nonsense in ("x", "1.", "-1.-1", "1.2.3", "99999.0"):
        assert json.loads(get(f"{url}?since={nonsense}")[2])["points"]["from"] == 0


@pytest.mark.parametrize("path", FILES)
def test_page_files_are_served_with_a_strict_policy(listen, path):
    status, headers, body = get(listen().url.rstrip("/") + path)
    assert status == 200
    assert body == (PAGE / FILES[path][0]).read_bytes()
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_page_asks_nobody_else():
    for name in ("index.html", "page.js", "charts.js", "heatmap.js", "names.js", "page.css"):
        text = (PAGE / name).read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text and "https:" not in text and "//cdn" not in text, name
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text, name
    assert "MIT" in (PAGE / "uplot" / "LICENSE").read_text()


@pytest.mark.parametrize("path", ["nothing", "../errors.py", "uplot/../page.js", "%2e%2e/server.py"])
def test_nothing_else_is_served(listen, path):
    assert get(listen().url + path)[0] == 404


def test_only_reading_is_allowed(listen):
    http = listen()
    with socket.create_connection(("127.0.0.1", http.port), timeout=5) as s:
        s.sendall(b"POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.0 405")
    with socket.create_connection(("127.0.0.1", http.port), timeout=5) as s:
        s.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: s.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.0 200")
    assert answer.endswith(b"\r\n\r\n")


def test_a_login_guards_everything(listen):
    url = listen(token="watcher:pässword").url

    def status(path: str, login: str | None = None) -> int:
        header = {} if login is None else {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
        return get(url + path, headers=header)[0]

    for path in ("", "metrics", "healthz", "api/state.json", "page.js"):
        assert status(path) == 401
        assert status(path, "watcher:wrong") == 401
        assert status(path, "watcher:pässword") == 200
    assert get(url, headers={"Authorization": "Basic !!!"})[0] == 401
    assert get(url, headers={"Authorization": "Bearer x"})[0] == 401
    assert "Basic" in get(url)[1]["WWW-Authenticate"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:9", 200), ("[::1]:9", 200), ("10.1.2.3", 200), ("localhost", 200), ("LOCALHOST:1", 200),
        (socket.gethostname(), 200), (socket.gethostname() + ".cluster.local:9478", 200), ("mine.example.org", 200),
        ("evil.example.org", 421), ("127.0.0.1.evil.org", 421), ("localhost.evil.org", 421),
        ("mine.evil.org", 421), ("localhost@evil.org", 421), ("evil.org:9478", 421),
    ],
)  # fmt: skip
def test_a_request_under_another_name_is_refused(follower, listen, host, status):
    started = HttpServer(App(follower, None, ["mine.example.org", "mine"]), "127.0.0.1", 0)
    started.start()
    try:
        for path in ("metrics", "api/state.json", ""):
            assert get(started.url + path, headers={"Host": host})[0] == status
    finally:
        started.close()
    secret = base64.b64encode(b"a:b").decode()  # a stranger's page has not the password
    assert get(listen(token="a:b").url, headers={"Host": host, "Authorization": f"Basic {secret}"})[0] == 200


def test_a_refusal_of_gzip_is_heard(listen):
    for path in ("metrics", "page.js"):
        assert get(listen().url + path, headers={"Accept-Encoding": "gzip;q=0"})[1]["Content-Encoding"] is None


def test_a_new_snapshot_is_in_the_next_scrape(listen, follower):
    url = listen().url + "metrics"
    first = get(url)[2]
    assert get(url)[2] == first
    follower.snapshot = dataclasses.replace(follower.snapshot, step=60)
    assert b'stabwatch_step{run="r"} 60.0' in get(url)[2]


def test_slow_clients_do_not_keep_others_waiting(listen, monkeypatch):
    monkeypatch.setattr(http_module, "REQUEST_SECONDS", 3.0)
    server = listen()
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    for s in slow[::2]:
        s.sendall(b"GET / HTTP/1.1\r\n")
    began = time.monotonic()
    assert get(server.url + "healthz")[0] == 200
    assert time.monotonic() - began < 3, "it did not wait until the others were given up"
    for s in slow[::2]:  # a drop now and then is no progress
        s.settimeout(5)
    time.sleep(0.6)
    for s in slow[::2]:
        s.sendall(b"X: y\r\n")
    ends = [_is_closed(s) for s in slow[:20]]
    assert all(ends)
    for s in slow:
        s.close()


def _is_closed(s: socket.socket) -> bool:
    try:
        return s.recv(1000) == b""
    except ConnectionResetError:
        return True


def test_fifty_servers_at_once(listen):
    url = listen().url
    took, failed = [], []
    start, work = time.monotonic(), time.process_time()

    def scrape(path: str) -> None:
        for _ in range(4):
            began = time.monotonic()
            if get(url + path)[0] != 200:
                failed.append(path)
            took.append(time.monotonic() - began)

    threads = [
        threading.Thread(target=scrape, args=(path,)) for path in ("metrics", "api/state.json", "") for _ in range(17)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed and len(took) == 204
    busy = max(1.0, (time.monotonic() - start) / (time.process_time() - work))  # others may use the processor too
    assert sorted(took)[int(len(took) * 0.99)] < 1 * busy


def test_tls_with_a_silent_client_beside(listen, certificate):
    http = listen(certfile=certificate[0], keyfile=certificate[1])
    assert http.url.startswith("https://127.0.0.1:")
    context = ssl.create_default_context(cafile=str(certificate[0]))
    with socket.create_connection(("127.0.0.1", http.port)):  # connects, and never says hello
        began = time.monotonic()
        assert get(http.url + "healthz", context=context)[0] == 200
        assert time.monotonic() - began < 3


def test_a_scrape_does_not_wait_for_the_page(listen, follower):
    url = listen().url
    with follower.history_lock:  # as if the follower were in the middle of its work
        stuck = threading.Thread(target=get, args=(url + "api/state.json",))
        stuck.start()
        assert get(url + "metrics")[0] == 200
        assert get(url + "healthz")[0] == 200
    stuck.join(10)
    assert not stuck.is_alive()


def test_a_taken_port_gives_the_next_one(listen):
    first = listen()
    second = listen(port=first.port)
    assert second.port > first.port
    assert get(second.url + "healthz")[0] == 200


def test_ipv6(listen):
    try:
        http = listen(host="::1")
    except AgentError as error:
        pytest.skip(f"no IPv6 here: {error}")
    assert http.url == f"http://[::1]:{http.port}/"
    assert get(http.url + "healthz")[0] == 200


def test_what_cannot_work_is_said_clearly(follower, tmp_path):
    app = App(follower)
    with pytest.raises(AgentError, match="`host` must be an address of this machine"):
        HttpServer(app, "no.such.host.invalid", 0)
    with pytest.raises(AgentError, match=r"cannot listen on 192\.0\.2\.1"):
        HttpServer(app, "192.0.2.1", 9478)
    with pytest.raises(AgentError, match="both a certificate and its key"):
        HttpServer(app, "127.0.0.1", 0, certfile=tmp_path / "c.pem")
    with pytest.raises(AgentError, match="cannot be used"):
        HttpServer(app, "127.0.0.1", 0, certfile=tmp_path / "c.pem", keyfile=tmp_path / "k.pem")


def test_a_client_that_hangs_up_is_no_news(listen, capsys):
    http = listen()
    for _ in range(3):
        s = socket.create_connection(("127.0.0.1", http.port))
        s.sendall(b"GET /api/state.json HTTP/1.0\r\n\r\n")
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        s.close()
    until(lambda: get(http.url + "healthz")[0] == 200)
    assert capsys.readouterr().err == ""
