"""The methods of OperatorService as values.

Decides which of them may be repeated: reads, and those that declare a state rather than change one.
"""

from __future__ import annotations

from collections.abc import Sequence

from atoll.client.answers import BackedUp, DrainStarted, ModelView, PolicyInUse, Residuals, SiteAdded, SitesApplied
from atoll.client.calls import OPERATOR, Call, Position, Stream, argument, whole
from atoll.model import limits
from atoll.model.audit import AuditEvent
from atoll.model.ids import ModelId, SiteId, parse_name
from atoll.model.learned import Calibration
from atoll.model.modelspec import ModelSpec
from atoll.model.orchestrators import OrchestratorView
from atoll.model.site import LinkSpec, SiteSpec
from atoll.model.views import FleetView, SiteView
from atoll.v1 import operator_service_pb2 as pb
from atoll.v1 import types_pb2
from atoll.wire import bounds
from atoll.wire.audit import audit_event_from_proto
from atoll.wire.jobs import checked_reason
from atoll.wire.learned import calibration_from_proto, component_from_text, residuals_from_proto
from atoll.wire.models import model_spec_from_proto, model_spec_to_proto
from atoll.wire.orchestrators import orchestrator_view_from_proto
from atoll.wire.sites import link_spec_from_proto, link_spec_to_proto, site_spec_to_proto
from atoll.wire.views import drain_plan_from_proto, fleet_view_from_proto, site_view_from_proto


def sites_apply(sites: Sequence[SiteSpec], links: Sequence[LinkSpec], reason: str, *, dry_run: bool) -> Call[SitesApplied]:
    """Declare sites and links. Declaring the same twice changes nothing, so it may be repeated."""
    request = pb.ApplySitesRequest(
        sites=[site_spec_to_proto(site) for site in sites],
        links=[link_spec_to_proto(link) for link in links],
        reason=_note(reason),
        dry_run=dry_run,
    )

    def read(response: pb.ApplySitesResponse) -> SitesApplied:
        return SitesApplied(
            added=_sites("added", response.added),
            updated=_sites("updated", response.updated),
            unchanged=_sites("unchanged", response.unchanged),
            not_declared=_sites("not_declared", response.not_declared),
            dry_run=dry_run,
        )

    return Call(service=OPERATOR, method="ApplySites", request=request, read=read, repeatable=True)


def sites_add(spec: SiteSpec, reason: str) -> Call[SiteAdded]:
    """Add one site. A repeat would be refused and its token lost, so it is not repeated."""
    request = pb.AddSiteRequest(spec=site_spec_to_proto(spec), reason=_note(reason))

    def read(response: pb.AddSiteResponse) -> SiteAdded:
        return SiteAdded(site_id=SiteId(parse_name("site_id", response.site_id)), join_token=response.join_token)

    return Call(service=OPERATOR, method="AddSite", request=request, read=read, repeatable=False)


def sites_list() -> Call[tuple[SiteView, ...]]:
    """All sites."""

    def read(response: pb.ListSitesResponse) -> tuple[SiteView, ...]:
        return bounds.each("sites", response.sites, limits.SITES_MAX, site_view_from_proto)

    return Call(service=OPERATOR, method="ListSites", request=pb.ListSitesRequest(), read=read, repeatable=True)


def sites_links() -> Call[tuple[LinkSpec, ...]]:
    """What is between sites."""

    def read(response: pb.ListSitesResponse) -> tuple[LinkSpec, ...]:
        return bounds.each("links", response.links, limits.SITES_MAX**2, link_spec_from_proto)

    return Call(service=OPERATOR, method="ListSites", request=pb.ListSitesRequest(links=True), read=read, repeatable=True)


def sites_get(site_id: str) -> Call[SiteView]:
    """One site."""
    request = pb.GetSiteRequest(site_id=_site(site_id))
    return Call(service=OPERATOR, method="GetSite", request=request, read=site_view_from_proto, repeatable=True)


def sites_cordon(site_id: str, reason: str) -> Call[SiteView]:
    """No new placements at a site."""
    request = pb.CordonSiteRequest(site_id=_site(site_id), reason=_reason(reason))
    return Call(service=OPERATOR, method="CordonSite", request=request, read=site_view_from_proto, repeatable=False)


