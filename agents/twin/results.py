"""Results of twins: a manifest of one JSON text that says that nothing was generated.

Decides what the text holds. It is never stored: a rehearsal has no files, and the orchestrator says so to who asks for them.
"""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Final

from agents.core.outputs import RunAttempt
from atoll.model.attempt import Artifact, ResultManifest

_NAME: Final = "simulated.json"
_MEDIA_TYPE: Final = "application/json"


def simulated_result(command: RunAttempt, run_us: int) -> ResultManifest:
    """The result of an attempt that took `run_us` of fleet time."""
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
    artifact = Artifact(name=_NAME, media_type=_MEDIA_TYPE, bytes=len(data), digest=f"sha256:{sha256(data).hexdigest()}")
    return ResultManifest(key=command.key, artifacts=(artifact,), seed=spec.seed, simulated=True)
