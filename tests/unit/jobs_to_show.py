"""Jobs as they are shown, for tests of texts: one that waits, one that is done, and the places between which it was decided."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.cli import explain
from atoll.model.attempt import Artifact, Attempt, AttemptState, PhaseTimes, ResultManifest
from atoll.model.ids import AttemptKey, JobId, ModelId, NodeId, Ordinal, PoolId, SiteId, SlotRef, TenantId
from atoll.model.job import Constraints, Job, JobSpec, JobState
from atoll.model.placement import Candidate, Deferral, Evicted, Explanation, Reason, Rejection
from atoll.model.quote import Eta, Quote, Verdict
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
REJECTED = (Rejection(reason=Reason.SIMULATED_SITE, pools=62), Rejection(reason=Reason.MEMORY_TOO_SMALL, pools=1))
# Now is second 3. Free in two seconds, done in six; cold it would take nine.
WAITS = Quote(
    at_us=3_000_000,
    verdict=Verdict.WAITS,
    policy="default",
    term_names=TERMS,
    chosen=replace(OTHER, total_us=6_000_000, terms_us=(2_000_000, 0, 0, 4_000_000, 0, 0)),
    others=(CHOSEN,),
    rejections=REJECTED,
    weights_bytes=24_000_000_000,
    predicted_us=6_000_000,
    ahead=2,
    queue_length=9,
    turn_us=1_500_000,
    eta=Eta(begin_p50_us=6_500_000, begin_p90_us=10_000_000, end_p50_us=10_500_000, end_p90_us=18_000_000),
    gpu_usd_micros=4_400,
)
GOES = replace(
    WAITS, verdict=Verdict.NOW, chosen=CHOSEN, others=(OTHER,), ahead=0, queue_length=0, turn_us=0, egress_usd_micros=1_200,
    evicted=DONE.attempts[0].explanation.evicted if DONE.attempts[0].explanation else (), predicted_us=9_000_000,
    eta=Eta(begin_p50_us=8_000_000, begin_p90_us=13_000_000, end_p50_us=12_000_000, end_p90_us=21_000_000),
)  # fmt: skip
NOWHERE = replace(
    WAITS, verdict=Verdict.NEVER, chosen=None, others=(), eta=None, predicted_us=0, turn_us=0, gpu_usd_micros=0, ahead=0,
    queue_length=0,
)  # fmt: skip
CORDONED = replace(
    NOWHERE, verdict=Verdict.IMPOSSIBLE, rejections=(*REJECTED, Rejection(reason=Reason.CORDONED, pools=2)),
)  # fmt: skip
(FIRST,) = DONE.attempts


def story_of(capsys: pytest.CaptureFixture[str], job: Job, **moment: object) -> list[str]:
    """The sentences below the heading, up to the first table."""
    explain.show(explain.Moment(job=job, now_us=3_000_000, **moment))  # type: ignore[arg-type]  # the caller names fields
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    return [line.strip() for line in lines[2:] if line.strip()]


def live(state: AttemptState, **changes: object) -> Job:
    attempt = replace(FIRST, state=state, ended_us=0, **changes)  # type: ignore[arg-type]  # as above
    return replace(DONE, state=JobState.RUNNING if attempt.running_us else JobState.PLACED, ended_us=0, result=None, attempts=(attempt,))
