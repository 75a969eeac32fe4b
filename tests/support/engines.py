"""Real engines and servers: where they come from, and how they are started and stopped."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import apache_beam
import pytest

GO_PROGRAMS = {
    "prism": f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{apache_beam.__version__}",
    "fake-gcs-server": "github.com/fsouza/fake-gcs-server@v1.56.1",
}
# Beside the packages that the tests need, so a fresh environment has fresh ones.
DIRECTORY = Path(sys.prefix) / "engines"


def go_program(name: str) -> str:
    """A program written in Go, built from its source at a fixed version. Without Go the test is left out; not in CI."""
    program = DIRECTORY / name
    if not program.exists():
        if shutil.which("go") is None:
            leave_out(f"{name} is built with Go, which is not installed")
        environment = {**os.environ, "GOBIN": str(DIRECTORY), "GOFLAGS": "-mod=mod"}
        subprocess.run(["go", "install", GO_PROGRAMS[name]], env=environment, check=True, cwd="/")
    return str(program)


def leave_out(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"required in CI: {reason}")
    pytest.skip(reason)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def server(command: list[str], port: int, log: Path) -> Iterator[Path]:
    """Runs a server until it is not needed any more; gives its log, once it answers."""
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield log
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()


class FaultyProxy(ThreadingHTTPServer):
    """Passes HTTP on to a server, and spoils an answer when ``spoil`` says so.

    ``spoil`` is called with the method and path of each request. It returns None, a status to answer instead of passing
    the request on (429, 503), or ``"cut"``: the answer's body breaks off in the middle.
    """

    daemon_threads = True

    def __init__(self, port: int, backend: int):
        self.backend = backend
        self.spoil: Callable[[str, str], int | str | None] = lambda method, path: None
        self.spoiled: Counter[int | str] = Counter()
        super().__init__(("127.0.0.1", port), _Pass)

    def __enter__(self) -> FaultyProxy:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Pass(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def log_message(self, *_: object) -> None:
        pass

    def _pass(self) -> None:
        body = self._body()
        how = self.server.spoil(self.command, self.path)
        if how is not None:
            self.server.spoiled[how] += 1
        if isinstance(how, int):
            self.send_response(how)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        status, headers, answer = self._ask(body)
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                self.send_header(name, value)
        length = dict(headers).get("Content-Length", "0") if self.command == "HEAD" else str(len(answer))
        self.send_header("Content-Length", length)
        self.end_headers()
        if how == "cut":
            self.wfile.write(answer[: len(answer) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(answer)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        skip = ("host", "connection", "transfer-encoding", "content-length", "accept-encoding", "expect")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in skip}
        headers["Host"] = self.headers["Host"]
        with contextlib.closing(HTTPConnection("127.0.0.1", self.server.backend)) as connection:
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _pass  # noqa: N815


def requests_in(log: Path) -> list[tuple[str, str]]:
    """Method and path of every request in a log of fake-gcs-server or of moto's server."""
    text = re.sub(r"\x1b\[\d*(?:;\d+)*m", "", log.read_text())
    return re.findall(r'"([A-Z]+) (/\S*) HTTP', text.replace('\\"', '"'))
