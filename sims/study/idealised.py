"""The ideal as a result like any policy's: a row for each job and for each sample of a site, so that it stands beside them in every table.

Decides by which of its two rules the ideal is shown: the one with the smaller mean latency at this load. It does what no policy can:
nothing is loaded or sent, the times that are true in the world are known, and any slot takes any job at once. Must not know how results
are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from atoll.model.job import JobState
from atoll.model.site import PoolSpec, SiteConnection, SiteSpec
from sims.results.digest import RowsDigest
from sims.results.parquet import ResultWriter
from sims.results.rows import NEVER_US, REFUSED, JobRow, SiteRow
from sims.study.bounding import reckoner_of
from sims.study.ideal import IdealJob, IdealRun, Rule, ideal
from sims.study.loads import at_load
from sims.study.reckoning import Reckoner
from sims.study.running import Run, Study, metadata_of
from sims.traces.job import TraceJob, kind_of

NAME: Final = "ideal"
_HOUR_US: Final = 3_600_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pool:
    site: SiteSpec
    spec: PoolSpec
    usd_micros_per_hour: int


def carry_out_ideal(study: Study, seed: int, load_milli: int, folder: Path) -> None:
    """Its schedule in the world of this seed; the folder then has the result. Interrupted, it is as before."""
    reckoner = reckoner_of(study, seed)
    rule = min(Rule, key=lambda one: _waited_us(study, load_milli, reckoner, one))
    as_policy = metadata_of(study, Run(policy=study.scenario.policy, seed=seed, load_milli=load_milli))
    metadata = replace(as_policy, policy=NAME, policy_digest="")
    rows, digest = _Rows(study, reckoner), RowsDigest()
    with ResultWriter(folder, metadata) as writer:
        for job, reckoned, run in _schedule(study, load_milli, reckoner, rule):
            row = rows.job(job, reckoned, run)
            writer.job(row)
            digest.job(row)
        for sample in rows.sites():
            writer.site(sample)
            digest.site(sample)
        writer.finish(replace(metadata, simulated_us=rows.last_us, digest=digest.hexdigest()))


def _schedule(study: Study, load_milli: int, reckoner: Reckoner, rule: Rule) -> Iterator[tuple[TraceJob, IdealJob, IdealRun | None]]:
    """The trace is read twice side by side: a job is as it was when its run is known."""
    runs = ideal(map(reckoner.job, at_load(study.source.jobs(), study.trace, load_milli)), reckoner.slots, rule)
    for job, run in zip(at_load(study.source.jobs(), study.trace, load_milli), runs, strict=True):
        yield job, reckoner.job(job), run


def _waited_us(study: Study, load_milli: int, reckoner: Reckoner, rule: Rule) -> int:
    """From arrival to end, of all jobs that can be run together."""
    return sum(run.ended_us - job.arrival_us for job, _, run in _schedule(study, load_milli, reckoner, rule) if run is not None)


class _Rows:
    """Rows of jobs as they come, and afterwards the samples of sites that follow from them."""

    def __init__(self, study: Study, reckoner: Reckoner) -> None:
        scenario = study.scenario
        self._pools = {
            f"{site.site_id}/{pool.pool_id}": _Pool(
                site=site,
                spec=pool,
                usd_micros_per_hour=pool.usd_micros_per_gpu_hour or scenario.gpus[pool.gpu_type].usd_micros_per_hour,
            )
            for site in scenario.sites
            for pool in site.pools
        }
        self._sites = scenario.sites
        self._sample_us = scenario.sample_us
        self._reckoner = reckoner
        self._number = 0
        # By site and sample: slots that are busy from then on more than before.
        self._change: Counter[tuple[str, int]] = Counter()
        self.last_us = 0

    def job(self, job: TraceJob, reckoned: IdealJob, run: IdealRun | None) -> JobRow:
        pool = self._pools[run.gpu_type] if run is not None else None
        started_us, ended_us = (run.started_us, run.ended_us) if run is not None else (NEVER_US, NEVER_US)
        took_us = ended_us - started_us
        if pool is not None:
            self._change[pool.site.site_id, -(-started_us // self._sample_us)] += job.gang_size
            self._change[pool.site.site_id, -(-ended_us // self._sample_us)] -= job.gang_size
        self.last_us = max(self.last_us, ended_us, job.arrival_us)
        number, self._number = self._number, self._number + 1
        return JobRow(
            number=number,
            model_id=job.model_id,
            tenant=job.tenant,
            origin=job.origin,
            priority=job.priority.value,
            kind=kind_of(self._reckoner.shape_of(job)),
            gang_size=job.gang_size,
            arrival_us=job.arrival_us,
            placed_us=started_us,
            started_us=started_us,
            ended_us=ended_us,
            state=JobState.SUCCEEDED.value if run is not None else REFUSED,
            site_id=pool.site.site_id if pool is not None else "",
            pool_id=pool.spec.pool_id if pool is not None else "",
            gpu_type=pool.spec.gpu_type if pool is not None else "",
            attempts=int(run is not None),
            moves=0,
            cold=False,
            fetched=False,
            adapter_misses=0,
            predicted_us=ended_us - job.arrival_us if run is not None else 0,
            quoted_p90_us=0,
            queue_us=started_us - job.arrival_us if run is not None else 0,
            fetch_us=0,
            stage_us=0,
            init_us=0,
            compile_us=0,
            adapt_us=0,
            input_us=0,
            execution_us=took_us,
            output_us=0,
            deadline_ms=job.deadline_ms,
            deadline_missed=job.deadline_ms > 0 and (run is None or ended_us - job.arrival_us > job.deadline_ms * 1_000),
            ideal_execution_us=min(reckoned.execution_us.values(), default=0),
            price_usd_micros=took_us * job.gang_size * pool.usd_micros_per_hour // _HOUR_US if pool is not None else 0,
        )

    def sites(self) -> Iterator[SiteRow]:
        """A row for each site and sample; what stands empty costs as well."""
        busy: Counter[str] = Counter()
        for sample in range(-(-self.last_us // self._sample_us) + 1):
            for site in self._sites:
                busy[site.site_id] += self._change.get((site.site_id, sample), 0)
                if not sample:
                    continue
                pools = [pool for pool in self._pools.values() if pool.site is site]
                cost = sum(pool.spec.slots * self._sample_us * pool.usd_micros_per_hour // _HOUR_US for pool in pools)
                yield SiteRow(
                    at_us=sample * self._sample_us,
                    site_id=site.site_id,
                    slots=sum(pool.spec.slots for pool in pools),
                    slots_busy=busy[site.site_id],
                    slots_loading=0,
                    queued_work_us=0,
                    replicas_warm=0,
                    cold_starts=0,
                    evictions=0,
                    fetched_bytes=0,
                    egress_bytes=0,
                    state=SiteConnection.CONNECTED.value,
                    usd_micros=cost,
                )
