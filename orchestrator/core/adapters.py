"""Adapters: LoRAs that jobs may name on top of a model. Adding, replacing and removing them; where they are.

Decides what becomes of jobs whose adapter goes. Must not know how an adapter is fetched or loaded.
"""

from __future__ import annotations

from atoll.model import limits
from atoll.model.adapter import AdapterUsage
from atoll.model.attempt import Failure, FailureKind
from atoll.model.ids import AdapterId, SiteId
from atoll.model.job import JobState
from orchestrator.core import jobs
from orchestrator.core.context import Context
from orchestrator.core.events import AdapterRemoved, AdaptersAdded
from orchestrator.core.outputs import DeleteAdapter, Done, PublishAdapter, PublishAdapterRemoved, PutAdapter, Refusal, RefusalCode
from orchestrator.core.state import Site, State


def added(ctx: Context, event: AdaptersAdded) -> None:
    """Add or replace adapters; what is equal already stays untouched."""
    state = ctx.state
    new = sum(1 for adapter in event.adapters if adapter.adapter_id not in state.adapters)
    if len(state.adapters) + new > limits.ADAPTERS_IN_FLEET_MAX:
        message = f"a fleet has at most {limits.ADAPTERS_IN_FLEET_MAX} adapters"
        ctx.answer(event.request, Refusal(code=RefusalCode.QUOTA, field="adapters", message=message))
        return
    changed: list[str] = []
    for adapter in event.adapters:
        if state.adapters.get(adapter.adapter_id) == adapter:
            continue
        state.adapters[adapter.adapter_id] = adapter
        changed.append(adapter.adapter_id)
        ctx.records.append(PutAdapter(adapter=adapter))
        ctx.commands.append(PublishAdapter(adapter=adapter))
    if changed:
        detail = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        subject = f"adapter/{changed[0]}" if len(changed) == 1 else "adapters"
        ctx.audit("adapters_added", subject, actor=event.actor, detail=detail)
    ctx.answer(event.request, Done(changed=tuple(changed)))


def removed(ctx: Context, event: AdapterRemoved) -> None:
    """Forget an adapter: jobs waiting for it fail, running ones end. Copies on disks give way to what is wanted later."""
    if event.adapter_id not in ctx.state.adapters:
        ctx.refuse(event.request, RefusalCode.NOT_FOUND, f"no adapter {event.adapter_id!r}", "adapter_id")
        return
    message = f"adapter {event.adapter_id} was removed: {event.reason}"
    waiting = [entry for entry in ctx.state.jobs.values() if entry.job.spec.adapters and entry.job.state is JobState.QUEUED]
    for entry in waiting:
        if any(use.adapter_id == event.adapter_id for use in entry.job.spec.adapters):
            jobs.end(ctx, entry, JobState.FAILED, failure=Failure(kind=FailureKind.BAD_INPUT, message=message))
    del ctx.state.adapters[event.adapter_id]
    ctx.records.append(DeleteAdapter(adapter_id=event.adapter_id))
    ctx.commands.append(PublishAdapterRemoved(adapter_id=event.adapter_id))
    ctx.audit("adapter_removed", f"adapter/{event.adapter_id}", actor=event.actor, reason=event.reason)
    ctx.answer(event.request, Done(changed=(event.adapter_id,)))


def usage(state: State) -> dict[AdapterId, AdapterUsage]:
    """Where every adapter that is somewhere is now: one look at each slot and disk, so one call serves a whole list."""
    loaded: dict[AdapterId, dict[SiteId, int]] = {}
    on_disk: dict[AdapterId, set[SiteId]] = {}
    for site in state.sites.values():
        for adapter_id in _loaded_at(site):
            counts = loaded.setdefault(adapter_id, {})
            counts[site.site_id] = counts.get(site.site_id, 0) + 1
        for pool in site.pools.values():
            for node in pool.nodes:
                for adapter_id in node.disk_adapters:
                    on_disk.setdefault(adapter_id, set()).add(site.site_id)
    return {
        adapter_id: AdapterUsage(
            loaded_sites=tuple(sorted(loaded.get(adapter_id, {}))),
            loaded_replicas=sum(loaded.get(adapter_id, {}).values()),
            disk_sites=tuple(sorted(on_disk.get(adapter_id, ()))),
        )
        for adapter_id in sorted(loaded.keys() | on_disk.keys())
    }


def _loaded_at(site: Site) -> list[AdapterId]:
    """Once for each replica of the site that holds it."""
    slots = (slot for pool in site.pools.values() for node in pool.nodes for slot in node.slots)
    return [adapter_id for slot in slots for replica in slot.replicas.values() for adapter_id in replica.adapters]
