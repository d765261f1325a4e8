"""How a channel to the orchestrator is made: target, options, TLS and the metadata of each call.

Decides how soon a dead peer is noticed. Must not know what is called.
"""

from __future__ import annotations

import ipaddress
import uuid
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from atoll.client.errors import SettingsError
from atoll.client.settings import SYSTEM_CA, Settings
from atoll.model.address import Address

# A page of 1,000 jobs with the longest prompts is 32 MiB; the orchestrator bounds what it sends, this is against nonsense.
_RECEIVE_BYTES_MAX: Final = 64 * 1024 * 1024
_PING_MS: Final = 5_000
_PING_OF_SEVERAL_MS: Final = 2_000
_OPTIONS: Final[tuple[tuple[str, int | str], ...]] = (
    # A frozen peer is noticed in 7 s, and where another may lead in 4: the ping timeout is 60 s unless it is named itself.
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


def open_sync(settings: Settings, address: Address) -> grpc.Channel:
    """A channel to one of the orchestrators, for `Client`."""
    options = _options(settings, address)
    if settings.ca:
        return grpc.secure_channel(_target(address), _tls(settings), options=options)
    return grpc.insecure_channel(_target(address), options=options)


def open_aio(settings: Settings, address: Address) -> grpc.aio.Channel:
    """A channel to one of the orchestrators, for `AsyncClient`, of the running event loop."""
    options = _options(settings, address)
    if settings.ca:
        return grpc.aio.secure_channel(_target(address), _tls(settings), options=options)
    return grpc.aio.insecure_channel(_target(address), options=options)


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


def _target(address: Address) -> str:
    return str(address) if ":" in address.host else f"dns:///{address}"


def _options(settings: Settings, address: Address) -> list[tuple[str, int | str]]:
    options: list[tuple[str, int | str]] = [
        *_OPTIONS,
        ("grpc.keepalive_time_ms", _PING_MS if len(settings.addresses) == 1 else _PING_OF_SEVERAL_MS),
    ]
    if _is_loopback(address.host):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot reach this machine's loopback
    return options


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
