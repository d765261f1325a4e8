"""Channels to etcd's members: all of them behind one for requests, one each for what every member is to hear.

Decides the options under which a member that was killed or frozen costs seconds, not minutes. Must not know what is said.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Final

import grpc
import grpc.aio

from atoll.model.address import Address
from orchestrator.store.etcd.errors import EtcdUnavailableError
from orchestrator.store.etcd.target import EtcdTarget, Tls

# A page of the longest jobs has 40 MB.
MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024

_OPTIONS: Final = (
    # With `pick_first` a frozen member keeps all requests for half a minute.
    ("grpc.lb_policy_name", "round_robin"),
    # Five seconds are the least that etcd takes; it ends the connection of whoever pings more often.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    # Without it the one above is overridden by 60 s.
    ("grpc.http2.ping_timeout_ms", 2_000),
    # Without calls etcd takes no pings at all, and each GOAWAY for too many doubles the time above.
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # What goes wrong is tried again here, where it is known whether that is safe.
    ("grpc.enable_retries", 0),
    # Another store of this process must not share a connection, nor its troubles.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)


def connect(target: EtcdTarget, where: str) -> grpc.aio.Channel:
    """A channel to the members at `where`, for the running event loop."""
    options = _options(target)
    if target.tls is None:
        return grpc.aio.insecure_channel(where, options)
    return grpc.aio.secure_channel(where, _credentials(target.tls), options)


def connect_blocking(target: EtcdTarget, where: str) -> grpc.Channel:
    """The same for threads."""
    options = _options(target)
    if target.tls is None:
        return grpc.insecure_channel(where, options)
    return grpc.secure_channel(where, _credentials(target.tls), options)


def where_of(members: Sequence[Address]) -> str:
    """Their addresses as numbers: one list of these is what `round_robin` balances over. Blocks while names are looked up.

    EtcdUnavailableError when a name is unknown.
    """
    numbers: list[str] = []
    for member in members:
        try:
            found = socket.getaddrinfo(member.host, member.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise EtcdUnavailableError(f"etcd member {member}: its name is not known: {error.strerror or error}") from None
        # A name of two families is one member: asked twice as often, it would be.
        family, *_, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        number = str(address[0])
        numbers.append(f"{number}:{member.port}" if family is socket.AF_INET else f"[{number}]:{member.port}")
    families = {number.startswith("[") for number in numbers}
    if len(families) > 1:
        raise EtcdUnavailableError(f"etcd members {', '.join(numbers)} are of both IPv4 and IPv6: name them by one of the two")
    return ("ipv6:" if families.pop() else "ipv4:") + ",".join(numbers)


def _options(target: EtcdTarget) -> list[tuple[str, str | int]]:
    options: list[tuple[str, str | int]] = list(_OPTIONS)
    if target.tls is not None:
        # One list of addresses has one name to check certificates against.
        options.append(("grpc.ssl_target_name_override", target.tls.name or target.members[0].host))
    return options


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(root_certificates=tls.ca, private_key=tls.key, certificate_chain=tls.cert)