def sites_uncordon(site_id: str, reason: str) -> Call[SiteView]:
    """Placements at a site again; ends a drain."""
    request = pb.UncordonSiteRequest(site_id=_site(site_id), reason=_note(reason))
    return Call(service=OPERATOR, method="UncordonSite", request=request, read=site_view_from_proto, repeatable=False)


def sites_drain(site_id: str, reason: str, deadline_ms: int, *, dry_run: bool) -> Call[DrainStarted]:
    """Let a site's work end by a deadline. A repeat would move the deadline; a dry run changes nothing."""
    request = pb.DrainSiteRequest(
        site_id=_site(site_id),
        reason=_reason(reason),
        deadline_ms=whole("deadline_ms", deadline_ms, 1, limits.DEADLINE_MS_MAX),
        dry_run=dry_run,
    )

    def read(response: pb.DrainSiteResponse) -> DrainStarted:
        return DrainStarted(
            site=site_view_from_proto(response.site) if response.HasField("site") else None,
            plan=bounds.part("plan", response.plan, drain_plan_from_proto),
            now_us=bounds.instant("now_us", response.now_us),
            dry_run=dry_run,
        )

    return Call(service=OPERATOR, method="DrainSite", request=request, read=read, repeatable=dry_run)


def sites_remove(site_id: str, reason: str, *, force: bool) -> Call[SiteId]:
    """Forget a site."""
    request = pb.RemoveSiteRequest(site_id=_site(site_id), reason=_reason(reason), force=force)

    def read(response: pb.RemoveSiteResponse) -> SiteId:
        return SiteId(parse_name("site_id", response.site_id))

    return Call(service=OPERATOR, method="RemoveSite", request=request, read=read, repeatable=False)


def models_add(models: Sequence[ModelSpec]) -> Call[tuple[ModelId, ...]]:
    """Declare models; answers those that changed. Declaring the same twice changes nothing, so it may be repeated."""
    request = pb.AddModelsRequest(models=[model_spec_to_proto(model) for model in models])

    def read(response: pb.AddModelsResponse) -> tuple[ModelId, ...]:
        return tuple(ModelId(name) for name in bounds.names("changed", response.changed, limits.MODELS_MAX))

    return Call(service=OPERATOR, method="AddModels", request=request, read=read, repeatable=True)


def models_list() -> Call[tuple[ModelView, ...]]:
    """All models."""

    def read(response: pb.ListModelsResponse) -> tuple[ModelView, ...]:
        return bounds.each("models", response.models, limits.MODELS_MAX, _model_view)

    return Call(service=OPERATOR, method="ListModels", request=pb.ListModelsRequest(), read=read, repeatable=True)


def models_get(model_id: str) -> Call[ModelView]:
    """One model."""
    request = pb.GetModelRequest(model_id=argument(parse_name, "model_id", model_id))
    return Call(service=OPERATOR, method="GetModel", request=request, read=_model_view, repeatable=True)


def models_remove(model_id: str, reason: str) -> Call[ModelId]:
    """Forget a model."""
    request = pb.RemoveModelRequest(model_id=argument(parse_name, "model_id", model_id), reason=_reason(reason))

    def read(response: pb.RemoveModelResponse) -> ModelId:
        return ModelId(parse_name("model_id", response.model_id))

    return Call(service=OPERATOR, method="RemoveModel", request=request, read=read, repeatable=False)


def fleet() -> Call[FleetView]:
    """The fleet in one look."""
    return Call(service=OPERATOR, method="GetFleet", request=pb.GetFleetRequest(), read=fleet_view_from_proto, repeatable=True)


def orchestrators() -> Call[tuple[OrchestratorView, ...]]:
    """Who leads and who stands by."""

    def read(response: pb.ListOrchestratorsResponse) -> tuple[OrchestratorView, ...]:
        return bounds.each("orchestrators", response.orchestrators, limits.ORCHESTRATORS_MAX, orchestrator_view_from_proto)

    request = pb.ListOrchestratorsRequest()
    return Call(service=OPERATOR, method="ListOrchestrators", request=request, read=read, repeatable=True)


