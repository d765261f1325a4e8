"""Weights between sites over real http: only complete models are given, nothing is believed, the origin store heals what a peer breaks."""

from __future__ import annotations

import http.client
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import structlog

from agents.engine.manifest import MANIFEST_NAME, ModelManifest, verify_folder
from agents.origins import FetchError, FetchStoppedError
from agents.peers import Pace, PeerFolder, PeerSource, PeerSources, peer_folder
from agents.weights import FetchResult, WeightsCache
from agents.weights_server import WeightsServer
from atoll.model.address import Address
from atoll.model.attempt import FailureKind
from tests.unit.model_folders import make_model

pytest.importorskip("aiohttp", reason="peers are read over http")

GB = 1 << 30
TOKEN = "a-secret-of-the-whole-fleet"
NOWHERE = "http://127.0.0.1:9/mine"
WEIGHTS = "unet/model.safetensors"


def _cache(root: Path) -> WeightsCache:
    return WeightsCache(root, quota_bytes=GB, reserve_bytes=0)


@pytest.fixture
def manifest(tmp_path: Path) -> ModelManifest:
    return make_model(tmp_path / "origin" / "mine", "mine", payload_bytes=3_000_000)


@pytest.fixture
def theirs(tmp_path: Path, manifest: ModelManifest) -> WeightsCache:
    """What the peer has."""
    cache = _cache(tmp_path / "theirs")
    cache.fetch(manifest.model_id, manifest.digest, f"file://{tmp_path}/origin/mine")
    return cache


@pytest.fixture
def ours(tmp_path: Path) -> WeightsCache:
    return _cache(tmp_path / "ours")


@contextmanager
def serving(cache: WeightsCache, *, token: str = "", transfers_max: int = 16) -> Iterator[int]:
    server = WeightsServer(cache, Address(host="127.0.0.1", port=0), token=token, transfers_max=transfers_max)
    try:
        yield server.port
    finally:
        server.close()


def _peer(port: int, token: str = "") -> PeerSource:
    return PeerSource(site_id="there", url=f"http://127.0.0.1:{port}", token=token)


def _peers(port: int, token: str = "") -> PeerSources:
    return PeerSources(peers=(_peer(port, token),))


def _fetch(cache: WeightsCache, manifest: ModelManifest, port: int, origin: str = NOWHERE, token: str = "") -> FetchResult:
    return cache.fetch(manifest.model_id, manifest.digest, origin, peers=_peers(port, token))


def _ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.putrequest(method, path, skip_host=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def test_a_site_fetches_from_a_peer_while_the_origin_store_is_away(
    theirs: WeightsCache, ours: WeightsCache, manifest: ModelManifest
) -> None:
    heard: list[tuple[int, int]] = []
    with serving(theirs, token=TOKEN) as port:
        done = ours.fetch(
            manifest.model_id, manifest.digest, NOWHERE, peers=_peers(port, TOKEN), on_bytes=lambda *progress: heard.append(progress)
        )
    assert verify_folder(done.folder) == manifest
    assert done.fetched_bytes == done.peer_bytes == manifest.total_bytes == heard[-1][0] == heard[-1][1]
    assert done.bytes_per_s is None  # says nothing of the origin store


def test_being_read_by_a_peer_does_not_count_as_use(theirs: WeightsCache, ours: WeightsCache, manifest: ModelManifest) -> None:
    (before,) = theirs.entries()
    os.utime(before.folder / MANIFEST_NAME, (1, 1))
    with serving(theirs) as port:
        _fetch(ours, manifest, port)
    assert theirs.entries()[0].used_us == 1_000_000


def test_a_fetch_that_was_stopped_goes_on_where_it_was(theirs: WeightsCache, ours: WeightsCache, manifest: ModelManifest) -> None:
    weights = theirs.folder_of(manifest.model_id, manifest.digest) / WEIGHTS
    partial = ours._root / ".partial" / f"mine@{manifest.digest[7:23]}"
    (partial / "unet").mkdir(parents=True)
    (partial / WEIGHTS).write_bytes(weights.read_bytes()[:2_000_000])
    with serving(theirs) as port:
        done = _fetch(ours, manifest, port)
    assert verify_folder(done.folder) == manifest and done.fetched_bytes == manifest.total_bytes - 2_000_000


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        ("/", "GET", {}, 404),
        ("/mine", "GET", {}, 404),
        ("/mine/{hex}", "GET", {}, 404),
        ("/mine/{hex}/", "GET", {}, 404),
        ("/mine/{hex}/unet", "GET", {}, 404),
        ("/mine/{hex}/other.json", "GET", {}, 404),
        ("/mine/{hex}/../../../secret", "GET", {}, 404),
        ("/mine/{hex}/unet/../../../../secret", "GET", {}, 404),
        ("/mine/{hex}/%2e%2e/%2e%2e/secret", "GET", {}, 404),
        ("//etc/passwd", "GET", {}, 404),
        ("/.partial/{hex}/model_index.json", "GET", {}, 404),
        ("/../{hex}/model_index.json", "GET", {}, 404),
        ("/yours/{hex}/model_index.json", "GET", {}, 404),
        ("/mine/" + "0" * 64 + "/model_index.json", "GET", {}, 404),
        ("/mine/{hex}/model_index.json?x", "GET", {}, 404),
        ("/mine/{hex}/" + "a" * 70_000, "GET", {}, 414),
        ("/mine/{hex}/model_index.json", "PUT", {}, 501),
        ("/mine/{hex}/model_index.json", "DELETE", {}, 501),
        ("/mine/{hex}/model_index.json", "GET", {"Range": "bytes=99999-"}, 416),
        ("/mine/{hex}/model_index.json", "GET", {"Range": "bytes=5-2"}, 416),
        ("/mine/{hex}/model_index.json", "GET", {"Range": "bytes=0-1,4-5"}, 200),
        ("/mine/{hex}/model_index.json", "GET", {}, 200),
        ("/mine/{hex}/" + MANIFEST_NAME, "GET", {}, 200),
    ],
)
def test_only_files_of_complete_models_are_given(
    theirs: WeightsCache, manifest: ModelManifest, path: str, method: str, headers: dict[str, str], status: int
) -> None:
    (theirs._root / "secret").write_text("secret")
    folder = theirs.folder_of(manifest.model_id, manifest.digest)
    (folder / "other.json").write_text("secret")  # not in the manifest
    with serving(theirs) as port:
        found, body, _ = _ask(port, path.replace("{hex}", manifest.digest[7:]), method, **headers)
    assert found == status and b"secret" not in body


