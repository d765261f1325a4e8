"""What every test may rely on: a clean environment, free ports, short paths, and no process left behind.

The environment is set at import, before any test module loads torch, Ray or gRPC: those read it once. Nothing here
knows anything about Atoll's own modules.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

# Inherited by everything a test starts, also by what detaches itself from its parent, so that leftovers are found.
SESSION_VARIABLE = "ATOLL_TEST_SESSION"
SESSION = uuid.uuid4().hex

ENVIRONMENT = {
    SESSION_VARIABLE: SESSION,
    # Two torch threads on two busy cores are slower by an order of magnitude, and change pixels.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # No test talks to the network outside this machine.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Tables are as wide as a test expects, and plain.
    "COLUMNS": "160",
    "NO_COLOR": "1",
    "TERM": "dumb",
}
# A proxy would be asked for loopback addresses; a user's own Ray cluster would be joined.
UNSET = (
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "grpc_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "RAY_ADDRESS",
)

for _name in [name for name in os.environ if name.startswith("ATOLL_") or name in UNSET]:
    del os.environ[_name]
os.environ.update(ENVIRONMENT)

# How long a process that was told to end may take until it counts as left behind. Ray's need a few seconds.
LEFTOVER_GRACE_S = 15

# Below the kernel's ephemeral range (from 32768), so that no outgoing connection takes a port between test and use.
PORT_FIRST = 20_000
PORT_LAST = 32_000


def pytest_configure(config: pytest.Config) -> None:
    """A home of its own for the session: a user's configuration must not decide a test, nor a test change it."""
    home = Path(tempfile.mkdtemp(prefix="atoll-home-"))
    for variable in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        os.environ[variable] = str(home / variable.removeprefix("XDG_").removesuffix("_HOME").lower())
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))


@pytest.fixture(scope="session", autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Fails the session when something a test started outlives it; ends it, so that the machine stays clean anyway."""
    yield
    _, left = psutil.wait_procs(_started_here(), timeout=LEFTOVER_GRACE_S)
    described = [f"pid {process.pid}: {_command_of(process)}" for process in left]
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    if described:
        pytest.fail("left behind by the tests:\n  " + "\n  ".join(described))


def _started_here() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(SESSION_VARIABLE) != SESSION or process.status() == psutil.STATUS_ZOMBIE:
                continue
            # Python's own: it ends with the interpreter that started it, not before.
            if process.pid != os.getpid() and "multiprocessing.resource_tracker" not in _command_of(process):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:200]
    except psutil.Error:
        return "(gone)"


@pytest.fixture(scope="session")
def free_ports() -> Callable[[], int]:
    """Each call gives a TCP port of 127.0.0.1 that nothing listens on and that no earlier call of this session gave."""
    span = PORT_LAST - PORT_FIRST
    # Parallel test processes begin at distant places.
    offsets = iter((os.getpid() * 997 + step) % span for step in range(span))

    def next_port() -> int:
        for offset in offsets:
            port = PORT_FIRST + offset
            with socket.socket() as probe:
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
        raise RuntimeError(f"no free port between {PORT_FIRST} and {PORT_LAST}")

    return next_port


@pytest.fixture
def free_port(free_ports: Callable[[], int]) -> int:
    """One free TCP port of 127.0.0.1."""
    return free_ports()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """An empty folder with a path short enough for Unix sockets under it (107 bytes; Ray adds about 60 of its own)."""
    folder = Path(tempfile.mkdtemp(prefix="at-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
