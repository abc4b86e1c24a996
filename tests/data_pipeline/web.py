"""A web server that fails as real ones do, on request."""

import random
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Web:
    """Serves a folder at ``url``.

    Attributes:
        faults: path -> what goes wrong with the next requests for its content, in order: ``drop``
            (half of it, then the connection ends), ``short`` (half of it, as if it were all),
            ``garbage`` (other bytes, as many), a status, ``hang`` (no answer), or ``fine``.
        always: path -> the same, for all further requests.
        requests: of content, by path.
        ranges: whether it sends parts of files.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self.faults: dict[str, deque[str | int]] = defaultdict(deque)
        self.always: dict[str, str | int] = {}
        self.requests: Counter[str] = Counter()
        self.ranges = True
        self.over = threading.Event()
        self._lock = threading.Lock()

    def next_fault(self, path: str) -> str | int:
        with self._lock:
            self.requests[path] += 1
            waiting = self.faults[path]
            return waiting.popleft() if waiting else self.always.get(path, "fine")


class _Handler(BaseHTTPRequestHandler):
    web: Web
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        path = self._path()
        fault = self.web.always.get(path)
        content = self._content(path)
        if isinstance(fault, int) or content is None:
            self._refuse(fault if isinstance(fault, int) else self._absent(path))
            return
        self._start(200, len(content))

    def do_GET(self) -> None:
        path = self._path()
        fault = self.web.next_fault(path)
        if fault == "hang":
            self.web.over.wait(20)
            self.close_connection = True
            return
        content = self._content(path)
        if isinstance(fault, int) or content is None:
            self._refuse(fault if isinstance(fault, int) else self._absent(path))
            return
        if fault == "garbage":
            content = random.Random(0).randbytes(len(content))
        if fault == "short":
            content = content[: len(content) // 2]
        content = self._part(content)
        sent = content[: len(content) // 2] if fault == "drop" else content
        self.wfile.write(sent)
        self.close_connection = fault in {"drop", "short"}

    def _path(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _content(self, path: str) -> bytes | None:
        found = self.web.folder / path.lstrip("/")
        if found.is_file():
            return found.read_bytes()
        if path.endswith("/") and found.is_dir():
            links = (f'<a href="{p.name}{"/" * p.is_dir()}">x</a>' for p in found.iterdir())
            return f"<html>{''.join(links)}</html>".encode()
        return None

    def _part(self, content: bytes) -> bytes:
        asked = self.headers.get("Range")
        if asked is None or not self.web.ranges:
            self._start(200, len(content))
            return content
        first, _, last = asked.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last) + 1 if last else len(content), len(content))
        if begin >= len(content):
            self._refuse(416)
            return b""
        self._start(206, end - begin, f"bytes {begin}-{end - 1}/{len(content)}")
        return content[begin:end]

    def _start(self, status: int, size: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        if content_range:
            self.send_header("Content-Range", content_range)
        if not self.web.ranges:
            self.send_header("Accept-Ranges", "none")
        self.end_headers()

    def _absent(self, path: str) -> int:
        return 301 if (self.web.folder / path.lstrip("/")).is_dir() else 404

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        if status == 301:
            self.send_header("Location", f"{self._path()}/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients hang up; that is no error of ours."""


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """A server of ``folder`` on this machine."""
    handler = type("Handler", (_Handler,), {})
    with _Server(("127.0.0.1", 0), handler) as server:
        web = handler.web = Web(folder, server.server_port)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield web
        finally:
            web.over.set()
            server.shutdown()
            thread.join()
