"""How a channel to the orchestrator is made: target, options, TLS and the metadata of each call.

Decides how soon a dead peer is noticed and how several addresses are used. Must not know what is called.
"""

from __future__ import annotations

import ipaddress
import socket
import uuid
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from atoll.client.errors import SettingsError, UnavailableError
from atoll.client.settings import SYSTEM_CA, Settings
from atoll.model.address import Address

# A page of 1,000 jobs with the longest prompts is 32 MiB; the orchestrator bounds what it sends, this is against nonsense.
_RECEIVE_BYTES_MAX: Final = 64 * 1024 * 1024
_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    # A frozen peer is noticed in 7 s: the ping timeout is 60 s unless it is named itself.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    # An orchestrator that restarts is found again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", _RECEIVE_BYTES_MAX),
    # Repeats are decided in one place, `atoll.client.patience`.
    ("grpc.enable_retries", 0),
)


def open_sync(settings: Settings) -> grpc.Channel:
    """A channel for `Client`."""
    target, options = _target(settings)
    if settings.ca:
        return grpc.secure_channel(target, _tls(settings), options=options)
    return grpc.insecure_channel(target, options=options)


def open_aio(settings: Settings) -> grpc.aio.Channel:
    """A channel for `AsyncClient`, of the running event loop."""
    target, options = _target(settings)
    if settings.ca:
        return grpc.aio.secure_channel(target, _tls(settings), options=options)
    return grpc.aio.insecure_channel(target, options=options)


def metadata(settings: Settings) -> tuple[tuple[str, str], ...]:
    """What goes with one call and its repeats: the credential, and an id that finds it in the orchestrator's log."""
    request_id = ("x-request-id", uuid.uuid4().hex)
    if not settings.token:
        return (request_id,)
    return request_id, ("authorization", f"Bearer {settings.token}")


def _tls(settings: Settings) -> grpc.ChannelCredentials:
    if settings.ca == SYSTEM_CA:
        return grpc.ssl_channel_credentials()
    try:
        return grpc.ssl_channel_credentials(root_certificates=Path(settings.ca).read_bytes())
    except OSError as error:
        raise SettingsError(f"cannot read {settings.ca}: {error.strerror or error}", field="ca") from None


def _target(settings: Settings) -> tuple[str, list[tuple[str, int | str]]]:
    options = list(_OPTIONS)
    hosts = [address.host for address in settings.addresses]
    if all(_is_loopback(host) for host in hosts):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot reach this machine's loopback
    if len(settings.addresses) == 1:
        only = settings.addresses[0]
        return (str(only) if ":" in only.host else f"dns:///{only}"), options
    # A leader that dies costs seconds with round_robin, up to a minute with gRPC's default.
    options.append(("grpc.lb_policy_name", "round_robin"))
    if settings.ca:
        # The certificate is for the name, the connection goes to the number.
        options.append(("grpc.ssl_target_name_override", hosts[0]))
    numbers = [number for address in settings.addresses for number in _numbers(address)]
    return "ipv4:" + ",".join(numbers), options


def _numbers(address: Address) -> list[str]:
    """IPv4 addresses of a host: a list of targets takes no names."""
    try:
        found = socket.getaddrinfo(address.host, address.port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise UnavailableError(f"no orchestrator at {address}: {error.strerror or error}") from None
    return [f"{entry[4][0]}:{address.port}" for entry in found]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
