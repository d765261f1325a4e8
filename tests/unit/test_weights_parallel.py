"""Weights of one model from several sites and the origin store at once: shares, take-overs, lies, stops, and what the next try finds."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import structlog

from agents import ranges
from agents.engine.manifest import ModelManifest, verify_folder
from agents.origins import FetchError, FetchStoppedError
from agents.peers import PeerSource, PeerSources
from agents.weights import FetchResult, WeightsCache
from agents.weights_server import WeightsServer
from atoll.model.address import Address
from atoll.model.attempt import FailureKind
from tests.unit.model_folders import make_model

pytest.importorskip("aiohttp", reason="peers are read over http")

MIB = 1 << 20
SIZE = 40 * MIB
WEIGHTS = "unet/model.safetensors"


@dataclass(slots=True)
class Site:
    """A weights server behind a way that lets so many bytes a second through, and may be cut, or flip a bit."""

    root: Path
    port: int
    bytes_per_s: float = 0.0  # 0: as many as there are
    cut_after: int = 2**62
    lies: bool = False
    given: int = 0
    asked: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pass_on(self, data: bytes) -> bytes:
        """Take the time that these bytes need; ConnectionError where the way is cut."""
        with self.lock:
            if self.given >= self.cut_after:
                raise ConnectionError
            self.given += len(data)
            if self.bytes_per_s:
                time.sleep(len(data) / self.bytes_per_s)
        return bytes([data[0] ^ 1]) + data[1:] if self.lies and len(data) > 1000 else data

    @property
    def source(self) -> PeerSource:
        return PeerSource(site_id=f"site-{self.port}", url=f"http://127.0.0.1:{self.port}")


@contextmanager
def _site(root: Path) -> Iterator[Site]:
    """A real weights server behind a way of its own."""
    server = WeightsServer(WeightsCache(root, quota_bytes=1 << 30, reserve_bytes=0), Address(host="127.0.0.1", port=0))
    try:
        with _way(root, server.port) as site:
            yield site
    finally:
        server.close()


_SERVER = """
import sys, time
from pathlib import Path
from agents.weights import WeightsCache
from agents.weights_server import WeightsServer
from atoll.model.address import Address
server = WeightsServer(WeightsCache(Path(sys.argv[1]), quota_bytes=1 << 30, reserve_bytes=0), Address(host="127.0.0.1", port=0))
print(server.port, flush=True)
time.sleep(600)
"""


@contextmanager
def _way(root: Path, behind_port: int) -> Iterator[Site]:
    """What passes in pieces to and from a weights server at this port."""
    site = Site(root=root, port=0)

    class Way(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            site.asked.append(f"{self.path} {self.headers.get('Range', '')}")
            behind = http.client.HTTPConnection("127.0.0.1", behind_port, timeout=10)
            self.close_connection = True
            try:
                behind.request("GET", self.path, headers={"Range": self.headers["Range"]} if "Range" in self.headers else {})
                answer = behind.getresponse()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name not in {"Server", "Date"}:
                        self.send_header(name, value)
                self.end_headers()
                while data := answer.read(256 * 1024):
                    self.wfile.write(site.pass_on(data))
            except (OSError, http.client.HTTPException):
                return  # cut, dead, or the other end has enough
            finally:
                behind.close()

        def log_message(self, *_: object) -> None:
            pass

    front = ThreadingHTTPServer(("127.0.0.1", 0), Way)
    front.daemon_threads = True
    thread = threading.Thread(target=front.serve_forever)
    thread.start()
    site.port = front.server_port
    try:
        yield site
    finally:
        front.shutdown()
        front.server_close()
        thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def manifest(folder: Path) -> ModelManifest:
    return make_model(folder / "origin" / "mine", "mine", payload_bytes=SIZE)


@pytest.fixture(scope="module")
def theirs(folder: Path, manifest: ModelManifest) -> Path:
    """A cache that has the model; sites of a test share its files."""
    root = folder / "theirs"
    WeightsCache(root, quota_bytes=1 << 30, reserve_bytes=0).fetch(manifest.model_id, manifest.digest, f"file://{folder}/origin/mine")
    return root


@pytest.fixture
def ours(tmp_path: Path) -> WeightsCache:
    return WeightsCache(tmp_path / "ours", quota_bytes=1 << 30, reserve_bytes=0)


@pytest.fixture
def sites(theirs: Path) -> Iterator[tuple[Site, Site, Site]]:
    with _site(theirs) as one, _site(theirs) as two, _site(theirs) as three:
        yield one, two, three


NOWHERE = "http://127.0.0.1:9/mine"


def _fetch(
    cache: WeightsCache,
    manifest: ModelManifest,
    *sites: Site,
    origin: str = NOWHERE,
    origin_too: bool = False,
    on_bytes: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> FetchResult:
    return cache.fetch(
        manifest.model_id,
        manifest.digest,
        origin,
        peers=PeerSources(peers=tuple(site.source for site in sites), origin_too=origin_too),
        on_bytes=on_bytes,
        should_stop=should_stop,
    )


def test_every_source_gives_its_share_and_together_they_are_quicker_than_the_quickest(
    ours: WeightsCache, manifest: ModelManifest, sites: tuple[Site, Site, Site], folder: Path
) -> None:
    for site, rate in zip(sites, (20 * MIB, 10 * MIB, 10 * MIB), strict=True):
        site.bytes_per_s = rate
    heard: list[tuple[int, int]] = []
    done = _fetch(ours, manifest, *sites, on_bytes=lambda *progress: heard.append(progress))
    assert verify_folder(done.folder) == manifest
    assert done.fetched_bytes == done.peer_bytes == manifest.total_bytes == heard[-1][0] == max(part for part, _ in heard)
    # By the rates of their ways: the quickest alone would need two seconds.
    assert max(site.given / site.bytes_per_s for site in sites) < SIZE / (20 * MIB)
    assert all(site.given > SIZE // 8 for site in sites)
    assert done.bytes_per_s is None


def test_the_origin_store_is_read_beside_the_peers_when_it_is_said_so(
    ours: WeightsCache, manifest: ModelManifest, sites: tuple[Site, Site, Site], folder: Path
) -> None:
    sites[0].bytes_per_s = 10 * MIB
    done = _fetch(ours, manifest, sites[0], origin=f"file://{folder}/origin/mine", origin_too=True)
    assert verify_folder(done.folder) == manifest and done.fetched_bytes == manifest.total_bytes
    assert 0 < done.peer_bytes < manifest.total_bytes // 2  # a file on this disk is the quicker one


def test_a_source_that_dies_in_the_middle_is_left_and_the_others_bring_its_part(
    ours: WeightsCache, manifest: ModelManifest, sites: tuple[Site, Site, Site]
) -> None:
    for site in sites:
        site.bytes_per_s = 20 * MIB
    sites[1].cut_after = 4 * MIB
    with structlog.testing.capture_logs() as logs:
        done = _fetch(ours, manifest, *sites)
    assert verify_folder(done.folder) == manifest
    (left,) = [log for log in logs if log["event"] == "peer_given_up"]
    assert str(sites[1].port) in left["peer"] and str(sites[0].port) in left["goes_on_with"]
    # What it had given is not brought again: of each byte that came one is written.
    assert done.fetched_bytes == manifest.total_bytes


def test_a_server_that_is_killed_in_the_middle_costs_what_it_was_just_giving(
    ours: WeightsCache, manifest: ModelManifest, theirs: Path, sites: tuple[Site, Site, Site]
) -> None:
    sites[0].bytes_per_s = 20 * MIB
    victim = subprocess.Popen([sys.executable, "-c", _SERVER, str(theirs)], stdout=subprocess.PIPE, text=True)
    assert victim.stdout is not None
    try:
        with _way(theirs, int(victim.stdout.readline())) as killed, structlog.testing.capture_logs() as logs:
            killed.bytes_per_s = 20 * MIB

            def heard(done: int, total: int) -> None:
                if done > total // 4 and victim.poll() is None:
                    victim.kill()
                    victim.wait()

            done = _fetch(ours, manifest, sites[0], killed, on_bytes=heard)
            assert 0 < killed.given < SIZE // 2
    finally:
        victim.kill()
        victim.wait()
        victim.stdout.close()
    assert verify_folder(done.folder) == manifest and done.fetched_bytes == manifest.total_bytes
    assert [log["event"] for log in logs if log["event"] == "peer_given_up"] == ["peer_given_up"]


def test_a_source_that_hardly_gives_is_not_waited_for(ours: WeightsCache, manifest: ModelManifest, sites: tuple[Site, Site, Site]) -> None:
    sites[0].bytes_per_s, sites[1].bytes_per_s = 20 * MIB, 256 * 1024
    done = _fetch(ours, manifest, *sites[:2])
    assert verify_folder(done.folder) == manifest
    # Its first part alone would have taken it half a minute.
    assert sites[1].given < 4 * MIB


def test_when_all_peers_die_the_origin_store_gives_the_rest(
    ours: WeightsCache, manifest: ModelManifest, sites: tuple[Site, Site, Site], folder: Path
) -> None:
    for site in sites:
        site.bytes_per_s, site.cut_after = 20 * MIB, 3 * MIB
    done = _fetch(ours, manifest, *sites, origin=f"file://{folder}/origin/mine")
    assert verify_folder(done.folder) == manifest
    assert 0 < done.peer_bytes < done.fetched_bytes == manifest.total_bytes


def test_when_everything_fails_the_error_is_the_origin_stores_and_what_came_stays(
    ours: WeightsCache, manifest: ModelManifest, sites: tuple[Site, Site, Site]
) -> None:
    for site in sites:
        site.bytes_per_s, site.cut_after = 20 * MIB, 6 * MIB
    with pytest.raises(FetchError, match=r"127\.0\.0\.1:9/mine") as error:
        _fetch(ours, manifest, *sites)
    assert error.value.kind is FailureKind.FETCH_FAILED
    for site in sites:
        site.cut_after, site.given = 2**62, 0
    done = _fetch(ours, manifest, *sites)
    assert verify_folder(done.folder) == manifest
    # Of the 18 MiB that came each source may have lost what it was just reading.
    assert done.fetched_bytes < manifest.total_bytes - 8 * MIB


def test_a_lie_costs_the_liar_and_whoever_gave_of_the_same_file_but_never_the_model(
    ours: WeightsCache, manifest: ModelManifest, sites: tuple[Site, Site, Site], folder: Path
) -> None:
    for site in sites:
        site.bytes_per_s = 30 * MIB
    sites[2].lies = True
    heard: list[int] = []
    with structlog.testing.capture_logs() as logs:
        done = _fetch(ours, manifest, *sites, origin=f"file://{folder}/origin/mine", on_bytes=lambda part, _: heard.append(part))
    assert verify_folder(done.folder) == manifest and heard[-1] == manifest.total_bytes == max(heard)
    told = [log for log in logs if log["event"] == "peer_given_up"]
    assert any(str(sites[2].port) in log["peer"] and "which the manifest says" in log["reason"] for log in told)
    assert done.peer_bytes < manifest.total_bytes  # what was wrong came again, from the origin store


def _stopped_half_way(ours: WeightsCache, manifest: ModelManifest, *sites: Site) -> None:
    """A fetch from one slow and two quicker sources that is stopped when half is there."""
    for site, rate in zip(sites, (3 * MIB, 10 * MIB, 10 * MIB), strict=True):
        site.bytes_per_s = rate
    heard: list[int] = []
    with pytest.raises(FetchStoppedError):
        _fetch(
            ours,
            manifest,
            *sites,
            on_bytes=lambda part, _: heard.append(part),
            should_stop=lambda: bool(heard and heard[-1] > SIZE // 2),
        )


def test_a_stop_keeps_what_came_out_of_order_and_the_next_try_brings_only_the_rest(
    ours: WeightsCache, manifest: ModelManifest, sites: tuple[Site, Site, Site], folder: Path
) -> None:
    _stopped_half_way(ours, manifest, *sites)
    partial = ours._root / ".partial" / f"mine@{manifest.digest[7:23]}"
    held = ranges.held(partial, manifest.files)
    there = sum(end - start for found in held.values() for start, end in found)
    assert SIZE // 2 <= there < manifest.total_bytes and held[WEIGHTS], "in how many pieces is the machine's to say"
    done = _fetch(ours, manifest, *sites)
    assert verify_folder(done.folder) == manifest and done.fetched_bytes == manifest.total_bytes - there


def test_a_try_with_one_source_goes_on_where_the_order_ends(
    ours: WeightsCache, manifest: ModelManifest, sites: tuple[Site, Site, Site], folder: Path
) -> None:
    _stopped_half_way(ours, manifest, *sites)
    done = ours.fetch(manifest.model_id, manifest.digest, f"file://{folder}/origin/mine")
    assert verify_folder(done.folder) == manifest and 0 < done.fetched_bytes < manifest.total_bytes


@pytest.mark.parametrize("damage", ["lost", "garbled", "beyond the end", "a lie"])
def test_notes_of_an_earlier_try_that_are_wrong_cost_time_and_nothing_else(
    ours: WeightsCache, manifest: ModelManifest, sites: tuple[Site, Site, Site], damage: str
) -> None:
    partial = ours._root / ".partial" / f"mine@{manifest.digest[7:23]}"
    (partial / "unet").mkdir(parents=True)
    with (partial / WEIGHTS).open("wb") as file:
        file.truncate(30 * MIB)
    notes = {
        "lost": b"",
        "garbled": os.urandom(5_000) + b"\n1 2\n-1 5 unet/model.safetensors\n",
        "beyond the end": f"0 {2**60} {WEIGHTS}\n5 3 {WEIGHTS}\n0 99 ../../../etc/passwd\n".encode(),
        "a lie": f"{MIB} {9 * MIB} {WEIGHTS}\n".encode(),
    }
    (partial / ranges.NAME).write_bytes(notes[damage])
    with structlog.testing.capture_logs() as logs:
        done = _fetch(ours, manifest, *sites)
    assert verify_folder(done.folder) == manifest
    assert not [log for log in logs if log["event"] == "peer_given_up"]  # it was not they who were wrong


def test_gaps_of_an_unfinished_fetch_take_no_room(ours: WeightsCache, manifest: ModelManifest) -> None:
    partial = ours._root / ".partial" / f"mine@{manifest.digest[7:23]}"
    partial.mkdir(parents=True)
    with (partial / "sparse").open("wb") as file:
        file.truncate(30 * MIB)
    assert ours.used_bytes() < MIB


def test_sources_that_have_nothing_left_end_at_once_and_leave_no_thread_that_works(
    ours: WeightsCache, manifest: ModelManifest, sites: tuple[Site, Site, Site]
) -> None:
    _fetch(ours, manifest, *sites)
    alive = Counter(thread.name for thread in threading.enumerate() if thread.name.startswith("weights-source"))
    assert not alive


def test_ranges_add_up() -> None:
    assert ranges.merged([(5, 9), (0, 3), (3, 4), (8, 12), (7, 7)]) == [(0, 4), (5, 12)]
    assert ranges.missing([(0, 4), (5, 12)], 20) == [(4, 5), (12, 20)]
    assert ranges.missing([], 3) == [(0, 3)] and ranges.missing([(0, 3)], 3) == [] and ranges.missing([], 0) == []
