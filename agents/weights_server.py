"""Serves the complete models and adapters of this node's cache to other sites: read-only, over HTTP, with ranges.

    GET or HEAD <weights_url>/<model id>/<64 hex digits of its digest>/<file of its manifest>
    GET or HEAD <weights_url>/adapters/<adapter id>/<64 hex digits of its digest>.safetensors

Decides what may be read: a model that is complete, its manifest, and the files that the manifest names, and complete adapters; no listing,
nothing else, whatever the path says. As many transfers at a time as there are places, each with a floor under its pace; who comes when all
are taken is told to come later. Must not know who is a site: with a token whoever has it reads, without one whoever reaches the port.
"""

from __future__ import annotations

import hmac
import os
import re
import select
import stat
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import socket
from typing import Any, Final

import structlog

from agents.engine.errors import BadWeightsError
from agents.engine.manifest import MANIFEST_NAME, read_manifest
from agents.peers import ADAPTERS
from agents.weights import WeightsCache
from atoll.model.address import Address
from atoll.model.errors import AtollError
from atoll.model.ids import AdapterId, ModelId

_log = structlog.get_logger(__name__)

# Each takes a thread and its share of the uplink: a fetch has one at a time, so this is as many sites.
_TRANSFERS_MAX: Final = 16
# Nothing read or written for so long: the other end is gone.
_SILENCE_S: Final = 30.0
# A reader slower than this keeps its place from others; those that read for a fetch give up below the same.
_PACE_BYTES_PER_S: Final = 500_000
_PACE_GRACE_S: Final = 60.0
_PIECE_BYTES: Final = 4 * 1024 * 1024
_PATH = re.compile(r"/([a-z0-9][a-z0-9._-]{0,62})/([0-9a-f]{64})/([A-Za-z0-9._/-]{1,500})\Z")
# No model has a path like it: the second part of those is a digest, and a name has 63 characters at most.
_ADAPTER = re.compile(rf"/{ADAPTERS}/([a-z0-9][a-z0-9._-]{{0,62}})/([0-9a-f]{{64}})\.safetensors\Z")
_RANGE = re.compile(r"bytes=([0-9]{1,19})-([0-9]{0,19})\Z")
_BUSY: Final = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class WeightsServer:
    """Serves one cache until it is closed, in threads of its own."""

    def __init__(self, cache: WeightsCache, address: Address, *, token: str = "", transfers_max: int = _TRANSFERS_MAX) -> None:
        """OSError when the address cannot be listened at."""
        self._server = _Server(cache, address, token, transfers_max)
        self._thread = threading.Thread(target=self._server.serve_forever, name="weights-server", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    def close(self) -> None:
        """Listen no more; what is being sent is cut off."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, cache: WeightsCache, address: Address, token: str, transfers_max: int) -> None:
        self.cache = cache
        self.token = token
        self.places = threading.BoundedSemaphore(transfers_max)
        self._open: set[socket] = set()
        self._lock = threading.Lock()
        if ":" in address.host:
            from socket import AF_INET6

            self.address_family = AF_INET6
        super().__init__((address.host, address.port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A connection gets a thread if there is a place."""
        if not self.places.acquire(blocking=False):
            try:
                request.settimeout(1.0)
                request.sendall(_BUSY)
            except OSError:
                pass  # it has gone already
            self.shutdown_request(request)
            return
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In the thread of the connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._open.discard(request)
            self.places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is nothing to tell."""
        del request, client_address

    def server_close(self) -> None:
        """Ends what is going on, too."""
        super().server_close()
        with self._lock:
            for request in self._open:
                try:
                    request.shutdown(2)
                except OSError:
                    pass  # it has gone already


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "atoll"
    sys_version = ""
    timeout = _SILENCE_S

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that http.server gives it
        del format, args

    def _answer(self, *, body: bool) -> None:
        # One request each: a connection that is kept open would keep its place.
        self.close_connection = True
        if not self._allowed():
            self._refuse(HTTPStatus.UNAUTHORIZED)
            return
        found = self._find()
        if found is None:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        descriptor, size = found
        with os.fdopen(descriptor, "rb") as file:
            part = _part(self.headers.get("Range", ""), size)
            if part is None:
                self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, f"bytes */{size}")
                return
            start, end = part
            whole = end - start == size
            self.send_response(HTTPStatus.OK if whole else HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(end - start))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Connection", "close")
            if not whole:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
            self.end_headers()
            if body:
                self._send(file, start, end)

    def _send(self, file: Any, start: int, end: int) -> None:
        begun_s, at = time.monotonic(), start
        writable = select.poll()
        writable.register(self.connection, select.POLLOUT)
        self.wfile.flush()
        while at < end:
            if not writable.poll(_SILENCE_S * 1_000):
                return
            try:
                sent = os.sendfile(self.connection.fileno(), file.fileno(), at, min(_PIECE_BYTES, end - at))
            except BlockingIOError:
                continue  # no room after all
            at += sent
            if not sent or (at - start) < _PACE_BYTES_PER_S * (time.monotonic() - begun_s - _PACE_GRACE_S):
                return  # cut short since it was opened, or read too slowly: the other end sees that bytes are missing
        _log.debug("weights_served", path=self.path, to=self.client_address[0], bytes=end - start)

    def _refuse(self, status: HTTPStatus, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        if content_range is not None:
            self.send_header("Content-Range", content_range)
        self.end_headers()

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization", "").encode("utf-8", "replace")
        return not self.server.token or hmac.compare_digest(given, f"Bearer {self.server.token}".encode())

    def _find(self) -> tuple[int, int] | None:
        """The file that is asked for, opened, and its size; None: nothing that may be read."""
        adapter = _ADAPTER.match(self.path)
        if adapter is not None:
            return _opened(self.server.cache.adapter(AdapterId(adapter[1]), adapter[2]), None)
        match = _PATH.match(self.path)
        if match is None:
            return None
        model_id, digest, path = match.groups()
        try:
            folder = self.server.cache.complete(ModelId(model_id), f"sha256:{digest}")
            if folder is None:
                return None
            sizes = {file.path: file.bytes for file in read_manifest(folder).files}
        except (AtollError, BadWeightsError, OSError):
            return None
        return _opened(folder / path, sizes.get(path)) if path in sizes or path == MANIFEST_NAME else None


def _opened(path: Path, size: int | None) -> tuple[int, int] | None:
    """A plain file of this size (None: any), opened."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None  # deleted a moment ago
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and size in (None, found.st_size):
        return descriptor, found.st_size
    os.close(descriptor)
    return None


def _part(text: str, size: int) -> tuple[int, int] | None:
    """From which byte to before which; everything where no range is asked for, None for one that is not there."""
    match = _RANGE.match(text)
    if match is None:
        return 0, size  # whoever asks for several at once, or for a tail, gets it all
    start, last = int(match[1]), int(match[2]) if match[2] else size - 1
    return (start, min(last + 1, size)) if start < size and start <= last else None
