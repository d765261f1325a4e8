"""Fetches over http, by many at once, and by several processes of a node."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agents.engine.manifest import verify_folder
from agents.fetching import WeightsFetcher
from agents.origins import CHUNK_BYTES, FetchError, FetchStoppedError
from agents.weights import WeightsCache
from atoll.model.ids import ModelId
from tests.unit.model_folders import make_model

GB = 1 << 30


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return tmp_path / "origin"


@pytest.fixture
def cache(tmp_path: Path) -> WeightsCache:
    return WeightsCache(tmp_path / "cache", quota_bytes=GB, reserve_bytes=0)


class NoRanges(SimpleHTTPRequestHandler):
    """Serves whole files only, as simple servers do."""

    def log_request(self, code: object = "-", size: object = "-") -> None:
        return None

    def log_error(self, *args: object) -> None:
        return None


class Ranges(NoRanges):
    """Serves 'bytes=first-last' as well."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        if not wanted.startswith("bytes="):
            super().do_GET()
            return
        data = Path(self.translate_path(self.path)).read_bytes()
        first, _, last = wanted[6:].partition("-")
        part = data[int(first) : int(last) + 1 if last else None]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(part)


@pytest.fixture(params=[NoRanges, Ranges])
def http_origin(origin: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    origin.mkdir(exist_ok=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(request.param, directory=str(origin)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_http_origin_also_continues(origin: Path, http_origin: str, cache: WeightsCache) -> None:
    pytest.importorskip("aiohttp", reason="http origins need aiohttp")
    manifest = make_model(origin / "mine", "mine", payload_bytes=CHUNK_BYTES + 1000)
    seen: list[int] = []
    with pytest.raises(FetchStoppedError):
        cache.fetch(
            manifest.model_id,
            manifest.digest,
            f"{http_origin}/mine",
            on_bytes=lambda part, _: seen.append(part),
            should_stop=lambda: bool(seen and seen[-1] >= CHUNK_BYTES),
        )
    done = cache.fetch(manifest.model_id, manifest.digest, f"{http_origin}/mine")
    assert done.fetched_bytes < manifest.total_bytes
    verify_folder(done.folder)
    with pytest.raises(FetchError, match="there is no such file"):
        cache.fetch(ModelId("none"), manifest.digest, f"{http_origin}/none")


async def test_many_who_ask_share_one_fetch(origin: Path, cache: WeightsCache) -> None:
    manifest = make_model(origin / "mine", "mine", payload_bytes=CHUNK_BYTES)
    fetcher = WeightsFetcher(cache)
    heard: list[tuple[int, int]] = []
    results = await asyncio.gather(
        *(
            fetcher.fetch(
                manifest.model_id,
                manifest.digest,
                f"file://{origin}/mine",
                on_bytes=lambda done, total: heard.append((done, total)),
            )
            for _ in range(5)
        )
    )
    assert len({id(result) for result in results}) == 1
    assert results[0].fetched_bytes == manifest.total_bytes
    assert [model.digest for model in await fetcher.entries()] == [manifest.digest]
    assert len(await fetcher.delete(manifest.model_id)) == 1
    await fetcher.close()


async def test_one_waiter_leaving_does_not_stop_the_others(origin: Path, cache: WeightsCache) -> None:
    manifest = make_model(origin / "mine", "mine", payload_bytes=3 * CHUNK_BYTES)
    fetcher = WeightsFetcher(cache)
    url = f"file://{origin}/mine"
    begun = asyncio.Event()
    first = asyncio.create_task(fetcher.fetch(manifest.model_id, manifest.digest, url, on_bytes=lambda *_: begun.set()))
    second = asyncio.create_task(fetcher.fetch(manifest.model_id, manifest.digest, url))
    await begun.wait()
    first.cancel()
    assert (await second).manifest == manifest
    with pytest.raises(asyncio.CancelledError):
        await first
    await fetcher.close()


async def test_the_last_waiter_leaving_stops_the_fetch_and_the_next_continues(origin: Path, cache: WeightsCache) -> None:
    manifest = make_model(origin / "mine", "mine", payload_bytes=3 * CHUNK_BYTES)
    fetcher = WeightsFetcher(cache)
    url = f"file://{origin}/mine"
    held = threading.Event()
    real = cache.fetch

    def slow(*args: object, **kwargs: object) -> object:
        held.wait(30)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    cache.fetch = slow  # type: ignore[method-assign,assignment]
    first = asyncio.create_task(fetcher.fetch(manifest.model_id, manifest.digest, url))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(fetcher.fetch(manifest.model_id, manifest.digest, url))
    await asyncio.sleep(0)
    held.set()
    assert (await second).manifest == manifest
    await fetcher.close()


def test_two_processes_fetch_a_model_once(origin: Path, tmp_path: Path) -> None:
    manifest = make_model(origin / "mine", "mine", payload_bytes=2 * CHUNK_BYTES)
    program = (
        "import sys\nfrom pathlib import Path\nfrom agents.weights import WeightsCache\n"
        "cache = WeightsCache(Path(sys.argv[1]), quota_bytes=1 << 30, reserve_bytes=0)\n"
        "print(cache.fetch('mine', sys.argv[2], sys.argv[3]).fetched_bytes)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cache"), manifest.digest, f"file://{origin}/mine"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    came = sorted(int(process.communicate(timeout=60)[0]) for process in both)
    assert came == [0, manifest.total_bytes]