def test_ranges_are_exact(theirs: WeightsCache, manifest: ModelManifest) -> None:
    path = f"/mine/{manifest.digest[7:]}/{WEIGHTS}"
    whole = (theirs.folder_of(manifest.model_id, manifest.digest) / WEIGHTS).read_bytes()
    with serving(theirs) as port:
        assert _ask(port, path)[1] == whole
        status, body, headers = _ask(port, path, Range=f"bytes={len(whole) - 10}-")
        assert (status, body) == (206, whole[-10:])
        assert headers["content-range"] == f"bytes {len(whole) - 10}-{len(whole) - 1}/{len(whole)}"
        assert _ask(port, path, Range="bytes=3-7")[1] == whole[3:8]
        status, body, headers = _ask(port, path, "HEAD")
        assert (status, body, headers["content-length"]) == (200, b"", str(len(whole)))


def test_a_link_in_the_place_of_a_file_is_not_followed(theirs: WeightsCache, manifest: ModelManifest, tmp_path: Path) -> None:
    target = theirs.folder_of(manifest.model_id, manifest.digest) / WEIGHTS
    shutil.copy(target, tmp_path / "elsewhere")
    target.unlink()
    target.symlink_to(tmp_path / "elsewhere")
    with serving(theirs) as port:
        assert _ask(port, f"/mine/{manifest.digest[7:]}/{WEIGHTS}")[0] == 404


def test_without_the_token_nothing_is_given(theirs: WeightsCache, ours: WeightsCache, manifest: ModelManifest, tmp_path: Path) -> None:
    path = f"/mine/{manifest.digest[7:]}/model_index.json"
    with serving(theirs, token=TOKEN) as port:
        assert [_ask(port, path, **given)[0] for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN})] == [401] * 3
        assert _ask(port, path, Authorization=f"Bearer {TOKEN}")[0] == 200
        done = _fetch(ours, manifest, port, f"file://{tmp_path}/origin/mine", token="another")
    assert done.peer_bytes == 0 and done.fetched_bytes == manifest.total_bytes


def test_who_comes_when_all_places_are_taken_is_told_to_come_later(
    theirs: WeightsCache, ours: WeightsCache, manifest: ModelManifest, tmp_path: Path
) -> None:
    with serving(theirs, transfers_max=1) as port:
        holder = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        holder.connect()
        holder.sock.sendall(b"GET /mine HTTP/1.1\r\n")  # an unfinished request holds the one place
        status, _, headers = _ask(port, "/")
        assert (status, headers["retry-after"]) == (503, "10")
        done = _fetch(ours, manifest, port, f"file://{tmp_path}/origin/mine")
        holder.close()
    assert done.peer_bytes == 0


# --- peers that fail ----------------------------------------------------------------------------------------------------------


@contextmanager
def _bad_peer(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def do_HEAD(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _give(handler: BaseHTTPRequestHandler, data: bytes, length: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data) if length is None else length))
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(data)


def _file_of(theirs: WeightsCache, manifest: ModelManifest, handler: BaseHTTPRequestHandler) -> bytes:
    return (theirs.folder_of(manifest.model_id, manifest.digest) / handler.path.split("/", 3)[3]).read_bytes()


def _healed(ours: WeightsCache, manifest: ModelManifest, port: int, origin: Path) -> tuple[FetchResult, list[str]]:
    heard: list[int] = []
    with structlog.testing.capture_logs() as logs:
        done = ours.fetch(
            manifest.model_id,
            manifest.digest,
            f"file://{origin}/mine",
            peers=_peers(port),
            on_bytes=lambda part, _: heard.append(part),
        )
    assert verify_folder(done.folder) == manifest
    assert heard[-1] == manifest.total_bytes == max(heard)
    return done, [str(log["reason"]) for log in logs if log["event"] == "peer_given_up"]


