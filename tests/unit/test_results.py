"""The artifact store: content-addressed files, manifests that make a success, retention that loses nothing in use."""

from __future__ import annotations

import subprocess
import sys
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.objects import StoreError
from agents.results import ORPHAN_GRACE_US, ArtifactStore, CommittedResult, Retention
from atoll.model.attempt import Artifact, PhaseTimes, ResultManifest
from atoll.model.errors import FieldError, NotFoundError
from atoll.model.ids import AttemptKey, JobId, Ordinal

ALL = Retention(max_age_us=10**15, max_bytes=10**15)
HOUR_US = 3600 * 1_000_000


@pytest.fixture(params=["local", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A path, a file URL, and a store that is no local disk."""
    places = {"local": str(tmp_path / "store"), "file": (tmp_path / "s").as_uri(), "memory": f"memory://{uuid.uuid4()}"}
    return places[request.param]


@pytest.fixture
def store(url: str) -> ArtifactStore:
    return ArtifactStore(url)


def key_of(job: str, ordinal: int = 1) -> AttemptKey:
    return AttemptKey(job_id=JobId(job), ordinal=Ordinal(ordinal))


def put(store: ArtifactStore, data: bytes, name: str = "0.png") -> Artifact:
    return store.put_bytes(data, name=name, media_type="image/png", pixel_digest="sha256:" + "a" * 64)


def result_of(job: str, *artifacts: Artifact, at_us: int = 0, ordinal: int = 1) -> CommittedResult:
    manifest = ResultManifest(key=key_of(job, ordinal), artifacts=artifacts, seed=7, simulated=False)
    return CommittedResult(manifest=manifest, committed_us=at_us, times=PhaseTimes(run_us=5, upload_us=6))


def test_what_is_put_is_found_by_its_digest(store: ArtifactStore, tmp_path: Path) -> None:
    data = bytes(range(256)) * 20
    artifact = put(store, data)
    assert artifact.bytes == len(data) == store.size(artifact.digest)
    assert artifact.uri == f"{store.url}/blobs/{artifact.digest[7:9]}/{artifact.digest[7:]}"
    assert store.get(artifact.digest, max_bytes=10_000) == data
    assert b"".join(store.chunks(artifact.digest, chunk_bytes=1000)) == data
    assert [len(chunk) for chunk in store.chunks(artifact.digest, offset=4000, chunk_bytes=1000)] == [1000, 120]
    path = tmp_path / "file"
    path.write_bytes(data)
    assert store.put_file(path, name="1.png", media_type="image/png").digest == artifact.digest
    assert put(store, b"").bytes == 0


def test_what_is_not_there_or_too_large(store: ArtifactStore) -> None:
    none = "sha256:" + "0" * 64
    assert store.size(none) is None
    with pytest.raises(NotFoundError):
        store.get(none, max_bytes=1)
    with pytest.raises(NotFoundError):
        store.chunks(none)
    artifact = put(store, b"abc")
    with pytest.raises(StoreError, match="has 3 bytes: expected at most 2"):
        store.get(artifact.digest, max_bytes=2)
    with pytest.raises(FieldError, match="offset"):
        store.chunks(artifact.digest, offset=4)
    assert b"".join(store.chunks(artifact.digest, offset=3)) == b""


def test_a_manifest_survives_the_process_and_says_all(store: ArtifactStore, url: str) -> None:
    result = result_of("job-1", put(store, b"one"), put(store, b"two", "1.png"), at_us=12)
    assert store.result(key_of("job-1")) is None
    assert store.commit(result) == result
    again = ArtifactStore(url)
    assert again.result(key_of("job-1")) == result
    assert list(again.results()) == [result]
    assert again.result(key_of("job-1", 2)) is None


def test_the_first_manifest_of_an_attempt_stays(store: ArtifactStore) -> None:
    first = store.commit(result_of("job-1", put(store, b"one"), at_us=1))
    assert store.commit(first) == first
    assert store.commit(result_of("job-1", put(store, b"two"), at_us=2)) == first
    assert store.result(key_of("job-1")) == first
    second_try = store.commit(result_of("job-1", put(store, b"two"), ordinal=2))
    assert second_try.manifest.key.ordinal == 2


def test_no_manifest_before_its_files(store: ArtifactStore) -> None:
    artifact = put(store, b"one")
    for wrong in (replace(artifact, digest="sha256:" + "0" * 64), replace(artifact, bytes=4)):
        with pytest.raises(StoreError, match=r"0\.png"):
            store.commit(result_of("job-1", artifact, wrong))
    assert store.result(key_of("job-1")) is None


def test_one_of_many_committers_wins(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    artifact = put(store, b"one")
    seen: list[CommittedResult] = []
    threads = [
        threading.Thread(target=lambda at_us=at_us: seen.append(store.commit(result_of("job-1", artifact, at_us=at_us))))
        for at_us in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len({result.committed_us for result in seen}) == 1
    assert list((tmp_path / ".partial").iterdir()) == []


@pytest.mark.parametrize("job", ["../x", "a/b", "", "..", "a\n", "a\x00b", ".partial", "x" * 64])
def test_jobs_that_lead_elsewhere(job: str, store: ArtifactStore) -> None:
    with pytest.raises(FieldError, match="job"):
        store.result(key_of(job))
    with pytest.raises(FieldError, match="job"):
        store.commit(result_of(job))


@pytest.mark.parametrize("digest", ["", "sha256:../../etc/passwd", "0" * 64, "sha256:" + "0" * 64 + "\n"])
def test_digests_that_lead_elsewhere(digest: str, store: ArtifactStore) -> None:
    for call in (store.size, store.chunks):
        with pytest.raises(FieldError, match="digest"):
            call(digest)


@pytest.mark.parametrize("ordinal", [0, -1, 10**6, True])
def test_ordinals_that_no_attempt_has(ordinal: int, store: ArtifactStore) -> None:
    with pytest.raises(FieldError, match="ordinal"):
        store.result(key_of("job-1", ordinal))


@pytest.mark.parametrize("name", ["../0.png", "a/b", "a\n", "", "x" * 64])
def test_names_that_no_artifact_has(name: str, store: ArtifactStore) -> None:
    with pytest.raises(FieldError, match=r"artifact\.name"):
        put(store, b"one", name)


def test_damage_is_noticed(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    artifact = put(store, b"one")
    (tmp_path / "blobs" / artifact.digest[7:9] / artifact.digest[7:]).write_bytes(b"owe")
    with pytest.raises(StoreError, match="is damaged"):
        store.get(artifact.digest, max_bytes=10)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", '{"format_version": 1}', '{"format_version": NaN}', "[" * 100_000, "\x00", '{"job": "x"}'],
)
def test_a_file_that_is_no_manifest(text: str, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    store.commit(result_of("job-1", put(store, b"one")))
    path = tmp_path / "manifests" / "job-1" / "1.json"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"manifests/job-1/1\.json is no manifest of job-1/1"):
        store.result(key_of("job-1"))
    assert list(store.results()) == []


def test_a_manifest_copied_to_another_attempt_is_not_its_result(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    store.commit(result_of("job-1", put(store, b"one")))
    source = tmp_path / "manifests" / "job-1" / "1.json"
    (source.parent / "2.json").write_bytes(source.read_bytes())
    (source.parent / "notes.txt").write_text("not ours")
    with pytest.raises(StoreError, match="no manifest of job-1/2"):
        store.result(key_of("job-1", 2))
    source.write_text(source.read_text().replace('"bytes": 3', '"bytes": -3'))
    with pytest.raises(StoreError, match=r"artifact\.bytes is -3"):
        store.result(key_of("job-1"))


def test_a_place_that_cannot_be_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"Not a directory|File exists"):
        ArtifactStore(str(tmp_path / "file"))
    with pytest.raises(StoreError, match="nosuch"):
        ArtifactStore("nosuch://bucket/x")


def test_retention_by_age_and_bytes_takes_the_oldest_first(store: ArtifactStore) -> None:
    for index in range(5):
        store.commit(result_of(f"job-{index}", put(store, bytes([index]) * 100), at_us=index * HOUR_US))
    now_us = 5 * HOUR_US
    by_age = store.sweep(now_us, Retention(max_age_us=4 * HOUR_US, max_bytes=10**9))
    assert [str(key) for key in by_age.results] == ["job-0/1"]
    by_bytes = store.sweep(now_us, Retention(max_age_us=10**12, max_bytes=250))
    assert [str(key) for key in by_bytes.results] == ["job-1/1", "job-2/1"]
    assert by_bytes.kept_bytes == 200
    assert [result.manifest.key.job_id for result in store.results()] == ["job-3", "job-4"]
    assert store.sweep(now_us + ORPHAN_GRACE_US, ALL).freed_bytes == 300


def test_files_that_results_share_count_once_and_outlive_the_older(store: ArtifactStore) -> None:
    shared = put(store, b"s" * 100)
    store.commit(result_of("job-1", shared, at_us=1))
    store.commit(result_of("job-2", shared, put(store, b"t" * 50), at_us=2))
    assert store.sweep(10, Retention(max_age_us=10**12, max_bytes=150)).results == ()
    assert store.sweep(10, Retention(max_age_us=8, max_bytes=150)).results == (key_of("job-1"),)
    store.sweep(10 + ORPHAN_GRACE_US, ALL)
    assert store.size(shared.digest) == 100


def test_results_nobody_was_told_of_stay(store: ArtifactStore) -> None:
    store.commit(result_of("job-1", put(store, b"one"), at_us=1))
    nothing = Retention(max_age_us=0, max_bytes=0)
    assert store.sweep(10**12, nothing, keep=frozenset({key_of("job-1")})).results == ()
    assert store.result(key_of("job-1")) is not None
    assert store.sweep(10**12, nothing).results == (key_of("job-1"),)


def test_files_of_an_upload_in_progress_stay_and_those_of_a_dead_one_go(store: ArtifactStore) -> None:
    dead, uploading = put(store, b"dead"), put(store, b"uploading")
    assert store.sweep(0, ALL).freed_bytes == 0
    assert store.sweep(ORPHAN_GRACE_US - 1, ALL).freed_bytes == 0
    # The next attempt makes the same bytes: from now on they are of an upload in progress again.
    put(store, b"uploading")
    assert store.sweep(ORPHAN_GRACE_US, ALL).freed_bytes == len(b"dead")
    assert store.size(dead.digest) is None
    store.commit(result_of("job-1", uploading))
    assert store.sweep(10 * ORPHAN_GRACE_US, ALL).freed_bytes == 0
    assert store.get(uploading.digest, max_bytes=100) == b"uploading"
    assert store.sweep(11 * ORPHAN_GRACE_US, ALL).kept_bytes == len(b"uploading")


def test_a_clock_that_went_back_deletes_nothing_early(store: ArtifactStore) -> None:
    artifact = put(store, b"one")
    store.sweep(10 * ORPHAN_GRACE_US, ALL)
    assert store.sweep(0, ALL).freed_bytes == 0
    assert store.size(artifact.digest) == 3


def test_a_writer_killed_in_the_middle_leaves_no_file(tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom agents.objects import LocalObjects\nfrom pathlib import Path\n"
        "def source():\n    yield b'x' * 100\n    os._exit(9)\n"
        "LocalObjects(Path(sys.argv[1])).create('blobs/00/' + '0' * 64, source)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60).returncode == 9
    store = ArtifactStore(str(tmp_path))
    assert store.size("sha256:" + "0" * 64) is None
    assert list(store.results()) == []


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.sampled_from("pcs"), st.integers(0, 5), st.integers(0, 3 * ORPHAN_GRACE_US)), max_size=25))
def test_whatever_is_swept_a_result_always_has_its_files(steps: list[tuple[str, int, int]]) -> None:
    store = ArtifactStore(f"memory://{uuid.uuid4()}")
    now_us = 0
    for action, number, wait_us in steps:
        now_us += wait_us
        if action == "s":
            store.sweep(now_us, Retention(max_age_us=2 * ORPHAN_GRACE_US, max_bytes=3 * number))
        else:
            artifact = put(store, bytes([number % 3]) * 2)
            if action == "c":
                store.commit(result_of(f"job-{number}", artifact, at_us=now_us))
        for result in store.results():
            for artifact in result.manifest.artifacts:
                assert store.size(artifact.digest) == artifact.bytes
