"""`atoll agent` and `atoll rehearse`: a site, or the twins of many, in this process. Their code is loaded when they are started.

Decides which flags there are and how they are written; what they may hold is said by the agent's own configuration.
"""

from __future__ import annotations

import os
from typing import Annotated, Final

import typer

from atoll.cli import arguments
from atoll.cli.exits import CliError, Exit
from atoll.cli.session import examples, session
from atoll.cli.verbs import Verb

# The one-time token of a new site. `sites add` prints it so, and it is no flag: those are seen by every user of a machine.
JOIN_TOKEN_VARIABLE: Final = "ATOLL_JOIN_TOKEN"  # noqa: S105 - the name of a variable
_RAY: Final = "A real site (--runtime ray)"
_TWIN: Final = "A twin"
_LOGS: Final = "Logs and metrics"

Orchestrator = Annotated[
    str | None,
    typer.Option(
        "--orchestrator", metavar="HOST:PORT", show_default=False, help="Whom to dial, or several with commas (default: 127.0.0.1:7443)."
    ),
]
Ca = Annotated[str | None, typer.Option("--ca", metavar="FILE", show_default=False, help="Use TLS and trust this authority.")]
Patience = Annotated[
    str | None,
    typer.Option("--give-up-after", metavar="DURATION", show_default=False, help="Dial no longer than this (default: for ever)."),
]
Metrics = Annotated[
    str | None,
    typer.Option("--metrics", metavar="HOST:PORT", rich_help_panel=_LOGS, show_default=False, help="Prometheus metrics (default: off)."),
]
LogFormat = Annotated[str | None, typer.Option("--log-format", rich_help_panel=_LOGS, show_default=False, help="auto, console or json.")]
LogLevel = Annotated[
    str | None, typer.Option("--log-level", rich_help_panel=_LOGS, show_default=False, help="debug, info, warning or error.")
]
Fleet = Annotated[
    str | None,
    typer.Option(
        "--fleet", metavar="FILE", rich_help_panel=_TWIN, show_default=False, help="The fleet file (or fleet-small) that declares the site."
    ),
]
Seed = Annotated[
    str | None, typer.Option("--seed", metavar="N", rich_help_panel=_TWIN, show_default=False, help="Of its hidden truth (default: 1).")
]
Sigma = Annotated[
    str | None, typer.Option("--sigma", metavar="X", rich_help_panel=_TWIN, show_default=False, help="How far truth is from the prior.")
]


def _ray(flag: str, metavar: str, help_text: str) -> typer.models.OptionInfo:
    """An option of a real site."""
    found: typer.models.OptionInfo = typer.Option(flag, metavar=metavar, rich_help_panel=_RAY, show_default=False, help=help_text)
    return found


DataDir = Annotated[
    str | None,
    typer.Option("--data-dir", metavar="FOLDER", show_default=False, help="Its state (default: ~/.local/state/atoll/agents/NAME)."),
]
SlotMemory = Annotated[str | None, _ray("--slot-memory", "SIZE", "What models may take of a slot (default: its GPU, or half the host).")]
ShareCompiled = Annotated[
    bool, typer.Option("--share-compiled", rich_help_panel=_RAY, help="Execute compiled code that the fleet's other sites made.")
]
WeightsListen = Annotated[
    str | None, _ray("--weights-listen", "HOST:PORT", "Serve the weights it has to other sites there (default: off).")
]
PeerTokenFile = Annotated[str | None, _ray("--peer-token-file", "FILE", "Secret that sites show each other for weights (default: none).")]


def register(root: typer.Typer) -> None:
    """Add the verbs to the command."""
    root.command(
        "agent",
        cls=Verb,
        epilog=examples(
            """
            atoll agent --site lab-berlin --orchestrator atoll.example.com:7443 --ca ca.pem
            atoll agent --site lab-berlin --orchestrator 10.0.0.1:7443,10.0.0.2:7443
            atoll agent --site lab-berlin --no-gpus --slots 2
            atoll agent --site aws-apne1 --runtime twin --fleet clusters.yaml
            """
        ),
    )(agent)
    root.command(
        "rehearse",
        cls=Verb,
        epilog=examples(
            """
            atoll rehearse clusters.yaml
            atoll rehearse clusters.yaml --sites aws-apne1,neo-osa --seed 7
            """
        ),
    )(rehearse)


