"""Nothing is left to be compiled when the first job comes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.core.placement.machine_code import COMPILED
from orchestrator.core.placement.policies import POLICIES
from orchestrator.warming import warm_up

pytestmark = pytest.mark.skipif(not COMPILED, reason="numba is not installed: there is nothing to compile")

# In a process of its own: what other tests called is compiled in theirs.
_PROGRAM = """
from numba.core.registry import CPUDispatcher

from orchestrator.core.placement import kernel, listing, sets
from orchestrator.core.placement.policy import Policy
from orchestrator.warming import warm_up


def compiled():
    found = {}
    for module in (kernel, listing, sets):
        for name, value in vars(module).items():
            if isinstance(value, CPUDispatcher):
                found[name] = tuple(map(str, value.signatures))
    return found


assert any(not signatures for signatures in compiled().values()), "nothing is compiled at import"
warm_up(Policy())
warm = compiled()

from tests.unit.fleet_of_machines import Fleet, model, pool, site, spec
from dataclasses import replace

fleet = Fleet(site("a", pool("p"), pool("q", "small")), site("b"), models=(model("m"), model("n", 70), model("o", 60)), checked=False)
for round in range(3):
    fleet.submit(*(spec(name, gang_size=size) for name in ("m", "n", "o") for size in (1, 2)))
    fleet.wait(2, reporting=("a", "b"))
late = {name: signatures for name, signatures in compiled().items() if signatures != warm[name]}
called = {name for name, signatures in compiled().items() if signatures}
print(len(called), late)
"""


def test_a_first_job_waits_for_no_compiler() -> None:
    ended = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=150)
    assert ended.returncode == 0, ended.stderr
    called, _, late = ended.stdout.partition(" ")
    assert late.strip() == "{}", f"compiled by a job: {late}"
    assert int(called) > 0, "and jobs called it"


@pytest.mark.parametrize("name", POLICIES)
def test_whatever_the_policy_and_the_clock(name: str) -> None:
    for scale_milli in (1_000, 1_000_000):
        warm_up(POLICIES[name].at_scale(scale_milli))
