"""`atoll sites`: list, get, apply, add, cordon, uncordon, drain, remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from atoll.cli import arguments, drain
from atoll.cli.exits import CliError, Exit
from atoll.cli.figures import NONE, count, money, rate
from atoll.cli.output import Column, Form, Listing, note, plain, say, show_list, show_one, show_plain, table
from atoll.cli.session import session, verb
from atoll.cli.sim import whatif
from atoll.cli.verbs import Noun
from atoll.model.address import parse_weights_url
from atoll.model.errors import FieldError
from atoll.model.ids import SiteId, parse_name
from atoll.model.limits import RATE_BYTES_PER_S_MAX
from atoll.model.site import SiteSpec
from atoll.model.views import SiteView

if TYPE_CHECKING:
    from atoll.client import SitesApplied

app = typer.Typer(
    cls=Noun, name="sites", help="Declare sites, see how they are, take them out of service and put them back.", no_args_is_help=True
)

SiteArgument = Annotated[str, typer.Argument(metavar="SITE", help="Name of a site, with or without 'site/'.")]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", show_default=False, help="Why; kept in the audit. Required.")]
NoteOption = Annotated[str, typer.Option("--reason", metavar="TEXT", show_default=False, help="Why; kept in the audit.")]


def register(root: typer.Typer) -> None:
    """Add the noun to the command."""
    root.add_typer(app)


def site_id(text: str) -> str:
    """The name in "site/NAME" or "NAME"; whether it is one is checked where it is sent."""
    return text.removeprefix("site/")


def _gpus(view: SiteView) -> str:
    return f"{sum(pool.slots_used for pool in view.pools)}/{sum(pool.slots for pool in view.pools)}"


def _types(view: SiteView) -> str:
    return ", ".join(f"{pool.slots} {pool.gpu_type}" for pool in view.pools) or NONE


def _warm(view: SiteView) -> str:
    return str(len({model for pool in view.pools for model in pool.warm}))


SITES: Listing[SiteView] = Listing(
    kind="site",
    ref=lambda view: view.spec.site_id,
    columns=(
        Column(title="SITE", cell=lambda view: view.spec.site_id),
        Column(title="CONNECTION", cell=lambda view: view.connection.value if view.connection else "not yet"),
        Column(title="ADMIN", cell=lambda view: view.admin.value),
        Column(title="RUNTIME", cell=lambda view: view.runtime.value if view.runtime else NONE),
        Column(title="REGION", cell=lambda view: view.spec.region),
        Column(title="BUSY", cell=_gpus, right=True),
        Column(title="JOBS", cell=lambda view: str(view.live_attempts), right=True),
        Column(title="WARM", cell=_warm, right=True),
        Column(title="GPUS", cell=_types, wide=True),
        Column(title="PROVIDER", cell=lambda view: view.spec.provider, wide=True),
        Column(title="WAN", cell=lambda view: rate(view.spec.wan_bytes_per_s), wide=True, right=True),
        Column(title="WEIGHTS AT", cell=lambda view: view.spec.weights_url or NONE, wide=True),
        Column(title="AGENT", cell=lambda view: view.agent_version, wide=True),
        Column(title="SYNTHETIC", cell=lambda view: "yes" if view.spec.synthetic else "no", wide=True),
        Column(title="REASON", cell=lambda view: view.reason, wide=True),
    ),
)


@verb(
    app,
    "list",
    epilog="""
    atoll sites list
    atoll sites list --region Tokyo -o wide
    atoll sites list -o name | xargs -r -n1 atoll sites get
    """,
)
def list_sites(
    *,
    region: Annotated[list[str] | None, typer.Option("--region", help="Only in these regions.")] = None,
    gpu: Annotated[list[str] | None, typer.Option("--gpu", metavar="TYPE", help="Only with these GPU types.")] = None,
) -> None:
    """List sites: how they are connected, what the operator wants of them, how busy they are."""
    form = session().form
    types = arguments.names(gpu)
    with session().client() as client:
        declared = found = client.sites_list()
    if region:
        found = tuple(view for view in found if view.spec.region in region)
    if types:
        found = tuple(view for view in found if any(pool.gpu_type in types for pool in view.pools))
    asked = ((region or (), {view.spec.region for view in declared}), (types, {pool.gpu_type for view in declared for pool in view.pools}))
    meant = [f"{name} is none of theirs{arguments.meant(name, known)}" for names, known in asked for name in names if name not in known]
    where = "'atoll sites list -o wide' shows their regions and GPU types"
    none = f"no site of the {len(declared)} declared is like that: {'; '.join(meant) or where}"
    nothing = "no sites; 'atoll sites apply clusters.yaml' or 'atoll sites add NAME' declares some"
    show_list(form, SITES, found, empty=none if declared else nothing)


@verb(
    app,
    "get",
    epilog="""
    atoll sites get aws-use1
    """,
)
def get(*, site: SiteArgument) -> None:
    """Show a site with its pools and what is warm there."""
    form = session().form
    with session().client() as client:
        view = client.sites_get(site_id(site))
    show_one(form, SITES, view)
    if form not in {Form.TABLE, Form.WIDE}:
        return
    if view.drain:
        say(f"{view.admin.value}: {view.drain.actor} asked for it: {view.drain.reason}")
    elif view.reason:
        say(f"reason: {view.reason}")
    if view.pools:
        say("")
        rows = [
            [pool.pool_id, pool.gpu_type, str(pool.nodes), f"{pool.slots_used}/{pool.slots}", str(pool.attempts),
             money(pool.usd_micros_per_gpu_hour), ", ".join(pool.warm)]
            for pool in view.pools
        ]  # fmt: skip
        table(["POOL", "GPU", "NODES", "BUSY", "JOBS", "PER GPU HOUR", "WARM"], rows, frozenset({2, 3, 4, 5}))
    for pool in view.pools:
        if pool.closed_until_us:
            say(f"Attempts kept failing in pool {pool.pool_id} (see 'atoll events'): it takes no new work until one succeeds.")


@verb(
    app,
    "apply",
    epilog="""
    atoll sites apply clusters.yaml --dry-run  # what would change
    atoll sites apply clusters.yaml --reason "new links in Asia"
    """,
)
def apply(
    *,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A fleet file such as clusters.yaml, or fleet-small.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the difference.")] = False,
    reason: NoteOption = "",
) -> None:
    """Declare the sites and links of a file: new ones are added, known ones updated, none removed."""
    from atoll.cli.fleetfile import read_fleet

    sites, links = read_fleet(Path(file))
    form = session().form
    with session().client() as client:
        known = {view.spec.site_id: view.spec for view in client.sites_list()}
        applied = client.sites_apply(sites, links, reason=reason, dry_run=dry_run)
    if form in {Form.TABLE, Form.WIDE}:
        _difference(applied, known, {spec.site_id: spec for spec in sites})
        return
    if form is Form.NAME:
        for name in (*applied.added, *applied.updated):
            say(f"site/{name}")
    else:
        show_plain(form, plain(applied))
    if dry_run:
        note("nothing was changed")


def _difference(applied: SitesApplied, known: dict[SiteId, SiteSpec], declared: dict[SiteId, SiteSpec]) -> None:
    """What is new, what changes from what to what, and what the file does not mention."""
    for name in applied.added:
        pools = declared[name].pools if name in declared else ()
        say(f"+ site/{name}   {', '.join(f'{pool.slots} {pool.gpu_type}' for pool in pools)}")
    for name in applied.updated:
        say(f"~ site/{name}")
        if name in known and name in declared:
            for path, old, new in _changes(plain(known[name]), plain(declared[name])):
                say(f"    {path}: {old} -> {new}")
    for name in applied.not_declared:
        say(f"? site/{name}   known to the orchestrator, not in the file")
    done = "would be" if applied.dry_run else "was" if len(applied.added) == 1 else "were"
    note(f"{count(len(applied.added), 'site')} {done} added, {len(applied.updated)} updated, {len(applied.unchanged)} unchanged")
    if applied.not_declared:
        left = len(applied.not_declared)
        they = "1 site that is not in the file stays" if left == 1 else f"{left} sites that are not in the file stay"
        note(f"{they} as {'it is' if left == 1 else 'they are'}: 'atoll sites remove NAME --reason WHY' takes one away")


def _changes(old: object, new: object, path: str = "") -> list[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *[key for key in new if key not in old]]
        return [change for key in keys for change in _changes(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [change for index, pair in enumerate(zip(old, new, strict=True)) for change in _changes(*pair, f"{path}[{index}]")]
    if isinstance(old, list) and isinstance(new, list):
        return [(path, count(len(old), "entry", "entries"), count(len(new), "entry", "entries"))]
    return [] if old == new else [(path, old, new)]


@verb(
    app,
    "add",
    epilog="""
    atoll sites add lab-berlin --region Berlin --wan 1Gbps
    atoll sites add --what-if site.yaml  # is it worth its price?
    """,
)
def add(
    *,
    site: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="Name of the new site.")] = "",
    region: Annotated[str, typer.Option("--region", show_default=False, help="Where it is; jobs may be bound to regions. Required.")] = "",
    provider: Annotated[str, typer.Option("--provider", show_default=False, help="Whose it is.")] = "",
    wan: Annotated[str, typer.Option("--wan", metavar="RATE", help="What its link to other sites carries.")] = "1Gbps",
    origin: Annotated[str | None, typer.Option("--origin-rate", metavar="RATE", help="From the origin store; as --wan by default.")] = None,
    weights_url: Annotated[
        str | None, typer.Option("--weights-url", metavar="URL", help="Where other sites read the weights that it has (default: nowhere).")
    ] = None,
    reason: NoteOption = "",
    what_if: Annotated[
        Path | None,
        typer.Option("--what-if", metavar="FILE", show_default=False, help="Add nothing: play what the sites of this file would change."),
    ] = None,
    trace: whatif.Trace = None,
    hours: whatif.Hours = None,
    jobs_max: whatif.JobsMax = None,
    seeds: whatif.Seeds = None,
    processes: whatif.Processes = None,
) -> None:
    """Add one site, and print the command that joins its machine. What GPUs it has its agent finds out."""
    if what_if is not None:
        if site or region:
            raise CliError(f"--what-if is given with {'NAME' if site else '--region'}: the file says both", code=Exit.USAGE)
        whatif.what_if(add=what_if, trace=trace, hours=hours, jobs_max=jobs_max, seeds=seeds, processes=processes)
        return
    whatif.refuse_alone(trace, hours, jobs_max, seeds, processes)
    for given, missing in ((site, "argument 'NAME'"), (region, "option '--region'")):
        if not given:
            raise CliError(f"Missing {missing}", code=Exit.USAGE, hint="see 'atoll sites add --help'")
    try:
        name = SiteId(parse_name("NAME", site_id(site)))
        served_at = parse_weights_url("--weights-url", weights_url) if weights_url else ""
    except FieldError as error:
        raise CliError(str(error), code=Exit.USAGE) from None
    wan_bytes_per_s = arguments.bytes_per_s("--wan", wan)
    origin_bytes_per_s = wan_bytes_per_s if origin is None else arguments.bytes_per_s("--origin-rate", origin)
    spec = SiteSpec(
        site_id=name, region=region, provider=provider, wan_bytes_per_s=wan_bytes_per_s,
        origin_bytes_per_s=min(origin_bytes_per_s, RATE_BYTES_PER_S_MAX), weights_url=served_at,
    )  # fmt: skip
    form = session().form
    with session().client() as client:
        added = client.sites_add(spec, reason=reason)
        address, ca = client.settings.shown_address, client.settings.ca
    if form in {Form.JSON, Form.YAML}:
        show_plain(form, plain(added))
    elif form is Form.NAME:
        say(f"site/{added.site_id}")
    else:
        say(f"site/{added.site_id} added. On its machine, once:")
        say("")
        say(f"    {join_command(added.site_id, address, added.join_token, ca)}")
        say("")
        if added.join_token:
            note("the token works once and is shown this once; a lost one means: remove the site and add it again")
        else:
            note("this orchestrator asks for no credential, so the command holds none")


def join_command(name: str, address: str, token: str, ca: str) -> str:
    """What to type on the new site's machine. The token is in the environment, where other users of that machine do not see it."""
    from atoll.cli.agent import JOIN_TOKEN_VARIABLE

    prefix = f"{JOIN_TOKEN_VARIABLE}={token} " if token else ""
    trust = f" --ca {ca}" if ca else ""
    return f"{prefix}atoll agent --site {name} --orchestrator {address}{trust}"


