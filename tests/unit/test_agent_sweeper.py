"""Retention of results, as an agent keeps it."""

from __future__ import annotations

from pathlib import Path

from agents.results import ArtifactStore, CommittedResult, Retention
from agents.sweeper import ResultSweeper
from atoll.model.attempt import Artifact, PhaseTimes, ResultManifest
from atoll.model.ids import AttemptKey, JobId, Ordinal

_YEAR_US = 365 * 24 * 3_600 * 1_000_000


def _commit(store: ArtifactStore, name: str, committed_us: int) -> AttemptKey:
    key = AttemptKey(job_id=JobId(name), ordinal=Ordinal(1))
    artifact: Artifact = store.put_bytes(name.encode(), name="0.png", media_type="image/png")
    manifest = ResultManifest(key=key, artifacts=(artifact,), seed=0, simulated=False)
    store.commit(CommittedResult(manifest=manifest, committed_us=committed_us, times=PhaseTimes()))
    return key


async def test_old_results_go_unless_nobody_was_told_of_them_yet(tmp_path: Path) -> None:
    import time

    store = ArtifactStore(f"file://{tmp_path}/artifacts")
    now_us = time.time_ns() // 1_000
    young = _commit(store, "young", now_us)
    old = _commit(store, "old", now_us - _YEAR_US)
    untold = _commit(store, "untold", now_us - _YEAR_US)
    sweeper = ResultSweeper(
        retention=Retention(max_age_us=24 * 3_600 * 1_000_000, max_bytes=10**9),
        store_url=lambda: store.url,
        unacknowledged=lambda: frozenset({untold}),
    )
    swept = await sweeper.sweep()
    assert swept is not None
    assert swept.results == (old,)
    assert {result.manifest.key for result in store.results()} == {young, untold}


async def test_without_a_store_nothing_happens_and_a_store_that_is_gone_ends_nobody(tmp_path: Path) -> None:
    retention = Retention(max_age_us=1, max_bytes=1)
    unknown = ResultSweeper(retention=retention, store_url=lambda: None, unacknowledged=frozenset)
    assert await unknown.sweep() is None
    (tmp_path / "file").write_text("not a folder")
    gone = ResultSweeper(retention=retention, store_url=lambda: f"file://{tmp_path}/file", unacknowledged=frozenset)
    await gone.sweep()
