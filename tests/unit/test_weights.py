"""The disk cache of a node: complete, verified, bounded, and fetched once."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.engine.manifest import MANIFEST_NAME, verify_folder
from agents.origins import CHUNK_BYTES, FetchError, FetchStoppedError, origin_url
from agents.weights import WeightsCache
from atoll.model.attempt import FailureKind
from atoll.model.errors import FieldError, StateError
from atoll.model.ids import ModelId
from tests.unit.model_folders import make_model

GB = 1 << 30


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return tmp_path / "origin"


@pytest.fixture
def cache(tmp_path: Path) -> WeightsCache:
    return WeightsCache(tmp_path / "cache", quota_bytes=GB, reserve_bytes=0)


def left_behind(cache: WeightsCache) -> list[str]:
    return sorted(path.name for path in (cache._root / ".partial").iterdir())


def test_a_model_is_fetched_verified_and_found_again(origin: Path, cache: WeightsCache) -> None:
    manifest = make_model(origin / "mine", "mine")
    heard: list[tuple[int, int]] = []
    url = f"file://{origin}/mine"
    done = cache.fetch(manifest.model_id, manifest.digest, url, on_bytes=lambda part, total: heard.append((part, total)))
    assert done.folder == cache.folder_of(manifest.model_id, manifest.digest)
    assert done.folder.parts[-2:] == ("mine", manifest.digest[7:23])
    assert verify_folder(done.folder) == manifest == done.manifest
    assert done.fetched_bytes == manifest.total_bytes
    assert done.bytes_per_s is not None
    assert done.bytes_per_s > 0
    assert heard[-1] == (manifest.total_bytes, manifest.total_bytes)
    assert left_behind(cache) == []
    shutil.rmtree(origin)
    again = cache.fetch(manifest.model_id, manifest.digest, url)
    assert (again.fetched_bytes, again.bytes_per_s, again.folder) == (0, None, done.folder)
    assert [entry.digest for entry in cache.entries()] == [manifest.digest]
    assert cache.used_bytes() == manifest.total_bytes


def test_a_damaged_model_is_fetched_again(origin: Path, cache: WeightsCache) -> None:
    manifest = make_model(origin / "mine", "mine")
    url = f"file://{origin}/mine"
    done = cache.fetch(manifest.model_id, manifest.digest, url)
    (done.folder / "unet" / "model.safetensors").write_bytes(b"short")
    assert cache.fetch(manifest.model_id, manifest.digest, url).fetched_bytes == manifest.total_bytes
    verify_folder(done.folder)
    (done.folder / MANIFEST_NAME).write_text("{}")
    assert cache.entries() == ()
    assert cache.fetch(manifest.model_id, manifest.digest, url).fetched_bytes == manifest.total_bytes


def test_wrong_content_leaves_nothing(origin: Path, cache: WeightsCache) -> None:
    manifest = make_model(origin / "mine", "mine")
    weights = origin / "mine" / "unet" / "model.safetensors"
    kept = weights.read_bytes()
    for content, message in (
        (kept[:-1] + b"!", "sha256 .* instead of"),
        (kept + b"more", "is longer than"),
    ):
        weights.write_bytes(content)
        with pytest.raises(FetchError, match=message) as refused:
            cache.fetch(manifest.model_id, manifest.digest, f"file://{origin}/mine")
        assert refused.value.kind is FailureKind.BAD_WEIGHTS
        assert left_behind(cache) == []
    assert cache.entries() == ()


def test_an_origin_with_another_model_or_a_pickle(origin: Path, cache: WeightsCache) -> None:
    manifest = make_model(origin / "mine", "mine")
    url = f"file://{origin}/mine"
    with pytest.raises(FetchError, match=r"digest sha256:.*expected sha256:0{64}") as other:
        cache.fetch(manifest.model_id, "sha256:" + "0" * 64, url)
    assert other.value.kind is FailureKind.BAD_WEIGHTS
    with pytest.raises(FetchError, match="model_id mine: expected yours"):
        cache.fetch(ModelId("yours"), manifest.digest, url)
    path = origin / "mine" / MANIFEST_NAME
    path.write_text(path.read_text().replace("unet/model.safetensors", "unet/pytorch_model.bin"))
    with pytest.raises(FetchError, match=r"pytorch_model\.bin: .*no pickles") as pickled:
        cache.fetch(manifest.model_id, manifest.digest, url)
    assert pickled.value.failure.kind is FailureKind.BAD_WEIGHTS


def test_an_origin_that_is_not_there(origin: Path, cache: WeightsCache) -> None:
    digest = "sha256:" + "0" * 64
    for url, message in (
        (f"file://{origin}/none", "there is no such file"),
        ("nosuch://host/mine", "cannot read from nosuch"),
        ("http://127.0.0.1:9/mine", "127.0.0.1"),
    ):
        with pytest.raises(FetchError, match=message) as failed:
            cache.fetch(ModelId("mine"), digest, url)
        assert failed.value.kind is FailureKind.FETCH_FAILED


def test_a_short_origin_is_continued_when_it_is_whole(origin: Path, cache: WeightsCache) -> None:
    manifest = make_model(origin / "mine", "mine")
    weights = origin / "mine" / "unet" / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:10_000])
    url = f"file://{origin}/mine"
    with pytest.raises(FetchError, match="ends after 10000 bytes instead of") as failed:
        cache.fetch(manifest.model_id, manifest.digest, url)
    assert failed.value.kind is FailureKind.FETCH_FAILED
    assert cache.entries() == ()
    assert 0 < cache.used_bytes() < manifest.total_bytes
    weights.write_bytes(kept)
    assert cache.fetch(manifest.model_id, manifest.digest, url).fetched_bytes == len(kept) - 10_000
    verify_folder(cache.folder_of(manifest.model_id, manifest.digest))


def test_a_stopped_fetch_is_continued(origin: Path, cache: WeightsCache) -> None:
    manifest = make_model(origin / "mine", "mine", payload_bytes=2 * CHUNK_BYTES + 5)
    url = f"file://{origin}/mine"
    seen: list[int] = []
    with pytest.raises(FetchStoppedError, match="stopped after"):
        cache.fetch(
            manifest.model_id,
            manifest.digest,
            url,
            on_bytes=lambda part, _: seen.append(part),
            should_stop=lambda: bool(seen and seen[-1] > CHUNK_BYTES),
        )
    done = cache.fetch(manifest.model_id, manifest.digest, url)
    assert 0 < done.fetched_bytes < manifest.total_bytes - CHUNK_BYTES
    verify_folder(done.folder)


def test_damage_in_an_unfinished_fetch_is_found_and_mended(origin: Path, cache: WeightsCache) -> None:
    manifest = make_model(origin / "mine", "mine")
    partial_folder = cache._root / ".partial" / f"mine@{manifest.digest[7:23]}" / "unet"
    partial_folder.mkdir(parents=True)
    weights = origin / "mine" / "unet" / "model.safetensors"
    (partial_folder / "model.safetensors").write_bytes(b"\x00" * 5_000)
    cache.fetch(manifest.model_id, manifest.digest, f"file://{origin}/mine")
    (partial_folder).mkdir(parents=True)
    cache.delete(manifest.model_id)
    (partial_folder / "model.safetensors").write_bytes(weights.read_bytes() + b"too long")
    done = cache.fetch(manifest.model_id, manifest.digest, f"file://{origin}/mine")
    verify_folder(done.folder)


def test_a_killed_fetch_leaves_no_model_and_is_continued(origin: Path, tmp_path: Path) -> None:
    manifest = make_model(origin / "mine", "mine", payload_bytes=4 * CHUNK_BYTES)
    program = (
        "import sys, os, signal\nfrom pathlib import Path\nfrom agents.weights import WeightsCache\n"
        "cache = WeightsCache(Path(sys.argv[1]), quota_bytes=1 << 30, reserve_bytes=0)\n"
        "die = lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done > total // 2 else None\n"
        "cache.fetch('mine', sys.argv[2], sys.argv[3], on_bytes=die)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cache"), manifest.digest, f"file://{origin}/mine"]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    cache = WeightsCache(tmp_path / "cache", quota_bytes=GB, reserve_bytes=0)
    assert cache.entries() == ()
    done = cache.fetch(manifest.model_id, manifest.digest, f"file://{origin}/mine")
    assert 0 < done.fetched_bytes < manifest.total_bytes
    verify_folder(done.folder)


def test_unfinished_fetches_can_be_dropped(origin: Path, cache: WeightsCache) -> None:
    manifest = make_model(origin / "mine", "mine")
    with pytest.raises(FetchStoppedError):
        cache.fetch(
            manifest.model_id,
            manifest.digest,
            f"file://{origin}/mine",
            should_stop=lambda: cache.used_bytes() > 0,
        )
    held = cache.used_bytes()
    assert held > 0
    assert cache.drop_partials() == held
    assert cache.used_bytes() == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root and the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_too_small_is_noticed_before_anything_is_written(origin: Path, small_disk: Path) -> None:
    manifest = make_model(origin / "mine", "mine", payload_bytes=3_000_000)
    cache = WeightsCache(small_disk / "cache", quota_bytes=GB, reserve_bytes=0)
    with pytest.raises(FetchError, match="bytes are missing for mine") as full:
        cache.fetch(manifest.model_id, manifest.digest, f"file://{origin}/mine")
    assert full.value.kind == "disk_full"
    assert left_behind(cache) == []


def test_a_disk_that_fills_while_fetching(origin: Path, small_disk: Path) -> None:
    manifest = make_model(origin / "mine", "mine", payload_bytes=600_000)
    cache = WeightsCache(small_disk / "cache", quota_bytes=GB, reserve_bytes=0)
    hog = small_disk / "hog"

    def fill(_done: int, _total: int) -> None:
        with contextlib.suppress(OSError):
            hog.write_bytes(b"x" * (1 << 20))

    with pytest.raises(FetchError, match=r"no room for .*expected free space") as full:
        cache.fetch(manifest.model_id, manifest.digest, f"file://{origin}/mine", on_bytes=fill)
    assert full.value.kind is FailureKind.DISK_FULL
    assert left_behind(cache) == []
    assert cache.entries() == ()
    hog.unlink()
    verify_folder(cache.fetch(manifest.model_id, manifest.digest, f"file://{origin}/mine").folder)


def test_the_quota_holds_by_letting_the_least_recently_used_go(origin: Path, tmp_path: Path) -> None:
    made = {name: make_model(origin / name, name, 100_000) for name in ("aa", "bb", "cc", "dd")}
    size = max(manifest.total_bytes for manifest in made.values())
    cache = WeightsCache(tmp_path / "cache", quota_bytes=2 * size + 500, reserve_bytes=0)

    def fetch(name: str) -> list[str]:
        done = cache.fetch(ModelId(name), made[name].digest, f"file://{origin}/{name}")
        assert cache.used_bytes() <= 2 * size + 500
        return [str(model.model_id) for model in done.evicted]

    def used_at(name: str, second: int) -> None:
        path = cache.folder_of(ModelId(name), made[name].digest) / MANIFEST_NAME
        os.utime(path, (second, second))

    assert fetch("aa") == fetch("bb") == []
    used_at("bb", 1)
    assert cache.get(ModelId("aa"), made["aa"].digest) is not None
    assert fetch("cc") == ["bb"]
    used_at("aa", 1)
    cache.pin(frozenset({(ModelId("aa"), made["aa"].digest)}))
    assert fetch("dd") == ["cc"]
    cache.pin(frozenset((ModelId(name), made[name].digest) for name in ("aa", "dd")))
    with pytest.raises(FetchError, match="bytes are missing for bb") as full:
        cache.fetch(ModelId("bb"), made["bb"].digest, f"file://{origin}/bb")
    assert full.value.kind is FailureKind.DISK_FULL
    assert {str(model.model_id) for model in cache.entries()} == {"aa", "dd"}


def test_a_model_larger_than_the_quota_evicts_nobody(origin: Path, tmp_path: Path) -> None:
    small, large = make_model(origin / "aa", "aa", 10_000), make_model(origin / "bb", "bb", 500_000)
    cache = WeightsCache(tmp_path / "cache", quota_bytes=100_000, reserve_bytes=0)
    cache.fetch(small.model_id, small.digest, f"file://{origin}/aa")
    with pytest.raises(FetchError, match="the cache may hold 100000"):
        cache.fetch(large.model_id, large.digest, f"file://{origin}/bb")
    assert [model.digest for model in cache.entries()] == [small.digest]


def test_only_what_is_not_pinned_is_deleted(origin: Path, cache: WeightsCache) -> None:
    manifest = make_model(origin / "mine", "mine")
    cache.fetch(manifest.model_id, manifest.digest, f"file://{origin}/mine")
    cache.pin(frozenset({(manifest.model_id, manifest.digest)}))
    with pytest.raises(StateError, match="is pinned"):
        cache.delete(manifest.model_id)
    cache.pin(frozenset())
    assert cache.delete(ModelId("other")) == ()
    (deleted,) = cache.delete(manifest.model_id)
    assert not deleted.folder.exists()
    assert not deleted.folder.parent.exists()
    assert cache.delete(manifest.model_id) == ()


@pytest.mark.parametrize("model_id", ["../x", "a/b", "", ".partial", "a\n", "A"])
def test_ids_that_lead_elsewhere(model_id: str, cache: WeightsCache) -> None:
    with pytest.raises(FieldError, match="model_id"):
        cache.fetch(ModelId(model_id), "sha256:" + "0" * 64, "file:///nowhere")
    with pytest.raises(FieldError, match="model_id"):
        cache.delete(ModelId(model_id))


def test_digests_and_origin_paths_that_lead_elsewhere(cache: WeightsCache) -> None:
    for digest in ("", "sha256:../../../../etc", "md5:" + "0" * 32, "sha256:" + "0" * 63, "sha256:" + "0" * 64 + "\n"):
        with pytest.raises(FieldError, match="weights_digest"):
            cache.folder_of(ModelId("mine"), digest)
    assert origin_url("file:///models/", "flux/dev") == "file:///models/flux/dev"
    for path in ("", "..", "a/../b", "/etc", "a//b", "a\\b", "a/b/c/d/e/f", "a?b", "a\n"):
        with pytest.raises(FieldError, match="origin_path"):
            origin_url("file:///models", path)
