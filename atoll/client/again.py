"""A job that ended without a result, asked for once more.

Decides which jobs are dead letters, and that a second asking for the same job is the same new one. Must not know why the first one failed.
"""

from __future__ import annotations

from typing import Final

from atoll.client.requests import JobRequest
from atoll.model.job import Job, JobState

# Ended, with nothing to show, and nobody asked for that.
DEAD: Final = frozenset({JobState.FAILED, JobState.EXPIRED})
# What may be asked for again: one that was cancelled was perhaps so in error.
REPEATABLE: Final = DEAD | {JobState.CANCELLED}


def again(job: Job) -> JobRequest:
    """The same job as a new request: same seed, shape, inputs and limits, which count from its own acceptance.

    Its idempotency key is made of the old job's id, so however often and by whomever it is asked for again, it is one new job. What
    failed twice is asked for again by the id of the second. Inputs must still be there: the orchestrator forgets them after
    `--input-retention-hours`.
    """
    spec, shape = job.spec, job.spec.shape
    return JobRequest(
        model=spec.model_id,
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        seed=spec.seed,
        width=shape.width,
        height=shape.height,
        frames=shape.frames,
        steps=shape.steps,
        cfg_passes=shape.cfg_passes,
        batch=shape.batch,
        guidance=spec.guidance_milli / 1_000 if spec.guidance_milli else None,
        precision=spec.precision,
        priority=spec.priority,
        deadline_ms=spec.deadline_ms,
        start_timeout_ms=spec.start_timeout_ms,
        tenant=spec.tenant,
        sites=spec.constraints.sites,
        regions=spec.constraints.regions,
        gpu_types=spec.constraints.gpu_types,
        max_price_usd=spec.constraints.max_price_usd_micros / 1_000_000 if spec.constraints.max_price_usd_micros else None,
        adapters=spec.adapters,
        image=spec.image,
        strength=spec.strength_milli / 1_000 if spec.image is not None else None,
        gang_size=spec.gang_size,
        origin_site=spec.origin_site or "",
        simulated=spec.simulated,
        idempotency_key=f"again/{job.job_id}",
    )
