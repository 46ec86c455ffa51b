"""The listening socket of the agent: one thread per request, limits on time and connections, TLS."""

from __future__ import annotations

import errno
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client.exposition import ThreadingWSGIServer

from stabwatch.errors import AgentError

CLIENT_TIMEOUT_SECONDS = 10.0
"""A client that sends or takes nothing for this long is disconnected."""
REQUEST_SECONDS = 30.0
"""A connection is closed after this time, however slowly it goes on."""
MAX_CONNECTIONS = 512
"""Above this the oldest connection is closed."""
PORTS_TRIED = 50


class _Handler(WSGIRequestHandler):
    """A slow client only blocks its own thread, which times out."""

    timeout = CLIENT_TIMEOUT_SECONDS

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class _Server(ThreadingWSGIServer):
    request_queue_size = 512

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._open: dict[socket.socket, float] = {}
        self._open_lock = threading.Lock()
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own."""
        with self._open_lock:
            self._open[request] = time.monotonic()
            crowd = list(self._open)[: max(0, len(self._open) - MAX_CONNECTIONS)]
        self._disconnect(crowd)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The request has ended."""
        with self._open_lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called about ten times a second: disconnect who takes too long."""
        oldest = time.monotonic() - REQUEST_SECONDS
        with self._open_lock:
            late = [request for request, began in self._open.items() if began < oldest]
        self._disconnect(late)

    @staticmethod
    def _disconnect(requests: list[socket.socket]) -> None:
        for request in requests:
            with suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)  # its thread sees the end, and closes it

    def server_bind(self) -> None:
        """Bind without a DNS lookup of the host name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


class HttpServer:
    """Listens from its construction, and serves in a daemon thread between `start` and `close`. Raises AgentError."""

    def __init__(
        self,
        app: Callable[..., Any],
        host: str,
        port: int,
        *,
        certfile: Path | None = None,
        keyfile: Path | None = None,
    ) -> None:
        self.asked = port
        self.host = host
        self.tls = certfile is not None
        context = _tls_context(certfile, keyfile)
        self._server = _bind(host, port)
        self._server.set_app(app)
        self.port = self._server.server_port
        if context is not None:
            # Without a handshake in `accept`, where a silent client would keep all others waiting.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)

    @property
    def address(self) -> str:
        """host:port of this server."""
        host = socket.gethostname() if self.host in ("", "0.0.0.0", "::") else self.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """Address of the live page."""
        return f"{'https' if self.tls else 'http'}://{self.address}/"

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        if self._thread.is_alive():
            self._server.shutdown()
        self._server.server_close()


def _bind(host: str, port: int) -> _Server:
    """Listen on a port, or on the next free one. Raises AgentError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise AgentError(f"`host` must be an address of this machine, but {host!r} is unknown: {error}.") from error
    server: type[_Server] = type("Server", (_Server,), {"address_family": family})
    last: OSError | None = None
    for candidate in [*range(port, min(port + PORTS_TRIED, 65536)), 0] if port else [0]:
        try:
            return server((str(address[0]), candidate), _Handler)
        except OSError as error:
            last = error
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                break
    raise AgentError(f"The agent cannot listen on {host} (port {port} or any other): {last}. Give another --host.")


def _tls_context(certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext | None:
    if certfile is None and keyfile is None:
        return None
    if certfile is None or keyfile is None:
        raise AgentError("TLS needs both a certificate and its key: give --certfile and --keyfile.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certfile, keyfile)
    except OSError as error:  # ssl.SSLError is one
        raise AgentError(f"The certificate {certfile} and the key {keyfile} cannot be used: {error}.") from error
    return context
