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
_PING_MS: Final = 5_000
_PING_OF_SEVERAL_MS: Final = 2_000
OPTIONS: Final[Sequence[tuple[str, int]]] = (
    ("grpc.max_receive_message_length", _RECEIVE_BYTES_MAX),
    ("grpc.max_send_message_length", -1),
    # A frozen or vanished orchestrator is noticed within seven seconds, and where another may lead within four; without the ping timeout it
    # would be a minute.
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


class Channels:
    """A channel to each orchestrator that is dialled, made when it is first. With a CA file they speak TLS to servers of that authority."""

    def __init__(self, orchestrators: Sequence[Address], ca_file: Path | None) -> None:
        """Nothing is dialled yet. Raises OSError when the file cannot be read."""
        self.orchestrators = tuple(orchestrators)
        self._options = [*OPTIONS, ("grpc.keepalive_time_ms", _PING_MS if len(self.orchestrators) == 1 else _PING_OF_SEVERAL_MS)]
        self._credentials = grpc.ssl_channel_credentials(root_certificates=ca_file.read_bytes()) if ca_file is not None else None
        self._open: dict[Address, grpc.aio.Channel] = {}

    def to(self, where: Address) -> grpc.aio.Channel:
        """The channel to this one."""
        found = self._open.get(where)
        if found is None:
            if self._credentials is None:
                found = grpc.aio.insecure_channel(str(where), options=self._options)
            else:
                found = grpc.aio.secure_channel(str(where), self._credentials, options=self._options)
            self._open[where] = found
        return found

    async def close(self) -> None:
        """Give the connections back."""
        for channel in self._open.values():
            await channel.close(None)
