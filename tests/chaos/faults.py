"""What befalls a fleet under load, as a table: each fault, what it must not break, and how it is done.

Decides for how long and whom. Must not know how it is seen that nothing broke.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from tests.chaos.programs import Fleet, Program

# Frozen for about as long as a machine swaps or a hypervisor moves it; in fleet time ten times that, far beyond what makes a site silent.
_FROZEN_S: Final = (0.5, 4.0)
# Far longer than elections, pings and the patience of a commit.
_MAJORITY_LOST_S: Final = 30.0


Strike = Callable[[Fleet, random.Random], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One kind of trouble. `stalls`: whether nothing may be accepted for a while, which is then a figure. `etcd`: of fleets on etcd."""

    name: str
    what: str
    stalls: bool
    etcd: bool = False
    strike: Strike


async def _kill(program: Program) -> None:
    await program.end(signal.SIGKILL)
    program.start()


async def _freeze(program: Program, chance: random.Random) -> None:
    program.send(signal.SIGSTOP)
    await asyncio.sleep(chance.uniform(*_FROZEN_S))
    program.send(signal.SIGCONT)


async def _orchestrator_killed(fleet: Fleet, chance: random.Random) -> None:
    await _kill(fleet.orchestrator)


async def _orchestrator_frozen(fleet: Fleet, chance: random.Random) -> None:
    await _freeze(fleet.orchestrator, chance)


async def _sites_killed(fleet: Fleet, chance: random.Random) -> None:
    await _kill(chance.choice(fleet.rehearsals))


async def _sites_frozen(fleet: Fleet, chance: random.Random) -> None:
    await _freeze(chance.choice(fleet.rehearsals), chance)


async def _all_sites_killed(fleet: Fleet, chance: random.Random) -> None:
    await asyncio.gather(*map(_kill, fleet.rehearsals))


async def _member_killed(fleet: Fleet, chance: random.Random) -> None:
    member = chance.choice(fleet.members)
    await asyncio.to_thread(member.end)
    await asyncio.sleep(chance.uniform(*_FROZEN_S))
    member.start()


async def _member_frozen(fleet: Fleet, chance: random.Random) -> None:
    member = chance.choice(fleet.members)
    member.send(signal.SIGSTOP)
    await asyncio.sleep(chance.uniform(*_FROZEN_S))
    member.send(signal.SIGCONT)


async def _majority_lost(fleet: Fleet, chance: random.Random) -> None:
    away = chance.sample(fleet.members, 2)
    for member in away:
        member.send(signal.SIGSTOP)
    await asyncio.sleep(_MAJORITY_LOST_S)
    for member in away:
        member.send(signal.SIGCONT)


def _etcd(*, name: str, what: str, strike: Strike) -> Fault:
    return Fault(name=name, what=what, stalls=True, etcd=True, strike=strike)


FAULTS: Final = (
    Fault(name="orchestrator-killed", what="kill -9 of the orchestrator, started again", stalls=True, strike=_orchestrator_killed),
    Fault(name="orchestrator-frozen", what="SIGSTOP of the orchestrator for 0.5 to 4 s", stalls=True, strike=_orchestrator_frozen),
    Fault(name="sites-killed", what="kill -9 of the agents of some sites, started again", stalls=False, strike=_sites_killed),
    Fault(name="sites-frozen", what="SIGSTOP of the agents of some sites for 0.5 to 4 s", stalls=False, strike=_sites_frozen),
    Fault(name="all-sites-killed", what="kill -9 of all agents at once, started again", stalls=False, strike=_all_sites_killed),
    _etcd(name="etcd-orchestrator-killed", what="kill -9 of an orchestrator on etcd, started again", strike=_orchestrator_killed),
    _etcd(name="etcd-member-killed", what="kill -9 of one of etcd's three members, for 0.5 to 4 s", strike=_member_killed),
    _etcd(name="etcd-member-frozen", what="SIGSTOP of one of etcd's three members for 0.5 to 4 s", strike=_member_frozen),
    _etcd(name="etcd-majority-lost", what="SIGSTOP of two of etcd's three members for 30 s", strike=_majority_lost),
)
