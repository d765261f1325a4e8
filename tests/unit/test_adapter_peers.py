"""Adapters from peer sites: told with the attempt, counted in the cost, read over real http, and always to be had from the origin store."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog

from agents.adapter_files import AdapterFiles
from agents.peers import PeerSource
from agents.weights import ADAPTERS_FOLDER, WeightsCache
from agents.weights_server import WeightsServer
from atoll.model.adapter import AdapterSpec
from atoll.model.address import Address
from atoll.model.assignment import AdapterPeer, Peer
from atoll.model.ids import AdapterId, SiteId
from atoll.model.job import Constraints
from atoll.model.modelspec import AdapterUse
from atoll.model.quote import Quote
from atoll.model.site import LinkSpec
from orchestrator.core import events
from orchestrator.core.machine import restore
from orchestrator.core.placement.registry import TERM_NAMES
from tests.unit.fleet_of_machines import GB, GPUS, Fleet, adapter, pool, site, spec
from tests.unit.test_adapter_files import CACHE_BYTES, served

pytest.importorskip("aiohttp", reason="peers are read over http")

ADAPT = TERM_NAMES.index("adapt")
HERE, NEAR, FAR = SiteId("here"), SiteId("near"), SiteId("far")
TOKEN = "a-secret-of-the-whole-fleet"


# --- the files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    return tmp_path / "origin"


@pytest.fixture
def ink(origin: Path, tmp_path: Path) -> AdapterSpec:
    """An adapter that the peer has fetched."""
    made = served(origin, "ink", 8_000)
    AdapterFiles(tmp_path / "theirs", cache_bytes=CACHE_BYTES).fetch(made, origin.as_uri(), lambda: False)
    return made


@pytest.fixture
def peer(tmp_path: Path, ink: AdapterSpec) -> Iterator[PeerSource]:
    cache = WeightsCache(tmp_path / "theirs", quota_bytes=1 << 30, reserve_bytes=0)
    server = WeightsServer(cache, Address(host="127.0.0.1", port=0), token=TOKEN)
    yield PeerSource(site_id="near", url=f"http://127.0.0.1:{server.port}", token=TOKEN)
    server.close()


@pytest.fixture
def ours(tmp_path: Path) -> AdapterFiles:
    return AdapterFiles(tmp_path / "ours", cache_bytes=CACHE_BYTES)


def test_an_adapter_comes_from_a_peer_while_the_origin_store_is_away(ours: AdapterFiles, ink: AdapterSpec, peer: PeerSource) -> None:
    done = ours.fetch(ink, "http://127.0.0.1:9/nowhere", lambda: False, peer)
    assert done.fetched_bytes == ink.weights_bytes and ours.held() == (("ink", ink.weights_digest),)


@pytest.mark.parametrize("fate", ["another token", "not there", "damaged", "gone"])
def test_whatever_a_peer_does_the_origin_store_gives_it(
    ours: AdapterFiles, ink: AdapterSpec, peer: PeerSource, origin: Path, tmp_path: Path, fate: str
) -> None:
    (held,) = (tmp_path / "theirs" / ADAPTERS_FOLDER).glob("*.safetensors")
    if fate == "another token":
        peer = replace(peer, token="wrong")
    elif fate == "not there":
        held.unlink()
    elif fate == "damaged":
        held.write_bytes(held.read_bytes()[:-1] + b"?")
    else:
        peer = replace(peer, url="http://127.0.0.1:9")
    with structlog.testing.capture_logs() as logs:
        done = ours.fetch(ink, origin.as_uri(), lambda: False, peer)
    assert done.path.read_bytes() == (origin / ink.origin_path).read_bytes()
    assert [log["event"] for log in logs if log["event"] != "weights_served"] == ["peer_given_up"]


def test_only_complete_adapters_are_given(ink: AdapterSpec, peer: PeerSource, tmp_path: Path) -> None:
    digits = ink.weights_digest.partition(":")[2]
    (tmp_path / "theirs" / ADAPTERS_FOLDER / ".partial" / f"wash@{digits}.safetensors").write_bytes(b"half")
    (tmp_path / "theirs" / "secret.safetensors").write_bytes(b"secret")

    def status(path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", int(peer.url.rpartition(":")[2]), timeout=10)
        connection.request("GET", path, headers={"Authorization": f"Bearer {TOKEN}"})
        found = connection.getresponse()
        found.read()
        connection.close()
        return found.status

    assert status(f"/adapters/ink/{digits}.safetensors") == 200
    missing, half = f"ink/{'0' * 64}.safetensors", f".partial/wash@{digits}.safetensors"
    others = ("ink", missing, half, f"wash/{digits}.safetensors", "../secret.safetensors")
    assert [status(f"/adapters/{path}") for path in others] == [404] * len(others)


# --- the decision -------------------------------------------------------------------------------------------------------------


def _fleet(*, near_gbs: float = 2.0, having: tuple[SiteId, ...] = (NEAR,)) -> Fleet:
    """Here the model is warm and an adapter of 2 GB is missing; the origin store gives 1 GB/s. Two others may have it."""
    sites = [replace(site(name, pool("p")), wan_bytes_per_s=20 * GB, weights_url=f"http://{name}.example") for name in (HERE, NEAR, FAR)]
    fleet = Fleet(*sites)
    links = (
        LinkSpec(src=NEAR, dst=HERE, rtt_us=50_000, bytes_per_s=int(near_gbs * GB)),
        LinkSpec(src=FAR, dst=HERE, rtt_us=900_000, bytes_per_s=2 * GB),
    )
    fleet.happen(events.SitesApplied(request=fleet.request(), actor="t", reason="", sites=(), links=links))
    fleet.ask(events.AdaptersAdded, actor="t", adapters=(replace(adapter("ink", "m"), weights_bytes=2 * GB),))
    for gpu in range(8):
        fleet.warm(HERE, "p-0", gpu, "m")
    for name in having:
        fleet.agents[name].disk_adapters = {"ink"}
    for name in (HERE, NEAR, FAR):
        fleet.report(name)
    return fleet


JOB = spec(adapters=(AdapterUse(adapter_id=AdapterId("ink")),), constraints=Constraints(sites=(HERE,)))


def _adapt_us(fleet: Fleet) -> int:
    quote = fleet.machine.quote_job(JOB, fleet.now_us)
    assert isinstance(quote, Quote) and quote.chosen is not None and not quote.chosen.cold
    return quote.chosen.terms_us[ADAPT]


def test_the_nearest_peer_that_has_the_adapter_is_told_and_counted() -> None:
    fleet = _fleet(having=(NEAR, FAR))
    assert _adapt_us(_fleet(having=())) - _adapt_us(fleet) == 2_000_000 - 1_050_000
    fleet.submit(JOB)
    (assigned,) = fleet.agents[HERE].attempts.values()
    assert assigned.adapters_from == (AdapterPeer(adapter_id=AdapterId("ink"), peer=Peer(site_id=NEAR, url="http://near.example")),)
    again = restore(fleet.machine.snapshot(), fleet.policy, GPUS)
    assert again.snapshot() == fleet.machine.snapshot() and again.context.columns.adapter_peers.of(AdapterId("ink")) == [FAR, NEAR]


def test_a_peer_that_is_no_nearer_or_has_it_no_more_is_not_named() -> None:
    slow = _fleet(near_gbs=1.0)
    assert _adapt_us(slow) == _adapt_us(_fleet(having=()))
    fleet = _fleet()
    before = _adapt_us(fleet)
    fleet.agents[NEAR].disk_adapters = set()
    fleet.report(NEAR)
    assert _adapt_us(fleet) == before + 950_000
    fleet.submit(JOB)
    (assigned,) = fleet.agents[HERE].attempts.values()
    assert assigned.adapters_from == ()


def test_an_adapter_that_is_on_the_nodes_disk_comes_from_nowhere() -> None:
    fleet = _fleet()
    fleet.agents[HERE].disk_adapters = {"ink"}
    fleet.report(HERE)
    fleet.submit(JOB)
    (assigned,) = fleet.agents[HERE].attempts.values()
    assert assigned.adapters_from == ()
