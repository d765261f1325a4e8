"""List: live jobs from memory, then ended ones from the store, newest first, in pages.

Decides what a page token is. It comes back from outside: everything in it is checked, and it is good only for the filters it
was made for. A job that ends between two pages may be listed in both; none is left out. The store has no index of models: of one that few
jobs have a page may be short, so that no call reads through a million of them.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from typing import Final

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import JobId, ModelId, TenantId, parse_name
from atoll.model.job import TERMINAL, Job, JobState
from atoll.v1 import job_service_pb2 as pb
from atoll.v1 import types_pb2
from atoll.wire.bounds import TIME_US_MAX
from atoll.wire.enums import job_states_from_proto
from orchestrator.api.auth import CALLER, own_tenant
from orchestrator.api.shown import Shown
from orchestrator.api.status import did_you_mean
from orchestrator.readers import ListKey, ReadModel
from orchestrator.store.base import Store

_PAGE_SIZE: Final = 100
# Below gRPC's default limit of 4 MiB for what a client takes in: a page ends here, however few jobs are on it.
_PAGE_BYTES: Final = 3 * 1024 * 1024
_TOKEN_CHARS_MAX: Final = 300
# Ended jobs of which those of a model are read at a time, and for one page: a call takes well under a second, and does not stop readers.
_READ_AT_ONCE: Final = 500
_READ_MAX: Final = 5_000
_PAGE_RULE: Final = "the next_page_token of an earlier answer to the same question"


class _Phase(StrEnum):
    LIVE = "live"
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a page begins: strictly after `before` in its phase; None: at the phase's first."""

    phase: _Phase
    before: ListKey | None


class Lister:
    """Answers List."""

    def __init__(self, *, readers: ReadModel, store: Store, shown: Shown) -> None:
        self._shown = shown
        self._readers = readers
        self._store = store

    async def page(self, request: pb.ListJobsRequest) -> pb.ListJobsResponse:
        """One page. Raises FieldError."""
        caller = CALLER.get()
        tenant = None if caller.operator and not request.tenant else own_tenant(caller, "tenant", request.tenant)
        states = job_states_from_proto(list(request.states)) or frozenset(JobState)
        size = request.page_size or _PAGE_SIZE
        if not 0 < size <= limits.PAGE_SIZE_MAX:
            raise FieldError("page_size", size, f"1 to {limits.PAGE_SIZE_MAX}, or 0 for {_PAGE_SIZE}")
        model = ModelId(parse_name("model_id", request.model_id)) if request.model_id else None
        bound_to = _digest(tenant, states, model)
        place = _read_token(request.page_token, bound_to) if request.page_token else _Place(phase=_Phase.LIVE, before=None)
        page = _Page(size, self._shown, model)
        if place.phase is _Phase.LIVE:
            if states - TERMINAL:
                for job in self._readers.live(tenant, place.before):
                    if job.state in states and not page.add(_Phase.LIVE, (job.accepted_us, job.job_id), job):
                        break
            place = _Place(phase=_Phase.ENDED, before=None)
        if not page.full and states & TERMINAL:
            await self._add_ended(page, tenant, states & TERMINAL, place.before, model)
        token = _write_token(page.last, bound_to) if page.full and page.last is not None else ""
        if model is not None and model not in self._readers.models and not (page.jobs or request.page_token):
            # Jobs outlive their model for a while; a name that none of so many has is taken for a mistake.
            raise did_you_mean("model_id", model, "model", self._readers.models)
        return pb.ListJobsResponse(jobs=page.jobs, next_page_token=token)

    async def _add_ended(
        self, page: _Page, tenant: TenantId | None, states: frozenset[JobState], before: ListKey | None, model: ModelId | None
    ) -> None:
        """Ended jobs until the page is full, there are no more, or enough of other models were looked at."""
        read = 0
        while read < _READ_MAX:
            limit = page.room + 1 if model is None else _READ_AT_ONCE
            found = await self._store.list_ended(tenant=tenant, states=states, before=before, limit=limit)
            for job in found:
                if not page.add(_Phase.ENDED, (job.ended_us, job.job_id), job):
                    return
                before = job.ended_us, job.job_id
            if len(found) < limit:
                return
            read += len(found)
        page.go_on_behind(_Place(phase=_Phase.ENDED, before=before))


class _Page:
    """Jobs, of one model or of all, until one too many was offered, or enough bytes."""

    def __init__(self, size: int, shown: Shown, model: ModelId | None) -> None:
        self._shown = shown
        self._model = model
        self.jobs: list[types_pb2.Job] = []
        self.last: _Place | None = None
        self.full = False
        self._size = size
        self._bytes = 0
        self._seen: set[JobId] = set()

    @property
    def room(self) -> int:
        """How many jobs more there is room for."""
        return self._size - len(self.jobs)

    def add(self, phase: _Phase, key: ListKey, job: Job) -> bool:
        """Whether it still fitted, or is not meant."""
        if job.job_id in self._seen or (self._model is not None and job.spec.model_id != self._model):
            return True
        if not self.room or self._bytes >= _PAGE_BYTES:
            self.full = True
            return False
        message = self._shown.job(job)
        self.jobs.append(message)
        self._seen.add(job.job_id)
        self._bytes += message.ByteSize()
        self.last = _Place(phase=phase, before=key)
        return True

    def go_on_behind(self, place: _Place) -> None:
        """There is room yet, but the rest is for the next page."""
        self.last, self.full = place, True


def _digest(tenant: TenantId | None, states: frozenset[JobState], model: ModelId | None) -> str:
    return sha256(json.dumps([tenant, sorted(states), model]).encode()).hexdigest()[:16]


def _write_token(place: _Place, bound_to: str) -> str:
    text = json.dumps([place.phase, place.before, bound_to], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_token(token: str, bound_to: str) -> _Place:
    wrong = FieldError("page_token", token, _PAGE_RULE)
    if len(token) > _TOKEN_CHARS_MAX or not token.isascii():
        raise wrong
    try:
        content = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError, RecursionError):
        raise wrong from None
    match content:
        case [("live" | "ended") as phase, [int(at_us), str(job_id)], str(digest)] if digest == bound_to and 0 <= at_us <= TIME_US_MAX:
            return _Place(phase=_Phase(phase), before=(at_us, JobId(parse_name("page_token", job_id))))
        case _:
            raise wrong
