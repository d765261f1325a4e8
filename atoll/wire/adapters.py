"""Adapters <-> messages. Operators add adapters over the wire, so sizes, paths and digests are checked."""

from __future__ import annotations

from atoll.model import limits
from atoll.model.adapter import AdapterSpec, AdapterUsage
from atoll.model.ids import AdapterId, ModelId, SiteId, parse_name
from atoll.v1 import operator_service_pb2 as operator_pb
from atoll.v1 import types_pb2 as pb
from atoll.wire import bounds


def adapter_spec_to_proto(adapter: AdapterSpec) -> pb.AdapterSpec:
    """One adapter."""
    return pb.AdapterSpec(
        adapter_id=adapter.adapter_id,
        title=adapter.title,
        model_ids=adapter.model_ids,
        family=adapter.family,
        rank=adapter.rank,
        weights_bytes=adapter.weights_bytes,
        weights_digest=adapter.weights_digest,
        origin_path=adapter.origin_path,
        source=adapter.source,
    )


def adapter_spec_from_proto(msg: pb.AdapterSpec) -> AdapterSpec:
    """FieldError naming the figure that cannot be. Whether the models exist is not decided here."""
    models = bounds.names("model_ids", msg.model_ids, limits.ADAPTER_MODELS_MAX)
    return AdapterSpec(
        adapter_id=AdapterId(parse_name("adapter_id", msg.adapter_id)),
        title=bounds.label("title", msg.title),
        model_ids=tuple([ModelId(name) for name in models]),
        family=bounds.label("family", msg.family),
        rank=msg.rank,
        weights_bytes=msg.weights_bytes,
        weights_digest=bounds.optional_digest("weights_digest", msg.weights_digest),
        origin_path=bounds.relative_path("origin_path", msg.origin_path),
        source=bounds.label("source", msg.source, bounds.MESSAGE_CHARS),
    ).check()


def adapter_view_to_proto(adapter: AdapterSpec, usage: AdapterUsage) -> operator_pb.AdapterView:
    """An adapter, and where it is now."""
    return operator_pb.AdapterView(
        spec=adapter_spec_to_proto(adapter),
        loaded_sites=usage.loaded_sites,
        loaded_replicas=usage.loaded_replicas,
        disk_sites=usage.disk_sites,
    )


def adapter_view_from_proto(msg: operator_pb.AdapterView) -> tuple[AdapterSpec, AdapterUsage]:
    """FieldError naming the figure that cannot be."""
    return bounds.part("spec", msg.spec, adapter_spec_from_proto), AdapterUsage(
        loaded_sites=tuple([SiteId(name) for name in bounds.names("loaded_sites", msg.loaded_sites, limits.SITES_MAX)]),
        loaded_replicas=bounds.number("loaded_replicas", msg.loaded_replicas, 0, bounds.COUNT_MAX),
        disk_sites=tuple([SiteId(name) for name in bounds.names("disk_sites", msg.disk_sites, limits.SITES_MAX)]),
    )
