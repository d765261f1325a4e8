"""Tasks of a study on a Ray cluster, whose hosts have Atoll of this version and nothing of the study: it is sent to them.

Decides what travels: the study and the trace's bytes once to each host, of a task what it leaves. Must not know what tasks do.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from atoll import __version__
from atoll.model.errors import AtollError, FieldError
from sims.study.running import Study
from sims.study.tasks import Task, files_of, perform, write_whole
from sims.study.workers import Heard, TaskFailedError

# What hosts keep of a trace in memory that they share; longer ones are for one machine.
_TRACE_BYTES_MAX: Final = 1 << 30
# In flight for each core: the next is at hand when one is done, and results do not pile up.
_AHEAD: Final = 2
# As long as a connection to the other end of the earth takes, several times over.
_KNOCK_S: Final = 5.0


class ClusterError(AtollError):
    """There is no such cluster, or no Ray here to speak to it."""


def do_on_cluster(study: Study, tasks: Sequence[Task], out: Path, address: str, heard: Heard) -> None:
    """Do all of them on the cluster at this address: `HOST:PORT` of its head, `auto`, or `local` for one that lives as long as this.

    Stopped, it leaves none running.
    """
    size = study.source.path.stat().st_size
    if size > _TRACE_BYTES_MAX:
        raise FieldError("--ray", address, f"a trace of at most {_TRACE_BYTES_MAX} bytes; this one has {size}")
    ray = _ray()
    _knock(address)
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ClusterError(f"no Ray cluster answers at {address}: {str(error).splitlines()[0]}") from None
    try:
        _lead(ray, study, tasks, out, heard)
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """ClusterError where nobody listens: Ray itself would try for minutes."""
    host, found, port = address.removeprefix("ray://").rpartition(":")
    if not found:
        return
    try:
        socket.create_connection((host, int(port)), _KNOCK_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster answers at {address}: {error}") from None


def _lead(ray: Any, study: Study, tasks: Sequence[Task], out: Path, heard: Heard) -> None:
    remote = ray.remote(num_cpus=1)(_perform)
    sent = ray.put(replace(study, source=replace(study.source, path=Path(study.source.path.name))))
    trace = ray.put(study.source.path.read_bytes())
    waiting = list(reversed(tasks))
    flying: dict[Any, Task] = {}
    most = max(int(ray.cluster_resources().get("CPU", 1)), 1) * _AHEAD
    try:
        while waiting or flying:
            while waiting and len(flying) < most:
                task = waiting.pop()
                flying[remote.remote(sent, trace, task, __version__)] = task
            (ready,), _ = ray.wait(list(flying), num_returns=1)
            task = flying.pop(ready)
            _keep(task, _result(ray, ready, task), out)
            heard(task, None)
    finally:
        for left in flying:
            ray.cancel(left, force=True)


def _result(ray: Any, ready: Any, task: Task) -> tuple[bytes, ...]:
    try:
        found: tuple[bytes, ...] | str = ray.get(ready)
    except ray.exceptions.RayError as error:
        raise TaskFailedError(task, str(error).splitlines()[0]) from None
    if isinstance(found, str):
        raise TaskFailedError(task, found)
    return found


def _keep(task: Task, contents: tuple[bytes, ...], out: Path) -> None:
    paths = [out / name for name in files_of(task)]
    paths[-1].unlink(missing_ok=True)
    for path, content in zip(paths, contents, strict=True):
        write_whole(path, content)


def _perform(study: Study, trace: bytes, task: Task, version: str) -> tuple[bytes, ...] | str:
    """On a host of the cluster: the files that the task leaves, or why there are none."""
    if version != __version__:
        return f"a host of the cluster has Atoll {__version__}: expected {version}, as here"
    with TemporaryDirectory(prefix="atoll-sim-") as folder:
        here = Path(folder)
        path = here / study.source.path.name
        path.write_bytes(trace)
        try:
            perform(replace(study, source=replace(study.source, path=path)), task, here)
        except (AtollError, OSError) as error:
            return str(error)
        return tuple((here / name).read_bytes() for name in files_of(task))


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ClusterError("ray is not installed: --ray needs the extra 'worker' (pip install 'atoll[worker]')") from None
    return ray
