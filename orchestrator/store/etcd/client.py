"""A client of etcd for one event loop: reads, transactions, leases and what keeps a store small.

Decides how long a request is tried. Everything here may be asked twice without harm, so whatever may pass by itself is tried again:
reads, transactions whose guards no longer hold once they were applied (or whose changes may be made twice), and leases of ids of the
caller's own. Must not know what keys mean.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from typing import Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from orchestrator.store.etcd import methods
from orchestrator.store.etcd.channel import connect, where_of
from orchestrator.store.etcd.errors import (
    EtcdCompactedError,
    EtcdLeaseExistsError,
    EtcdTokenError,
    EtcdUnavailableError,
    passes,
    told,
)
from orchestrator.store.etcd.methods import Method, metadata_of
from orchestrator.store.etcd.operations import Change, Unchanged, transaction
from orchestrator.store.etcd.pb import etcd_pb2 as pb
from orchestrator.store.etcd.target import EtcdTarget

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

# One try. What a member had forwarded to a leader that froze is lost, and it says so only after 7 s: asked again it is answered at once.
TRY_S: Final = 2.0
# A megabyte on its way to a disk that is busy.
LARGE_TRY_S: Final = 3.0
# Pages of up to 40.
BULK_TRY_S: Final = 6.0
# An election takes 1 to 2 s, noticing a frozen leader 2 s more. Whoever cannot wait so long bounds the call from outside.
PATIENCE_S: Final = 12.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 0.5


class EtcdClient:
    """Speaks to the members of `target`. Used by one event loop, in which it was opened; every method raises EtcdError."""

    def __init__(self, target: EtcdTarget, channel: grpc.aio.Channel, *, patience_s: float = PATIENCE_S) -> None:
        self.target = target
        self._patience_s = patience_s
        self._channel = channel
        self._closed = False
        self._token = ""

    @classmethod
    async def open(cls, target: EtcdTarget, *, patience_s: float = PATIENCE_S) -> EtcdClient:
        """A client; nothing is said to anybody yet. EtcdUnavailableError when a member's name is unknown."""
        # Asking for a name may take seconds.
        where = await asyncio.to_thread(where_of, target.members)
        return cls(target, connect(target, where), patience_s=patience_s)

    async def close(self) -> None:
        """Give up what is in flight: whoever waits for it hears EtcdUnavailableError."""
        self._closed = True
        await self._channel.close(None)

    # --- keys ----------------------------------------------------------------------------------------------------------------

    async def range(
        self, key: bytes, end: bytes = b"", *, limit: int = 0, revision: int = 0, keys_only: bool = False, last: bool = False
    ) -> pb.RangeResponse:
        """The key, or the keys of [key, end) in order, at most `limit` of them, from behind if `last`; as of `revision`, or now."""
        order = pb.RangeRequest.DESCEND if last else pb.RangeRequest.NONE
        request = pb.RangeRequest(key=key, range_end=end, limit=limit, revision=revision, keys_only=keys_only, sort_order=order)
        return await self.call(methods.RANGE, request, try_s=BULK_TRY_S if end else TRY_S)

    async def pages(self, key: bytes, end: bytes, *, limit: int, revision: int = 0) -> AsyncGenerator[Sequence[pb.KeyValue]]:
        """All keys of [key, end) in order, `limit` at a time. Without a revision, each page is as of when it was read."""
        while True:
            page = await self.range(key, end, limit=limit, revision=revision)
            yield page.kvs
            if not page.more:
                return
            key = page.kvs[-1].key + b"\x00"

    async def transact(
        self, guards: Sequence[Unchanged], changes: Sequence[Change], otherwise: Sequence[bytes] = (), *, try_s: float = TRY_S
    ) -> pb.TxnResponse:
        """All changes at once if every guard holds. `succeeded` False: nothing was done *by the last try*; `otherwise` was read.

        Only for what may be done twice, or whose guards fail the second time: an answer that was lost is asked for again.
        """
        return await self.call(methods.TXN, transaction(guards, changes, otherwise), try_s=try_s)

    async def read(self, keys: Sequence[bytes], *, revision: int = 0, try_s: float = BULK_TRY_S) -> dict[bytes, pb.KeyValue]:
        """Those of these keys that exist, all as of one revision; as many as one transaction takes."""
        request = pb.TxnRequest(success=[pb.RequestOp(request_range=pb.RangeRequest(key=key, revision=revision)) for key in keys])
        response = await self.call(methods.TXN, request, try_s=try_s)
        return {kv.key: kv for one in response.responses for kv in one.response_range.kvs}

    async def compact(self, revision: int) -> None:
        """Forget what was superseded before `revision`."""
        try:
            await self.call(methods.COMPACT, pb.CompactionRequest(revision=revision))
        except EtcdCompactedError:
            pass  # by somebody else, or by a try whose answer was lost

    async def status(self) -> pb.StatusResponse:
        """How one of the members is."""
        return await self.call(methods.STATUS, pb.StatusRequest())

    # --- leases --------------------------------------------------------------------------------------------------------------

    async def grant(self, ttl_s: int) -> int:
        """A new lease; its id. Keeping it alive is the pulse's."""
        # Chosen here, so that a grant whose answer was lost is not granted a second time.
        lease = secrets.randbits(62) + 1
        try:
            await self.call(methods.LEASE_GRANT, pb.LeaseGrantRequest(TTL=ttl_s, ID=lease))
        except EtcdLeaseExistsError:
            pass  # granted by a try whose answer was lost
        return lease

    async def revoke(self, lease: int) -> None:
        """End a lease: its keys are gone. EtcdLeaseGoneError when there is none."""
        await self.call(methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=lease))

    # --- calls ---------------------------------------------------------------------------------------------------------------

    @property
    def channel(self) -> grpc.aio.Channel:
        """For streams."""
        return self._channel

    async def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a stream is opened with."""
        await self._authenticate()
        return metadata_of(self._token)

    def forget_token(self) -> None:
        """It was refused: the next call asks for another."""
        self._token = ""

    async def call(self, method: Method[Request, Response], request: Request, *, try_s: float = TRY_S) -> Response:
        """The answer, trying again for as long as `patience_s` allows; then the last refusal as an EtcdError."""
        deadline_s = asyncio.get_running_loop().time() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        renewed = False
        while True:
            left_s = deadline_s - asyncio.get_running_loop().time()
            try:
                await self._authenticate()
                return await self._try(method, request, min(try_s, max(left_s, 0.1)))
            except grpc.RpcError as error:
                refusal = told(error)
                if isinstance(refusal, EtcdTokenError) and self.target.user and not renewed:
                    renewed = True
                    self.forget_token()
                    continue
                if not passes(error) or left_s <= pause_s:
                    raise refusal from error
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _try(self, method: Method[Request, Response], request: Request, timeout_s: float) -> Response:
        if self._closed:
            raise _given_up()
        ask = self._channel.unary_unary(
            method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.response.FromString
        )
        try:
            answer: Response = await ask(request, timeout=timeout_s, metadata=metadata_of(self._token))
        except asyncio.CancelledError:
            # gRPC cancels the calls of a channel that is closed; to its caller that looks as if the caller itself were.
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise _given_up() from None
            raise
        return answer

    async def _authenticate(self) -> None:
        if self.target.user and not self._token:
            request = pb.AuthenticateRequest(name=self.target.user, password=self.target.password)
            self._token = (await self._try(methods.AUTHENTICATE, request, TRY_S)).token


def _given_up() -> EtcdUnavailableError:
    return EtcdUnavailableError("the connection to etcd was given up, for a new one or for good")
