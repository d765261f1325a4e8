"""`atoll costs rates`: what each way of a site carries, as declared beside as measured.

Decides which ways there are and their words. What was learned on top of rates is `residuals`' matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final

import typer

from atoll.cli.figures import NONE, count, rate
from atoll.cli.output import Column, Form, Listing, note, show_list
from atoll.cli.refusals import as_options
from atoll.cli.session import session, verb
from atoll.cli.sites import site_id
from atoll.model.learned import Component, Level, Residual
from atoll.model.report import RateFacts
from atoll.model.views import SiteView

# What no line says, under them.
_LEGEND: Final = (
    "MEASURED: what the site's own transfers took, the last 64 of each kind since its agent started. Placing reckons with it in place of",
    "what is declared, once it is a tenth off that; what jobs taught beyond it is in 'atoll costs residuals'.",
)
_OF_FACTORS: Final = ("FACTOR: what JOBS taught of that: times of fetch, peer or load are multiplied by it. Few JOBS say little.",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What bytes take: `pool_id` is "" for a way of the whole site; bytes per second; 0: not known. `factor_milli`: what jobs taught of the
    site on top of the rate, by which predicted times are multiplied, and of how many jobs that is; 0: nothing, or not asked."""

    site_id: str
    pool_id: str
    way: str
    declared_bytes_per_s: int
    measured_bytes_per_s: int = 0
    transfers: int = 0
    factor_milli: int = 0
    jobs_milli: int = 0


def _times(way: Way) -> str:
    """How much of what was declared there is."""
    if not way.declared_bytes_per_s or not way.measured_bytes_per_s:
        return NONE
    return f"x{way.measured_bytes_per_s / way.declared_bytes_per_s:.2f}"


_WORDS: Final = {
    "origin": "origin store -> site",
    "wan": "other sites -> site",
    "lan": "node -> node",
    "disk": "disk -> host memory",
    "h2d": "host memory -> GPU",
}
_WAYS: Final[Listing[Way]] = Listing(
    kind="rate",
    ref=lambda way: "/".join(filter(None, (way.site_id, way.pool_id, way.way))),
    columns=(
        Column(title="PLACE", cell=lambda way: "/".join(filter(None, (way.site_id, way.pool_id)))),
        Column(title="WAY", cell=lambda way: _WORDS[way.way]),
        Column(title="DECLARED", cell=lambda way: rate(way.declared_bytes_per_s), right=True),
        Column(title="MEASURED", cell=lambda way: rate(way.measured_bytes_per_s), right=True),
        Column(title="TIMES", cell=_times, right=True),
        Column(title="TRANSFERS", cell=lambda way: str(way.transfers or NONE), right=True),
    ),
)
# Of one site, what was learned too.
_WITH_FACTORS: Final = replace(
    _WAYS,
    columns=(
        *_WAYS.columns,
        Column(title="FACTOR", cell=lambda way: f"x{way.factor_milli / 1_000:.2f}" if way.factor_milli else NONE, right=True),
        Column(title="JOBS", cell=lambda way: f"{way.jobs_milli / 1_000:.1f}" if way.jobs_milli else NONE, right=True),
    ),
)
# Which component of a prediction goes by which way; a load goes by two of them, and is measured as one.
_COMPONENTS: Final = {"origin": Component.FETCH, "wan": Component.PEER, "disk": Component.LOAD, "h2d": Component.LOAD}


def add_to(app: typer.Typer) -> None:
    """Add the verb to the noun."""
    verb(
        app,
        "rates",
        epilog="""
        atoll costs rates
        atoll costs rates --site aws-use1
        atoll costs rates -o json
        """,
    )(rates)


def rates(
    *, site: Annotated[str, typer.Option("--site", metavar="SITE", show_default=False, help="Only the ways of this site.")] = ""
) -> None:
    """How fast bytes come to each site and its GPUs: as declared, and as its own fetches and loads measured.

    Ways that nobody measured are shown with --site or -o wide. Links between sites are declared, and only what comes in by them is learned.
    """
    form = session().form
    with as_options(), session().client() as client:
        if site:
            view = client.sites_get(site_id(site))
            show(form, [view], learned=client.residuals(site_id=view.spec.site_id).residuals)
        else:
            show(form, client.sites_list())


def show(form: Form, views: Sequence[SiteView], learned: Sequence[Residual] | None = None) -> None:
    """Print the ways of these sites; of a table those that were measured, unless `learned` says what was learned of the only one."""
    found = ways(views, learned or ())
    every = learned is not None
    shown = found if every or form is not Form.TABLE else [way for way in found if way.measured_bytes_per_s]
    if views and all(view.measured is None for view in views):
        note("the orchestrator is of a version that does not tell what was measured: these rates are as declared")
        shown = found
    nothing = "no site has measured anything yet: rates come with its first fetches and loads" if views else "no sites"
    show_list(form, _WITH_FACTORS if every else _WAYS, shown, empty=nothing)
    if shown and form in {Form.TABLE, Form.WIDE}:
        for line in (*_LEGEND, *(_OF_FACTORS if every else ())):
            note(line)
    if hidden := len(found) - len(shown):
        note(f"{count(hidden, 'more line')} of what was not measured: --site or -o wide")


def ways(views: Iterable[SiteView], learned: Iterable[Residual] = ()) -> list[Way]:
    """All of these sites: from the origin store, from other sites, within, and of each pool from disk and into its GPUs."""
    of_site = {(row.name, row.component): row for row in learned if row.level is Level.SITE}
    found = []
    for way in (way for view in views for way in _of_site(view)):
        component = _COMPONENTS.get(way.way)
        row = of_site.get((way.site_id, component)) if component is not None else None
        found.append(replace(way, factor_milli=row.effect_milli, jobs_milli=row.observations_milli) if row is not None else way)
    return found


def _of_site(view: SiteView) -> Sequence[Way]:
    spec, told = view.spec, view.measured or RateFacts()
    found = [
        Way(
            site_id=spec.site_id,
            pool_id="",
            way="origin",
            declared_bytes_per_s=spec.origin_bytes_per_s,
            measured_bytes_per_s=told.origin_bytes_per_s,
            transfers=told.origin_transfers,
        ),
        Way(site_id=spec.site_id, pool_id="", way="wan", declared_bytes_per_s=spec.wan_bytes_per_s),
        Way(site_id=spec.site_id, pool_id="", way="lan", declared_bytes_per_s=spec.lan_bytes_per_s),
    ]
    for pool in view.pools:
        # A site tells one figure for all its pools: loads of any of them are counted in it.
        for way, declared, measured, transfers in (
            ("disk", pool.disk_bytes_per_s, told.disk_bytes_per_s, told.disk_transfers),
            ("h2d", pool.h2d_bytes_per_s, told.h2d_bytes_per_s, told.h2d_transfers),
        ):
            found.append(
                Way(
                    site_id=spec.site_id,
                    pool_id=pool.pool_id,
                    way=way,
                    declared_bytes_per_s=declared,
                    measured_bytes_per_s=measured,
                    transfers=transfers,
                )
            )
    return found
