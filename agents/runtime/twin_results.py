"""Results of twins: one JSON text that says that nothing was generated, with its digest.

Decides what the text holds and whether it is stored. By default the manifest is all there is: a rehearsal of thousands of attempts a
second needs no files.
"""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from typing import Final

from agents.core.outputs import RunAttempt
from agents.results import ArtifactStore, CommittedResult
from atoll.model.attempt import Artifact, PhaseTimes, ResultManifest
from atoll.model.errors import StateError
from atoll.model.report import Welcome

_NAME: Final = "simulated.json"
_MEDIA_TYPE: Final = "application/json"


class TwinResults:
    """Makes results, and with `keep` stores them where real sites store theirs. One per process is enough."""

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        self._store: ArtifactStore | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="twin-results") if keep else None

    def welcome(self, welcome: Welcome) -> None:
        """Where results go. Raises AtollError when nothing installed can write there."""
        if self.keep and (self._store is None or self._store.url != welcome.artifacts_url):
            self._store = ArtifactStore(welcome.artifacts_url)

    def make(self, command: RunAttempt, run_us: int) -> tuple[ResultManifest, bytes]:
        """The result of an attempt, and the bytes of its artifact."""
        spec = command.spec
        told = {
            "simulated": True,
            "note": "a twin took the time that this generation would take; nothing was generated",
            "attempt": str(command.key),
            "model": command.model.model_id,
            "shape": str(spec.shape),
            "seed": spec.seed,
            "run_us": run_us,
        }
        data = (json.dumps(told, sort_keys=True) + "\n").encode()
        digest = f"sha256:{sha256(data).hexdigest()}"
        artifact = Artifact(name=_NAME, media_type=_MEDIA_TYPE, bytes=len(data), digest=digest)
        return ResultManifest(key=command.key, artifacts=(artifact,), seed=spec.seed, simulated=True), data

    async def store(self, manifest: ResultManifest, data: bytes, times: PhaseTimes) -> ResultManifest:
        """Store and commit; the manifest as it is stored. Raises AtollError."""
        if self._store is None or self._thread is None:
            raise StateError("results of this twin are not kept")
        return await asyncio.get_running_loop().run_in_executor(self._thread, _commit, self._store, manifest, data, times)

    async def close(self) -> None:
        """End the thread, after what it writes."""
        if self._thread is not None:
            await asyncio.to_thread(self._thread.shutdown)


def _commit(store: ArtifactStore, manifest: ResultManifest, data: bytes, times: PhaseTimes) -> ResultManifest:
    stored = store.put_bytes(data, name=_NAME, media_type=_MEDIA_TYPE)
    result = CommittedResult(manifest=replace(manifest, artifacts=(stored,)), committed_us=time.time_ns() // 1_000, times=times)
    return store.commit(result).manifest
