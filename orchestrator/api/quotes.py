"""Quote and Explain: reads that cost the whole fleet for one job.

Decides how much of the loop that also takes reports and submits such reads may have, and who is turned away. Must not know costs.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

from atoll.model.errors import LimitError
from atoll.model.ids import SiteId, TenantId, parse_name
from atoll.model.job import Job
from atoll.model.quote import Quote
from atoll.v1 import job_service_pb2 as pb
from atoll.wire.quotes import eta_to_proto, place_to_proto, quote_to_proto
from orchestrator.api.auth import CALLER
from orchestrator.api.shown import Shown
from orchestrator.api.status import did_you_mean
from orchestrator.api.submit import Submitter
from orchestrator.core.outputs import Refusal
from orchestrator.driver import Driver
from orchestrator.explaining import Explained, costs_much, explain
from orchestrator.readers import ReadModel
from orchestrator.refusals import RefusedError

T = TypeVar("T")

# After a read the lane rests nine times as long as the read took: a flood of quotes slows down nothing else by more than a tenth.
_REST_TIMES: Final = 9
# The longest rest: a read that took so long met a busy machine, and the next one shall not wait for minutes.
_REST_MAX_S: Final = 1.0
# A read takes well under a millisecond at 36 sites and 20 ms at 3,600: the last of so many waits seconds, a minute at worst.
WAITING_MAX: Final = 256
# A quarter of them: no tenant keeps the others out.
WAITING_PER_TENANT_MAX: Final = 64
# By then half of those that wait have been answered, at the size of fleets that exist.
_RETRY_AFTER_MS: Final = 1_000


class Desk:
    """The lane of such reads: one at a time, in the order of asking, with rests between them."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting: Counter[TenantId] = Counter()
        self._open_s = 0.0

    async def read(self, tenant: TenantId, ask: Callable[[], T]) -> T:
        """What `ask` answers when its turn has come. LimitError when too many wait, of this tenant or in all."""
        if self._waiting[tenant] >= WAITING_PER_TENANT_MAX or self._waiting.total() >= WAITING_MAX:
            whose = f"{WAITING_PER_TENANT_MAX} of tenant {tenant}" if self._waiting[tenant] >= WAITING_PER_TENANT_MAX else str(WAITING_MAX)
            raise LimitError(f"too many quotes and explanations wait to be computed ({whose})", retry_after_ms=_RETRY_AFTER_MS)
        self._waiting[tenant] += 1
        try:
            async with self._turn:
                await asyncio.sleep(max(self._open_s - time.monotonic(), 0))
                began_s = time.monotonic()
                try:
                    return ask()
                finally:
                    now_s = time.monotonic()
                    self._open_s = now_s + min((now_s - began_s) * _REST_TIMES, _REST_MAX_S)
        finally:
            self._waiting[tenant] -= 1
            if not self._waiting[tenant]:
                del self._waiting[tenant]


class Quoter:
    """Answers what a job would be offered, or is."""

    def __init__(self, *, driver: Driver, readers: ReadModel, submitter: Submitter, shown: Shown) -> None:
        self._driver = driver
        self._shown = shown
        self._readers = readers
        self._submitter = submitter
        self._desk = Desk()

    async def quote(self, request: pb.QuoteRequest) -> pb.QuoteResponse:
        """What this job would be offered if it were submitted now. Raises what Submit would raise for it."""
        caller = CALLER.get()
        spec = self._submitter.spec_of(request.spec, caller)

        def ask() -> Quote:
            found = self._driver.machine.quote_job(spec, self._driver.clock.now_us())
            if isinstance(found, Refusal):
                raise RefusedError(found)
            return found

        return pb.QuoteResponse(quote=quote_to_proto(await self._desk.read(caller.tenant, ask)))

    async def explain(self, job: Job, site_text: str) -> pb.ExplainJobResponse:
        """Why a job is where it is, and what one site offers it where one is named."""
        site_id = self._site(site_text) if site_text else None

        def ask() -> Explained:
            # It may have moved on while others were answered.
            found = explain(self._driver.machine, self._readers.job(job.job_id) or job, self._driver.clock.now_us(), site_id)
            if isinstance(found, Refusal):
                raise RefusedError(found)
            return found

        return self._answer(await self._desk.read(CALLER.get().tenant, ask) if costs_much(job, site_id) else ask())

    def _site(self, text: str) -> SiteId:
        site_id = SiteId(parse_name("site_id", text))
        if site_id not in self._readers.sites:
            raise did_you_mean("site_id", site_id, "site", self._readers.sites)
        return site_id

    def _answer(self, found: Explained) -> pb.ExplainJobResponse:
        return pb.ExplainJobResponse(
            job=self._shown.job(found.job),
            queue_position=found.queue_position,
            queue_length=found.queue_length,
            now_us=found.now_us,
            held_until_us=found.held_until_us,
            eta=None if found.eta is None else eta_to_proto(found.eta),
            quote=None if found.quote is None else quote_to_proto(found.quote),
            places=[place_to_proto(place) for place in found.places],
        )
