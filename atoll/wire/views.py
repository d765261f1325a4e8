"""What readers see of sites and the fleet <-> messages."""

from __future__ import annotations

from typing import Final

from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import JobId, ModelId, PoolId, SiteId, parse_gpu_type, parse_name
from atoll.model.report import RateFacts
from atoll.model.views import Alarm, AlarmKind, DrainMove, DrainPlan, FleetView, PoolView, SiteView
from atoll.v1 import operator_service_pb2 as operator_pb
from atoll.v1 import types_pb2 as pb
from atoll.wire import bounds
from atoll.wire.assignments import ATTEMPTS_MAX
from atoll.wire.enums import (
    SITE_ADMIN_FROM,
    SITE_ADMIN_TO,
    SITE_CONNECTION_FROM,
    SITE_CONNECTION_TO,
    SITE_RUNTIME_FROM,
    SITE_RUNTIME_TO,
    member,
)
from atoll.wire.reports import TIME_SCALE_MILLI_MAX
from atoll.wire.sites import drain_from_proto, drain_to_proto, site_spec_from_proto, site_spec_to_proto

_ALARMS: Final = {kind.value: kind for kind in AlarmKind}
ACTIONS: Final = ("wait", "move", "stop_at_deadline")


def _count(field: str, value: int) -> int:
    return bounds.number(field, value, 0, bounds.COUNT_MAX)


def _rate(field: str, value: int) -> int:
    return bounds.number(field, value, 0, limits.RATE_BYTES_PER_S_MAX)


def pool_view_to_proto(view: PoolView) -> pb.PoolView:
    """A pool as it is now."""
    return pb.PoolView(
        pool_id=view.pool_id,
        gpu_type=view.gpu_type,
        nodes=view.nodes,
        slots=view.slots,
        slots_used=view.slots_used,
        attempts=view.attempts,
        warm=view.warm,
        usd_micros_per_gpu_hour=view.usd_micros_per_gpu_hour,
        closed_until_us=view.closed_until_us,
        disk_bytes_per_s=view.disk_bytes_per_s,
        h2d_bytes_per_s=view.h2d_bytes_per_s,
    )


def pool_view_from_proto(msg: pb.PoolView) -> PoolView:
    """FieldError naming the figure that cannot be."""
    return PoolView(
        pool_id=PoolId(parse_name("pool_id", msg.pool_id)),
        gpu_type=parse_gpu_type("gpu_type", msg.gpu_type),
        nodes=_count("nodes", msg.nodes),
        slots=_count("slots", msg.slots),
        slots_used=_count("slots_used", msg.slots_used),
        attempts=_count("attempts", msg.attempts),
        warm=tuple([ModelId(name) for name in bounds.names("warm", msg.warm, limits.MODELS_MAX)]),
        usd_micros_per_gpu_hour=_count("usd_micros_per_gpu_hour", msg.usd_micros_per_gpu_hour),
        closed_until_us=bounds.instant("closed_until_us", msg.closed_until_us),
        disk_bytes_per_s=_rate("disk_bytes_per_s", msg.disk_bytes_per_s),
        h2d_bytes_per_s=_rate("h2d_bytes_per_s", msg.h2d_bytes_per_s),
    )


def measured_to_proto(rates: RateFacts) -> pb.MeasuredRates:
    """What a site measured, for readers."""
    return pb.MeasuredRates(
        disk_bytes_per_s=rates.disk_bytes_per_s,
        h2d_bytes_per_s=rates.h2d_bytes_per_s,
        origin_bytes_per_s=rates.origin_bytes_per_s,
        disk_transfers=rates.disk_transfers,
        h2d_transfers=rates.h2d_transfers,
        origin_transfers=rates.origin_transfers,
    )


def measured_from_proto(msg: pb.MeasuredRates) -> RateFacts:
    """FieldError naming the figure that cannot be."""
    return RateFacts(
        disk_bytes_per_s=_rate("disk_bytes_per_s", msg.disk_bytes_per_s),
        h2d_bytes_per_s=_rate("h2d_bytes_per_s", msg.h2d_bytes_per_s),
        origin_bytes_per_s=_rate("origin_bytes_per_s", msg.origin_bytes_per_s),
        disk_transfers=_count("disk_transfers", msg.disk_transfers),
        h2d_transfers=_count("h2d_transfers", msg.h2d_transfers),
        origin_transfers=_count("origin_transfers", msg.origin_transfers),
    )


def site_view_to_proto(view: SiteView) -> pb.SiteView:
    """A site as it is now; a connection or runtime that is not known is unspecified."""
    return pb.SiteView(
        spec=site_spec_to_proto(view.spec),
        admin=SITE_ADMIN_TO[view.admin],
        connection=SITE_CONNECTION_TO[view.connection] if view.connection else pb.SITE_CONNECTION_UNSPECIFIED,
        runtime=SITE_RUNTIME_TO[view.runtime] if view.runtime else pb.SITE_RUNTIME_UNSPECIFIED,
        reason=bounds.line(view.reason),
        drain=None if view.drain is None else drain_to_proto(view.drain),
        pools=[pool_view_to_proto(pool) for pool in view.pools],
        live_attempts=view.live_attempts,
        last_report_us=view.last_report_us,
        agent_version=view.agent_version,
        measured=None if view.measured is None else measured_to_proto(view.measured),
    )


