"""Signs of life, from threads: a leader's health is written five times a second, its lease is kept, and every member is asked how it is.

Not on the event loop that decides: one that stood still for seconds is what lost leases in the soak. Decides how often; nothing rests on
it but how soon another may try to take over. Must not know what is stored.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from atoll.model.address import Address
from orchestrator.store.etcd import methods
from orchestrator.store.etcd.channel import connect_blocking, where_of
from orchestrator.store.etcd.errors import EtcdDeniedError, EtcdError, EtcdLeaseGoneError, EtcdTokenError, EtcdUnavailableError, told
from orchestrator.store.etcd.methods import Method, metadata_of
from orchestrator.store.etcd.operations import Put, Unchanged, transaction
from orchestrator.store.etcd.pb import etcd_pb2 as pb
from orchestrator.store.etcd.quota import Fullness, fullness_of
from orchestrator.store.etcd.target import EtcdTarget

_log = structlog.get_logger(__name__)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

# Whoever waits for silence waits for several of these.
BEAT_S: Final = 0.2
KEEP_ALIVE_S: Final = 1.0
# An election and a member that hangs take 4 s at most; a shorter lease is lost over them.
LEASE_TTL_S: Final = 15
_TRY_S: Final = 2.0
# A member that hangs must not cost the beats that the others would have taken: after three that are missing another may take over. A beat
# that was given up because etcd is slow is made all the same.
_BEAT_TRY_S: Final = 0.25
# Where none takes any, they refuse at once.
_AGAIN_S: Final = 0.05
_LET_IT_BE_KNOWN: Final = (
    "etcd does not tell this user how full it is, so that new jobs are accepted until nothing is: "
    "take etcd 3.5.33, 3.6.14, 3.7.1 or later, or give the user the role root"
)


class Pulse:
    """Beats from `start` to `stop`. `value` makes what is written from the number of the beat; `guard`: only while that is unchanged."""

    def __init__(
        self, target: EtcdTarget, *, key: bytes, value: Callable[[int], bytes], guard: Unchanged | None, beat_s: float = BEAT_S
    ) -> None:
        self._target = target
        self._key = key
        self._value = value
        self.guard = guard  # replaced by each takeover
        self._beat_s = beat_s
        self._answered_s = time.monotonic()
        self._lease = 0
        self._stopping = threading.Event()
        self._unknown_said = threading.Event()
        self._fullness: dict[Address, Fullness] = {}
        self._threads = [threading.Thread(target=self._beat, name="etcd-beat", daemon=True)]
        self._threads += [
            threading.Thread(target=self._tend, args=(member,), name=f"etcd-{member.port}", daemon=True) for member in target.members
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and take the health away at once. Blocks for a call or two."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    @property
    def silent_s(self) -> float:
        """For how long no beat was answered."""
        return time.monotonic() - self._answered_s

    @property
    def fullness(self) -> list[Fullness]:
        """What members said last, as far as they answer."""
        return list(self._fullness.values())

    # --- threads -------------------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        with _Caller(self._target, self._target.members) as caller:
            number = 0
            while not self._stopping.is_set():
                number += 1
                try:
                    if not self._lease:
                        self._lease = _grant(caller)
                    put = Put(self._key, self._value(number), self._lease)
                    guards = [self.guard] if self.guard is not None else []
                    # Deposed, it changes nothing: the health that is there now is another's.
                    if caller.ask(methods.TXN, transaction(guards, [put]), try_s=_BEAT_TRY_S).succeeded:
                        self._answered_s = time.monotonic()
                except EtcdLeaseGoneError:
                    self._lease = 0
                    continue
                except EtcdUnavailableError:
                    # At once at another member, but not faster than beats are due.
                    self._stopping.wait(max(self._beat_s - _BEAT_TRY_S, _AGAIN_S))
                    continue
                except EtcdError:
                    pass  # the next beat is due soon enough
                self._stopping.wait(self._beat_s)
            if self._lease:
                try:
                    caller.ask(methods.LEASE_REVOKE, pb.LeaseRevokeRequest(ID=self._lease))
                except EtcdError:
                    pass  # it runs out by itself

    def _tend(self, member: Address) -> None:
        """Each member is told on its own: any that leads may be the one that has just begun to."""
        with _Caller(self._target, (member,)) as caller:
            while not self._stopping.is_set():
                try:
                    if self._lease:
                        caller.keep_alive(self._lease)
                    self._fullness[member] = fullness_of(caller.ask(methods.STATUS, pb.StatusRequest()))
                except EtcdError as error:
                    self._fullness.pop(member, None)
                    if isinstance(error, EtcdDeniedError) and not isinstance(error, EtcdTokenError):
                        self._say_unknown()
                self._stopping.wait(KEEP_ALIVE_S)

    def _say_unknown(self) -> None:
        """Once: a bound that cannot be kept is nothing to keep quiet about."""
        if not self._unknown_said.is_set():
            self._unknown_said.set()
            _log.warning("fullness_unknown", store=str(self._target), advice=_LET_IT_BE_KNOWN)


class _Caller:
    """Asks these members, from one thread; opened when it is entered."""

    def __init__(self, target: EtcdTarget, members: tuple[Address, ...]) -> None:
        self._target = target
        self._members = members
        self._channel: grpc.Channel | None = None
        self._token = ""

    def __enter__(self) -> _Caller:
        return self

    def __exit__(self, *ignored: object) -> None:
        if self._channel is not None:
            self._channel.close()

    def ask(self, method: Method[Request, Response], request: Request, *, try_s: float = _TRY_S) -> Response:
        """One try. Raises EtcdError."""
        try:
            self._authenticate()
            return self._call(method, request, try_s)
        except grpc.RpcError as error:
            raise self._told(error) from error

    def keep_alive(self, lease: int) -> None:
        """One renewal, over a stream of its own. Raises EtcdError."""
        channel = self._open()
        opened: Any = channel.stream_stream(  # the stubs know it with coroutines only
            methods.LEASE_KEEP_ALIVE.path,
            request_serializer=methods.LEASE_KEEP_ALIVE.request.SerializeToString,
            response_deserializer=methods.LEASE_KEEP_ALIVE.response.FromString,
        )
        try:
            self._authenticate()
            call: Any = opened(iter([pb.LeaseKeepAliveRequest(ID=lease)]), timeout=_TRY_S, metadata=metadata_of(self._token))
            answers: Iterator[pb.LeaseKeepAliveResponse] = call
            next(answers, None)
            call.cancel()
        except grpc.RpcError as error:
            raise self._told(error) from error

    def _call(self, method: Method[Request, Response], request: Request, try_s: float = _TRY_S) -> Response:
        call = self._open().unary_unary(
            method.path, request_serializer=method.request.SerializeToString, response_deserializer=method.response.FromString
        )
        answer: Response = call(request, timeout=try_s, metadata=metadata_of(self._token))
        return answer

    def _authenticate(self) -> None:
        if self._target.user and not self._token:
            asked = pb.AuthenticateRequest(name=self._target.user, password=self._target.password)
            self._token = self._call(methods.AUTHENTICATE, asked).token

    def _open(self) -> grpc.Channel:
        if self._channel is None:
            self._channel = connect_blocking(self._target, where_of(self._members))
        return self._channel

    def _told(self, error: grpc.RpcError) -> EtcdError:
        refusal = told(error)
        if isinstance(refusal, EtcdTokenError):
            self._token = ""
        return refusal


def _grant(caller: _Caller) -> int:
    # Chosen here: a grant whose answer is lost runs out by itself, and is not taken for another.
    lease = secrets.randbits(62) + 1
    caller.ask(methods.LEASE_GRANT, pb.LeaseGrantRequest(TTL=LEASE_TTL_S, ID=lease))
    return lease
