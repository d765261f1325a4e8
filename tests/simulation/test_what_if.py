"""What-ifs: a live fleet becomes a scenario, changes are made of it, and what is claimed is what the seeds agree on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atoll.model.errors import AtollError, ConflictError, NotFoundError, StateError
from atoll.model.ids import ModelId, NodeId, SiteId
from atoll.model.learned import Component, Level, Residual
from atoll.model.replica import Tier
from atoll.model.residency import CopyView
from atoll.model.site import SiteAdmin, SiteConnection, SiteRuntime, SiteSpec
from atoll.model.views import PoolView, SiteView
from orchestrator.core.placement.policies import POLICIES
from orchestrator.core.placement.policy import Policy
from sims.play.scenario import Beginning
from sims.whatif.change import Change
from sims.whatif.live import Live, scenario_of
from sims.whatif.outcome import Verdict, outcomes
from sims.whatif.pairs import Experiment, Variant, play_all
from sims.whatif.truth import LearnedWorld, factors_of
from tests.simulation.played import CATALOGUE, mixed, three_sites
from tests.unit.fleet_of_machines import GPUS, pool, site

SD, FLUX = (CATALOGUE[ModelId(name)] for name in ("sd", "flux"))
SCENARIO = three_sites()
AMS, FRA = SiteId("ams"), SiteId("fra")


def told(spec: SiteSpec, admin: SiteAdmin = SiteAdmin.OPEN, connection: SiteConnection | None = SiteConnection.CONNECTED) -> SiteView:
    """A site as an orchestrator tells of it."""
    pools = tuple(
        PoolView(
            pool_id=one.pool_id, gpu_type=one.gpu_type, nodes=one.nodes, slots=one.slots, slots_used=0, attempts=0, warm=(),
            usd_micros_per_gpu_hour=0,
        )
        for one in spec.pools
    )  # fmt: skip
    return SiteView(
        spec=spec, admin=admin, connection=connection, runtime=SiteRuntime.TWIN, reason="", drain=None, pools=pools, live_attempts=0,
        last_report_us=0,
    )  # fmt: skip


def fleet(*sites: SiteView, **changes: object) -> Live:
    fields: dict[str, object] = {"links": (), "models": (SD, FLUX), "adapters": (), "copies": {}, "learned": (), "policy": Policy()}
    return Live(sites=sites, **{**fields, **changes})  # type: ignore[arg-type]  # as the fields' names say


def learned(component: Component, level: Level, name: str, effect_milli: int, observations: int = 100) -> Residual:
    return Residual(
        component=component, level=level, name=name, other="", observations_milli=observations * 1_000, effect_milli=effect_milli,
        bias_milli=0, spread_milli=0, coverage_milli=0, seen_us=0,
    )  # fmt: skip


# --- a live fleet -----------------------------------------------------------------------------------------------------------------


def test_sites_are_as_they_are_told_and_what_cannot_be_played_is_said() -> None:
    found, notes = scenario_of(
        fleet(
            told(site("a", pool("p", nodes=2))),
            told(site("b", pool("p")), SiteAdmin.CORDONED),
            told(site("c", pool("p")), SiteAdmin.DRAINING),
            told(site("d", pool("p")), connection=SiteConnection.LOST),
            told(site("e", pool("p")), connection=None),
            told(site("f", pool("p", gpu="TPU"))),
            told(replace(site("g"), pools=())),
        ),
        GPUS,
        {SD.model_id},
    )
    assert [one.site_id for one in found.sites] == ["a", "b", "c"]
    assert (found.beginning.cordoned, found.beginning.drained) == (("b",), ("c",))
    assert [line.removeprefix("site ").partition(" is left out: ")[::2] for line in notes] == [
        ("d", "lost"), ("e", "it has never connected"), ("f", "nothing is known of TPU"), ("g", "it has no GPUs"),
    ]  # fmt: skip
    with pytest.raises(AtollError, match="no site of the fleet can be played"):
        scenario_of(fleet(told(site("e", pool("p")), connection=None)), GPUS, ())
    with pytest.raises(AtollError, match="the fleet has no sites"):
        scenario_of(fleet(), GPUS, ())


def test_a_site_that_found_its_gpus_itself_has_ordinary_hosts() -> None:
    view = told(site("a", pool("found", nodes=2, gpus=4)))
    found, _ = scenario_of(fleet(replace(view, spec=replace(view.spec, pools=()))), GPUS, ())
    (only,) = found.sites[0].pools
    assert (only.pool_id, only.nodes, only.gpus_per_node, only.gpu_type) == ("found", 2, 4, "big")
    assert only.node.disk_cache_bytes > 0 and only.node.host_memory_bytes > 0


def test_copies_are_where_they_are() -> None:
    def copy(tier: Tier, copies: int = 1, node: str = "p-0") -> CopyView:
        return CopyView(site_id=SiteId("a"), node_id=NodeId(node), tier=tier, copies=copies)

    copies = {
        SD.model_id: (copy(Tier.GPU, 2), copy(Tier.HOST), copy(Tier.DISK), copy(Tier.DISK, node="p-9")),
        FLUX.model_id: (copy(Tier.GPU), copy(Tier.DISK, copies=0, node="p-1")),
    }
    found, _ = scenario_of(fleet(told(site("a", pool("p", nodes=2, gpus=2))), copies=copies), GPUS, ())
    held = found.beginning.holdings[SiteId("a")]
    assert held.keys() == {"p-0", "p-1"}
    assert held[NodeId("p-0")].slots == ((SD, FLUX), (SD,))
    assert (held[NodeId("p-0")].host, held[NodeId("p-0")].disk) == ((SD,), (SD,))
    assert held[NodeId("p-1")].disk == ()
    # Models that nobody asks for and nobody has are not declared: residency would bring copies of them.
    bare, _ = scenario_of(fleet(told(site("a", pool("p")))), GPUS, {ModelId("flux--own")})
    assert bare.beginning.models == (FLUX,)


def test_a_site_is_as_fast_as_was_learned_and_the_rest_is_chance() -> None:
    rows = [
        learned(Component.EXECUTION, Level.ALL, "", 900),
        learned(Component.EXECUTION, Level.GPU_TYPE, "big", 1_100),
        learned(Component.EXECUTION, Level.SITE, "ams", 2_000),
        learned(Component.EXECUTION, Level.SITE, "fra", 3_000, observations=5),
        learned(Component.LOAD, Level.SITE, "ams", 500),
        learned(Component.LOAD, Level.SITE, "gone", 500),
    ]
    found = factors_of(rows, SCENARIO.sites)
    assert found == {("execution", "ams"): 1_980, ("stage", "ams"): 500, ("init", "ams"): 500}
    one, other = (LearnedWorld(seed, 0.35, found) for seed in (1, 2))
    assert one.factor_milli("execution", AMS) == other.factor_milli("execution", AMS) == 1_980
    assert one.factor_milli("execution", FRA) != other.factor_milli("execution", FRA)


# --- changes ----------------------------------------------------------------------------------------------------------------------


def test_changes_are_made_of_the_fleet() -> None:
    new = site("rom", pool("p"))
    change = Change(drains=(AMS,), sites=(new,), policy=POLICIES["random"])
    made = change.made(SCENARIO)
    assert made.beginning.drained == ("ams",) and made.sites[-1] == new and made.policy.name == "random"
    assert made.placed_hub == SCENARIO.placed_hub
    assert change.words.startswith("site ams were drained and site rom were added and policy random (")


def test_changes_that_cannot_be_are_refused() -> None:
    with pytest.raises(NotFoundError, match="no site 'rom'; those that can be played are ams, fra, lon"):
        Change(drains=(SiteId("rom"),)).made(SCENARIO)
    with pytest.raises(ConflictError, match="site ams exists already"):
        Change(sites=(SCENARIO.sites[0],)).made(SCENARIO)
    with pytest.raises(StateError, match="site ams takes no new work already"):
        Change(drains=(AMS,)).made(replace(SCENARIO, beginning=Beginning(cordoned=(AMS,))))
    with pytest.raises(StateError, match="no site would take work any more"):
        Change(drains=(AMS, FRA)).made(replace(SCENARIO, beginning=Beginning(drained=(SiteId("lon"),))))


# --- runs and claims --------------------------------------------------------------------------------------------------------------


def test_the_same_figures_on_any_number_of_cores_and_progress_is_told() -> None:
    jobs = tuple(mixed(12))
    experiment = Experiment(now=SCENARIO, then=Change(drains=(AMS,)).made(SCENARIO), jobs=jobs)
    seen: list[tuple[int, int]] = []
    alone = play_all(experiment, range(3), 1, lambda played, over: seen.append((played, over)))
    assert seen[-1] == (6 * len(jobs), 6) and seen == sorted(seen)
    last: list[tuple[int, int]] = []
    several = play_all(experiment, range(3), 2, lambda played, over: last.append((played, over)))
    assert several == alone and last[-1] == (6 * len(jobs), 6)
    assert alone[Variant.NOW] != alone[Variant.THEN] and alone[Variant.NOW][0] != alone[Variant.NOW][1]


def test_nothing_changed_is_the_same() -> None:
    experiment = Experiment(now=SCENARIO, then=Change().made(SCENARIO), jobs=tuple(mixed(30)))
    found = outcomes(play_all(experiment, range(3), 1, lambda _played, _over: None))
    assert found and {one.verdict for one in found} == {Verdict.SAME}


def test_what_is_claimed_is_what_seeds_agree_on() -> None:
    now = {
        seed: {"p50:image": 10.0 + seed, "cold_start_share": 0.1 * seed, "usd_per_1000_jobs": 5.0, "gpus_usd_per_hour": 9.0}
        for seed in range(5)
    }
    then = {
        seed: {
            "p50:image": 12.0 + 1.01 * seed,
            "cold_start_share": 0.2 * (seed % 3),
            "usd_per_1000_jobs": 5.0,
            "gpus_usd_per_hour": 8.0,
            **({"p50:video": 60.0} if seed < 2 else {}),
        }
        for seed in range(5)
    }
    found = {one.metric.key: one for one in outcomes({Variant.NOW: now, Variant.THEN: then})}
    assert {key: one.verdict for key, one in found.items()} == {
        "p50:image": Verdict.WORSE,
        "cold_start_share": Verdict.CHANCE,
        "usd_per_1000_jobs": Verdict.SAME,
        "gpus_usd_per_hour": Verdict.BETTER,
        "p50:video": Verdict.UNKNOWN,
    }
    image = found["p50:image"].difference
    assert image is not None and image.low < 2.02 < image.high and image.n == 5
    assert (found["p50:video"].now, found["p50:video"].then) == (None, 60.0)


def test_gpus_of_drained_sites_cost_nothing() -> None:
    experiment = Experiment(now=SCENARIO, then=Change(drains=(AMS,)).made(SCENARIO), jobs=tuple(mixed(5)))
    played = play_all(experiment, range(1), 1, lambda _played, _over: None)
    now, then = (played[variant][0]["gpus_usd_per_hour"] for variant in Variant)
    assert then == pytest.approx(now * 2 / 3)