def test_corrupted_bytes_are_found_and_the_origin_store_heals_them(
    theirs: WeightsCache, ours: WeightsCache, manifest: ModelManifest, tmp_path: Path
) -> None:
    def lie(handler: BaseHTTPRequestHandler) -> None:
        data = bytearray(_file_of(theirs, manifest, handler))
        if handler.path.endswith(WEIGHTS):
            data[1_000_000] ^= 1
        _give(handler, bytes(data))

    with _bad_peer(lie) as port:
        done, reasons = _healed(ours, manifest, port, tmp_path / "origin")
    small = sum(file.bytes for file in manifest.files if file.path != WEIGHTS)
    assert done.peer_bytes == small  # what verified stays; only the rest comes from the origin store
    assert len(reasons) == 1 and "which the manifest says" in reasons[0]


def test_a_manifest_of_something_else_is_not_believed(
    theirs: WeightsCache, ours: WeightsCache, manifest: ModelManifest, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", "mine", payload_bytes=50_000)
    with _bad_peer(lambda handler: _give(handler, other.to_json())) as port:
        done, reasons = _healed(ours, manifest, port, tmp_path / "origin")
    assert done.peer_bytes == 0 and "digest" in reasons[0]


def test_a_peer_that_dies_in_the_middle_of_a_file_leaves_what_came(
    theirs: WeightsCache, ours: WeightsCache, manifest: ModelManifest, tmp_path: Path
) -> None:
    def die(handler: BaseHTTPRequestHandler) -> None:
        data = _file_of(theirs, manifest, handler)
        whole = not handler.path.endswith(WEIGHTS)
        _give(handler, data if whole else data[:2_000_000], len(data))
        handler.close_connection = True

    with _bad_peer(die) as port:
        done, reasons = _healed(ours, manifest, port, tmp_path / "origin")
    assert done.fetched_bytes <= manifest.total_bytes and len(reasons) == 1


def test_a_redirect_is_not_followed(theirs: WeightsCache, ours: WeightsCache, manifest: ModelManifest, tmp_path: Path) -> None:
    asked: list[str] = []

    def elsewhere(handler: BaseHTTPRequestHandler) -> None:
        asked.append(handler.path)
        if handler.path == "/private":
            _give(handler, b"{}")
            return
        handler.send_response(302)
        handler.send_header("Location", "/private")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with _bad_peer(elsewhere) as port:
        done, reasons = _healed(ours, manifest, port, tmp_path / "origin")
    assert "/private" not in asked and done.peer_bytes == 0 and len(reasons) == 1


def test_a_peer_that_trickles_is_given_up(theirs: WeightsCache, manifest: ModelManifest, tmp_path: Path) -> None:
    stop = threading.Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        data = _file_of(theirs, manifest, handler)
        _give(handler, b"", len(data))
        for byte in data if handler.command == "GET" else b"":
            if stop.wait(0.01):
                return
            try:
                handler.wfile.write(bytes([byte]))
            except OSError:
                return

    with _bad_peer(trickle) as port:
        url, pace = peer_folder(_peer(port).url, manifest.model_id, manifest.digest), Pace(window_s=0.2, least_bytes_per_s=1_000_000)
        folder = PeerFolder(_peer(port), url, pace=pace)
        with pytest.raises(FetchError, match="bytes came in") as error:
            folder.download(manifest.files[-1], tmp_path / "target", on_bytes=lambda _: None)
        stop.set()
    assert error.value.kind is FailureKind.FETCH_FAILED


def test_pace_is_measured_over_whole_windows() -> None:
    pace = Pace(window_s=10, least_bytes_per_s=100)
    pace.heard(1, 0.0)
    pace.heard(1, 9.0)  # not over yet
    pace.heard(2_000, 10.0)
    with pytest.raises(FetchError):
        pace.heard(900, 20.0)


def test_a_stop_and_a_full_disk_are_no_faults_of_the_peer(theirs: WeightsCache, tmp_path: Path, manifest: ModelManifest) -> None:
    with serving(theirs) as port:
        small = WeightsCache(tmp_path / "small", quota_bytes=1_000, reserve_bytes=0)
        with pytest.raises(FetchError) as error:
            _fetch(small, manifest, port, f"file://{tmp_path}/origin/mine")
        assert error.value.kind is FailureKind.DISK_FULL
        with pytest.raises(FetchStoppedError):
            _cache(tmp_path / "ours").fetch(
                manifest.model_id, manifest.digest, f"file://{tmp_path}/origin/mine", peers=_peers(port), should_stop=lambda: True
            )


def test_when_both_fail_the_error_is_the_origin_stores(ours: WeightsCache, manifest: ModelManifest) -> None:
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:9/mine"):
        _fetch(ours, manifest, 10)
