"""The live side of `atoll sim fidelity`: an orchestrator and twins as processes of their own, and the jobs of a trace submitted to them.

Decides what is declared first, when each job is submitted, and what of the run is measured besides: commits and ways, which the simulated
side is given. Whatever happens, no process outlives it.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final, TypeVar

import typer

from atoll.cli.demo.fleet import atoll, connect, free_ports
from atoll.cli.demo.interrupts import Interrupts
from atoll.cli.demo.processes import PartFailedError, Processes, Program, Running
from atoll.cli.exits import CliError, Exit
from atoll.model.adapter import AdapterSpec
from atoll.model.address import Address
from atoll.model.errors import AtollError
from atoll.model.job import TERMINAL, Job
from atoll.model.modelspec import ModelSpec
from atoll.model.site import SiteConnection

if TYPE_CHECKING:
    from atoll.client import Client, JobRequest
    from atoll.model.job import JobSpec
    from sims.play.scenario import Scenario
    from sims.traces.job import TraceJob

T = TypeVar("T")

# Python needs a second or two to load an orchestrator, several times that on a busy machine.
_START_S: Final = 60.0
_POLL_S: Final = 0.1
_GRACE_S: Final = 10.0
# After the last submission as long as the queue lets them; a fleet that ends nothing for so long is stuck.
_IDLE_S: Final = 120.0
# A call in so much time measures the way without being a load.
_MEASURE_EVERY_S: Final = 0.25
_PAGE: Final = 1_000
# A message of a thousand models is below what gRPC carries.
_DECLARED_AT_ONCE: Final = 500
_METRICS_S: Final = 10.0
_COMMIT: Final = re.compile(r'atoll_commit_seconds_(sum|count)\{outcome="committed"\} (\S+)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is run: the scenario's sites, policy and seed; `policy` as an option has it. `jobs` with what each asks for, in order."""

    scenario: Scenario
    policy: str
    noise_seed: int
    time_scale_milli: int
    models: tuple[ModelSpec, ...]
    adapters: tuple[AdapterSpec, ...]
    jobs: tuple[tuple[TraceJob, JobSpec], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lived:
    """What came of it. `policy`: the text of what the orchestrator ran by. Microseconds of real time: a commit on the average, half of a
    call's median."""

    jobs: tuple[Job, ...]
    policy: str
    commit_us: int
    way_us: int
    wall_s: float


def live(plan: Plan, told: Callable[[int], None]) -> Lived:
    """Run it. `told` hears how many jobs have been submitted."""
    with TemporaryDirectory(prefix="atoll-fidelity-") as folder, Interrupts() as interrupts:
        processes = Processes(Path(folder), os.environ)
        try:
            return _Fleet(plan, Path(folder), processes, interrupts.check).live(told)
        except KeyboardInterrupt:
            raise typer.Exit(interrupts.exit_code or Exit.INTERRUPTED) from None
        except AtollError as error:
            cause = _cause(processes, error)
            if not isinstance(cause, PartFailedError):
                raise
            raise CliError(str(cause), more=cause.lines) from error
        finally:
            interrupts.begin_tidying()
            processes.stop(grace_s=_GRACE_S, hurry=lambda: interrupts.hurry() or interrupts.first is not None, say=lambda _line: None)


def _cause(processes: Processes, error: AtollError) -> AtollError:
    """A program that ended explains what others complain of."""
    try:
        processes.check()
    except PartFailedError as cause:
        return cause
    return error


@dataclass(slots=True)
class _Fleet:
    plan: Plan
    folder: Path
    processes: Processes
    breathe: Callable[[], None]
    calls_s: list[float] = field(default_factory=list)

    def live(self, told: Callable[[int], None]) -> Lived:
        ports = free_ports()
        address, metrics = (Address(host="127.0.0.1", port=next(ports)) for _ in range(2))
        self._orchestrator(address, metrics)
        with connect(address) as client:
            self._declare(client)
            self._twins(client, address)
            before = _commits(metrics)
            began_s = time.monotonic()
            self._submit(client, told)
            self._await_ends(client)
            wall_s = time.monotonic() - began_s
            after = _commits(metrics)
            jobs = tuple(sorted(client.list(page_size=_PAGE), key=lambda job: (job.accepted_us, job.spec.seed)))
            policy = client.policy().text
        count = after["count"] - before["count"]
        return Lived(
            jobs=jobs,
            policy=policy,
            commit_us=round((after["sum"] - before["sum"]) * 1e6 / count) if count else 0,
            way_us=round(median(self.calls_s) / 2 * 1e6),
            wall_s=wall_s,
        )

    # --- coming up -----------------------------------------------------------------------------------------------------------

    def _start(self, name: str, wave: int, *arguments: str) -> Running:
        return self.processes.start(Program(name=name, arguments=atoll(*arguments), wave=wave, grace_s=_GRACE_S))

    def _orchestrator(self, address: Address, metrics: Address) -> None:
        self._start(
            "orchestrator",
            1,
            "orchestrator",
            *("--listen", str(address)),
            *("--metrics", str(metrics)),
            *("--data-dir", str(self.folder / "orchestrator")),
            *("--time-scale", f"{self.plan.time_scale_milli / 1_000:g}"),
            *("--policy", self.plan.policy),
            *("--log-level", "warning"),
        )
        with self._patience("the orchestrator does not answer") as wait, connect(address) as client:
            while True:
                try:
                    client.fleet()
                    return
                except AtollError:
                    wait()

    def _declare(self, client: Client) -> None:
        scenario = self.plan.scenario
        client.sites_apply(scenario.sites, scenario.links, reason="sim fidelity")
        for models in _pieces(self.plan.models):
            client.models_add(models)
        for adapters in _pieces(self.plan.adapters):
            client.adapters_add(adapters)

    def _twins(self, client: Client, address: Address) -> None:
        from atoll.catalog.fleet import dump_sites

        scenario = self.plan.scenario
        file = self.folder / "fleet.yaml"
        file.write_text(dump_sites(scenario.sites, scenario.links), encoding="utf-8")
        self._start(
            "twins",
            0,
            "rehearse",
            str(file),
            *("--orchestrator", str(address)),
            *("--seed", str(scenario.seed)),
            *("--noise-seed", str(self.plan.noise_seed)),
            *("--sigma", str(scenario.sigma)),
            *("--log-level", "warning"),
        )
        with self._patience("the twins do not connect") as wait:
            while not all(view.connection is SiteConnection.CONNECTED and view.last_report_us for view in client.sites_list()):
                wait()

    @contextmanager
    def _patience(self, what: str) -> Iterator[Callable[[], None]]:
        deadline_s = time.monotonic() + _START_S

        def wait() -> None:
            self.breathe()
            self.processes.check()
            if time.monotonic() > deadline_s:
                raise CliError(f"{what} after {_START_S:g} s", code=Exit.TIMEOUT)
            time.sleep(_POLL_S)

        yield wait

    # --- jobs ----------------------------------------------------------------------------------------------------------------

    def _submit(self, client: Client, told: Callable[[int], None]) -> None:
        """Each job at its time; those that are due at once go together."""
        plan, began_s, measured_s = self.plan, time.monotonic(), 0.0
        due_s = [job.arrival_us / 1e3 / plan.time_scale_milli for job, _ in plan.jobs]
        done = 0
        while done < len(due_s):
            self.breathe()
            passed_s = time.monotonic() - began_s
            until = next((number for number in range(done, len(due_s)) if due_s[number] > passed_s), len(due_s))
            if until == done:
                if passed_s - measured_s >= _MEASURE_EVERY_S:
                    measured_s = passed_s
                    self._measure(client)
                time.sleep(max(min(due_s[done] - (time.monotonic() - began_s), _POLL_S), 0))
                continue
            for outcome in client.submit_many([_request(spec) for _, spec in plan.jobs[done:until]]):
                if outcome.error is not None:
                    raise outcome.error
            done = until
            told(done)
            self.processes.check()

    def _measure(self, client: Client) -> None:
        began_s = time.perf_counter()
        client.policy()
        self.calls_s.append(time.perf_counter() - began_s)

    def _await_ends(self, client: Client) -> None:
        ended, heard_s = -1, time.monotonic()
        while True:
            self.breathe()
            self.processes.check()
            self._measure(client)
            view = client.fleet()
            if view.jobs_ended >= len(self.plan.jobs):
                return
            if view.jobs_ended != ended:
                ended, heard_s = view.jobs_ended, time.monotonic()
            elif time.monotonic() - heard_s > _IDLE_S:
                stuck = next(job for job in client.list(page_size=_PAGE) if job.state not in TERMINAL)
                what = f"{ended} of {len(self.plan.jobs)} jobs have ended, and none did for {_IDLE_S:g} s"
                raise CliError(f"{what}: job/{stuck.job_id} of {stuck.spec.model_id} is {stuck.state.value}", code=Exit.TIMEOUT)
            time.sleep(_MEASURE_EVERY_S)


def _request(spec: JobSpec) -> JobRequest:
    from atoll.client import JobRequest

    shape = spec.shape
    return JobRequest(
        model=spec.model_id,
        seed=spec.seed,
        width=shape.width,
        height=shape.height,
        frames=shape.frames,
        steps=shape.steps,
        cfg_passes=shape.cfg_passes,
        batch=shape.batch,
        precision=spec.precision,
        priority=spec.priority,
        deadline_ms=spec.deadline_ms,
        start_timeout_ms=spec.start_timeout_ms,
        tenant=spec.tenant,
        adapters=spec.adapters,
        gang_size=spec.gang_size,
        origin_site=spec.origin_site or "",
        simulated=True,
    )


def _pieces(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _DECLARED_AT_ONCE):
        yield items[start : start + _DECLARED_AT_ONCE]


def _commits(metrics: Address) -> Mapping[str, float]:
    """Sum in seconds, and count, of the commits so far, as the orchestrator's metrics have them."""
    connection = HTTPConnection(metrics.host, metrics.port, timeout=_METRICS_S)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except (OSError, HTTPException) as error:
        raise CliError(f"the orchestrator's metrics at {metrics} cannot be read: {error}") from None
    finally:
        connection.close()
    return {"sum": 0.0, "count": 0.0, **{match[1]: float(match[2]) for match in _COMMIT.finditer(text)}}
