"""An S3 endpoint that can fail: it hands requests on to moto's server, or answers all of them with one status."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})


class Endpoint(ThreadingHTTPServer):
    """``status``: what requests of these ``methods`` get, None to hand them on. ``num_requests``: how many came."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream.removeprefix("http://")
        self.status: int | None = None
        self.methods = METHODS
        self.num_requests = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def _answer(self) -> None:
        self.server.num_requests += 1
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.status is not None and self.command in self.server.methods:
            self._send(self.server.status, {"Content-Length": "0"}, b"")
            return
        upstream = HTTPConnection(self.server.upstream)
        upstream.request(self.command, self.path, body, dict(self.headers.items()))
        response = upstream.getresponse()
        self._send(response.status, dict(response.getheaders()), response.read())
        upstream.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def _send(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint(s3_endpoint: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """An endpoint in front of moto's server, and an environment in which ``s3://`` means it."""
    with Endpoint(s3_endpoint) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server
        server.shutdown()
        thread.join()
