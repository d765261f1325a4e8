"""Jobs as they are shown, for tests of texts: one that waits, one that is done, and the places between which it was decided."""

from __future__ import annotations

from dataclasses import replace

from atoll.model.attempt import Artifact, Attempt, AttemptState, PhaseTimes, ResultManifest
from atoll.model.ids import AttemptKey, JobId, ModelId, NodeId, Ordinal, PoolId, SiteId, SlotRef, TenantId
from atoll.model.job import Constraints, Job, JobSpec, JobState
from atoll.model.placement import Candidate, Deferral, Evicted, Explanation, Reason, Rejection
from atoll.model.shape import Shape

SPEC = JobSpec(
    tenant=TenantId("default"),
    model_id=ModelId("flux1-dev"),
    prompt="a lighthouse",
    seed=7,
    shape=Shape(width=1024, height=768, steps=28, cfg_passes=1),
    constraints=Constraints(regions=("Tokyo",)),
)
QUEUED = Job(
    job_id=JobId("j-1"),
    spec=SPEC,
    state=JobState.QUEUED,
    idempotency_key="k",
    payload_digest="",
    request_id="r",
    accepted_us=1_000_000,
    deferral=Deferral(
        since_us=1_000_000,
        until_us=5_000_000,
        waits_for=None,
        rejections=(Rejection(reason=Reason.SIMULATED_SITE, pools=62), Rejection(reason=Reason.MEMORY_TOO_SMALL, pools=1)),
    ),
)
TERMS = ("queue", "fetch", "stage", "execution", "money", "overlap")
CHOSEN = Candidate(
    site_id=SiteId("tokyo-1"),
    pool_id=PoolId("h100"),
    total_us=9_500_000,
    terms_us=(0, 2_000_000, 3_000_000, 4_000_000, 500_000, 0),
    cold=True,
)
OTHER = Candidate(
    site_id=SiteId("osaka-1"),
    pool_id=PoolId("l4"),
    total_us=61_000_000,
    terms_us=(1_000_000, 0, 0, 60_000_000, 0, 0),
    cold=False,
    wait_us=2_000_000,
)
DONE = replace(
    QUEUED,
    state=JobState.SUCCEEDED,
    ended_us=13_000_000,
    deferral=None,
    attempts=(
        Attempt(
            key=AttemptKey(job_id=JobId("j-1"), ordinal=Ordinal(1)),
            site_id=SiteId("tokyo-1"),
            slot=SlotRef(pool_id=PoolId("h100"), node_id=NodeId("h100-3"), index=2),
            state=AttemptState.SUCCEEDED,
            cold=True,
            leased_us=2_000_000,
            predicted_us=10_000_000,
            ended_us=13_000_000,
            times=PhaseTimes(waiting_us=100_000, fetch_us=2_500_000, load_us=3_000_000, run_us=5_000_000, upload_us=400_000),
            explanation=Explanation(
                decided_us=2_000_000,
                policy="default",
                term_names=TERMS,
                chosen=CHOSEN,
                node_id=NodeId("h100-3"),
                others=(OTHER,),
                rejections=(Rejection(reason=Reason.CORDONED, pools=2),),
                evicted=(Evicted(model_id=ModelId("sdxl"), price_us=1_500_000, memory_bytes=7_000_000_000),),
                deferrals=1,
                queued_us=1_000_000,
                weights_bytes=24_000_000_000,
                p50_us=10_000_000,
                p90_us=20_000_000,
            ),
        ),
    ),
    result=ResultManifest(
        key=AttemptKey(job_id=JobId("j-1"), ordinal=Ordinal(1)),
        artifacts=(Artifact(name="0.png", media_type="image/png", bytes=1_234_567, digest="sha256:" + "a" * 64),),
        seed=7,
        simulated=False,
    ),
)
