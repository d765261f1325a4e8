"""Records -> what is put and deleted.

Decides which keys a record touches. Must not know transactions, their limits, or who leads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from atoll.model.ids import JobId
from atoll.model.job import Job
from atoll.wire import stored
from orchestrator.core.ends import applied
from orchestrator.store.changes import Changes
from orchestrator.store.etcd.index import Entry, JobIndex, Plan
from orchestrator.store.etcd.layout import PART_BYTES, EndedValue, Layout, PolicyValue, encode, encode_ended, numbered
from orchestrator.store.etcd.operations import Change, Delete, Put, end_of


def awaited(changes: Changes, index: JobIndex) -> list[JobId]:
    """Terminal jobs that must be read before the changes can be made: an attempt of theirs ends."""
    ending = dict.fromkeys(end.key.job_id for end in changes.ends if end.key.job_id not in changes.jobs)
    return [job_id for job_id in ending if (entry := index.get(job_id)) is not None and entry.stopping]


def operations(layout: Layout, plan: Plan, changes: Changes, stopping: Mapping[JobId, Job], wall_ms: int) -> list[Change]:
    """Everything that is to be written, no key twice. `stopping`: the jobs that were awaited."""
    return [
        *_jobs(layout, plan, changes, stopping),
        *_nouns(layout, changes),
        *_learned(layout, changes, wall_ms),
        *(Put(layout.audit_line(event.seq), numbered(wall_ms, stored.encode_audit(event))) for event in changes.audit),
    ]


def _jobs(layout: Layout, plan: Plan, changes: Changes, stopping: Mapping[JobId, Job]) -> Iterator[Change]:
    before: dict[JobId, Entry | None] = {}
    jobs = dict(changes.jobs)
    for job_id, job in jobs.items():
        before[job_id] = plan.entry(job_id)
        plan.put(job_id, job)
    for end in changes.ends:
        job_id = end.key.job_id
        known = jobs.get(job_id) or stopping.get(job_id)
        over = applied(known, end) if known is not None else None
        if over is not None:
            before.setdefault(job_id, plan.entry(job_id))
            jobs[job_id] = over
            plan.put(job_id, over)
    for job_id, entry in plan.entries.items():
        written = jobs.get(job_id)
        if written is None:
            # Its key went to a younger job; itself it stays as it is.
            yield _ended(layout, job_id, entry)
            continue
        puts = list(_kept(layout, job_id, entry, written))
        yield from puts
        yield from _left(layout, job_id, before[job_id], {put.key for put in puts})


def _kept(layout: Layout, job_id: JobId, entry: Entry, job: Job) -> Iterator[Put]:
    blob = stored.encode_job(job)
    if entry.live:
        yield Put(layout.live_job(job_id), numbered(entry.n, blob))
    else:
        yield Put(layout.done_job(job_id), blob)
        yield _ended(layout, job_id, entry)


def _ended(layout: Layout, job_id: JobId, entry: Entry) -> Put:
    value = EndedValue(
        n=entry.n,
        tenant=entry.tenant,
        key=entry.key,
        payload_digest=entry.payload_digest,
        state=entry.state.value,
        stopping=entry.stopping,
    )
    return Put(layout.ended_job(entry.ended_us, job_id), encode_ended(value))


def _left(layout: Layout, job_id: JobId, before: Entry | None, kept: set[bytes]) -> Iterator[Delete]:
    """Where the job was before, and is no more."""
    if before is not None:
        yield from (delete for delete in forgotten(layout, job_id, before) if delete.key not in kept)


def forgotten(layout: Layout, job_id: JobId, entry: Entry) -> tuple[Delete, ...]:
    """All that is kept of a job, deleted."""
    if entry.live:
        return (Delete(layout.live_job(job_id)),)
    return (Delete(layout.done_job(job_id)), Delete(layout.ended_job(entry.ended_us, job_id)))


def _nouns(layout: Layout, changes: Changes) -> Iterator[Change]:
    for site_id, site in changes.sites.items():
        yield _put_or_delete(layout.site(site_id), None if site is None else stored.encode_site(site))
    for model_id, model in changes.models.items():
        yield _put_or_delete(layout.model(model_id), None if model is None else stored.encode_model(model))
    for adapter_id, adapter in changes.adapters.items():
        yield _put_or_delete(layout.adapter(adapter_id), None if adapter is None else stored.encode_adapter(adapter))
    for place, pin in changes.pins.items():
        yield _put_or_delete(layout.pin(*place), None if pin is None else stored.encode_pin(pin))
    for model_id, push in changes.pushes.items():
        yield _put_or_delete(layout.push(model_id), None if push is None else stored.encode_push(push))
    if changes.links is not None:
        yield from _parts(layout, layout.links, stored.encode_links(changes.links))
    if changes.policy is not None:
        yield Put(layout.policy, encode(PolicyValue(name=changes.policy.name, digest=changes.policy.digest)))


def _learned(layout: Layout, changes: Changes, wall_ms: int) -> Iterator[Change]:
    if changes.estimates is not None:
        yield from _parts(layout, layout.estimates, stored.encode_estimates(changes.estimates))
    if changes.demand is not None:
        yield from _parts(layout, layout.demand, numbered(wall_ms, stored.encode_demand(changes.demand)))


def _put_or_delete(key: bytes, blob: bytes | None) -> Change:
    return Delete(key) if blob is None else Put(key, blob)


def _parts(layout: Layout, folder: bytes, blob: bytes) -> Iterator[Change]:
    """A value that may be larger than a request, in parts; those of a longer one before it go."""
    parts = [blob[start : start + PART_BYTES] for start in range(0, len(blob), PART_BYTES)]
    for number, part in enumerate(parts):
        yield Put(layout.part(folder, number), part)
    yield Delete(layout.part(folder, len(parts)), end_of(folder))