def site_view_from_proto(msg: pb.SiteView) -> SiteView:
    """FieldError naming the figure that cannot be."""
    return SiteView(
        spec=bounds.part("spec", msg.spec, site_spec_from_proto),
        admin=member("admin", SITE_ADMIN_FROM, msg.admin),
        connection=member("connection", SITE_CONNECTION_FROM, msg.connection) if msg.connection else None,
        runtime=member("runtime", SITE_RUNTIME_FROM, msg.runtime) if msg.runtime else None,
        reason=bounds.line(msg.reason),
        drain=bounds.part("drain", msg.drain, drain_from_proto) if msg.HasField("drain") else None,
        pools=bounds.each("pools", msg.pools, limits.POOLS_PER_SITE_MAX, pool_view_from_proto),
        live_attempts=_count("live_attempts", msg.live_attempts),
        last_report_us=bounds.instant("last_report_us", msg.last_report_us),
        agent_version=bounds.label("agent_version", msg.agent_version),
        measured=bounds.part("measured", msg.measured, measured_from_proto) if msg.HasField("measured") else None,
    )


def drain_move_to_proto(move: DrainMove) -> operator_pb.DrainMove:
    """What a drain would do to one attempt."""
    return operator_pb.DrainMove(job_id=move.job_id, action=move.action, ends_us=move.ends_us, to_site=move.to_site or "")


def drain_move_from_proto(msg: operator_pb.DrainMove) -> DrainMove:
    """FieldError naming the figure that cannot be."""
    if msg.action not in ACTIONS:
        raise FieldError("action", msg.action, f"one of {', '.join(ACTIONS)}")
    return DrainMove(
        job_id=JobId(parse_name("job_id", msg.job_id)),
        action=msg.action,
        ends_us=bounds.instant("ends_us", msg.ends_us),
        to_site=SiteId(parse_name("to_site", msg.to_site)) if msg.to_site else None,
    )


def drain_plan_to_proto(plan: DrainPlan) -> operator_pb.DrainPlan:
    """The prediction of a drain."""
    return operator_pb.DrainPlan(
        site_id=plan.site_id,
        deadline_us=plan.deadline_us,
        predicted_end_us=plan.predicted_end_us,
        moves=[drain_move_to_proto(move) for move in plan.moves],
        last_warm=plan.last_warm,
    )


def drain_plan_from_proto(msg: operator_pb.DrainPlan) -> DrainPlan:
    """FieldError naming the figure that cannot be."""
    return DrainPlan(
        site_id=SiteId(parse_name("site_id", msg.site_id)),
        deadline_us=bounds.instant("deadline_us", msg.deadline_us),
        predicted_end_us=bounds.instant("predicted_end_us", msg.predicted_end_us),
        moves=bounds.each("moves", msg.moves, ATTEMPTS_MAX, drain_move_from_proto),
        last_warm=tuple([ModelId(name) for name in bounds.names("last_warm", msg.last_warm, limits.MODELS_MAX)]),
    )


def fleet_view_to_proto(view: FleetView) -> operator_pb.FleetView:
    """The fleet in one look."""
    return operator_pb.FleetView(
        fleet_id=view.fleet_id,
        term=view.term,
        now_us=view.now_us,
        time_scale_milli=view.time_scale_milli,
        sites=view.sites,
        sites_connected=view.sites_connected,
        gpus=view.gpus,
        gpus_used=view.gpus_used,
        jobs_queued=view.jobs_queued,
        jobs_live=view.jobs_live,
        jobs_ended=view.jobs_ended,
        policy=view.policy,
        policy_digest=view.policy_digest,
        alarms=[operator_pb.Alarm(kind=one.kind.value, subject=one.subject, since_us=one.since_us, jobs=one.jobs) for one in view.alarms],
    )


def fleet_view_from_proto(msg: operator_pb.FleetView) -> FleetView:
    """FieldError naming the figure that cannot be."""
    return FleetView(
        fleet_id=parse_name("fleet_id", msg.fleet_id),
        term=_count("term", msg.term),
        now_us=bounds.instant("now_us", msg.now_us),
        time_scale_milli=bounds.number("time_scale_milli", msg.time_scale_milli, 1, TIME_SCALE_MILLI_MAX),
        sites=_count("sites", msg.sites),
        sites_connected=_count("sites_connected", msg.sites_connected),
        gpus=_count("gpus", msg.gpus),
        gpus_used=_count("gpus_used", msg.gpus_used),
        jobs_queued=_count("jobs_queued", msg.jobs_queued),
        jobs_live=_count("jobs_live", msg.jobs_live),
        jobs_ended=_count("jobs_ended", msg.jobs_ended),
        policy=bounds.label("policy", msg.policy),
        policy_digest=bounds.label("policy_digest", msg.policy_digest),
        alarms=bounds.each("alarms", msg.alarms, limits.ALARMS_MAX, _alarm_from_proto),
    )


def _alarm_from_proto(msg: operator_pb.Alarm) -> Alarm:
    if msg.kind not in _ALARMS:
        raise FieldError("kind", msg.kind, f"one of {', '.join(_ALARMS)}")
    return Alarm(
        kind=_ALARMS[msg.kind],
        subject=bounds.label("subject", msg.subject),
        since_us=bounds.instant("since_us", msg.since_us),
        jobs=_count("jobs", msg.jobs),
    )
