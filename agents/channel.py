"""The gRPC channel to the orchestrator: options, each with its reason, and TLS.

Decides how soon a dead peer is noticed. Must not know what is said over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from atoll.model.address import Address

# Snapshots of the largest sites.
_RECEIVE_BYTES_MAX: Final = 64 * 1024 * 1024
OPTIONS: Final[Sequence[tuple[str, int]]] = (
    ("grpc.max_receive_message_length", _RECEIVE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    # A frozen or vanished orchestrator is noticed within seven seconds; without the ping timeout it would be a minute.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # The session has a back-off of its own; the channel's must not make it longer.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A connection of its own: agents of several orchestrators in one process (tests) must not share one.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(where: Address, ca_file: Path | None) -> grpc.aio.Channel:
    """A channel; nothing is dialled yet. With a CA file it speaks TLS to a server of that authority. Raises OSError."""
    if ca_file is None:
        return grpc.aio.insecure_channel(str(where), options=list(OPTIONS))
    credentials = grpc.ssl_channel_credentials(root_certificates=ca_file.read_bytes())
    return grpc.aio.secure_channel(str(where), credentials, options=list(OPTIONS))
