"""A real S3 server on loopback, and a proxy before it that injects faults."""

import contextlib
import dataclasses
import http.client
import http.server
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from afterimage.storage import bucket, faults

Fault = Callable[[str, str, bytes], str | None]
"""(method, path, body) -> what goes wrong with this request; None for nothing:
"503", "expired", "reset" (the connection closes), "hang" (no answer in time), "half"
(only half of the body is stored, and the answer says that all was)."""

_BODIES = {
    "503": (503, "SlowDown", "Please reduce your request rate"),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied"),
}


@dataclasses.dataclass
class Server:
    """An S3 server whose faults a test can set."""

    url: str
    fault: Fault = lambda method, path, body: None
    bucket: str = ""
    """A bucket of its own for each test."""
    seen: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    """(method, path) of every request."""


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def moto_server() -> Iterator[int]:
    """The port of moto's server, a process of its own."""
    pytest.importorskip("moto")
    pytest.importorskip("flask_cors")
    pytest.importorskip("s3fs")
    port = _free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet)
    try:
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert process.poll() is None, "moto's server ended"
            assert time.monotonic() < deadline, "moto's server did not start"
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(10)


class _Proxy(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Listener"

    def _pass_on(self) -> None:
        state = self.server.state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        state.seen.append((self.command, self.path))
        fault = state.fault(self.command, self.path, body)
        if fault == "hang":
            time.sleep(1)
        if fault in ("hang", "reset"):
            self.close_connection = True
            return
        if fault in _BODIES:
            status, code, text = _BODIES[fault]
            xml = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>"
            self._answer(status, {"Content-Type": "application/xml"}, xml.encode())
            return
        headers = dict(self.headers.items())
        if fault == "half":
            body = body[: len(body) // 2]
            unwanted = ("content-length", "content-md5", "x-amz-content-sha256")
            headers = {
                k: v
                for k, v in headers.items()
                if k.lower() not in unwanted and "checksum" not in k.lower()
            }
            headers["Content-Length"] = str(len(body))
        onward = http.client.HTTPConnection("127.0.0.1", self.server.onward)
        onward.request(self.command, self.path, body, headers)
        answer = onward.getresponse()
        self._answer(answer.status, dict(answer.getheaders()), answer.read())
        onward.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            kept = self.command == "HEAD" or name.lower() != "content-length"
            if kept and name.lower() not in ("transfer-encoding", "connection"):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, onward: int):
        super().__init__(("127.0.0.1", 0), _Proxy)
        self.onward = onward
        self.state = Server(f"http://127.0.0.1:{self.server_address[1]}")


@contextlib.contextmanager
def proxied(onward: int) -> Iterator[Server]:
    """The proxy before a server on this port."""
    with _Listener(onward) as listener:
        thread = threading.Thread(target=listener.serve_forever, daemon=True)
        thread.start()
        try:
            yield listener.state
        finally:
            listener.shutdown()
            thread.join()


def use(
    server: Server, monkeypatch: pytest.MonkeyPatch, *, seconds: float = 20
) -> None:
    """Make `s3://` mean this server, with short waits between tries.

    `seconds` is how long to wait for an answer.
    """
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(faults, "WAITS", (0.01, 0.02, 0.04))
    monkeypatch.setattr(bucket, "_READ", seconds)
    bucket.filesystem.cache_clear()


def make_bucket(port: int) -> str:
    """A new bucket on moto's server; its name."""
    name = f"bucket-{uuid.uuid4().hex}"
    direct = http.client.HTTPConnection("127.0.0.1", port)
    direct.request("PUT", f"/{name}")
    assert direct.getresponse().status == 200
    direct.close()
    return name


@contextlib.contextmanager
def served(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """`s3://` means moto's server behind the proxy; with a new bucket in it."""
    with proxied(port) as server:
        use(server, monkeypatch)
        server.bucket = make_bucket(port)
        yield server
    bucket.filesystem.cache_clear()
