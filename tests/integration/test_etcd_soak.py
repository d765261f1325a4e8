"""A short form of the soak: three real members, some of which are killed and frozen under writers, a follower and a store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.etcd_members import Member, cluster, needs_etcd
from tests.soak.etcd import report, soak

pytestmark = needs_etcd
DURATION_S = 12.0


@pytest.fixture
def members(tmp_path: Path, free_ports: Callable[[], int]) -> Iterator[list[Member]]:
    # A member that is killed loses nothing that the kernel has: these need no disk.
    found = cluster(tmp_path, free_ports, "--unsafe-no-fsync")
    try:
        for one in found:
            one.start()
        yield found
    finally:
        for one in found:
            one.end()


async def test_nothing_is_lost_doubled_torn_or_told_out_of_order(members: list[Member]) -> None:
    ledger, faults = await soak(members, duration_s=DURATION_S, seed=7, faults_a_minute=30)
    told = report(ledger, faults)
    assert ledger.broken == [], told
    # It would prove nothing if nobody had been hurt, or nothing had been done.
    assert min(faults[name] for name in ("killed", "frozen")) > 0, told
    assert len(ledger.turns) == 8 and len(ledger.batches) > 10 and any(jobs == 300 for jobs in ledger.batches.values()), told
