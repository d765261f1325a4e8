"""The worked examples of docs/placement.md: every figure computed again, by plain arithmetic and by a real core."""

from __future__ import annotations

import math
import re
import statistics
from dataclasses import dataclass, replace

import pytest

from atoll.model.gpu import GpuType
from atoll.model.ids import AdapterId, GpuTypeId, SiteId
from atoll.model.job import JobSpec, Priority
from atoll.model.modelspec import AdapterUse, ModelSpec
from atoll.model.placement import Candidate
from atoll.model.quote import Quote
from atoll.model.shape import Precision, Shape
from orchestrator.core import events
from orchestrator.core.placement import standing
from orchestrator.core.placement.policies import DEFAULT
from orchestrator.core.placement.registry import TERM_NAMES
from tests.architecture.sources import REPOSITORY
from tests.unit.fleet_of_machines import GB, GPUS, Fleet, adapter, model, pool, site, spec

PAGE = (REPOSITORY / "docs" / "placement.md").read_text(encoding="utf-8")
DISK, BUS, ORIGIN, UPLINK, EGRESS_USD = 5.0, 20.0, 1.0, 0.1, 0.09
WEIGHTS_GB, OTHER_GB, RESULT_GB = 20, 60, 1_576_960 / 1e9
RATE, FIRST_S = DEFAULT.seconds_per_dollar, 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A line of the first table."""

    site: str
    gpus: int
    usd_per_hour: float
    execution_s: float
    slot: str
    disk: str
    hazard: int

    @property
    def is_new(self) -> bool:
        """Whether its slot's process has generated nothing yet."""
        return "has generated nothing" in self.slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A line of the second table: whose job, where, and the seconds by term."""

    job: str
    site: str
    cold: bool
    terms: dict[str, float]
    total: float

    @property
    def priority(self) -> Priority:
        """The job's."""
        return Priority(re.split(r"[, ]", self.job)[0])

    @property
    def gpus(self) -> int:
        """How many it runs on."""
        found = re.search(r"on (\d+) GPUs", self.job)
        return int(found[1]) if found else 1

    @property
    def adapter_gb(self) -> float:
        """Size of its adapter; 0 without."""
        found = re.search(r"adapter of ([\d.]+) GB", self.job)
        return float(found[1]) if found else 0.0

    @property
    def due_s(self) -> float:
        """Its deadline; infinite without."""
        found = re.search(r"due in (\d+) s", self.job)
        return float(found[1]) if found else math.inf