def policy() -> Call[PolicyInUse]:
    """By which figures places are chosen."""

    def read(response: pb.GetPolicyResponse) -> PolicyInUse:
        return PolicyInUse(name=bounds.label("name", response.name), digest=bounds.label("digest", response.digest), text=response.text)

    return Call(service=OPERATOR, method="GetPolicy", request=pb.GetPolicyRequest(), read=read, repeatable=True)


def residuals(component: str, site_id: str, model_id: str) -> Call[Residuals]:
    """What was learned of the estimates."""
    request = pb.ListResidualsRequest(
        component=_component(component), site_id=_site(site_id) if site_id else "", model_id=_optional_name("model_id", model_id)
    )

    def read(response: pb.ListResidualsResponse) -> Residuals:
        return Residuals(
            residuals=residuals_from_proto(response), truncated=response.truncated, now_us=bounds.instant("now_us", response.now_us)
        )

    return Call(service=OPERATOR, method="ListResiduals", request=request, read=read, repeatable=True)


def calibration() -> Call[Calibration]:
    """Whether predictions may be believed."""
    request = pb.GetCalibrationRequest()
    return Call(service=OPERATOR, method="GetCalibration", request=request, read=calibration_from_proto, repeatable=True)


def estimates_reset(component: str, site_id: str, reason: str) -> Call[Calibration]:
    """Forget what was learned. A repeat would forget what was learned since."""
    request = pb.ResetEstimatesRequest(component=_component(component), site_id=_site(site_id) if site_id else "", reason=_reason(reason))
    return Call(service=OPERATOR, method="ResetEstimates", request=request, read=calibration_from_proto, repeatable=False)


def _component(component: str) -> str:
    def named(field: str, value: str) -> str:
        component_from_text(field, value)
        return value

    return argument(named, "component", component)


def _optional_name(field: str, value: str) -> str:
    return argument(parse_name, field, value) if value else ""


def events(after_seq: int, limit: int, *, follow: bool) -> Stream[AuditEvent]:
    """The audit after a number, at most the last so many lines of it (0: all); with `follow` it stays open."""
    most = whole("limit", limit, 0, limits.AUDIT_LINES_MAX)

    def request_after(seq: int) -> pb.EventsRequest:
        # Where the stream breaks off all that came meanwhile is wanted.
        return pb.EventsRequest(after_seq=seq, follow=follow, limit=most if seq == after_seq else 0)

    def read(message: types_pb2.AuditEvent) -> AuditEvent | None:
        return audit_event_from_proto(message) if message.seq else None

    return Stream(service=OPERATOR, method="Events", request_after=request_after, read=read, position=_event_position)


def _event_position(message: types_pb2.AuditEvent) -> Position:
    return Position(seq=message.seq, complete=True)


def backup(path: str) -> Call[BackedUp]:
    """Copy the store to a new file on the orchestrator's machine."""

    def read(response: pb.BackupResponse) -> BackedUp:
        return BackedUp(path=response.path, bytes=bounds.number("bytes", response.bytes, 0, limits.BYTES_MAX))

    return Call(service=OPERATOR, method="Backup", request=pb.BackupRequest(path=path), read=read, repeatable=False)


def _site(value: str) -> str:
    return argument(parse_name, "site_id", value)


def _reason(value: str) -> str:
    return argument(checked_reason, "reason", value)


def _note(value: str) -> str:
    """A reason where none is demanded."""
    return argument(bounds.label, "reason", value)


def _sites(field: str, names: Sequence[str]) -> tuple[SiteId, ...]:
    return tuple(SiteId(name) for name in bounds.names(field, names, limits.SITES_MAX))


def _model_view(message: pb.ModelView) -> ModelView:
    return ModelView(
        spec=bounds.part("spec", message.spec, model_spec_from_proto),
        warm_sites=_sites("warm_sites", message.warm_sites),
        warm_replicas=bounds.number("warm_replicas", message.warm_replicas, 0, bounds.COUNT_MAX),
        jobs_queued=bounds.number("jobs_queued", message.jobs_queued, 0, bounds.COUNT_MAX),
    )
