"""The parts of an orchestrator, made and joined: once for a process, and once for each time that it begins to lead.

Decides which part knows which. Starts nothing but the file of a recording.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from atoll.model.address import Address
from atoll.model.gpu import GpuType
from atoll.model.ids import GpuTypeId
from atoll.model.modelspec import ModelSpec
from atoll.packaged import load_packaged
from orchestrator.api.auth import Authenticator
from orchestrator.api.following import Follower
from orchestrator.api.interceptor import Gate
from orchestrator.api.jobs import JobService
from orchestrator.api.listing import Lister
from orchestrator.api.operators import OperatorService
from orchestrator.api.quotes import Quoter
from orchestrator.api.server import AddressInUseError, ApiServer
from orchestrator.api.shown import Shown
from orchestrator.api.sites import Greeting, SiteService
from orchestrator.api.submit import Submitter
from orchestrator.api.transfers import Transfers
from orchestrator.artifacts import ArtifactStore
from orchestrator.clock import REAL_TIME_MILLI, FleetClock
from orchestrator.config import ExitCode, OrchestratorConfig, StartError
from orchestrator.core.durable import Stored
from orchestrator.core.machine import Machine, new_machine
from orchestrator.core.outputs import Refusal
from orchestrator.core.placement.policy import Policy
from orchestrator.driver import Driver
from orchestrator.effects import Surrounding
from orchestrator.readers import ReadModel
from orchestrator.recorder import Recorder
from orchestrator.sessions import SessionTable
from orchestrator.standing import Standing
from orchestrator.store.base import Store
from orchestrator.store.opening import open_store
from orchestrator.telemetry.metrics import Metrics
from orchestrator.watchers import AuditWatchers, JobWatchers


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """GPU types that sites may have, and the models that a new fleet begins with: known by their figures, for rehearsals."""

    gpus: Mapping[GpuTypeId, GpuType]
    models: tuple[ModelSpec, ...] = ()


def packaged_catalogue() -> Catalogue:
    """What comes with the program."""
    packaged = load_packaged()
    return Catalogue(gpus=packaged.gpus, models=packaged.models)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What lasts as long as the process, whether it leads or not. `config` names the address that was taken, once one was."""

    config: OrchestratorConfig
    policy: Policy
    catalogue: Catalogue
    metrics: Metrics
    recorder: Recorder | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is made once for each time that the process begins to stand by, or to lead; it outlives a core."""

    process: Process
    store: Store
    readers: ReadModel
    watchers: JobWatchers
    audit: AuditWatchers
    sessions: SessionTable
    authenticator: Authenticator
    artifacts: ArtifactStore
    server: ApiServer
    standing: Standing
    driver: Driver
    address: Address

    def cut_all(self, refusal: Refusal) -> None:
        """End every stream."""
        self.sessions.close_all(refusal)
        self.watchers.cut_all(refusal)
        self.audit.cut_all(refusal)

    @property
    def config(self) -> OrchestratorConfig:
        """How it was configured."""
        return self.process.config


def make_process(config: OrchestratorConfig, policy: Policy, catalogue: Catalogue) -> Process:
    """Raises StartError when the file of the recording cannot be made."""
    recorder = None
    if config.record is not None:
        try:
            recorder = Recorder(config.record, policy=policy, gpus=dict(catalogue.gpus), bytes_max=config.record_bytes_max)
        except OSError as error:
            expected = f"expected a new file in a folder that can be written ({error.strerror})"
            raise StartError(ExitCode.CONFIG, f"record is {config.record}: {expected}") from error
    return Process(config=config, policy=policy, catalogue=catalogue, metrics=Metrics(), recorder=recorder)


def make_parts(process: Process) -> Parts:
    """Its address is taken; nobody is answered yet, and the store was not asked anything. Raises StartError."""
    config, catalogue, metrics = process.config, process.catalogue, process.metrics
    authenticator = Authenticator(config.tokens)
    readers, watchers, audit, sessions = ReadModel(), JobWatchers(), AuditWatchers(), SessionTable()

    def build(stored: Stored) -> Machine:
        # Demand is forgotten at the pace of the fleet's time, also while nobody ran it.
        age_us = stored.demand_age_us * config.time_scale_milli // REAL_TIME_MILLI
        return new_machine(replace(stored, demand_age_us=age_us), process.policy, catalogue.gpus)

    standing = Standing()
    server = ApiServer(Gate(authenticator, metrics, standing))
    address = _bind(server, config)
    me = config.introduced(address)
    store = open_store(config.data_dir, config.store, quota_bytes=config.store_quota_bytes, me=me)
    driver = Driver(
        store=store,
        clock=FleetClock(time_scale_milli=config.time_scale_milli),
        build=build,
        surroundings=Surrounding(readers=readers, watchers=watchers, audit=audit, sessions=sessions, metrics=metrics),
        metrics=metrics,
        recorder=process.recorder,
    )
    standing.introduce(me, store.orchestrators, lambda: driver.term)
    return Parts(
        process=process,
        store=store,
        readers=readers,
        watchers=watchers,
        audit=audit,
        sessions=sessions,
        authenticator=authenticator,
        artifacts=ArtifactStore(config.artifacts),
        server=server,
        standing=standing,
        driver=driver,
        address=address,
    )


def _bind(server: ApiServer, config: OrchestratorConfig) -> Address:
    try:
        return server.bind(config.listen, config.tls_cert, config.tls_key)
    except AddressInUseError as error:
        raise StartError(ExitCode.ADDRESS_IN_USE, str(error)) from error
    except OSError as error:
        raise StartError(ExitCode.CONFIG, f"the TLS files cannot be read: {error}") from error


async def begin_to_answer(parts: Parts) -> None:
    """Every call is answered from now on: as the leader does, or by saying who that is."""
    driver, readers, store, gpus = parts.driver, parts.readers, parts.store, parts.process.catalogue.gpus
    shown = Shown(driver)
    submitter = Submitter(driver=driver, readers=readers, store=store, gpus=gpus)
    await parts.server.start(
        JobService(
            driver=driver,
            readers=readers,
            store=store,
            sessions=parts.sessions,
            submitter=submitter,
            quoter=Quoter(driver=driver, readers=readers, submitter=submitter, shown=shown),
            shown=shown,
            lister=Lister(readers=readers, store=store, shown=shown),
            follower=Follower(readers=readers, watchers=parts.watchers, store=store, shown=shown),
            transfers=Transfers(parts.artifacts),
        ),
        OperatorService(
            driver=driver,
            readers=readers,
            store=store,
            audit=parts.audit,
            standing=parts.standing,
            gpus=gpus,
            credentials=parts.authenticator.required,
        ),
        SiteService(
            driver=driver,
            sessions=parts.sessions,
            authenticator=parts.authenticator,
            greeting=Greeting(
                report_interval_ms=parts.process.policy.report_interval_ms,
                origin_url=parts.config.origin,
                artifacts_url=parts.config.artifacts,
            ),
        ),
    )
