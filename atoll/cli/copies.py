"""`atoll models push`, `pin`, `unpin` and `where`: which copies of a model are where, which should be, and why.

Decides the wording, and when a push counts as done: weights on every site, warm where that was asked for.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final

import typer

from atoll.cli import arguments
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import NONE, count, duration, size
from atoll.cli.models import ModelArgument, model_id
from atoll.cli.output import Column, Form, Listing, note, plain, say, show_list, show_plain, table
from atoll.cli.session import session, verb
from atoll.cli.sites import site_id
from atoll.model import limits
from atoll.model.ids import SiteId
from atoll.model.replica import Tier
from atoll.model.residency import TIER_NAMES, CopyView, ModelPlaces, Movement, PushPlan, PushStep, ResidencyEvent, parse_tier

if TYPE_CHECKING:
    from atoll.client import Client

# Weights take seconds to minutes; a person does not see whether the end is noticed half a second late.
_POLL_S: Final = 0.5
# As long as a burst of jobs takes to find its places.
_MINUTE_US: Final = 60_000_000
_AVERAGES: Final = ("the last 10 min", "6 h", "7 d")

SiteOption = Annotated[str, typer.Option("--site", metavar="SITE", show_default=False, help="At which site. Required.")]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", show_default=False, help="Why; kept in the audit.")]


def _sees(flag: bool) -> str:
    return "yes" if flag else NONE


COPIES: Listing[CopyView] = Listing(
    kind="copy",
    ref=lambda view: f"{view.site_id}/{view.node_id}/{TIER_NAMES[view.tier]}",
    columns=(
        Column(title="SITE", cell=lambda view: view.site_id),
        Column(title="NODE", cell=lambda view: view.node_id),
        Column(title="TIER", cell=lambda view: TIER_NAMES[view.tier]),
        Column(title="COPIES", cell=lambda view: str(view.copies), right=True),
        Column(title="BUSY", cell=lambda view: str(view.busy), right=True),
        Column(title="PINNED", cell=lambda view: _sees(view.pinned)),
        Column(title="WANTED BY", cell=lambda view: view.wanted.value if view.wanted is not None else NONE),
        Column(title="TO COME", cell=lambda view: size(view.bytes_left) if view.bytes_left >= 0 else NONE, right=True),
        Column(title="AGE", cell=lambda view: duration(view.age_us) if view.age_us >= 0 else NONE, right=True),
    ),
)
STEPS: Listing[PushStep] = Listing(
    kind="site",
    ref=lambda step: step.site_id,
    columns=(
        Column(title="SITE", cell=lambda step: step.site_id),
        Column(title="REGION", cell=lambda step: step.region),
        Column(title="NODE", cell=lambda step: step.node_id),
        Column(title="AS", cell=lambda step: "warm replica" if step.warm else "weights on disk"),
        Column(title="BYTES", cell=lambda step: size(step.bytes) if step.bytes else "there", right=True),
        Column(title="FETCH", cell=lambda step: duration(step.fetch_us), right=True),
        Column(title="LOAD", cell=lambda step: duration(step.load_us), right=True),
        Column(title="A JOB TAKES", cell=lambda step: duration(step.execution_us), right=True),
        Column(title="MAKES ROOM", cell=lambda step: ", ".join(step.evicts) or NONE),
        Column(title="POOL", cell=lambda step: step.pool_id, wide=True),
    ),
)


def add_to(app: typer.Typer) -> None:
    """Add the verbs to the noun."""
    verb(
        app,
        "push",
        epilog="""
        atoll models push flux.1-schnell --sites 4 --warm 2 --dry-run
        atoll models push flux.1-schnell --sites 4 --warm 2 --reason "launch on Monday" --wait
    """,
    )(push)
    verb(
        app,
        "pin",
        epilog="""
        atoll models pin flux.1-schnell --site aws-use1 --reason "the demo on Friday"
        atoll models pin flux.1-schnell --site aws-euc1 --tier disk
    """,
    )(pin)
    verb(
        app,
        "unpin",
        epilog="""
        atoll models unpin flux.1-schnell --site aws-use1
    """,
    )(unpin)
    verb(
        app,
        "where",
        epilog="""
        atoll models where flux.1-schnell
        atoll models where flux.1-schnell --why
        atoll models where flux.1-schnell -o json
    """,
    )(where)


# --- push ---------------------------------------------------------------------------------------------------------------------


def push(
    *,
    model: ModelArgument,
    sites: Annotated[str | None, typer.Option("--sites", metavar="N", show_default=False, help="Weights on N sites. Required.")] = None,
    warm: Annotated[str | None, typer.Option("--warm", metavar="M", help="Loaded into a GPU on M of them.")] = None,
    reason: ReasonOption = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would do; change nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the copies are there, and say how far each site is.")] = False,
    timeout: Annotated[str, typer.Option("--timeout", metavar="DURATION", help="How long --wait waits.")] = "30m",
) -> None:
    """Bring a model to sites before it is asked for: fast ones for it, well connected, spread over regions."""
    if sites is None:
        raise CliError("--sites is missing: expected on how many sites the weights go", code=Exit.USAGE, hint="for example --sites 4")
    wanted = arguments.whole("--sites", sites, 1, limits.PUSH_SITES_MAX)
    hot = arguments.whole("--warm", warm, 0, wanted)
    patience_s = arguments.duration_ms("--timeout", timeout) / 1_000
    form = session().form
    with session().client() as client:
        plan = client.models_push(model_id(model), sites=wanted, warm=hot, reason=reason, dry_run=dry_run)
        _show_plan(form, plan)
        if dry_run:
            note("nothing was changed")
        elif wait:
            _wait(client, plan, patience_s)


def _show_plan(form: Form, plan: PushPlan) -> None:
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, plain(plan))
        return
    show_list(form, STEPS, plan.steps)
    if form is not Form.NAME:
        slowest = max((step.fetch_us + step.load_us for step in plan.steps), default=0)
        held = duration(max(plan.until_us - plan.now_us, 0))
        say(
            f"{count(len(plan.steps), 'site')}, {size(sum(step.bytes for step in plan.steps))} to fetch, all there in about"
            f" {duration(slowest)}; kept for {held} or as long as it is asked for"
        )


def _wait(client: Client, plan: PushPlan, patience_s: float) -> None:
    """Return once every copy is there. CliError when that takes too long, or somebody ended the push."""
    told: dict[SiteId, str] = {}
    until_s = time.monotonic() + patience_s
    while True:
        places = client.models_where(plan.model_id)
        missing = 0
        for step in plan.steps:
            state = _state(places, step)
            missing += state != "there"
            if told.get(step.site_id) != state:
                told[step.site_id] = state
                note(f"site/{step.site_id} {state}")
        if not missing:
            return
        if places.push is None:
            raise CliError(f"the push of {plan.model_id} was ended or replaced meanwhile", code=Exit.CONFLICT)
        if time.monotonic() >= until_s:
            raise CliError(f"{count(missing, 'site')} not there yet: the push goes on, see 'atoll models where'", code=Exit.TIMEOUT)
        time.sleep(_POLL_S)


def _state(places: ModelPlaces, step: PushStep) -> str:
    here = [view for view in places.copies if view.site_id == step.site_id]
    if any(view.copies and view.tier is Tier.GPU for view in here):
        return "there"
    if any(view.copies and view.tier is Tier.DISK for view in here):
        return "loading" if step.warm else "there"
    left = [view.bytes_left for view in here if view.bytes_left >= 0]
    return f"fetching, {size(min(left))} left" if left else "waiting"


# --- pin, unpin ---------------------------------------------------------------------------------------------------------------


def pin(
    *,
    model: ModelArgument,
    site: SiteOption = "",
    tier: Annotated[str, typer.Option("--tier", metavar="TIER", help="gpu, host (the node's memory) or disk.")] = "gpu",
    reason: ReasonOption = "",
) -> None:
    """Keep a model on a tier of a site, whatever is asked for: brought there if need be, and nothing makes it give way."""
    where_, wanted = _site(site), parse_tier("--tier", tier)
    with session().client() as client:
        places = client.models_pin(model_id(model), where_, tier=wanted, reason=reason)
    _done(places, where_, f"pinned on {tier} of {where_}")


def unpin(*, model: ModelArgument, site: SiteOption = "", reason: ReasonOption = "") -> None:
    """Take back a pin. The copy stays until its room is needed."""
    where_ = _site(site)
    with session().client() as client:
        places = client.models_unpin(model_id(model), where_, reason=reason)
    _done(places, where_, f"no longer pinned at {where_}")


def _site(text: str) -> str:
    if not text:
        raise CliError("--site is missing: expected at which site", code=Exit.USAGE, hint="for example --site aws-use1")
    return site_id(text)


def _done(places: ModelPlaces, site: str, text: str) -> None:
    form = session().form
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, plain(places))
        return
    say(f"model/{places.model_id}{'' if form is Form.NAME else f' {text}'}")
    if form in {Form.TABLE, Form.WIDE}:
        show_list(form, COPIES, [view for view in places.copies if view.site_id == site])


# --- where --------------------------------------------------------------------------------------------------------------------


def where(
    *,
    model: ModelArgument,
    why: Annotated[bool, typer.Option("--why", help="Also what came and left lately, and because of what.")] = False,
) -> None:
    """Show where a model is, on which tier, how many copies are wanted and what that rests on."""
    with session().client() as client:
        places = client.models_where(model_id(model), why=why)
    show_places(places, why=why, form=session().form)


def show_places(places: ModelPlaces, *, why: bool, form: Form) -> None:
    """Where a model is; with `why` what came and left."""
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, plain(places))
        return
    if form is not Form.NAME:
        _say_target(places)
    show_list(form, COPIES, places.copies, empty="no copy anywhere")
    if why and form is not Form.NAME:
        _show_events(places)


def _say_target(places: ModelPlaces) -> None:
    """How many copies are wanted, by whom, beside how many there are; then what the demand rests on."""
    target = places.target
    say(f"model/{places.model_id}")
    wanted = _wanted(places)
    there = [str(sum(view.copies for view in places.copies if view.tier is tier)) for tier in (Tier.GPU, Tier.HOST, Tier.DISK)]
    table(["COPIES", "WARM", "IN MEMORY", "ON DISK", ""], [*wanted, ["there are", *there, " "]], frozenset({1, 2, 3}), indent="  ")
    averages = ", ".join(f"{rate / 1_000:.3g} by {name}" for name, rate in zip(_AVERAGES, target.average_per_hour_milli, strict=False))
    # The mixture is told in steps of an eighth, its parts as they are: it is about so much.
    rate = f"{target.rate_per_hour_milli / 1_000:.3g}"
    about = f"about {rate} {'job' if rate == '1' else 'jobs'} an hour"
    if not target.arrivals:
        say("  demand: nobody has asked for it yet; what is assumed of any model fades with time,")
        say(f"  and is {about} now ({averages})")
        return
    worth = f"; the last warm copy saves others {duration(target.value_us_per_hour)} an hour per GB" if target.gpu else ""
    say(f"  demand: {about} ({averages}), from {count(target.arrivals, 'job')} so far{worth}")


def _wanted(places: ModelPlaces) -> list[list[str]]:
    """Lines of the table: copies that demand, each pin and the push want, and why."""
    target = places.target
    spread = f"on {count(target.sites_min, 'site')} at least" if target.sites_min else " "
    rows = [["wanted by demand", str(target.gpu), str(target.host), str(target.disk), spread]]
    for kept in places.pins:
        on = ["1" if kept.tier is tier else "0" for tier in (Tier.GPU, Tier.HOST, Tier.DISK)]
        rows.append(["wanted by a pin", *on, f"at {kept.site_id}, by {kept.actor}{f': {kept.reason}' if kept.reason else ''}"])
    if places.push is not None:
        warm, sites = len(places.push.warm), len(places.push.sites)
        left = duration(max(places.push.until_us - places.now_us, 0))
        because = f": {places.push.reason}" if places.push.reason else ""
        why = f"on {count(sites, 'site')}, for another {left}, by {places.push.actor}{because}"
        rows.append(["wanted by a push", str(warm), "0", str(sites), why])
    return rows


def _show_events(places: ModelPlaces) -> None:
    """What came and left lately, the last first. What did so at a site for one cause within a minute is one line: a burst of jobs brings a
    copy for each, all but alike."""
    if not places.events:
        note("nothing came or left lately")
        return
    alike: dict[tuple[object, ...], list[ResidencyEvent]] = {}
    for event in reversed(places.events):
        key = event.at_us // _MINUTE_US, event.movement, event.tier, event.site_id, event.cause
        alike.setdefault(key, []).append(event)
    rows = []
    for events in alike.values():
        last = events[0]
        price_us = sum(event.price_us for event in events if event.movement is Movement.LEFT)
        nodes = {event.node_id for event in events}
        rows.append([
            f"{duration(places.now_us - last.at_us)} ago",
            last.movement.value,
            str(len(events)),
            TIER_NAMES[last.tier],
            last.site_id,
            last.node_id if len(nodes) == 1 else count(len(nodes), "node"),
            _because(events),
            duration(price_us) if price_us else NONE,
        ])  # fmt: skip
    table(["WHEN", "WHAT", "COPIES", "TIER", "SITE", "NODE", "BECAUSE OF", "PRICE"], rows, frozenset({2, 7}))


def _because(events: list[ResidencyEvent]) -> str:
    """What they were all caused by: the job, of several the first and the last, or who else."""
    jobs = list(dict.fromkeys(event.job_id for event in reversed(events) if event.job_id is not None))
    if not jobs:
        return events[0].cause.value
    return f"job/{jobs[0]}" if len(jobs) == 1 else f"{len(jobs)} jobs: job/{jobs[0]} to job/{jobs[-1]}"
