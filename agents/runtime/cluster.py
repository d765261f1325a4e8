"""A site's own Ray cluster on this host: started in a process session of its own, found again by a later agent, ended whole.

Decides ports, folders, environment and authentication of the cluster, and which processes belong to it. Never touches
another Ray of the machine. Must not know actors or what they do.

    <state dir>/ray-token      the cluster's secret, mode 0600; also for the next agent
    <state dir>/ray-head.json  which processes are the cluster
    <state dir>/ray-head.log   what `ray start` said
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from agents.runtime.ray_processes import MARK_VARIABLE, ClusterProcesses, runs, start_ticks_of
from atoll.model.errors import AtollError, FieldError
from atoll.model.shape import parse_int

# Ports of a cluster, all in one block: the control plane's by name, then those of drivers and slots.
PORT_BLOCK: Final = 100
_PORTS: Final = (
    "port",
    "node-manager-port",
    "object-manager-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
    "dashboard-port",
)
_WORKER_PORTS_FROM: Final = 10
# A Unix socket's path holds 107 bytes, of which Ray's own part and `_RAY_FOLDER` take 64.
_TEMP_CHARS_MAX: Final = 43
# Ray opens its folder to every user of the machine: it lies in one that is not.
_RAY_FOLDER: Final = "r"
# Ray's least is 75 MB; nothing large goes through it: weights are on disk, results in the artifact store.
_OBJECT_STORE_BYTES: Final = 80_000_000
_READY_TEXT: Final = "Ray runtime started"
_POLL_S: Final = 0.1
_RECORD: Final = "ray-head.json"
_LOG_LINES: Final = 8
_TOKEN_BYTES: Final = 32
# Taken from the agent's environment they would lead to another cluster, or to its secret.
_NOT_INHERITED: Final = ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "RAY_NAMESPACE", "RAY_TMPDIR", "RAY_JOB_ID")


class ClusterError(AtollError):
    """The Ray cluster cannot be started, found or reached; says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Where a cluster lives. `node_ip`: one of 127.0.1.N per site where several share a host; `port_base`: the first of 100 ports."""

    state_dir: Path
    node_ip: str
    port_base: int
    temp_dir: Path
    start_timeout_s: float
    stop_grace_s: float

    def check(self) -> ClusterSpec:
        """Self, if a cluster could be started so; else FieldError."""
        parse_int("port_base", self.port_base, 1024, 65_535 - PORT_BLOCK)
        try:
            socket.inet_pton(socket.AF_INET, self.node_ip)
        except (OSError, TypeError):
            raise FieldError("node_ip", self.node_ip, "an IPv4 address of this host, such as 127.0.1.1") from None
        if not self.temp_dir.is_absolute() or len(os.fsencode(self.temp_dir)) > _TEMP_CHARS_MAX:
            expected = f"an absolute path of at most {_TEMP_CHARS_MAX} bytes: Ray's sockets lie below it"
            raise FieldError("temp_dir", str(self.temp_dir), expected)
        return self

    @property
    def address(self) -> str:
        """Where drivers connect."""
        return f"{self.node_ip}:{self.port_base}"


class LocalCluster:
    """A running cluster of this host. Made by `start_or_find`."""

    def __init__(self, spec: ClusterSpec, processes: ClusterProcesses, *, token: str, found: bool) -> None:
        self._spec = spec
        self._processes = processes
        self._head = processes.head()
        self._raylet = _raylet_of(self._head)
        self.token = token
        self.found = found  # an earlier agent had started it

    @property
    def address(self) -> str:
        """Where drivers connect."""
        return self._spec.address

    def is_alive(self) -> bool:
        """Whether its first process and its raylet run. Quick; no network."""
        return self._raylet is not None and self._head is not None and runs(self._raylet) and runs(self._head)

    async def stop(self) -> None:
        """End every process of the cluster: asked first, killed after the grace. Its temporary files go too."""
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self._processes.end(self._spec.stop_grace_s)
        (self._spec.state_dir / _RECORD).unlink(missing_ok=True)
        _clear_temp(self._spec.temp_dir)
        with suppress(OSError):  # not there, or something of another's is in it
            self._spec.temp_dir.rmdir()


async def start_or_find(spec: ClusterSpec) -> LocalCluster:
    """The cluster that an earlier agent left running, or a new one. ClusterError if there can be none.

    What is left of a cluster that died is ended first. Only one agent may work on `state_dir` at a time: the caller sees to it.
    """
    spec.check()
    return await asyncio.to_thread(_start_or_find, spec)


def _start_or_find(spec: ClusterSpec) -> LocalCluster:
    spec.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    token = _token(spec.state_dir / "ray-token")
    left = ClusterProcesses.read(spec.state_dir / _RECORD)
    if left is not None:
        cluster = LocalCluster(spec, left, token=token, found=True)
        # One at another address is of an earlier configuration, and gives way.
        if left.address == spec.address and cluster.is_alive():
            return cluster
        left.end(spec.stop_grace_s)
    _check_ports(spec)
    _make_private(spec.temp_dir)
    _clear_temp(spec.temp_dir)
    return _start(spec, token)


def _start(spec: ClusterSpec, token: str) -> LocalCluster:
    processes = ClusterProcesses(mark=secrets.token_hex(16), address=spec.address)
    processes.write(spec.state_dir / _RECORD)  # before the first process: whatever happens now, it can be found
    log = spec.state_dir / "ray-head.log"
    pid = _spawn(_command(spec), _environment(token, processes.mark), log)
    processes = replace(processes, pid=pid, start_ticks=start_ticks_of(pid) or 0)
    processes.write(spec.state_dir / _RECORD)
    deadline_s = time.monotonic() + spec.start_timeout_s
    while _READY_TEXT not in log.read_text(errors="replace"):
        problem = None
        if processes.head() is None:
            problem = "ended"
        elif time.monotonic() > deadline_s:
            problem = f"was not ready after {spec.start_timeout_s:g} s"
        if problem is not None:
            processes.end(0)
            raise ClusterError(f"the Ray cluster at {spec.address} {problem}; {log} ends with: {_tail(log)}")
        time.sleep(_POLL_S)
    return LocalCluster(spec, processes, token=token, found=False)


def _spawn(command: list[str], environment: dict[str, str], log: Path) -> int:
    """The pid of a process in a session of its own, which outlives this one."""
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(command[0], command, environment, file_actions=files, setsid=True)


def _command(spec: ClusterSpec) -> list[str]:
    base = spec.port_base
    return [
        sys.executable,
        "-c",
        # As the `ray` script does; found beside this interpreter whether or not a PATH leads to it.
        "import sys; from ray.scripts.scripts import main; sys.argv[0] = 'ray'; sys.exit(main())",
        "start",
        "--head",
        "--block",
        f"--node-ip-address={spec.node_ip}",
        *(f"--{name}={base + index}" for index, name in enumerate(_PORTS)),
        f"--min-worker-port={base + _WORKER_PORTS_FROM}",
        f"--max-worker-port={base + PORT_BLOCK - 1}",
        f"--temp-dir={spec.temp_dir / _RAY_FOLDER}",
        f"--object-store-memory={_OBJECT_STORE_BYTES}",
        # Slots are ours to count: Ray starts no workers in advance and hides no device.
        "--num-cpus=0",
        "--num-gpus=0",
        "--include-dashboard=false",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        "--log-style=record",
        "--log-color=false",
    ]


def _environment(token: str, mark: str) -> dict[str, str]:
    package_root = str(Path(__file__).resolve().parents[2])
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    paths = [package_root, *filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **inherited,
        **auth_environment(token),
        MARK_VARIABLE: mark,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # each slot chooses its device itself
    }


def auth_environment(token: str) -> Mapping[str, str]:
    """What head, drivers and workers must all have, said outright: a token file of some other Ray would else decide."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "RAY_USAGE_STATS_ENABLED": "0"}