def agent(
    *,
    site: Annotated[
        str | None, typer.Option("--site", metavar="NAME", show_default=False, help="The site it speaks for. Required.")
    ] = None,
    orchestrator: Orchestrator = None,
    ca: Ca = None,
    give_up_after: Patience = None,
    runtime: Annotated[str | None, typer.Option("--runtime", show_default=False, help="ray (real) or twin (default: ray).")] = None,
    data_dir: DataDir = None,
    stop_work_on_exit: Annotated[bool, typer.Option("--stop-work-on-exit", help="Leaving ends what executes; else it goes on.")] = False,
    cache_dir: Annotated[str | None, _ray("--cache-dir", "FOLDER", "Weights on disk (default: ~/.cache/atoll/weights).")] = None,
    cache: Annotated[str | None, _ray("--cache", "SIZE", "How much of the disk they may take (default: 200GB).")] = None,
    ray_address: Annotated[str | None, _ray("--ray-address", "HOST:PORT", "A Ray cluster that runs (default: one of its own).")] = None,
    ray_node_ip: Annotated[str | None, _ray("--ray-node-ip", "IP", "Address of its own cluster (default: 127.0.1.1).")] = None,
    ray_port_base: Annotated[str | None, _ray("--ray-port-base", "PORT", "First of its 100 ports (default: 21000).")] = None,
    no_gpus: Annotated[bool, typer.Option("--no-gpus", rich_help_panel=_RAY, help="Work on the CPU, GPUs or not.")] = False,
    slots: Annotated[str | None, _ray("--slots", "N", "Slots of a host without GPUs (default: 1).")] = None,
    slot_memory: SlotMemory = None,
    threads: Annotated[str | None, _ray("--threads", "N", "Threads of such a slot (default: 1).")] = None,
    price: Annotated[str | None, _ray("--price", "USD", "What a GPU costs an hour (default: as the catalogue says of its type).")] = None,
    share_compiled: ShareCompiled = False,
    weights_listen: WeightsListen = None,
    peer_token_file: PeerTokenFile = None,
    fleet: Fleet = None,
    seed: Seed = None,
    sigma: Sigma = None,
    metrics: Metrics = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
) -> None:
    """Run the agent of one site in the foreground, until SIGTERM or Ctrl-C. It dials out; only --weights-listen opens a port.

    Each option may come from the environment instead: ATOLL_AGENT_ and the name of the setting. A new site's one-time token is read
    from ATOLL_JOIN_TOKEN; what the agent gets for it is kept in its folder.
    """
    if site is None and "ATOLL_AGENT_SITE" not in os.environ:
        raise CliError("--site is missing: expected the name of the site it speaks for", code=Exit.USAGE)
    flags = {
        **_reach(orchestrator, ca, give_up_after, metrics, log_format, log_level),
        "site": site,
        "runtime": runtime,
        "state_dir": data_dir,
        "end_work": "true" if stop_work_on_exit else None,
        "cache_dir": cache_dir,
        "cache_bytes": None if cache is None else arguments.size_bytes("--cache", cache),
        "ray_address": ray_address,
        "node_ip": ray_node_ip,
        "port_base": ray_port_base,
        "use_gpus": "false" if no_gpus else None,
        "slots": slots,
        "slot_memory_bytes": None if slot_memory is None else arguments.size_bytes("--slot-memory", slot_memory),
        "threads": threads,
        "usd_micros_per_gpu_hour": None if price is None else round(arguments.price_usd("--price", price) * 1_000_000),
        "share_compiled": "true" if share_compiled else None,
        "weights_listen": weights_listen,
        "peer_token_file": peer_token_file,
        "fleet": fleet,
        "seed": seed,
        "sigma": sigma,
    }
    from agents.app import run_agent
    from agents.config import ConfigError, load_agent_config

    try:
        config = load_agent_config(flags, os.environ)
    except ConfigError as error:
        raise CliError(str(error), code=Exit.USAGE) from None
    raise typer.Exit(run_agent(config))


def rehearse(
    *,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A fleet file such as clusters.yaml, or fleet-small.")],
    orchestrator: Orchestrator = None,
    ca: Ca = None,
    give_up_after: Patience = None,
    sites: Annotated[
        str | None,
        typer.Option("--sites", metavar="NAME,...", rich_help_panel=_TWIN, show_default=False, help="Only these (default: all)."),
    ] = None,
    seed: Seed = None,
    sigma: Sigma = None,
    noise_seed: Annotated[
        str | None,
        typer.Option(
            "--noise-seed",
            metavar="N",
            rich_help_panel=_TWIN,
            show_default=False,
            help="Of what differs from attempt to attempt (default: --seed).",
        ),
    ] = None,
    metrics: Metrics = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
) -> None:
    """Run the twins of all sites of a fleet file, in this process, against an orchestrator that runs.

    A twin takes the time that physics gives, times hidden factors, and yields results marked simulated. It runs only jobs that were
    submitted with --simulated. Declare the sites, too: atoll sites apply FILE; twins ask for that for five minutes, or --give-up-after.
    Whom it dials may come from ATOLL_ADDRESS and ATOLL_CA too.
    """
    if orchestrator is None and "ATOLL_AGENT_ORCHESTRATOR" not in os.environ:
        orchestrator, ca = _as_a_client(ca)
    flags = {
        **_reach(orchestrator, ca, give_up_after, metrics, log_format, log_level),
        "fleet": file,
        "sites": sites,
        "seed": seed,
        "sigma": sigma,
        "noise_seed": noise_seed,
    }
    from agents.config import ConfigError, load_rehearse_config
    from agents.rehearse import run_rehearsal

    try:
        config = load_rehearse_config(flags, os.environ)
    except ConfigError as error:
        raise CliError(str(error), code=Exit.USAGE) from None
    raise typer.Exit(run_rehearsal(config))


def _as_a_client(ca: str | None) -> tuple[str, str | None]:
    """The orchestrator, and whom to trust, as the verbs that are its clients find them. CliError for what twins cannot dial."""
    from atoll.client.settings import SYSTEM_CA, resolve

    given = session()
    settings = resolve(address=given.address, token=given.token, ca=ca or given.ca, config=given.config)
    if settings.ca == SYSTEM_CA:
        raise CliError(f"the authority is '{SYSTEM_CA}': expected a PEM file, with --ca", code=Exit.USAGE)
    return settings.shown_address, settings.ca or None


def _reach(
    orchestrator: str | None, ca: str | None, give_up_after: str | None, metrics: str | None, log_format: str | None, log_level: str | None
) -> dict[str, object | None]:
    """Settings that an agent and a rehearsal share."""
    patience_ms = None if give_up_after is None else arguments.duration_ms("--give-up-after", give_up_after)
    return {
        "orchestrator": orchestrator,
        "ca_file": ca,
        "give_up_after": None if patience_ms is None else patience_ms / 1_000,
        "metrics": metrics,
        "log_format": log_format,
        "log_level": log_level,
    }
