"""Three real members of etcd under kills and freezes, minute after minute: `python -m tests.soak.etcd [--minutes N] [--seed K]`.

Twelve times a minute a member is killed and started again, or stopped and continued; now and then the store's writer is deposed. Meanwhile
eight writers take turns by comparison, a follower hears of every entry, and a store commits batches of up to 300 jobs. Ends with 0 when
nothing was lost, doubled, torn or told out of order. Decides the faults; what is asked and checked is `etcd_load`'s.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from orchestrator.store.etcd.target import EtcdTarget
from tests.integration.etcd_members import Member, cluster
from tests.integration.store_backends import EtcdBackend
from tests.soak.etcd_load import WRITERS, Ledger, Orchestration, Turns

FAULTS_A_MINUTE: Final = 12
# How long a member is away: within an election's time, and beyond what pings notice.
_AWAY_S: Final = (0.5, 4.0)
_DEPOSING_EVERY: Final = 6


async def soak(
    members: Sequence[Member], *, duration_s: float, seed: int, faults_a_minute: float = FAULTS_A_MINUTE
) -> tuple[Ledger, Counter[str]]:
    """Run it on members that are started; what happened, and which faults."""
    target = EtcdTarget(members=tuple(member.address for member in members))
    ledger, stop, faults = Ledger(), asyncio.Event(), Counter[str]()
    turns = Turns(target, ledger)
    backend = EtcdBackend(EtcdTarget(members=target.members, prefix="soak"))
    orchestration = Orchestration(backend.open(), ledger, seed)
    following = asyncio.create_task(turns.follow())
    writing = [asyncio.create_task(turns.write(f"w{number}", stop)) for number in range(WRITERS)]
    writing.append(asyncio.create_task(orchestration.write(stop)))
    try:
        await _hurt(members, faults, duration_s, seed, faults_a_minute, backend)
    finally:
        stop.set()
    await asyncio.gather(*writing)
    await turns.check()
    await orchestration.check()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    return ledger, faults


async def _hurt(
    members: Sequence[Member], faults: Counter[str], duration_s: float, seed: int, a_minute: float, backend: EtcdBackend
) -> None:
    """One member at a time: with two away there is no majority, and nothing to learn but patience."""
    chance, loop = random.Random(seed), asyncio.get_running_loop()
    began_s, number = loop.time(), 0
    while loop.time() - began_s < duration_s:
        number += 1
        next_s = began_s + number * 60.0 / a_minute
        member, away_s = chance.choice(members), chance.uniform(*_AWAY_S)
        if chance.random() < 0.5:
            faults["killed"] += 1
            await asyncio.to_thread(member.end)
            await asyncio.sleep(away_s)
            member.start()
        else:
            faults["frozen"] += 1
            member.send(signal.SIGSTOP)
            await asyncio.sleep(away_s)
            member.send(signal.SIGCONT)
        if number % _DEPOSING_EVERY == 0:
            faults["deposed"] += 1
            await backend.depose()
        await asyncio.sleep(max(next_s - loop.time(), 0))


def report(ledger: Ledger, faults: Counter[str]) -> str:
    """In a few lines."""
    late = sorted(ledger.commits_s)
    hurt = ", ".join(f"{name} {times}" for name, times in sorted(faults.items()))
    heard = f"the follower heard of {len(ledger.followed)}, {ledger.listings} listings"
    again = f"loaded again {ledger.reloads} times ({ledger.refusals} deposed)"
    lines = [
        f"faults: {hurt}",
        f"{sum(ledger.turns.values())} turns of {len(ledger.turns)} writers; {heard}",
        f"{len(ledger.batches)} batches, {sum(ledger.batches.values())} jobs; {again}",
        f"commits: half within {late[len(late) // 2]:.3f} s, 99 of 100 in {late[len(late) * 99 // 100]:.1f} s, slowest {late[-1]:.1f} s",
        *(f"BROKEN: {what}" for what in ledger.broken),
    ]
    return "\n".join(lines)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(arguments: list[str] | None = None) -> int:
    """0: every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.etcd", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="atoll-soak-") as folder, ExitStack() as ending:
        members = cluster(Path(folder), _free_port)
        for member in members:
            member.start()
            ending.callback(member.end)
        ledger, faults = asyncio.run(soak(members, duration_s=given.minutes * 60, seed=given.seed))
    print(report(ledger, faults))
    return 1 if ledger.broken else 0


if __name__ == "__main__":
    sys.exit(main())
