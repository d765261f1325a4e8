"""`atoll quote`: what a job would be offered if it were submitted now."""

from __future__ import annotations

import typer

from atoll.cli import outlook
from atoll.cli.exits import Exit
from atoll.cli.output import Form, note, plain, say, show_plain
from atoll.cli.refusals import as_options
from atoll.cli.session import session, verb
from atoll.cli.submit import (
    AdapterOption,
    BatchOption,
    CfgOption,
    DeadlineOption,
    FramesOption,
    GpuOption,
    GpusOption,
    GuidanceOption,
    ImageOption,
    MaxPriceOption,
    ModelArgument,
    NegativeOption,
    OriginOption,
    PrecisionOption,
    PriorityOption,
    PromptOption,
    RegionOption,
    SimulatedOption,
    SiteOption,
    SizeOption,
    StartTimeoutOption,
    StepsOption,
    StrengthOption,
    TenantOption,
    request_of,
)
from atoll.model.quote import InTime, TimeLimits, Verdict, prospects


def register(root: typer.Typer) -> None:
    """Add the verb to the command."""
    verb(
        root,
        "quote",
        epilog="""
        atoll quote tiny-image
        atoll quote wan2.1-t2v-1.3b-480p --simulated --frames 81 --steps 50 --priority batch
        atoll quote flux.1-schnell --simulated --origin aws-apne1 --deadline 30s  # exit code 1: it would be late
        atoll quote flux.1-schnell --simulated --gpu H100-SXM -o json | jq '.eta.end_p90_us - .at_us'
        """,
    )(quote)


def quote(
    *,
    model: ModelArgument,
    prompt: PromptOption = "",
    negative: NegativeOption = "",
    size: SizeOption = None,
    frames: FramesOption = None,
    steps: StepsOption = None,
    cfg: CfgOption = None,
    guidance: GuidanceOption = None,
    batch: BatchOption = None,
    adapter: AdapterOption = None,
    image: ImageOption = None,
    strength: StrengthOption = None,
    precision: PrecisionOption = None,
    priority: PriorityOption = "normal",
    deadline: DeadlineOption = None,
    start_timeout: StartTimeoutOption = None,
    site: SiteOption = None,
    region: RegionOption = None,
    gpu: GpuOption = None,
    gpus: GpusOption = None,
    max_price: MaxPriceOption = None,
    origin: OriginOption = "",
    simulated: SimulatedOption = False,
    tenant: TenantOption = "",
) -> None:
    """Where such a job would go now, when it would be done, at what price; or why it cannot run. Nothing is submitted or reserved.

    -o wide says what each column of the table is.

    Exit code 1: it would miss the --deadline or the --start-timeout that was given, by what half of such jobs take; or no site of this
    fleet can ever run it as it is. 8: no place can take it now, and nobody knows when one can.
    """
    form = session().form
    request = request_of(
        model=model, prompt=prompt, negative=negative, size=size, frames=frames, steps=steps, cfg=cfg, guidance=guidance, batch=batch,
        precision=precision, priority=priority, deadline=deadline, start_timeout=start_timeout, tenant=tenant, site=site, region=region,
        gpu=gpu, gpus=gpus, max_price=max_price, simulated=simulated, adapter=adapter, image=image, strength=strength, origin=origin,
    )  # fmt: skip
    with session().client() as client, as_options():
        found = client.quote_request(request)
        origin = request.origin_site or client.settings.origin
    limits = TimeLimits(
        now_us=found.at_us, asked_us=found.at_us, deadline_ms=request.deadline_ms, start_timeout_ms=request.start_timeout_ms
    )
    kept = prospects(found.eta, limits)
    match form:
        case Form.JSON | Form.YAML:
            show_plain(form, {**plain(found), **plain(kept)})
        case Form.NAME:
            if found.chosen is not None:
                say(f"site/{found.chosen.site_id}")
        case Form.TABLE | Form.WIDE:
            outlook.show_quote(model, found, origin=origin, limits=limits, full=form is Form.WIDE)
    if found.verdict is Verdict.NEVER:
        note("no site of this fleet can ever run it as it is")
        raise typer.Exit(Exit.FAILED)
    if InTime.NO in (kept.meets_deadline, kept.meets_start_timeout):
        note("it would miss a limit of time")
        raise typer.Exit(Exit.FAILED)
    if found.verdict is Verdict.IMPOSSIBLE:
        note("no place can take it now")
        raise typer.Exit(Exit.UNDECIDED)
