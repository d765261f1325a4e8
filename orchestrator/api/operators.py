"""OperatorService: sites, models, adapters, the fleet and its history. Every verb that takes something away wants a reason."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Final

from atoll.model import limits
from atoll.model.adapter import AdapterSpec, AdapterUsage
from atoll.model.errors import FieldError
from atoll.model.gpu import GpuType
from atoll.model.ids import AdapterId, ChangeSeq, GpuTypeId, ModelId, SiteId, parse_name
from atoll.model.modelspec import ModelSpec
from atoll.model.site import LinkSpec, SiteSpec
from atoll.model.views import DrainPlan
from atoll.v1 import operator_service_pb2 as pb
from atoll.v1 import types_pb2
from atoll.v1.operator_service_pb2_grpc import OperatorServiceServicer
from atoll.wire.adapters import adapter_spec_from_proto, adapter_view_to_proto
from atoll.wire.audit import audit_event_to_proto
from atoll.wire.bounds import COUNT_MAX, each, label, number, part
from atoll.wire.jobs import checked_reason
from atoll.wire.models import model_spec_from_proto, model_spec_to_proto
from atoll.wire.orchestrators import orchestrator_view_to_proto
from atoll.wire.sites import link_spec_from_proto, link_spec_to_proto, site_spec_from_proto
from atoll.wire.views import drain_plan_to_proto, fleet_view_to_proto, site_view_to_proto
from orchestrator.api import copies, estimates
from orchestrator.api.auth import CALLER
from orchestrator.api.interceptor import Context
from orchestrator.api.status import did_you_mean, not_found
from orchestrator.core.events import (
    AdapterRemoved,
    AdaptersAdded,
    Event,
    ModelRemoved,
    ModelsAdded,
    RequestRef,
    SiteAdded,
    SiteCordoned,
    SiteDrainRequested,
    SiteRemoveRequested,
    SitesApplied,
    SiteUncordoned,
)
from orchestrator.core.outputs import Done, Refusal, SubmitReply
from orchestrator.core.placement.policy_file import write_policy
from orchestrator.driver import Driver
from orchestrator.identity import digest_of, new_secret
from orchestrator.inbox import Lane
from orchestrator.readers import ReadModel
from orchestrator.refusals import RefusedError
from orchestrator.standing import Standing
from orchestrator.store.base import Store
from orchestrator.watchers import AuditWatchers

_AUDIT_PAGE: Final = 500
# An idle stream is looked at this often; its connection is kept alive below this layer.
_IDLE_S: Final = 60.0
_JOIN_PREFIX: Final = "atoll-join"
_NOWHERE: Final = AdapterUsage()
_LINKS_MAX: Final = limits.SITES_MAX * 36


class OperatorService(OperatorServiceServicer):
    """The servicer. Errors are raised; the interceptor maps them."""

    def __init__(
        self,
        *,
        driver: Driver,
        readers: ReadModel,
        store: Store,
        audit: AuditWatchers,
        standing: Standing,
        gpus: Mapping[GpuTypeId, GpuType],
        credentials: bool,
    ) -> None:
        self._driver = driver
        self._readers = readers
        self._store = store
        self._audit = audit
        self._standing = standing
        self._gpus = gpus
        self._credentials = credentials

    # --- sites ---------------------------------------------------------------------------------------------------------------

    async def ApplySites(self, request: pb.ApplySitesRequest, context: Context) -> pb.ApplySitesResponse:
        """Declare sites and links, or say what that would change."""
        sites = each("sites", request.sites, limits.SITES_MAX, site_spec_from_proto)
        links = each("links", request.links, _LINKS_MAX, link_spec_from_proto)
        reason = label("reason", request.reason, limits.REASON_CHARS_MAX)
        self._check_declared(sites, links)
        known = self._readers.sites
        response = pb.ApplySitesResponse(
            added=sorted(site.site_id for site in sites if site.site_id not in known),
            updated=sorted(site.site_id for site in sites if site.site_id in known and known[site.site_id].spec != site),
            unchanged=sorted(site.site_id for site in sites if site.site_id in known and known[site.site_id].spec == site),
            not_declared=sorted(known.keys() - {site.site_id for site in sites}),
        )
        if not request.dry_run:
            await self._ask(lambda ref: SitesApplied(request=ref, actor=_actor(), reason=reason, sites=sites, links=links))
        return response

    async def AddSite(self, request: pb.AddSiteRequest, context: Context) -> pb.AddSiteResponse:
        """One site and the token with which its agent joins, shown this once."""
        spec = part("spec", request.spec, site_spec_from_proto)
        reason = label("reason", request.reason, limits.REASON_CHARS_MAX)
        self._check_declared((spec,), ())
        token = new_secret(_JOIN_PREFIX) if self._credentials else ""
        digest = digest_of(token) if token else ""
        await self._ask(lambda ref: SiteAdded(request=ref, actor=_actor(), reason=reason, spec=spec, join_token_sha256=digest))
        return pb.AddSiteResponse(site_id=spec.site_id, join_token=token)

    async def ListSites(self, request: pb.ListSitesRequest, context: Context) -> pb.ListSitesResponse:
        """All sites as they are now, or what was declared of the ways between them."""
        if request.links:
            return pb.ListSitesResponse(links=[link_spec_to_proto(link) for link in self._driver.machine.links()])
        return pb.ListSitesResponse(sites=[site_view_to_proto(view) for view in self._driver.machine.site_views()])

    async def GetSite(self, request: pb.GetSiteRequest, context: Context) -> types_pb2.SiteView:
        """One site as it is now."""
        return self._site(SiteId(parse_name("site_id", request.site_id)))

    async def CordonSite(self, request: pb.CordonSiteRequest, context: Context) -> types_pb2.SiteView:
        """No new placements there."""
        site_id, reason = self._site_and_reason(request.site_id, request.reason)
        await self._ask(lambda ref: SiteCordoned(request=ref, actor=_actor(), reason=reason, site_id=site_id))
        return self._site(site_id)

    async def UncordonSite(self, request: pb.UncordonSiteRequest, context: Context) -> types_pb2.SiteView:
        """Take back a cordon or a drain."""
        site_id = self._known_site(request.site_id)
        reason = label("reason", request.reason, limits.REASON_CHARS_MAX)
        await self._ask(lambda ref: SiteUncordoned(request=ref, actor=_actor(), reason=reason, site_id=site_id))
        return self._site(site_id)

    async def DrainSite(self, request: pb.DrainSiteRequest, context: Context) -> pb.DrainSiteResponse:
        """Cordon, let work end until the deadline, then move it; or say what that would do."""
        site_id, reason = self._site_and_reason(request.site_id, request.reason)
        deadline_ms = number("deadline_ms", request.deadline_ms, 1, limits.DEADLINE_MS_MAX)
        plan = self._plan(site_id, deadline_ms)
        if not request.dry_run:
            await self._ask(
                lambda ref: SiteDrainRequested(request=ref, actor=_actor(), reason=reason, site_id=site_id, deadline_ms=deadline_ms)
            )
        return pb.DrainSiteResponse(site=self._site(site_id), plan=drain_plan_to_proto(plan), now_us=self._driver.clock.now_us())

    async def RemoveSite(self, request: pb.RemoveSiteRequest, context: Context) -> pb.RemoveSiteResponse:
        """Forget an empty site; with force, settle what is there first."""
        site_id, reason = self._site_and_reason(request.site_id, request.reason)
        await self._ask(lambda ref: SiteRemoveRequested(request=ref, actor=_actor(), reason=reason, site_id=site_id, force=request.force))
        return pb.RemoveSiteResponse(site_id=site_id)

    # --- models --------------------------------------------------------------------------------------------------------------

    async def AddModels(self, request: pb.AddModelsRequest, context: Context) -> pb.AddModelsResponse:
        """Add or replace models."""
        models = each("models", request.models, limits.MODELS_MAX, model_spec_from_proto)
        if len({model.model_id for model in models}) != len(models):
            raise FieldError("models", [model.model_id for model in models], "each model once")
        done = await self._ask(lambda ref: ModelsAdded(request=ref, actor=_actor(), models=models))
        return pb.AddModelsResponse(changed=done.changed)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """All models, and where they are warm."""
        models = sorted(self._readers.models.values(), key=lambda model: model.model_id)
        return pb.ListModelsResponse(models=[self._model(model) for model in models])

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.ModelView:
        """One model, and where it is warm."""
        model_id = ModelId(parse_name("model_id", request.model_id))
        self._known_model(model_id)
        return self._model(self._readers.models[model_id])

    async def RemoveModel(self, request: pb.RemoveModelRequest, context: Context) -> pb.RemoveModelResponse:
        """Forget a model; jobs that wait for it fail."""
        model_id = ModelId(parse_name("model_id", request.model_id))
        reason = checked_reason("reason", request.reason)
        self._known_model(model_id)
        await self._ask(lambda ref: ModelRemoved(request=ref, actor=_actor(), reason=reason, model_id=model_id))
        return pb.RemoveModelResponse(model_id=model_id)

    # --- adapters ------------------------------------------------------------------------------------------------------------

    async def AddAdapters(self, request: pb.AddAdaptersRequest, context: Context) -> pb.AddAdaptersResponse:
        """Add or replace adapters of models and families that exist."""
        adapters = each("adapters", request.adapters, limits.ADAPTERS_IN_FLEET_MAX, adapter_spec_from_proto)
        if len({adapter.adapter_id for adapter in adapters}) != len(adapters):
            raise FieldError("adapters", [adapter.adapter_id for adapter in adapters], "each adapter once")
        self._check_bases(adapters)
        done = await self._ask(lambda ref: AdaptersAdded(request=ref, actor=_actor(), adapters=adapters))
        return pb.AddAdaptersResponse(changed=done.changed)

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Context) -> pb.ListAdaptersResponse:
        """All adapters, and where they are."""
        usage = self._driver.machine.adapter_usage()
        adapters = sorted(self._readers.adapters.values(), key=lambda adapter: adapter.adapter_id)
        return pb.ListAdaptersResponse(adapters=[adapter_view_to_proto(one, usage.get(one.adapter_id, _NOWHERE)) for one in adapters])

    async def GetAdapter(self, request: pb.GetAdapterRequest, context: Context) -> pb.AdapterView:
        """One adapter, and where it is."""
        adapter_id = AdapterId(parse_name("adapter_id", request.adapter_id))
        self._known_adapter(adapter_id)
        return adapter_view_to_proto(self._readers.adapters[adapter_id], self._driver.machine.adapter_usage().get(adapter_id, _NOWHERE))

    async def RemoveAdapter(self, request: pb.RemoveAdapterRequest, context: Context) -> pb.RemoveAdapterResponse:
        """Forget an adapter; jobs that wait for it fail."""
        adapter_id = AdapterId(parse_name("adapter_id", request.adapter_id))
        reason = checked_reason("reason", request.reason)
        self._known_adapter(adapter_id)
        await self._ask(lambda ref: AdapterRemoved(request=ref, actor=_actor(), reason=reason, adapter_id=adapter_id))
        return pb.RemoveAdapterResponse(adapter_id=adapter_id)

    # --- copies --------------------------------------------------------------------------------------------------------------

    async def PushModel(self, request: pb.PushModelRequest, context: Context) -> pb.PushPlan:
        """Bring a model to sites before it is asked for, or say what that would do."""
        self._known_model(request.model_id)
        plan = copies.plan(self._driver.machine, request, self._driver.clock.now_us())
        if not request.dry_run:
            await self._ask(copies.push(request, _actor()))
        return plan

    async def PinModel(self, request: pb.PinModelRequest, context: Context) -> pb.ModelPlaces:
        """Keep a model on a tier of a site."""
        self._known_model(request.model_id)
        self._known_site(request.site_id)
        await self._ask(copies.pin(request, _actor()))
        return self._where(request.model_id)

    async def UnpinModel(self, request: pb.UnpinModelRequest, context: Context) -> pb.ModelPlaces:
        """Take back a pin."""
        self._known_model(request.model_id)
        self._known_site(request.site_id)
        await self._ask(copies.unpin(request, _actor()))
        return self._where(request.model_id)

    async def WhereModel(self, request: pb.WhereModelRequest, context: Context) -> pb.ModelPlaces:
        """Where a model is, where it should be, and why."""
        self._known_model(request.model_id)
        return self._where(request.model_id, events=request.events)

    # --- the fleet -----------------------------------------------------------------------------------------------------------

    async def GetFleet(self, request: pb.GetFleetRequest, context: Context) -> pb.FleetView:
        """The fleet in one look."""
        clock, machine = self._driver.clock, self._driver.machine
        return fleet_view_to_proto(replace(machine.fleet_view(clock.now_us(), clock.time_scale_milli), alarms=machine.alarms()))

    async def ListOrchestrators(self, request: pb.ListOrchestratorsRequest, context: Context) -> pb.ListOrchestratorsResponse:
        """Who leads and who stands by."""
        return pb.ListOrchestratorsResponse(orchestrators=[orchestrator_view_to_proto(view) for view in self._standing.views()])

    async def GetPolicy(self, request: pb.GetPolicyRequest, context: Context) -> pb.GetPolicyResponse:
        """By which figures places are chosen."""
        policy = self._driver.machine.context.policy
        return pb.GetPolicyResponse(name=policy.name, digest=policy.identity.digest, text=write_policy(policy))

    async def Events(self, request: pb.EventsRequest, context: Context) -> AsyncIterator[types_pb2.AuditEvent]:
        """The audit after a number: from the store, then as it grows."""
        last = ChangeSeq(number("after_seq", request.after_seq, 0, COUNT_MAX))
        most = number("limit", request.limit, 0, limits.AUDIT_LINES_MAX)
        # Before the store is read, so that no line falls between.
        watcher = self._audit.open()
        try:
            if most:
                last = max(last, await self._store.audit_tail(most=most))
            while True:
                while page := await self._store.list_audit(after=last, limit=_AUDIT_PAGE):
                    for event in page:
                        yield audit_event_to_proto(event)
                        last = event.seq
                if not request.follow:
                    return
                # What comes is read from the store too: only that knows when it was written.
                live = await watcher.next(_IDLE_S)
                while live is None or live.seq <= last:
                    live = await watcher.next(_IDLE_S)
        finally:
            self._audit.close(watcher)

    async def Backup(self, request: pb.BackupRequest, context: Context) -> pb.BackupResponse:
        """A consistent copy of the store on the orchestrator's machine."""
        size = await self._store.backup(request.path)
        return pb.BackupResponse(path=request.path, bytes=size)

    # --- what was learned ----------------------------------------------------------------------------------------------------

    async def ListResiduals(self, request: pb.ListResidualsRequest, context: Context) -> pb.ListResidualsResponse:
        """What was learned, a line per cell."""
        return estimates.list_residuals(self._driver.machine, request, self._driver.clock.now_us())

    async def GetCalibration(self, request: pb.GetCalibrationRequest, context: Context) -> pb.Calibration:
        """Whether predictions may be believed."""
        return estimates.get_calibration(self._driver.machine)

    async def ResetEstimates(self, request: pb.ResetEstimatesRequest, context: Context) -> pb.Calibration:
        """Forget what was learned."""
        await self._ask(estimates.reset(request, _actor()))
        return estimates.get_calibration(self._driver.machine)

    # --- shared --------------------------------------------------------------------------------------------------------------

    async def _ask(self, make: Callable[[RequestRef], Event]) -> Done:
        reply = await self._driver.ask(Lane.OPERATORS, make)
        match reply:
            case Done():
                return reply
            case Refusal():
                raise RefusedError(reply)
            case SubmitReply():
                raise AssertionError("an operator's request is answered by Done")

    def _site(self, site_id: SiteId) -> types_pb2.SiteView:
        view = self._driver.machine.site_view(site_id)
        if view is None:
            raise not_found("site", site_id, self._readers.sites)
        return site_view_to_proto(view)

    def _plan(self, site_id: SiteId, deadline_ms: int) -> DrainPlan:
        plan = self._driver.machine.plan_drain(site_id, deadline_ms, self._driver.clock.now_us())
        if isinstance(plan, Refusal):
            raise RefusedError(plan)
        return plan

    def _known_site(self, name: str) -> SiteId:
        site_id = SiteId(parse_name("site_id", name))
        if site_id not in self._readers.sites:
            raise not_found("site", site_id, self._readers.sites)
        return site_id

    def _site_and_reason(self, site_id: str, reason: str) -> tuple[SiteId, str]:
        found, why = SiteId(parse_name("site_id", site_id)), checked_reason("reason", reason)
        return self._known_site(found), why

    def _known_model(self, name: str) -> None:
        if copies.model_of(name) not in self._readers.models:
            raise not_found("model", name, self._readers.models)

    def _known_adapter(self, adapter_id: AdapterId) -> None:
        if adapter_id not in self._readers.adapters:
            raise not_found("adapter", adapter_id, self._readers.adapters)

    def _where(self, name: str, *, events: bool = False) -> pb.ModelPlaces:
        return copies.where(self._driver.machine, copies.model_of(name), self._driver.clock.now_us(), events=events)

    def _model(self, model: ModelSpec) -> pb.ModelView:
        warm_sites, replicas, queued = self._driver.machine.model_usage(model.model_id)
        return pb.ModelView(spec=model_spec_to_proto(model), warm_sites=warm_sites, warm_replicas=replicas, jobs_queued=queued)

    def _check_declared(self, sites: tuple[SiteSpec, ...], links: tuple[LinkSpec, ...]) -> None:
        """Names that must exist: GPU types in the catalogue, sites at the ends of links."""
        seen: set[SiteId] = set()
        for index, site in enumerate(sites):
            if site.site_id in seen:
                raise FieldError(f"sites[{index}].site_id", site.site_id, "each site once")
            seen.add(site.site_id)
            for position, pool in enumerate(site.pools):
                if pool.gpu_type not in self._gpus:
                    raise did_you_mean(f"sites[{index}].pools[{position}].gpu_type", pool.gpu_type, "GPU type", self._gpus)
        known = seen | self._readers.sites.keys()
        for index, link in enumerate(links):
            for end, site_id in (("src", link.src), ("dst", link.dst)):
                if site_id not in known:
                    raise did_you_mean(f"links[{index}].{end}", site_id, "site", known)

    def _check_bases(self, adapters: tuple[AdapterSpec, ...]) -> None:
        """What an adapter fits must exist: a mistyped base would only show when a job is refused."""
        models = self._readers.models
        families = {model.family for model in models.values()}
        for index, adapter in enumerate(adapters):
            for model_id in adapter.model_ids:
                if model_id not in models:
                    raise did_you_mean(f"adapters[{index}].model_ids", model_id, "model", models)
            if adapter.family and adapter.family not in families:
                raise did_you_mean(f"adapters[{index}].family", adapter.family, "family of models", families)


def _actor() -> str:
    return CALLER.get().name