@verb(
    app,
    "cordon",
    epilog="""
    atoll sites cordon aws-use1 --reason "packet loss, ticket 4711"
    """,
)
def cordon(*, site: SiteArgument, reason: ReasonOption = "") -> None:
    """No new placements at a site; what runs there goes on."""
    drain.demand_reason(reason)
    form = session().form
    with session().client() as client:
        show_one(form, SITES, client.sites_cordon(site_id(site), reason=reason))


@verb(
    app,
    "uncordon",
    epilog="""
    atoll sites uncordon aws-use1 --reason "link mended"
    """,
)
def uncordon(*, site: SiteArgument, reason: NoteOption = "") -> None:
    """Placements at a site again; ends a cordon or a drain."""
    form = session().form
    with session().client() as client:
        show_one(form, SITES, client.sites_uncordon(site_id(site), reason=reason))


@verb(
    app,
    "drain",
    epilog="""
    atoll sites drain aws-use1 --deadline 10m --reason "switch replaced" --dry-run
    atoll sites drain aws-use1 --deadline 10m --reason "switch replaced" --wait
    atoll sites drain aws-use1 --what-if  # what jobs like those of the last hours would notice
    """,
)
def drain_site(
    *,
    site: SiteArgument,
    reason: ReasonOption = "",
    deadline: Annotated[str, typer.Option("--deadline", metavar="DURATION", help="Until then what runs may run.")] = "10m",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would move where, and when the site would be empty.")] = False,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Return once the site is empty.")] = False,
    what_if: Annotated[bool, typer.Option("--what-if", help="Drain nothing: play what jobs like the last ones would notice.")] = False,
    trace: whatif.Trace = None,
    hours: whatif.Hours = None,
    jobs_max: whatif.JobsMax = None,
    seeds: whatif.Seeds = None,
    processes: whatif.Processes = None,
) -> None:
    """Empty a site: no new work, what has not begun moves now, what runs may end until the deadline and moves then."""
    if what_if:
        if dry_run or wait:
            raise CliError(f"--what-if is given with {'--dry-run' if dry_run else '--wait'}: expected one of them", code=Exit.USAGE)
        whatif.what_if(drain=[site], trace=trace, hours=hours, jobs_max=jobs_max, seeds=seeds, processes=processes)
        return
    whatif.refuse_alone(trace, hours, jobs_max, seeds, processes)
    drain.demand_reason(reason)
    if dry_run and wait:
        raise CliError("--wait is given with --dry-run: expected one of them", code=Exit.USAGE)
    deadline_ms = arguments.duration_ms("--deadline", deadline)
    form = session().form
    with session().client() as client:
        started = client.sites_drain(site_id(site), reason=reason, deadline_ms=deadline_ms, dry_run=dry_run)
        if form in {Form.JSON, Form.YAML}:
            show_plain(form, plain(started))
        elif form is Form.NAME:
            say(f"site/{started.plan.site_id}")
        else:
            drain.show_plan(started)
        if dry_run:
            note("nothing was changed")
        if wait:
            drain.wait_until_drained(client, site_id(site))


@verb(
    app,
    "remove",
    epilog="""
    atoll sites remove lab-berlin --reason "machine returned"
    """,
)
def remove(
    *,
    site: SiteArgument,
    reason: ReasonOption = "",
    force: Annotated[bool, typer.Option("--force", help="Even with work there: it is given up and placed elsewhere.")] = False,
) -> None:
    """Forget a site. It must be empty (drain it first), unless forced; its credential is void at once."""
    drain.demand_reason(reason)
    with session().client() as client:
        removed = client.sites_remove(site_id(site), reason=reason, force=force)
    say(f"site/{removed}" if session().form is Form.NAME else f"site/{removed} removed")
