"""Clients that submit with idempotency keys, retry what got no answer, cancel, and now and then misuse a key.

Decides what is asked for and when; what clients were told goes into the history.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from atoll.model.ids import JobId, TenantId
from atoll.model.job import JobSpec
from orchestrator.core.events import Event, JobCancelRequested, JobsSubmitted, RequestRef, Submission
from orchestrator.core.outputs import Accepted, Refusal, RefusalCode, Reply, SubmitReply
from sims.checks import History, Promise, Violation
from sims.faults import Fault, Faults
from sims.orchestrator import Orchestrators
from sims.world import MILLISECOND_US, SECOND_US, World

_LATENCY_US: Final = (MILLISECOND_US, 60 * MILLISECOND_US)
_TIMEOUT_US: Final = 5 * SECOND_US
_RETRY_US: Final = (300 * MILLISECOND_US, 3 * SECOND_US)
_CANCEL_US: Final = (0, 40 * SECOND_US)
_CANCEL_SHARE_MILLI: Final = 100
# Refusals after which the same request makes sense again.
_TRANSIENT: Final = frozenset({RefusalCode.UNAVAILABLE, RefusalCode.QUOTA})


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One job a client wants."""

    key: str
    digest: str
    spec: JobSpec


class Clients:
    """All clients of a run."""

    def __init__(self, world: World, faults: Faults, orchestrators: Orchestrators, history: History) -> None:
        self.accepted = 0
        self.refused = 0
        self.open_orders = 0
        self._world = world
        self._faults = faults
        self._orchestrators = orchestrators
        self._history = history
        self._random = world.stream("clients")

    def submit(self, *orders: Order) -> None:
        """Ask until there is an answer for each."""
        self.open_orders += len(orders)
        self._ask_submit(orders)

    def _ask_submit(self, orders: tuple[Order, ...]) -> None:
        # Ids are made anew by whoever takes the request; only the key says that it is the same job.
        submissions = tuple(
            Submission(
                job_id=JobId(f"job-{self._random.randrange(2**40):010x}"),
                spec=order.spec,
                idempotency_key=order.key,
                payload_digest=order.digest,
                request_id=f"req-{order.key}",
            )
            for order in orders
        )
        self._ask(
            lambda reference: JobsSubmitted(request=reference, submissions=submissions),
            partial(self._submitted, orders),
            partial(self._ask_submit, orders),
        )

    def _submitted(self, orders: tuple[Order, ...], reply: Reply) -> None:
        if not isinstance(reply, SubmitReply) or len(reply.outcomes) != len(orders):
            raise Violation(f"{len(orders)} submissions were answered by {reply}")
        again = []
        for order, outcome in zip(orders, reply.outcomes, strict=True):
            if isinstance(outcome, Accepted):
                self._accepted(order, outcome)
            elif outcome.code in _TRANSIENT:
                again.append(order)
            else:
                raise Violation(f"a good job of key {order.key} was refused: {outcome}")
        if again:
            self._world.after(self._random.randint(*_RETRY_US), partial(self._ask_submit, tuple(again)))

    def _accepted(self, order: Order, outcome: Accepted) -> None:
        self.open_orders -= 1
        self.accepted += 1
        tenant = order.spec.tenant
        self._history.told_accepted(Promise(job_id=outcome.job_id, tenant=tenant, key=order.key, payload_digest=order.digest))
        if self._random.randrange(1_000) < _CANCEL_SHARE_MILLI:
            self._world.after(self._random.randint(*_CANCEL_US), partial(self._ask_cancel, tenant, outcome.job_id))
        if self._faults.strikes(Fault.REUSED_KEY):
            other = Order(key=order.key, digest=f"{order.digest}-other", spec=order.spec)
            self._world.after(self._random.randint(0, 20 * SECOND_US), partial(self._ask_reused, other))

    def _ask_reused(self, order: Order) -> None:
        submission = Submission(
            job_id=JobId(f"job-{self._random.randrange(2**40):010x}"),
            spec=order.spec,
            idempotency_key=order.key,
            payload_digest=order.digest,
            request_id="req-reused",
        )

        def answered(reply: Reply) -> None:
            match reply:
                case SubmitReply(outcomes=(Refusal(code=RefusalCode.CONFLICT),)):
                    self.refused += 1
                case SubmitReply(outcomes=(Refusal(code=code),)) if code in _TRANSIENT:
                    pass
                case _:
                    raise Violation(f"another payload under key {order.key} was answered by {reply}")

        def make(reference: RequestRef) -> Event:
            return JobsSubmitted(request=reference, submissions=(submission,))

        self._ask(make, answered, partial(self._ask_reused, order))

    def _ask_cancel(self, tenant: TenantId, job_id: JobId) -> None:
        def answered(reply: Reply) -> None:
            if isinstance(reply, Refusal) and reply.code in _TRANSIENT:
                self._world.after(self._random.randint(*_RETRY_US), partial(self._ask_cancel, tenant, job_id))
            else:
                self._history.told_cancelled(job_id, reply)

        def make(reference: RequestRef) -> Event:
            return JobCancelRequested(request=reference, tenant=tenant, job_id=job_id, reason="changed my mind")

        self._ask(make, answered, partial(self._ask_cancel, tenant, job_id))

    def _ask(self, make: Callable[[RequestRef], Event], answered: Callable[[Reply], None], again: Callable[[], None]) -> None:
        """One request: either `answered` is called once, or `again` after a timeout or a refused connection."""
        over = False

        def finish(reply: Reply | None) -> None:
            nonlocal over
            if over:
                return
            over = True
            timeout.cancel()
            if reply is None:
                self._world.after(self._random.randint(*_RETRY_US), again)
            else:
                answered(reply)

        timeout = self._world.after(_TIMEOUT_US, lambda: finish(None))
        incarnation = self._orchestrators.any()
        if incarnation is None or self._faults.strikes(Fault.LOST_ANSWER):
            return  # nobody is there, or the request is lost

        def done(reply: Reply | None) -> None:
            if isinstance(reply, Refusal) and incarnation.deposed:
                reply = None  # it refused by what it knew when it led: true then, of no use to anybody now
            if reply is not None and not self._faults.strikes(Fault.LOST_ANSWER):
                self._world.after(self._random.randint(*_LATENCY_US), lambda: finish(reply))

        self._world.after(self._random.randint(*_LATENCY_US), lambda: incarnation.request(make, done))