def _check_ports(spec: ClusterSpec) -> None:
    for index, name in enumerate(_PORTS):
        port = spec.port_base + index
        with socket.socket() as probe:
            # As servers do: a port that only waits for its last connection's end is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))  # noqa: S104 - Ray listens on all interfaces whatever it is told
            except OSError as error:
                what = f"port {port} ({name}) is taken ({error.strerror})"
                raise ClusterError(f"{what}: choose another port_base, {PORT_BLOCK} free ports from it on") from None


def _token(path: Path) -> str:
    """The secret in `path`, made if there is none."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ClusterError(f"{path} must be a file of this user that nobody else may read (chmod 600)") from None
        token = path.read_text().strip()
        if len(token) == 2 * _TOKEN_BYTES:
            return token
        path.unlink()  # half written by an agent that died
        return _token(path)
    token = secrets.token_hex(_TOKEN_BYTES)
    with os.fdopen(descriptor, "w") as out:
        out.write(token)
    return token


def _raylet_of(head: psutil.Process | None) -> psutil.Process | None:
    try:
        return next((child for child in head.children() if child.name() == "raylet"), None) if head is not None else None
    except psutil.Error:
        return None


def _make_private(folder: Path) -> None:
    """A folder of this user alone: other users may write to its parent."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            folder.chmod(0o700)
    except OSError as error:
        raise ClusterError(f"temp_dir {folder} cannot be made: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise ClusterError(f"temp_dir {folder} is not a folder of this user: choose another")


def _clear_temp(folder: Path) -> None:
    """Remove what clusters that have ended left: sockets and Ray's own logs."""
    shutil.rmtree(folder / _RAY_FOLDER, ignore_errors=True)


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return " | ".join(line.strip() for line in lines[-_LOG_LINES:] if line.strip())[-1500:]
