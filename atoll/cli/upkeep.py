"""Keeps the agent of `atoll up` running beside its orchestrator: started again after pauses that grow, given up when that does not help.

Decides when to try again and when not. The orchestrator goes on whatever becomes of the agent: other sites may be connected to it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Final

from atoll.cli.children import Children
from atoll.cli.output import note

# A crash once in a while is mended at once; what has broken six times within a minute and a half is not mended by trying.
PAUSES_S: Final = (1.0, 5.0, 15.0, 30.0, 30.0)
# After so long a life what ends it is another matter than what ended the one before it.
_STEADY_S: Final = 600.0
# `agents.session.ExitCode`: a setting is wrong, or the orchestrator refuses this agent for good.
_FOR_GOOD: Final = frozenset({2, 3})
# As long as an agent gives its own cluster to end.
_CLUSTER_GRACE_S: Final = 10.0


def keep(
    children: Children,
    servers: Sequence[Popen[bytes]],
    agent: Popen[bytes],
    start: Callable[[], Popen[bytes]],
    *,
    pauses_s: Sequence[float] = PAUSES_S,
) -> None:
    """Start the agent again whenever it ends; returns when one of the servers, without which nothing goes on, has ended. Raises Stopped."""
    tries, since_s = 0, time.monotonic()
    while True:
        children.wait(*servers, agent)
        if any(server.poll() is not None for server in servers):
            return
        status = agent.wait()
        children.drop(agent)
        if time.monotonic() - since_s >= _STEADY_S:
            tries = 0
        if status in _FOR_GOOD or tries == len(pauses_s):
            break
        pause_s = pauses_s[tries]
        tries += 1
        note(f"{_ending(status)}; the orchestrator goes on")
        note(f"the agent is started again in {pause_s:g} s, try {tries} of {len(pauses_s)}")
        if children.wait(*servers, timeout_s=pause_s):
            return
        agent, since_s = start(), time.monotonic()
    why = "starting it again would end the same way" if status in _FOR_GOOD else f"it has ended {tries + 1} times in a row"
    note(f"{_ending(status)}; it is given up: {why}")
    note("the orchestrator goes on without the agent; Ctrl-C and 'atoll up' start both anew")
    children.wait(*servers)


def _ending(status: int) -> str:
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return f"the agent {how}: what it said stands above"


def end_cluster(site_dir: Path) -> None:
    """End the Ray cluster of a site whose agent is gone and has left it running; nothing if there is none."""
    from agents.runtime.ray_processes import ClusterProcesses

    record = site_dir / "ray" / "ray-head.json"
    left = ClusterProcesses.read(record)
    if left is not None:
        left.end(_CLUSTER_GRACE_S)
        record.unlink(missing_ok=True)
