"""What one message may say at most, and the tables that it ends up in: none leaves int64, and other jobs are placed as before."""

from __future__ import annotations

from dataclasses import replace

from atoll.model import limits
from atoll.model.ids import AdapterId, ModelId, SiteId
from atoll.model.job import Constraints
from atoll.model.modelspec import AdapterUse
from atoll.model.quote import Quote, Verdict
from atoll.model.replica import ReplicaFact, ReplicaState
from atoll.model.report import FetchFact, NodeFacts, RateFacts
from atoll.model.shape import Shape
from atoll.model.site import LinkSpec
from atoll.wire.quotes import quote_from_proto, quote_to_proto
from orchestrator.core import events
from orchestrator.core.etas import NEVER_US
from orchestrator.core.placement.registry import TERM_NAMES
from orchestrator.core.placement.rows import FETCH_MAX_US
from orchestrator.core.sitings import times
from tests.unit.fleet_of_machines import Fleet, adapter, model, pool, site, spec

EXABYTE = limits.BYTES_MAX


def _placed(fleet: Fleet, name: str = "b") -> bool:
    """Whether a usual job finds its place at this site."""
    before = len(fleet.agents[SiteId(name)].attempts)
    fleet.submit(spec())
    return len(fleet.agents[SiteId(name)].attempts) == before + 1


def _reported(fleet: Fleet, nodes: tuple[NodeFacts, ...], rates: RateFacts) -> None:
    agent = fleet.agents[SiteId("a")]
    told = fleet.recording[-1][1]
    assert isinstance(told, events.SiteReported)
    agent.report_seq += 1
    report = replace(told.report, seq=agent.report_seq, nodes=nodes, rates=rates)
    fleet.happen(events.SiteReported(site_id=SiteId("a"), session=agent.session, report=report))


def _nodes(fleet: Fleet) -> tuple[NodeFacts, ...]:
    fleet.report("a")
    told = fleet.recording[-1][1]
    assert isinstance(told, events.SiteReported)
    return told.report.nodes


def test_slots_that_are_said_to_hold_more_than_there_is_memory_in_the_world() -> None:
    names = [f"m{number}" for number in range(limits.REPLICAS_PER_SLOT_MAX)]
    fleet = Fleet(site("a"), site("b"), models=(model("m"), *(model(name) for name in names)))
    held = tuple(ReplicaFact(model_id=ModelId(name), state=ReplicaState.WARM, memory_bytes=EXABYTE) for name in names)
    (node,) = _nodes(fleet)
    _reported(fleet, (replace(node, slots=tuple(replace(slot, replicas=held) for slot in node.slots)),), RateFacts())
    assert _placed(fleet)
    fleet.submit(spec("m3"), spec("m", gang_size=2))
    fleet.wait(2, reporting=("b",))


def test_weights_of_an_exabyte_that_come_at_a_byte_a_second() -> None:
    huge = replace(model("huge"), weights_bytes=EXABYTE)
    roomy = replace(pool("big"), node=replace(pool("big").node, disk_cache_bytes=EXABYTE))
    fleet = Fleet(site("a", roomy), site("b"), models=(model("m"), huge))
    (node,) = _nodes(fleet)
    flow = FetchFact(model_id=ModelId("huge"), bytes_done=0, bytes_total=EXABYTE)
    slow = RateFacts(disk_bytes_per_s=1, h2d_bytes_per_s=1, origin_bytes_per_s=1)
    _reported(fleet, (node,), slow)
    _reported(fleet, (replace(node, fetching=(flow,)),), slow)
    context = fleet.machine.context
    (until_us,) = context.state.sites[SiteId("a")].pools[pool("big").pool_id].nodes[0].fetching.values()
    assert until_us <= context.now_us + FETCH_MAX_US
    fleet.submit(spec("huge"))
    (placed,) = fleet.jobs.values()
    assert placed.attempts[0].predicted_us <= 9 * FETCH_MAX_US
    assert _placed(fleet)
    fleet.wait(2, reporting=("b",))


