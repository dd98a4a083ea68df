"""A web server of a folder, and a proxy of another server, that fail on purpose; for tests of remote reading."""

import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

OK = 0
RESET = -1  # closes the connection without an answer
SHORT = -2  # closes the connection after half of the body
EXPIRED = -3  # what S3 says of an expired token
EXPIRED_TOKEN = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


@dataclass
class Faults:
    """What the server does wrong.

    Attributes:
        answer: for a request, by its number and path: a status, or one of the constants above.
        delay: seconds before each part of a body.
        ranges: whether it knows ranges.
        tags: whether it gives ETags; otherwise times of change.
        requests: GET requests by path.
        heads: HEAD requests by path.
    """

    answer: Callable[[int, str], int] = lambda _number, _path: OK
    delay: float = 0.0
    ranges: bool = True
    tags: bool = True
    requests: Counter[str] = field(default_factory=Counter)
    heads: Counter[str] = field(default_factory=Counter)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults
    body: Callable[["_Handler"], tuple[int, bytes, dict[str, str]]]
    lock: ClassVar = threading.Lock()

    def do_GET(self) -> None:
        fault, data = self.start(self.faults.requests)
        for start in range(0, len(data) // 2 if fault == SHORT else len(data), 65536):
            time.sleep(self.faults.delay)
            end = len(data) // 2 if fault == SHORT else len(data)
            self.wfile.write(data[start : min(start + 65536, end)])

    def do_HEAD(self) -> None:
        self.start(self.faults.heads)

    def start(self, counted: Counter[str]) -> tuple[int, bytes]:
        """Count a request and send the status and the headers; returns the fault and the body."""
        path = self.path.partition("?")[0]
        with self.lock:
            number = self.faults.requests.total()
            counted[path] += 1
        fault = self.faults.answer(number, path)
        self.close_connection = True
        if fault == RESET:
            return fault, b""
        if fault == EXPIRED:
            status, data, headers = 400, EXPIRED_TOKEN, {}
        else:
            status, data, headers = (fault, b"", {}) if fault > 0 else type(self).body(self)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        return fault, data

    def log_message(self, *_arguments: object) -> None:
        pass


@contextmanager
def _serving(handler: type[_Handler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_arguments: None  # readers leave early
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serve_folder(folder: Path, faults: Faults) -> Iterator[str]:
    """The address of a server of the files in a folder."""

    def body(handler: _Handler) -> tuple[int, bytes, dict[str, str]]:
        file = folder / handler.path.partition("?")[0].lstrip("/")
        if not file.is_file():
            return 404, b"", {}
        data, changed = file.read_bytes(), file.stat().st_mtime_ns
        headers = {"ETag": f'"{changed}"'} if handler.faults.tags else {"Last-Modified": formatdate(changed // 10**9)}
        asked = handler.headers.get("Range")
        if not asked or not handler.faults.ranges:
            return 200, data, headers
        start = int(asked.removeprefix("bytes=").rstrip("-"))
        return 206, data[start:], {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}

    with _serving(type("Handler", (_Handler,), {"faults": faults, "body": body})) as address:
        yield address


@contextmanager
def proxy(target: str, faults: Faults) -> Iterator[str]:
    """The address of a server that passes every request on to another one; only GET requests are counted and fail."""

    def body(handler: _Handler) -> tuple[int, bytes, dict[str, str]]:
        length = int(handler.headers.get("Content-Length") or 0)
        content = handler.rfile.read(length) if length else None
        own = ("connection", "expect")  # of this connection
        headers = {name: value for name, value in handler.headers.items() if name.lower() not in own}
        headers.setdefault("Content-Type", "application/octet-stream")  # else urllib calls the content a form
        request = urllib.request.Request(target + handler.path, content, headers, method=handler.command)
        try:
            answer = urllib.request.urlopen(request, timeout=20)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            kept = ("ETag", "Content-Range", "Content-Type", "Last-Modified")
            passed = {name: value for name in kept if (value := answer.headers.get(name))}
            data = answer.read()
            length = answer.headers.get("Content-Length") if handler.command == "HEAD" else None
            return answer.status or 200, data, {**passed, "Content-Length": length or str(len(data))}

    def other(handler: _Handler) -> None:
        status, data, headers = body(handler)
        handler.close_connection = True
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)

    methods = {f"do_{name}": other for name in ("HEAD", "PUT", "POST", "DELETE")}
    with _serving(type("Handler", (_Handler,), {"faults": faults, "body": body, **methods})) as address:
        yield address
