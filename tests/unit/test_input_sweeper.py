"""Uploaded files that nobody needs are forgotten, and no others."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from atoll.model.ids import JobId
from atoll.model.job import InputRef, Job, JobState
from orchestrator.artifacts import ArtifactStore
from orchestrator.input_sweeper import sweep_inputs
from orchestrator.readers import ReadModel
from tests.unit.fleet_of_machines import spec

HOUR_MS = 3_600_000


def _uploaded(store: ArtifactStore, content: bytes) -> InputRef:
    upload = store.upload()
    upload.write(content)
    return InputRef(name="image", digest=upload.finish(), bytes=len(content))


def _needing(one: InputRef) -> Job:
    return Job(
        job_id=JobId("j"),
        spec=spec("m", inputs=(one,)),
        state=JobState.QUEUED,
        idempotency_key="",
        payload_digest="",
        request_id="",
        accepted_us=1,
    )


def _path(root: Path, one: InputRef) -> Path:
    name = one.digest.removeprefix("sha256:")
    return root / "sha256" / name[:2] / name


async def test_what_is_old_and_needed_by_no_job_goes(tmp_path: Path) -> None:
    store, readers = ArtifactStore(str(tmp_path)), ReadModel()
    needed, again, old = (_uploaded(store, content) for content in (b"needed", b"again", b"old"))
    half = tmp_path / "incoming-0123"
    half.write_bytes(b"x")
    for path in (half, *(_path(tmp_path, one) for one in (needed, again, old))):
        os.utime(path, (time.time() - 7_200,) * 2)
    assert _uploaded(store, b"again") == again
    job = _needing(needed)
    readers.put_job(job)
    assert await sweep_inputs(store, readers, retention_ms=3 * HOUR_MS) == ()
    assert await sweep_inputs(store, readers, retention_ms=HOUR_MS) == (old.digest,)
    assert [path.exists() for path in (half, *(_path(tmp_path, one) for one in (needed, again, old)))] == [False, True, True, False]
    readers.put_job(replace(job, state=JobState.CANCELLED))
    assert await sweep_inputs(store, readers, retention_ms=HOUR_MS) == (needed.digest,)


async def test_what_is_no_upload_stays(tmp_path: Path) -> None:
    store, readers = ArtifactStore(str(tmp_path)), ReadModel()
    assert await sweep_inputs(store, readers, retention_ms=HOUR_MS) == (), "nothing was ever uploaded"
    result = tmp_path / "blobs" / "ab" / ("ab" * 32)
    result.parent.mkdir(parents=True)
    result.write_bytes(b"of a site")
    os.utime(result, (time.time() - 7_200,) * 2)
    assert await sweep_inputs(store, readers, retention_ms=HOUR_MS) == ()
    assert result.exists(), "results have a retention of their own"
