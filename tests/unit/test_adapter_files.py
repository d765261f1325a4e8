"""Adapters on a node's disk: whole and verified or not there, bounded, and only what the origin store has below it."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from agents.adapter_files import AdapterFiles
from agents.origins import FetchError, FetchStoppedError
from agents.weights import WeightsCache
from atoll.model.adapter import AdapterSpec
from atoll.model.attempt import FailureKind
from atoll.model.errors import FieldError
from atoll.model.ids import AdapterId, ModelId

CACHE_BYTES = 80_000


def served(origin: Path, name: str, size: int = 1_000, path: str = "") -> AdapterSpec:
    """A file of the origin, which is safetensors as far as anybody looks."""
    header = b'{"w.lora_A.weight":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}' % (size, size)
    data = len(header).to_bytes(8, "little") + header + name.encode()[:1] * size
    target = origin / (path or f"adapters/{name}.safetensors")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return AdapterSpec(
        adapter_id=AdapterId(name), model_ids=(ModelId("m"),), rank=1, weights_bytes=len(data),
        weights_digest=f"sha256:{hashlib.sha256(data).hexdigest()}", origin_path=str(target.relative_to(origin)),
    )  # fmt: skip


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return tmp_path / "origin"


@pytest.fixture
def files(tmp_path: Path) -> AdapterFiles:
    return AdapterFiles(tmp_path / "cache", cache_bytes=CACHE_BYTES)


def fetch(files: AdapterFiles, one: AdapterSpec, origin: Path) -> tuple[AdapterId, ...]:
    return files.fetch(one, origin.as_uri(), lambda: False).evicted


def test_it_comes_once_and_is_found_by_whoever_looks_next(files: AdapterFiles, origin: Path, tmp_path: Path) -> None:
    one = served(origin, "ink")
    first = files.fetch(one, origin.as_uri(), lambda: False)
    assert (first.fetched_bytes, first.path.read_bytes()) == (one.weights_bytes, (origin / one.origin_path).read_bytes())
    (origin / one.origin_path).unlink()
    assert files.fetch(one, origin.as_uri(), lambda: False).fetched_bytes == 0
    again = AdapterFiles(tmp_path / "cache", cache_bytes=CACHE_BYTES)
    assert again.held() == (("ink", one.weights_digest),)
    again.drop(one)
    assert again.held() == ()


def test_a_file_at_the_top_of_the_store_is_found_too(files: AdapterFiles, origin: Path) -> None:
    assert fetch(files, served(origin, "top", path="top.safetensors"), origin) == ()


@pytest.mark.parametrize("path", ["../x.safetensors", "/etc/x.safetensors", "a//x.safetensors", "adapters/ink.bin", "adapters/ink.pt", ""])
def test_a_path_out_of_the_store_or_of_another_kind_is_no_adapter(files: AdapterFiles, origin: Path, path: str) -> None:
    one = replace(served(origin, "ink"), origin_path=path)
    with pytest.raises(FetchError) as caught:
        fetch(files, one, origin)
    assert caught.value.kind is FailureKind.BAD_WEIGHTS
    assert files.held() == ()


@pytest.mark.parametrize("name", ["../ink", ".ink", "a/b", ""])
def test_a_name_that_leads_elsewhere_is_refused(files: AdapterFiles, origin: Path, name: str) -> None:
    with pytest.raises(FieldError, match="adapter_id"):
        fetch(files, replace(served(origin, "ink"), adapter_id=AdapterId(name)), origin)


def test_what_does_not_verify_leaves_nothing(files: AdapterFiles, origin: Path, tmp_path: Path) -> None:
    one = served(origin, "ink")
    for other in (
        replace(one, weights_digest="sha256:" + "0" * 64), replace(one, weights_bytes=one.weights_bytes - 1),
    ):  # fmt: skip
        with pytest.raises(FetchError) as caught:
            fetch(files, other, origin)
        assert caught.value.kind is FailureKind.BAD_WEIGHTS
    pickled = origin / "adapters/pickled.safetensors"
    pickled.write_bytes(b"\x80\x04\x95 a pickle by another name")
    digest = hashlib.sha256(pickled.read_bytes()).hexdigest()
    bad = replace(one, weights_bytes=pickled.stat().st_size, weights_digest=f"sha256:{digest}", origin_path="adapters/pickled.safetensors")
    with pytest.raises(FetchError) as caught:
        fetch(files, bad, origin)
    assert caught.value.kind is FailureKind.BAD_WEIGHTS
    assert not [path for path in (tmp_path / "cache").rglob("*.safetensors") if path.parent.name != ".locks"]


def test_an_origin_that_has_no_such_file_says_so(files: AdapterFiles, origin: Path) -> None:
    one = served(origin, "ink")
    (origin / one.origin_path).unlink()
    with pytest.raises(FetchError, match="there is no such file") as caught:
        fetch(files, one, origin)
    assert caught.value.kind is FailureKind.FETCH_FAILED


def test_a_fetch_that_stops_is_continued(files: AdapterFiles, origin: Path) -> None:
    one = served(origin, "ink")
    with pytest.raises(FetchStoppedError):
        files.fetch(one, origin.as_uri(), lambda: True)
    assert files.held() == ()
    fetch(files, one, origin)
    assert files.held() == (("ink", one.weights_digest),)


def test_the_least_recently_used_gives_way_and_an_eighth_of_the_cache_is_the_bound(files: AdapterFiles, origin: Path) -> None:
    names = ("a", "b", "c", "d")
    specs = {name: served(origin, name, size=3_000) for name in (*names, "huge")}
    for name in names[:3]:
        assert fetch(files, specs[name], origin) == ()
    fetch(files, specs["a"], origin)
    assert fetch(files, specs["d"], origin) == ("b",)
    assert {name for name, _ in files.held()} == {"a", "c", "d"}
    huge = served(origin, "huge", size=10_001)
    with pytest.raises(FetchError) as caught:
        fetch(files, huge, origin)
    assert caught.value.kind is FailureKind.DISK_FULL
    assert len(files.held()) == 3


def test_adapters_count_as_bytes_of_the_cache(files: AdapterFiles, origin: Path, tmp_path: Path) -> None:
    cache = WeightsCache(tmp_path / "cache", quota_bytes=CACHE_BYTES)
    before = cache.used_bytes()
    one = served(origin, "ink")
    fetch(files, one, origin)
    assert cache.used_bytes() - before == one.weights_bytes
    assert cache.entries() == ()


def test_two_who_want_the_same_at_once_share_one_fetch(tmp_path: Path, origin: Path) -> None:
    one = served(origin, "ink", size=5_000)
    came: list[int] = []

    def work() -> None:
        files = AdapterFiles(tmp_path / "cache", cache_bytes=CACHE_BYTES)
        came.append(files.fetch(one, origin.as_uri(), lambda: False).fetched_bytes)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(came) == [0, 0, 0, one.weights_bytes]
