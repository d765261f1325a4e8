"""Logs and metrics of an agent: structured lines to standard error, figures for Prometheus on a port of their own.

Decides names and forms. Must not know what is done about them.
"""

from __future__ import annotations

import logging
import sys
import threading
from enum import StrEnum
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from agents.core.outputs import AgentStep, FetchWeights, LoadReplica, RunAttempt, SendReport
from atoll.model.address import Address
from atoll.model.attempt import AttemptState
from atoll.model.report import AttemptEvent


class LogFormat(StrEnum):
    """How lines look. `auto`: for a person on a terminal, JSON else."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


class LogLevel(StrEnum):
    """From here on up lines are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def configure_logs(log_format: LogFormat, level: LogLevel) -> None:
    """Set up structlog for this process."""
    console = log_format is LogFormat.CONSOLE or (log_format is LogFormat.AUTO and sys.stderr.isatty())
    shown: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *shown,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.name]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


# Seconds of a phase: from a warm tiny pipeline to an hour of video.
_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0)
_PHASES = ("waiting", "fetch", "load", "compile", "run", "upload")


class Metrics:
    """Figures of the agents of one process, by site."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._ends = Counter(
            "atoll_agent_attempts_ended", "Attempts that ended at this site, by how.", ["site", "state", "kind"], registry=self.registry
        )
        self._phases = Histogram(
            "atoll_agent_phase_seconds",
            "Fleet time of an attempt's phases, as measured at the site.",
            ["site", "phase"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._begun = Counter(
            "atoll_agent_commands", "What the core had done: fetches, loads, runs.", ["site", "what"], registry=self.registry
        )
        self._live = Gauge("atoll_agent_attempts_live", "Attempts that are under way.", ["site"], registry=self.registry)
        self._connected = Gauge("atoll_agent_connected", "1 while the orchestrator is connected.", ["site"], registry=self.registry)
        self._dials = Counter(
            "atoll_agent_dials", "Tries to reach the orchestrator, by outcome.", ["site", "outcome"], registry=self.registry
        )
        self._host = Gauge("atoll_agent_host_bytes", "What the probes measured of this host.", ["what"], registry=self.registry)

    def handled(self, site_id: str, step: AgentStep) -> None:
        """The core answered an event."""
        for command in step.commands:
            match command:
                case SendReport(report=report):
                    self._live.labels(site_id).set(len(report.progress))
                case FetchWeights():
                    self._begun.labels(site_id, "fetch").inc()
                case LoadReplica():
                    self._begun.labels(site_id, "load").inc()
                case RunAttempt():
                    self._begun.labels(site_id, "run").inc()
                case _:
                    pass

    def ended(self, site_id: str, event: AttemptEvent) -> None:
        """An attempt ended."""
        self._ends.labels(site_id, event.state.value, event.failure.kind.value if event.failure is not None else "").inc()
        if event.state is AttemptState.SUCCEEDED:
            for phase in _PHASES:
                took_us: int = getattr(event.times, f"{phase}_us")
                if took_us >= 0:
                    self._phases.labels(site_id, phase).observe(took_us / 1e6)

    def connected(self, site_id: str, *, yes: bool) -> None:
        """A session began or ended."""
        self._connected.labels(site_id).set(1 if yes else 0)

    def dialled(self, site_id: str, outcome: str) -> None:
        """A try to reach the orchestrator ended like this."""
        self._dials.labels(site_id, outcome).inc()

    def measured(self, what: str, figure: int) -> None:
        """The probes measured something of this host, bytes."""
        self._host.labels(what).set(figure)

    def serve(self, where: Address) -> tuple[WSGIServer, threading.Thread]:
        """Answer Prometheus there. Raises OSError when the port is taken."""
        return start_http_server(where.port, where.host, registry=self.registry)