def _table(first: str) -> tuple[list[str], list[list[str]]]:
    """Titles and cells of the table whose heading begins so."""
    (text,) = re.findall(rf"^(\| {first} \|.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    titles, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return titles, rows


def _places() -> dict[str, Place]:
    return {
        name: Place(site=name, gpus=int(gpus), usd_per_hour=float(usd), execution_s=float(takes), slot=slot, disk=disk, hazard=int(hazard))
        for name, gpus, usd, takes, slot, disk, hazard in _table("site")[1]
    }


def _examples() -> list[Example]:
    titles, rows = _table("job")
    assert titles[2:-1] == [name for name in TERM_NAMES if name in titles]
    found = []
    for job, where, *figures in rows:
        name, kind = where.split(", ")
        terms = dict(zip(titles[2:-1], map(float, figures), strict=False))
        found.append(Example(job=job, site=name, cold=kind == "cold", terms=terms, total=float(figures[-1])))
    return found


PLACES, EXAMPLES = _places(), _examples()
BY_ROW = pytest.mark.parametrize("example", EXAMPLES, ids=[f"{one.job}-{one.site}-{one.cold}" for one in EXAMPLES])


# --- by the formulas ----------------------------------------------------------------------------------------------------------------


def _load_s(size_gb: float) -> tuple[float, float]:
    return size_gb / min(DISK, BUS), 0.2 + size_gb * 0.185


def _lateness_s(middle: float, width: float, due: float) -> float:
    """Expected lateness of a normal error of which 95 of 100 are below the width."""
    normal = statistics.NormalDist(middle, width / 1.645)
    return normal.variance * normal.pdf(due) + (middle - due) * (1 - normal.cdf(due))


def _by_hand(example: Example) -> dict[str, float]:
    place, cold = PLACES[example.site], example.cold
    weight = DEFAULT.priority_weight_milli[example.priority] / 1_000
    stage, init = _load_s(WEIGHTS_GB) if cold else (0.0, 0.0)
    init += FIRST_S if place.is_new else 0.0
    queue = 6.0 if place.slot.startswith("the model, at work") else 0.0
    fetch = WEIGHTS_GB / ORIGIN if cold and place.disk != "the model" else 0.0
    output = RESULT_GB / UPLINK
    delay = max(queue, fetch) + stage + init + place.execution_s + output
    adapt = example.adapter_gb / ORIGIN + 0.07 + example.adapter_gb / 0.4 if example.adapter_gb else 0.0
    delay += adapt
    occupied = fetch + stage + init + adapt + place.execution_s
    evict = 0.0
    if place.slot.startswith("another model"):
        asked_for = (1 - math.exp(-1 * 900 / 3_600)) * DEFAULT.last_copy_milli / 1_000
        digits = 2 ** math.floor(math.log2(asked_for * 1e6) - 2) / 1e6
        evict = sum(_load_s(OTHER_GB)) * math.floor(asked_for / digits) * digits / weight
    lost = 1 - math.exp(-(place.hazard + DEFAULT.hazard_per_million_hours) * example.gpus / 1e6 * occupied / 3_600)
    failed = DEFAULT.load_failure_ppm / 1e6 if cold else 0.0
    late = 0.0
    if example.due_s < math.inf:
        after, beyond = place.execution_s + output, DEFAULT.spread_milli / 1_000 - 1
        width = beyond * math.hypot(delay - after, after)
        late = -delay if delay + width <= example.due_s else DEFAULT.tardy_milli / 1_000 * _lateness_s(delay, width, example.due_s)
    terms = {
        "queue": queue,
        "fetch": fetch,
        "stage": stage,
        "init": init,
        "adapt": adapt,
        "execution": place.execution_s,
        "output": output,
        "money": place.usd_per_hour * example.gpus / 3_600 * occupied * RATE / weight,
        "net": EGRESS_USD * RESULT_GB * RATE / weight,
        "evict": evict,
        "churn": 0.0,
        "risk": lost * (occupied / 2 + delay) + failed * delay,
        "deadline": late,
        "overlap": max(queue, fetch) - queue - fetch,
    }
    if cold and example.gpus == 1:  # of gangs there is no copy to compare with
        existing = (replace(example, site=one.site, cold=False) for one in PLACES.values() if one.slot.startswith("the model"))
        half = (fetch + stage + init) / 2
        if sum(terms.values()) + half >= min(sum(_by_hand(one).values()) for one in existing):
            terms["churn"] = half
    return terms


@BY_ROW
def test_the_formulas_give_the_figures(example: Example) -> None:
    computed = _by_hand(example)
    assert example.terms == pytest.approx(computed, abs=0.001)
    assert example.total == pytest.approx(sum(computed.values()), abs=0.002)


# --- by a core ----------------------------------------------------------------------------------------------------------------------


def _fleet(adapter_gb: float = 0.0) -> Fleet:
    gpus = {
        GpuTypeId(name): replace(
            GPUS[GpuTypeId("big")], gpu_type=GpuTypeId(name), h2d_bytes_per_s=int(BUS * GB),
            usd_micros_per_hour=round(place.usd_per_hour * 1e6),
        )
        for name, place in PLACES.items()
    }  # fmt: skip
    sites = tuple(
        replace(
            site(name, pool("p", name, gpus=place.gpus), origin_gbs=int(ORIGIN)), wan_bytes_per_s=int(UPLINK * GB),
            egress_usd_micros_per_gb=round(EGRESS_USD * 1e6), preemptions_per_million_gpu_hours=place.hazard,
        )
        for name, place in PLACES.items()
    )  # fmt: skip
    assert all(one.pools[0].node.disk_bytes_per_s == DISK * GB for one in sites)
    known = (model("m", WEIGHTS_GB), model("x", OTHER_GB))
    fleet = Fleet(*sites, models=known, gpus=gpus, policy=replace(DEFAULT, silent_after_ms=10**9))
    if adapter_gb:
        fleet.ask(events.AdaptersAdded, actor="t", adapters=(replace(adapter("a", "m"), weights_bytes=round(adapter_gb * GB)),))
    for name, place in PLACES.items():
        fleet.agents[SiteId(name)].fresh = {("p-0", 0)} if place.is_new else set()
        if not place.slot.startswith("empty"):
            fleet.warm(name, "p-0", 0, "x" if place.slot.startswith("another") else "m", 70 if place.slot.startswith("another") else 20)
        if place.disk == "the model":
            fleet.agents[SiteId(name)].disk = {"m"}
        fleet.report(name)
    at_work = tuple(name for name, place in PLACES.items() if "at work" in place.slot)
    fleet.submit(spec(constraints=replace(spec().constraints, sites=tuple(map(SiteId, at_work)))))
    return fleet


def _offered(fleet: Fleet, job: JobSpec) -> tuple[Candidate, dict[tuple[str, bool], Candidate]]:
    quote = fleet.machine.quote_job(job, fleet.now_us)
    assert isinstance(quote, Quote) and quote.chosen is not None
    return quote.chosen, {(one.site_id, one.cold): one for one in (quote.chosen, *quote.others)}


def _given_s(_model: ModelSpec, _shape: Shape, gpu: GpuType, _precision: Precision, **_gang: int) -> int:
    return round(PLACES[gpu.gpu_type].execution_s * 1e6)


@BY_ROW
def test_a_core_gives_the_figures(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "execution_us", _given_s)
    due_ms = 0 if example.due_s == math.inf else round(example.due_s * 1_000)
    adapters = (AdapterUse(adapter_id=AdapterId("a")),) if example.adapter_gb else ()
    job = spec(prompt="asked", priority=example.priority, deadline_ms=due_ms, gang_size=example.gpus, adapters=adapters)
    _, places = _offered(_fleet(example.adapter_gb), job)
    found = places[(example.site, example.cold)]
    told = {name: us / 1e6 for name, us in zip(TERM_NAMES, found.terms_us, strict=True)}
    assert not any(told.pop(name) for name in told.keys() - example.terms.keys())
    assert {name: round(seconds, 3) + 0.0 for name, seconds in told.items()} == example.terms
    assert round(found.total_us / 1e6, 3) == example.total


def test_the_job_goes_where_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "execution_us", _given_s)
    fleet = _fleet()
    for due_ms, expected in ((0, "busy"), (60_000, "slow")):
        chosen, _ = _offered(fleet, spec(prompt="asked", deadline_ms=due_ms))
        assert chosen.site_id == expected
