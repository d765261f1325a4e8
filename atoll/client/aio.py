"""The asyncio client. What is said is in `job_calls` and `operator_calls`; here it is sent, waited for and repeated.

Decides nothing that `Client` decides differently.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from types import TracebackType
from typing import TypeVar, Unpack

import grpc
import grpc.aio

from atoll.client import copy_calls, job_calls, operator_calls, transfers
from atoll.client.adapter_calls import AsyncAdapterVerbs
from atoll.client.aio_callers import AsyncCaller
from atoll.client.answers import (
    BackedUp,
    DrainStarted,
    JobChange,
    JobExplained,
    JobLogs,
    ModelView,
    PolicyInUse,
    Residuals,
    SiteAdded,
    SitesApplied,
    Submitted,
)
from atoll.client.calls import JOBS, checked
from atoll.client.channel import metadata
from atoll.client.errors import DeadlineError, JobEndedError, UnavailableError
from atoll.client.patience import BACKUP_TIMEOUT_S, CONNECT_TIMEOUT_S, TIMEOUT_S, Patience, Resuming
from atoll.client.requests import JobFields, JobRequest, batches
from atoll.client.settings import Settings, resolve
from atoll.client.vain import warn_if_in_vain
from atoll.model.attempt import Artifact
from atoll.model.audit import AuditEvent
from atoll.model.ids import JobId, ModelId, SiteId
from atoll.model.job import IMAGE_INPUT, TERMINAL, InputRef, Job, JobState
from atoll.model.learned import Calibration
from atoll.model.modelspec import ModelSpec
from atoll.model.orchestrators import OrchestratorView
from atoll.model.quote import Quote
from atoll.model.replica import Tier
from atoll.model.residency import ModelPlaces, PushPlan
from atoll.model.site import LinkSpec, SiteSpec
from atoll.model.views import FleetView, SiteView
from atoll.v1 import job_service_pb2 as job_pb

T = TypeVar("T")


class AsyncClient(AsyncCaller, AsyncAdapterVerbs):
    """Submit jobs and operate the fleet.

    Where and who come from the arguments, else from ATOLL_ADDRESS, ATOLL_TOKEN and ATOLL_CA, else from ~/.config/atoll/config.yaml, else
    it is 127.0.0.1:7443 without a credential. `timeout_s` bounds each unary call with its repeats. Made within a running event loop.
    Every method raises subclasses of `atoll.client.ClientError`.

        async with AsyncClient() as client:
            job_id = await client.submit("tiny-image", "a lighthouse", seed=7)
            await client.result(job_id, timeout_s=60)
            await client.download(job_id, "lighthouse.png")
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        ca: str | None = None,
        config: str | None = None,
        settings: Settings | None = None,
        timeout_s: float = TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        found = settings or resolve(address=address, token=token, ca=ca, config=config)
        super().__init__(found, timeout_s=timeout_s, connect_timeout_s=connect_timeout_s)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    # --- jobs ----------------------------------------------------------------------------------------------------------------

    async def submit(self, model: str, prompt: str = "", **fields: Unpack[JobFields]) -> JobId:
        """Submit one job; `fields` are those of `JobRequest`. Answers once the job is durable.

        A repeat after a lost answer is the same job: an idempotency key is made for this call unless one is given.
        """
        return await self.submit_request(JobRequest(model=model, prompt=prompt, **fields))

    async def submit_request(self, request: JobRequest) -> JobId:
        """Submit one job; the same request again is the same job."""
        submitted = await self.run(job_calls.submit(await self._uploaded(request)))
        assert submitted.job_id is not None
        return submitted.job_id

    async def _uploaded(self, request: JobRequest) -> JobRequest:
        """Its image is at the orchestrator, and it says from where it is asked."""
        described = request.asked_from(self.settings.origin).described()
        if request.file is not None:
            await self.upload(request.file, name=IMAGE_INPUT)
        return described

    async def quote(self, model: str, prompt: str = "", **fields: Unpack[JobFields]) -> Quote:
        """Where such a job would go if it were submitted now, when it would be done, at what price; or why it cannot run."""
        return await self.quote_request(JobRequest(model=model, prompt=prompt, **fields))

    async def quote_request(self, request: JobRequest) -> Quote:
        """The same for a request; its idempotency key has no meaning here."""
        return await self.run(job_calls.quote(request.asked_from(self.settings.origin)))

    async def submit_many(self, requests: Iterable[JobRequest]) -> tuple[Submitted, ...]:
        """Submit any number of jobs, in batches. Each is accepted or refused on its own; the outcomes are in the order of the requests."""
        outcomes: list[Submitted] = []
        for batch in batches([await self._uploaded(request) for request in requests]):
            answered = await self.run(job_calls.submit_batch(batch))
            outcomes.extend(answered)
        return tuple(outcomes)

    async def get(self, job_id: str) -> Job:
        """A job as it is."""
        return await self.run(job_calls.get(job_id))

    async def list(
        self, *, states: Collection[JobState] = (), tenant: str = "", model: str = "", page_size: int = 100
    ) -> AsyncIterator[Job]:
        """Jobs, newest first, page by page. A job that ends meanwhile may come twice."""
        token = ""
        while True:
            jobs, token = await self.run(job_calls.page(tenant, model, states, page_size, token))
            for job in jobs:
                yield job
            if not token:
                return

    def watch(
        self, job_ids: Sequence[str] = (), *, until_terminal: bool = False, after_seq: int = 0, timeout_s: float | None = None
    ) -> AsyncIterator[JobChange]:
        """The present state of these jobs (of all, if there are none), then every change; outlives broken connections.

        With `until_terminal` it ends when all of them have. A change may come twice after a break.
        """
        return self.follow(job_calls.watch(job_ids, until_terminal=until_terminal), after_seq=after_seq, timeout_s=timeout_s)

    async def stream(self, job_id: str, *, timeout_s: float | None = None) -> AsyncIterator[Job]:
        """A job as it moves on, until it ends."""
        last: Job | None = None
        async for change in self.watch([job_id], until_terminal=True, timeout_s=timeout_s):
            if change.job != last:
                last = change.job
                yield change.job

    async def wait(self, job_id: str, timeout_s: float | None = None) -> Job:
        """The job once it has ended, however. DeadlineError when that takes longer; NeverRunsWarning while no site can ever run it."""
        last: Job | None = None
        try:
            async for job in self.stream(job_id, timeout_s=timeout_s):
                last = job
                warn_if_in_vain(job)
        except DeadlineError:
            state = f" and is {last.state}" if last else ""
            raise DeadlineError(f"job {job_id} has not ended within {timeout_s} s{state}") from None
        if last is None or last.state not in TERMINAL:
            raise UnavailableError(f"the orchestrator ended the stream before job {job_id} had ended")
        return last

    async def result(self, job_id: str, timeout_s: float | None = None) -> Job:
        """The job once it has succeeded. JobEndedError when it ended otherwise, DeadlineError when it takes longer."""
        job = await self.wait(job_id, timeout_s)
        if job.state is not JobState.SUCCEEDED:
            raise JobEndedError(job)
        return job

    async def cancel(self, job_id: str, reason: str = "") -> Job:
        """Cancel a job; one that is cancelled already stays so. StateError when it has ended otherwise."""
        return await self.run(job_calls.cancel(job_id, reason))

    async def explain(self, job_id: str, *, site_id: str = "") -> JobExplained:
        """Why a job is where it is; with a site also what that one offers it now, or why it does not."""
        return await self.run(job_calls.explain(job_id, site_id))

    async def logs(self, job_id: str, *, ordinal: int = 0, lines: int = 0) -> JobLogs:
        """The end of an attempt's log: of the latest attempt unless `ordinal` names one."""
        return await self.run(job_calls.logs(job_id, ordinal, lines))

    async def upload(self, source: transfers.Source, *, name: str | None = None) -> InputRef:
        """Store a file for jobs to come, under its own name or `name`."""
        safe, digest = transfers.upload_name(source, name), await asyncio.to_thread(transfers.digest_of, source)
        patience = Patience(repeatable=True, deadline_s=time.monotonic() + self._timeout_s)
        while True:
            address, send = await self.method(JOBS, "Upload")
            try:
                response = await send(transfers.file_messages(source, safe), metadata=metadata(self.settings))
                return checked("Upload", lambda answer: transfers.uploaded(answer, digest), response)
            except grpc.RpcError as error:
                await asyncio.sleep(patience.pause_s(*self.failed(error, address)))

    async def download(self, job_id: str, to: transfers.Target, *, artifact: str | None = None) -> Artifact:
        """Write a file of a result to a path (complete or not at all) or a binary file object. Checked by its digest.

        `artifact` names it where there are several. A broken connection is taken up where it broke.
        """
        chosen = transfers.choose(await self.get(job_id), artifact)
        resuming = Resuming()
        with transfers.Sink(chosen, to) as sink:
            while not sink.complete:
                address, receive = await self.method(JOBS, "Download")
                request = job_pb.DownloadRequest(job_id=job_id, artifact=chosen.name, offset=sink.received)
                try:
                    async for message in receive(request, metadata=metadata(self.settings)):
                        if message.chunk:
                            resuming.heard()
                            sink.write(message.chunk)
                    if not sink.complete:
                        raise UnavailableError(f"the orchestrator sent {sink.received} of {chosen.bytes} bytes of {chosen.name}")
                except (grpc.RpcError, UnavailableError) as error:
                    await asyncio.sleep(resuming.pause_s(*self.failed(error, address)))
            await asyncio.to_thread(sink.finish)
        return chosen

    # --- the fleet -----------------------------------------------------------------------------------------------------------

    async def fleet(self) -> FleetView:
        """The fleet in one look."""
        return await self.run(operator_calls.fleet())

    async def orchestrators(self) -> tuple[OrchestratorView, ...]:
        """Who leads, first, and who stands by. Answered by any of them, while nobody leads too."""
        return await self.run(operator_calls.orchestrators())

    async def policy(self) -> PolicyInUse:
        """By which figures places are chosen."""
        return await self.run(operator_calls.policy())

    async def sites_apply(
        self, sites: Sequence[SiteSpec], links: Sequence[LinkSpec] = (), *, reason: str = "", dry_run: bool = False
    ) -> SitesApplied:
        """Declare sites and links; none is removed. With `dry_run` only say what would change."""
        return await self.run(operator_calls.sites_apply(sites, links, reason, dry_run=dry_run))

    async def sites_add(self, spec: SiteSpec, *, reason: str = "") -> SiteAdded:
        """Add a site; the answer holds the one-time token of its agent."""
        return await self.run(operator_calls.sites_add(spec, reason))

    async def sites_list(self) -> tuple[SiteView, ...]:
        """All sites."""
        return await self.run(operator_calls.sites_list())

    async def sites_links(self) -> tuple[LinkSpec, ...]:
        """What was declared of the ways between sites."""
        return await self.run(operator_calls.sites_links())

    async def sites_get(self, site_id: str) -> SiteView:
        """One site."""
        return await self.run(operator_calls.sites_get(site_id))

    async def sites_cordon(self, site_id: str, *, reason: str) -> SiteView:
        """No new placements there; what runs goes on."""
        return await self.run(operator_calls.sites_cordon(site_id, reason))

    async def sites_uncordon(self, site_id: str, *, reason: str = "") -> SiteView:
        """Take back a cordon or a drain."""
        return await self.run(operator_calls.sites_uncordon(site_id, reason))

    async def sites_drain(self, site_id: str, *, reason: str, deadline_ms: int, dry_run: bool = False) -> DrainStarted:
        """Let work end there until the deadline (fleet time from now), then move it. With `dry_run` only say what would happen."""
        return await self.run(operator_calls.sites_drain(site_id, reason, deadline_ms, dry_run=dry_run))

    async def sites_remove(self, site_id: str, *, reason: str, force: bool = False) -> SiteId:
        """Forget a site. StateError when it is not empty, unless forced: then its work is given up and placed elsewhere."""
        return await self.run(operator_calls.sites_remove(site_id, reason, force=force))

    async def models_add(self, models: Sequence[ModelSpec]) -> tuple[ModelId, ...]:
        """Declare models; answers those that are new or changed."""
        return await self.run(operator_calls.models_add(models))

    async def models_list(self) -> tuple[ModelView, ...]:
        """All models, and where they are warm."""
        return await self.run(operator_calls.models_list())

    async def models_get(self, model_id: str) -> ModelView:
        """One model, and where it is warm."""
        return await self.run(operator_calls.models_get(model_id))

    async def models_remove(self, model_id: str, *, reason: str) -> ModelId:
        """Forget a model; jobs that wait for it fail."""
        return await self.run(operator_calls.models_remove(model_id, reason))

    async def models_push(self, model_id: str, *, sites: int, warm: int = 0, reason: str = "", dry_run: bool = False) -> PushPlan:
        """Bring a model to `sites` sites, warm on `warm` of them, before it is asked for; or, with `dry_run`, say what that takes."""
        return await self.run(copy_calls.push(model_id, sites, warm, reason, dry_run=dry_run))

    async def models_pin(self, model_id: str, site_id: str, *, tier: Tier = Tier.GPU, reason: str = "") -> ModelPlaces:
        """Keep a model on a tier of a site, whatever is asked for."""
        return await self.run(copy_calls.pin(model_id, site_id, tier, reason))

    async def models_unpin(self, model_id: str, site_id: str, *, reason: str = "") -> ModelPlaces:
        """Take back a pin; the copy stays until its room is needed."""
        return await self.run(copy_calls.unpin(model_id, site_id, reason))

    async def models_where(self, model_id: str, *, why: bool = False) -> ModelPlaces:
        """Where a model is and should be; with `why`, what came and left lately."""
        return await self.run(copy_calls.where(model_id, events=why))

    def events(self, *, after_seq: int = 0, limit: int = 0, follow: bool = False) -> AsyncIterator[AuditEvent]:
        """The audit after a number, its last `limit` lines (0: all): who did what and why. With `follow` it goes on as things happen."""
        return self.follow(operator_calls.events(after_seq, limit, follow=follow), after_seq=after_seq)

    async def residuals(self, *, component: str = "", site_id: str = "", model_id: str = "") -> Residuals:
        """What was learned of the estimates: of one component, site or model, or of all."""
        return await self.run(operator_calls.residuals(component, site_id, model_id))

    async def calibration(self) -> Calibration:
        """Whether predictions may be believed, and what quotes make of them."""
        return await self.run(operator_calls.calibration())

    async def estimates_reset(self, *, reason: str, component: str = "", site_id: str = "") -> Calibration:
        """Forget what was learned, of one component or all, at one site or everywhere."""
        return await self.run(operator_calls.estimates_reset(component, site_id, reason))

    async def backup(self, path: str) -> BackedUp:
        """Copy the store to a new file on the orchestrator's machine."""
        return await self.run(operator_calls.backup(path), timeout_s=max(self._timeout_s, BACKUP_TIMEOUT_S))
