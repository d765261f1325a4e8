"""A history that was decided by compiled code is decided again without numba, step by step the same."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

from atoll.model.ids import AdapterId, SiteId
from atoll.model.modelspec import AdapterUse
from orchestrator.core import events
from orchestrator.core.placement import kernel, vectors
from tests.unit.fleet_of_machines import BATCH, URGENT, Fleet, adapter, model, pool, site, spec

_ROOT = Path(__file__).parents[2]
_MODELS = 6
_PROBE = """
import sys
sys.modules["numba"] = None  # as if the extra `fast` were not installed
from tests.unit.test_core_without_numba import history
from orchestrator.core.placement import kernel, vectors
assert kernel.decide is vectors.decide
print(history())
"""


def history() -> str:
    """A few hundred jobs of all kinds on uneven sites, some of which end; a digest of all steps."""
    chance = random.Random(11)
    fleet = Fleet(
        *(site(f"s{number}", pool("p", "big", gpus=2), pool("q", "small", nodes=2, gpus=2), origin_gbs=number + 1) for number in range(5)),
        models=tuple(model(f"m{number}", 4 + 9 * number) for number in range(_MODELS)),
        checked=False,
    )
    fleet.ask(events.AdaptersAdded, actor="t", adapters=(adapter("s1", *(f"m{number}" for number in range(_MODELS))),))
    for number in range(300):
        use = (AdapterUse(adapter_id=AdapterId("s1")),) if chance.random() < 0.2 else ()
        priority = chance.choice([URGENT, BATCH, spec().priority])
        deadline_ms = chance.choice([0, 0, 0, 60_000])
        name = f"m{min(int(chance.expovariate(0.6)), _MODELS - 1)}"
        fleet.submit(spec(name, prompt=str(number), adapters=use, priority=priority, deadline_ms=deadline_ms))
        where = f"s{chance.randrange(5)}"
        agent = fleet.agents[SiteId(where)]
        for key in list(agent.attempts)[: chance.randrange(3)]:
            told = agent.attempts[key]
            fleet.warm(where, told.slot.node_id, told.slot.index, told.spec.model_id, 10)
            fleet.end_attempt(where, key, after_us=chance.randrange(1, 2_000_000))
        if number % 7 == 0:
            fleet.report(where)
    return sha256(repr(fleet.steps).encode()).hexdigest()


def test_steps_are_the_same_without_numba() -> None:
    assert kernel.decide is not vectors.decide, "the suite runs with the extra `fast`"
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == history()