def test_a_job_with_adapters_that_no_gpu_holds() -> None:
    large = replace(model("large"), resident_bytes=EXABYTE, activation_bytes=EXABYTE)
    fleet = Fleet(site("b"), models=(model("m"), large))
    names = [f"l{number}" for number in range(limits.ADAPTERS_MAX)]
    heavy = tuple(replace(adapter(name, "large"), weights_bytes=EXABYTE) for name in names)
    fleet.ask(events.AdaptersAdded, actor="t", adapters=heavy)
    uses = tuple(AdapterUse(adapter_id=AdapterId(name)) for name in names)
    fleet.submit(spec("large", adapters=uses, shape=Shape(width=16_384, height=4_096, frames=7_200, steps=1_000, batch=32)))
    assert not fleet.agents[SiteId("b")].attempts
    assert _placed(fleet)


def test_a_line_that_takes_longer_than_time_is_counted_is_quoted_as_never() -> None:
    fleet = Fleet(site("b", pool("p", gpus=1)))
    fleet.warm("b", "p-0", 0, "m")
    fleet.report("b")
    films = replace(spec(), shape=Shape(width=1024, height=1024, steps=900))
    fleet.submit(*(replace(films, prompt=str(number)) for number in range(4)))
    queue = fleet.machine.context.queue
    (known,) = queue.classes.values()
    assert known.resting and known.stand.lines
    queue.rest(known.key, known.wake_us, known.pool, known.patience, replace(known.stand, each_us=10 * NEVER_US))
    quoted = fleet.machine.quote_job(spec(), fleet.now_us)
    assert isinstance(quoted, Quote) and quoted.verdict is Verdict.WAITS
    assert quoted.turn_us == NEVER_US
    assert quote_from_proto(quote_to_proto(quoted)) == quoted, "it can be told"


def test_a_copy_of_an_exabyte_takes_a_year_to_come_and_no_longer() -> None:
    huge = replace(model("huge"), weights_bytes=EXABYTE)
    fleet = Fleet(site("a"), models=(huge,))
    ctx = fleet.machine.context
    (column,) = ctx.columns.columns
    column.site.fetches = 100
    assert times(ctx, huge, column).fetch_us == FETCH_MAX_US


def test_no_output_costs_more_than_a_job_may() -> None:
    dear = replace(site("a"), egress_usd_micros_per_gb=10**18)
    fleet = Fleet(dear, models=(model("m"),))
    quoted = fleet.machine.quote_job(spec(), fleet.now_us)
    assert isinstance(quoted, Quote) and quoted.egress_usd_micros == limits.PRICE_USD_MICROS_MAX


def test_a_link_that_is_declared_anew_counts_at_once_for_classes_that_are_known() -> None:
    a, b = site("a"), site("b")
    fleet = Fleet(a, b, models=(model("m"),))

    def home_us(bytes_per_s: int) -> int:
        links = (LinkSpec(src=SiteId("b"), dst=SiteId("a"), rtt_us=0, bytes_per_s=bytes_per_s),)
        fleet.happen(events.SitesApplied(request=fleet.request(), actor="t", reason="", sites=(a, b), links=links))
        quoted = fleet.machine.quote_job(spec(origin_site=SiteId("a"), constraints=Constraints(sites=(SiteId("b"),))), fleet.now_us)
        assert isinstance(quoted, Quote) and quoted.chosen is not None
        return quoted.chosen.terms_us[TERM_NAMES.index("output")]

    slow_us, quick_us = home_us(10**6), home_us(10**7)
    assert slow_us // 10 == quick_us


def test_a_result_takes_a_year_to_come_home_and_no_longer() -> None:
    fleet = Fleet(site("a"), site("b"), models=(model("m"),))
    slow = LinkSpec(src=SiteId("b"), dst=SiteId("a"), rtt_us=2**60, bytes_per_s=1)
    fleet.happen(events.SitesApplied(request=fleet.request(), actor="t", reason="", sites=(site("a"), site("b")), links=(slow,)))
    quoted = fleet.machine.quote_job(spec(origin_site=SiteId("a"), constraints=Constraints(sites=(SiteId("b"),))), fleet.now_us)
    assert isinstance(quoted, Quote) and quoted.chosen is not None
    assert quoted.chosen.terms_us[TERM_NAMES.index("output")] == limits.PREDICTED_US_MAX
