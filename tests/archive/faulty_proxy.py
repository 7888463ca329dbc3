"""An HTTP proxy before a store that can lose, delay, tear and change what goes through it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("500", "503", "403", "reset", "slow", "truncate", "lost")
SLOW_SECONDS = 0.3
_XML = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>made by a test</Message></Error>"
_CODES = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}
_AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
)
_PER_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass
class Request:
    """What came in: its number since the proxy was last reset, from 0, and the request itself."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class FaultyProxy:
    """Pass requests on to a server on this machine, from a thread, until :meth:`close`.

    Attributes:
        fault: Says what to do with a request: one of ``FAULTS``, ``"corrupt"`` (change a byte of what is sent),
            ``"corrupt answer"``, ``"encrypted"`` (an entity tag that is no checksum), ``"corrupt encrypted"``,
            ``"no tag"`` (an answer without one), ``"corrupt no tag"``, an answer of three digits and a code such as
            ``"403 InvalidAccessKeyId"``, or None.
        requests: What came in since the last :meth:`reset`.
    """

    def __init__(self, port: int, *, change: Callable[[Request], None] = lambda request: None) -> None:
        self.fault: Callable[[Request], str | None] = lambda request: None
        self.requests: list[Request] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, format: str, *args: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):  # a client that gave up
                    super().handle()

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                with proxy._lock:
                    request = Request(len(proxy.requests), self.command, self.path, headers, body)
                    proxy.requests.append(request)
                change(request)
                proxy._answer(self, request, port)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _do

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False  # kept connections would not end
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def reset(self, fault: Callable[[Request], str | None] = lambda request: None) -> None:
        """Count from 0 again, with other faults."""
        with self._lock:
            self.requests = []
            self.fault = fault

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler, request: Request, port: int) -> None:
        fault = self.fault(request) or ""
        if fault[:3].isdigit():
            status, _, code = fault.partition(" ")
            return _send(handler, int(status), {}, _XML.format(code or _CODES[status]).encode())
        if fault == "reset":
            return _hang_up(handler)
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        body = request.body
        if fault.startswith("corrupt") and fault != "corrupt answer" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(upstream):
            upstream.request(request.method, request.path, body, request.headers)
            answer = upstream.getresponse()
            content = answer.read()
        if fault == "lost":
            return _hang_up(handler)
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in _PER_CONNECTION}
        length = answer.getheader("Content-Length") if request.method == "HEAD" else None
        if fault.endswith("encrypted"):
            headers["ETag"] = '"opaque"'
        if fault.endswith("no tag"):
            headers = {name: value for name, value in headers.items() if name.lower() != "etag"}
        if fault == "corrupt answer" and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        _send(
            handler,
            answer.status,
            headers,
            content,
            length=length,
            keep=len(content) // 2 if fault == "truncate" else None,
        )


def _send(
    handler: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str],
    content: bytes,
    *,
    length: str | None = None,
    keep: int | None = None,
) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", length or str(len(content)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(content[:keep])
    if keep is not None and keep < len(content):
        handler.wfile.flush()
        _hang_up(handler)


def _hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)


def ignore_conditions(request: Request) -> None:
    """Make the store one that replaces objects."""
    request.headers.pop("if-none-match", None)


def translate_gcs(request: Request) -> None:
    """Let an S3 server understand Google's condition for a put, and its escapes."""
    path, mark, query = request.path.partition("?")
    request.path = urllib.parse.quote(urllib.parse.unquote(path)) + mark + query
    if request.headers.pop("x-goog-if-generation-match", None) == "0":
        request.headers["if-none-match"] = "*"
    request.headers["authorization"] = _AUTHORIZATION


@contextlib.contextmanager
def trickling_server(seconds: float) -> Iterator[str]:
    """The URL of a server that answers every request with a long body, a byte at a time."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.send_header("ETag", '"x"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # a client that gave up
                for _ in range(1000):
                    self.wfile.write(b"x")
                    self.wfile.flush()
                    time.sleep(seconds)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """The URL of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
