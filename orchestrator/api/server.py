"""The gRPC server: services, limits, keep-alives, TLS, health and reflection.

Decides options only; each argues its value.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from atoll.model.address import Address
from atoll.model.errors import AtollError
from atoll.v1 import job_service_pb2, operator_service_pb2, site_service_pb2
from atoll.v1.job_service_pb2_grpc import JobServiceServicer, add_JobServiceServicer_to_server
from atoll.v1.operator_service_pb2_grpc import OperatorServiceServicer, add_OperatorServiceServicer_to_server
from atoll.v1.site_service_pb2_grpc import SiteServiceServicer, add_SiteServiceServicer_to_server
from orchestrator.api.interceptor import Gate

# A batch of 1,000 jobs with the longest prompts, or a full report of the largest site.
RECEIVE_BYTES_MAX: Final = 20 * 1024 * 1024
# Streams of 10,000 agents and as many watchers, and room for calls beside them.
CALLS_MAX: Final = 25_000
OPTIONS: Final[Sequence[tuple[str, int]]] = (
    # A port in use is an error, not a coin toss between two servers.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),  # snapshots of large sites; what is sent is ours
    ("grpc.max_metadata_size", 16 * 1024),
    # A frozen agent is noticed within seven seconds; without the ping timeout it would be a minute.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Agents ping as often; a server that minds cuts idle streams with "too many pings".
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
)
SERVICES: Final = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in (
        (job_service_pb2, "JobService"),
        (operator_service_pb2, "OperatorService"),
        (site_service_pb2, "SiteService"),
    )
)


class AddressInUseError(AtollError):
    """Somebody listens there already, or the address is not this machine's."""


class ApiServer:
    """A server that is bound, and later started."""

    def __init__(self, gate: Gate) -> None:
        self._server = grpc.aio.server(interceptors=(gate,), options=list(OPTIONS), maximum_concurrent_rpcs=CALLS_MAX)
        self.answers = False
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined] # the stubs lack it

    def bind(self, address: Address, cert: Path | None, key: Path | None) -> Address:
        """Take the address; which one it is when port 0 was asked for. Raises AddressInUseError, OSError for unreadable TLS files."""
        try:
            if cert is not None and key is not None:
                credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
                port = self._server.add_secure_port(str(address), credentials)
            else:
                port = self._server.add_insecure_port(str(address))
        except RuntimeError as error:
            raise AddressInUseError(f"cannot listen on {address}: the port is in use, or the address is not this machine's") from error
        return Address(host=address.host, port=port)

    async def start(self, jobs: JobServiceServicer, operators: OperatorServiceServicer, sites: SiteServiceServicer) -> None:
        """Begin to answer."""
        self.answers = True
        add_JobServiceServicer_to_server(jobs, self._server)
        add_OperatorServiceServicer_to_server(operators, self._server)
        add_SiteServiceServicer_to_server(sites, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """What the health service says, of the whole and of each service."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICES):
            await self._health.set(service, status)

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, let those that run end within the grace."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
