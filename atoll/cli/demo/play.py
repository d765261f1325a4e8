"""The demo from start to end: a fleet comes up, jobs go through it, a busy site is drained, pictures come down, everything ends.

Decides the order, and what counts as failed. Whatever happens, no program outlives it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from atoll.cli import explain
from atoll.cli.demo import fleet, tables
from atoll.cli.demo.board import Board, live_at, tally
from atoll.cli.demo.fleet import REAL_NAMES, Start
from atoll.cli.demo.interrupts import Interrupts
from atoll.cli.demo.places import Places, held
from atoll.cli.demo.processes import PartFailedError, Processes, Running
from atoll.cli.demo.show import Display, Part, draw_jobs, draw_parts
from atoll.cli.demo.tables import Drained
from atoll.cli.demo.workload import Wish, rehearsals, wishes
from atoll.cli.exits import Exit
from atoll.cli.figures import count, size
from atoll.cli.output import note, printable, say
from atoll.cli.progress import sentence
from atoll.model.address import Address
from atoll.model.attempt import AttemptState
from atoll.model.errors import AtollError
from atoll.model.ids import SiteId
from atoll.model.job import TERMINAL, Job, JobState
from atoll.model.site import SiteAdmin, SiteConnection

if TYPE_CHECKING:
    from atoll.client import Client, JobRequest

# The list of jobs is chosen to take a minute; a machine that needs this long for it is stuck, and says where.
_JOBS_S: Final = 240.0
_LOOK_S: Final = 0.25
# A site is worth draining when so many jobs are there, at least one of which executes; else the busiest after a while.
_BUSY_JOBS: Final = 5
_BUSY_WITHIN_S: Final = 8.0
# Short enough that something is still running when it comes.
_DRAIN_MS: Final = 3_000
_DRAIN_REASON: Final = "switch replaced"
_DRAINED_WITHIN_S: Final = 30.0
# How often it is asked whether the drain is over: often enough to be news.
_DRAIN_LOOK_S: Final = 0.5
# How long programs may take to end by themselves: after a whole demo, and after one that was cut short.
_PATIENCE_S: Final = 30.0
_IMPATIENCE_S: Final = 6.0
_TABLE_LINES: Final = 24
_JOB_LOG_LINES: Final = 12


def play(places: Places, file: Path) -> int:
    """Run the demo; its exit code."""
    with held(places), Interrupts() as interrupts:
        places.prepare()
        display = Display()
        processes = Processes(places.logs, os.environ)
        demo = _Demo(places, processes, interrupts, display)
        code = int(Exit.OK)
        try:
            demo.play(file)
        except KeyboardInterrupt:
            code = interrupts.exit_code or Exit.INTERRUPTED
            display.close()
            display.say("interrupted")
        except AtollError as error:
            display.close()
            cause = demo.cause(error)
            if not isinstance(cause, PartFailedError):
                raise
            code = _tell(places, cause)
        finally:
            interrupts.begin_tidying()
            # Who interrupts wants it over; nothing of this run is needed, and a cluster on its way up does not listen.
            bad = processes.stop(grace_s=_PATIENCE_S if code == Exit.OK else _IMPATIENCE_S, hurry=interrupts.hurry, say=display.say)
            display.close()
        for line in bad if code == Exit.OK else ():
            note(f"not a clean end: {line}")
        if code == Exit.OK:
            demo.farewell()
        return int(code)


def _tell(places: Places, error: PartFailedError) -> int:
    """Say which part failed, and the end of its log."""
    note(f"error: {error}")
    for line in error.lines:
        note(f"  | {printable(line)}")
    if error.log is not None:
        note(f"the whole log: {places.shown(error.log)}")
    return Exit.FAILED


class _Demo:
    def __init__(self, places: Places, processes: Processes, interrupts: Interrupts, display: Display) -> None:
        self._places = places
        self._processes = processes
        self._interrupts = interrupts
        self._display = display
        self._start = Start(places=places, processes=processes, breathe=interrupts.check)
        self._wishes: dict[str, Wish] = {}
        self._board = Board()
        self._address = Address(host="127.0.0.1")
        self._twins = 0
        self._ready_s: dict[str, float] = {}
        self._drain_told = False

    def cause(self, error: AtollError) -> AtollError:
        """A program that ended explains what others complain of."""
        try:
            self._processes.check()
        except PartFailedError as cause:
            return cause
        return error

    def play(self, file: Path) -> None:
        """Everything but the tidying up."""
        from atoll.cli.fleetfile import read_fleet

        sites, links = read_fleet(file)
        self._twins = len(sites)
        self._display.say(
            f"two real sites on this machine ({', '.join(REAL_NAMES)}: Ray and diffusers on the CPU), "
            f"and {self._twins} simulated ones (twins of {self._places.shown(file.absolute())})"
        )
        builder = fleet.build_starters(self._start)
        address = self._address = fleet.start_orchestrator(self._start)
        self._display.say(f"orchestrator answers at {address}")
        with fleet.connect(address) as client:
            client.sites_apply([*fleet.real_specs(), *sites], links, reason="demo")
            fleet.start_agents(self._start, address)
            fleet.start_twins(self._start, address, file)
            self._until(lambda: self._all_up(client, builder), "fleet", fleet.CONNECT_S)
            self._display.say(f"all {self._twins + len(REAL_NAMES)} sites are connected")
            starters, adapters = fleet.starter_specs(self._places)
            client.models_add(starters)
            client.adapters_add(adapters)
            self._display.say(f"starter models: {', '.join(f'{one.model_id} ({size(one.weights_bytes)})' for one in starters)}")
            self._jobs(client)

    # --- coming up -----------------------------------------------------------------------------------------------------------

    def _until(self, ready: Callable[[], bool], part: str, patience_s: float) -> None:
        deadline_s = time.monotonic() + patience_s
        while not ready():
            self._interrupts.check()
            self._processes.check()
            if time.monotonic() > deadline_s:
                raise PartFailedError(part, f"not ready after {patience_s:g} s")
            time.sleep(fleet.POLL_S)

    def _all_up(self, client: Client, builder: Running) -> bool:
        """Whether every part is there, after showing how far it is."""
        views = client.sites_list()
        ready = {view.spec.site_id for view in views if view.connection is SiteConnection.CONNECTED and view.pools and view.last_report_us}
        twins = len([site for site in ready if site not in REAL_NAMES])
        parts = [self._part("starter models", "built" if builder.exit_code == 0 else "being built", up=builder.exit_code == 0)]
        for name in REAL_NAMES:
            state = "connected" if name in ready else "starts its Ray cluster"
            parts.append(self._part(f"site {name}", state, up=name in ready))
        parts.append(self._part("twins", f"{twins} of {self._twins} connected", up=twins == self._twins))
        draw_parts(self._display, parts)
        return all(part.ready_s is not None for part in parts)

    def _part(self, name: str, state: str, *, up: bool) -> Part:
        if up:
            self._ready_s.setdefault(name, self._display.elapsed_s)
        return Part(name=name, state=state, ready_s=self._ready_s.get(name) if up else None)

    # --- jobs ----------------------------------------------------------------------------------------------------------------

    def _jobs(self, client: Client) -> None:
        wanted = wishes()
        for wish in wanted:
            (self._places.out / wish.name).unlink(missing_ok=True)
        real = _submit(client, [wish.request for wish in wanted])
        self._wishes = dict(zip(real, wanted, strict=True))
        simulated = _submit(client, list(rehearsals()))
        self._display.say(f"{len(real) + len(simulated)} jobs submitted: {len(real)} real, {len(simulated)} simulated")
        with self._board.following(fleet.connect(self._address), [*real, *simulated]):
            drained = self._watch(client, len(real) + len(simulated))
        self._settle(client, drained)

    def _watch(self, client: Client, total: int) -> Drained | None:
        """Show jobs until all have ended, and drain a busy twin on the way."""
        began_s = time.monotonic()
        told: set[str] = set()
        drained: Drained | None = None
        seen_s = 0.0
        while True:
            self._interrupts.check()
            self._processes.check()
            jobs = self._board.jobs()
            if jobs:
                draw_jobs(self._display, tally(jobs.values(), REAL_NAMES), REAL_NAMES)
            self._tell_ended(jobs, told)
            if len(jobs) == total and all(job.state in TERMINAL for job in jobs.values()):
                return drained
            passed_s = time.monotonic() - began_s
            if drained is None:
                drained = self._drain_busiest(client, jobs, passed_s)
            elif not self._drain_told and passed_s - seen_s >= _DRAIN_LOOK_S:
                seen_s = passed_s
                self._is_drained(client, drained)
            if passed_s > _JOBS_S:
                raise self._stuck(jobs, total)
            time.sleep(_LOOK_S)

    def _tell_ended(self, jobs: Mapping[str, Job], told: set[str]) -> None:
        for job_id, wish in self._wishes.items():
            job = jobs.get(job_id)
            if job is not None and job.state in TERMINAL and job_id not in told:
                told.add(job_id)
                self._display.say(f"{wish.name} {sentence(job)}")

    def _stuck(self, jobs: Mapping[str, Job], total: int) -> PartFailedError:
        left = [job for job in jobs.values() if job.state not in TERMINAL]
        lines = [f"job/{job.job_id} of {job.spec.model_id} {sentence(job)}" for job in left]
        return PartFailedError("jobs", f"{len(left)} of {total} have not ended after {_JOBS_S:g} s", lines=lines[:_JOB_LOG_LINES])

    def _drain_busiest(self, client: Client, jobs: Mapping[str, Job], passed_s: float) -> Drained | None:
        """Drain the busiest twin, once it is worth it."""
        found = tally(jobs.values(), ()).sites
        twins = sorted((-counted.live, site) for site, counted in found.items() if site not in REAL_NAMES and counted.live)
        if not twins:
            return None
        live, site = -twins[0][0], twins[0][1]
        if passed_s < _BUSY_WITHIN_S and (live < _BUSY_JOBS or not found[site].now["running"]):
            return None
        started = client.sites_drain(SiteId(site), reason=_DRAIN_REASON, deadline_ms=_DRAIN_MS)
        moves = {str(move.job_id) for move in started.plan.moves}
        # As it was when the drain began: what the plan names, in the phase last heard of.
        there = [job for job in jobs.values() if job.job_id in moves] or live_at(jobs.values(), site)
        deadline = f"deadline {_DRAIN_MS / 1_000:g} s"
        self._display.say(f"draining {site}, the busiest twin, with {count(len(there), 'job')}: {_DRAIN_REASON}, {deadline}")
        phases = {str(job.job_id): _phase(job) for job in there}
        return Drained(site=site, reason=_DRAIN_REASON, deadline_s=_DRAIN_MS / 1_000, jobs=phases, plan=started.plan)

    def _is_drained(self, client: Client, drained: Drained) -> bool:
        """Whether the drain is over; said when it is found."""
        if client.sites_get(SiteId(drained.site)).admin is not SiteAdmin.DRAINED:
            return False
        self._drain_told = True
        self._display.say(f"{drained.site} is drained")
        return True

    # --- the end -------------------------------------------------------------------------------------------------------------

    def _settle(self, client: Client, drained: Drained | None) -> None:
        jobs = self._board.jobs()
        for job in jobs.values():
            if job.state is not JobState.SUCCEEDED:
                raise self._failed(client, job)
        if drained is not None:
            self._until(lambda: self._drain_told or self._is_drained(client, drained), f"drain of {drained.site}", _DRAINED_WITHIN_S)
        for job_id, wish in self._wishes.items():
            client.download(job_id, self._places.out / wish.name)
        chosen = client.explain(tables.worth_explaining(jobs, drained))
        self._display.close()
        (self._places.run / "jobs.tsv").write_text(tables.every_job(jobs.values()), encoding="utf-8")
        self._tables(jobs, drained)
        say("")
        say("Why one of them went where it went ('atoll jobs explain'):")
        explain.show(explain.Moment(job=chosen.job, now_us=chosen.now_us))
        say("")

    def _tables(self, jobs: Mapping[str, Job], drained: Drained | None) -> None:
        say("")
        tables.show_real([jobs[job_id] for job_id in self._wishes], {job_id: wish.name for job_id, wish in self._wishes.items()})
        say("")
        tables.show_rehearsals([job for job in jobs.values() if job.spec.simulated], _TABLE_LINES)
        say(f"  each job by itself: {self._places.shown(self._places.run / 'jobs.tsv')}")
        if drained is not None:
            say("")
            tables.show_drain(drained, jobs)

    def _failed(self, client: Client, job: Job) -> PartFailedError:
        lines: tuple[str, ...] = ()
        try:
            lines = client.logs(job.job_id, lines=_JOB_LOG_LINES).lines
        except AtollError:
            pass  # the failure itself is told anyway
        return PartFailedError(f"job/{job.job_id} of {job.spec.model_id}", sentence(job), lines=lines)

    def farewell(self) -> None:
        """What is left of it all: pictures."""
        places = self._places
        films = [wish for wish in self._wishes.values() if wish.name.endswith(".mp4")]
        pictures = len(self._wishes) - len(films)
        whose = f"The {self._twins} sites of the fleet file are simulated, and so are their"
        if self._twins == 1:
            whose = "The site of the fleet file is simulated, and so are its"
        say(f"{whose} results: times of models, no pictures.")
        say(f"{pictures} PNGs and {len(films)} MP4s in {places.shown(places.out)}/ were made by diffusers at {' and '.join(REAL_NAMES)};")
        say("seed, prompt and model stand in the metadata of each. 'make demo-verify' makes them again without Atoll.")
        say(f"Took {self._display.elapsed_s:.0f} s. No process is left; logs are in {places.shown(places.logs)}/.")


def _submit(client: Client, requests: list[JobRequest]) -> list[str]:
    found = []
    for outcome in client.submit_many(requests):
        if outcome.error is not None:
            raise outcome.error
        found.append(str(outcome.job_id))
    return found


def _phase(job: Job) -> str:
    last = job.attempts[-1] if job.attempts else None
    if last is None:
        return job.state.value
    return "waiting" if last.state is AttemptState.LEASED else last.state.value
