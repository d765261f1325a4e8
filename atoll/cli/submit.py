"""`atoll submit`: ask for pictures or films."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from atoll.cli import arguments, outlook, progress, results
from atoll.cli.exits import CliError, Exit
from atoll.cli.jobs import JOBS
from atoll.cli.output import Form, note, say, show_list, show_one
from atoll.cli.refusals import as_options
from atoll.cli.session import session, verb
from atoll.model import limits
from atoll.model.errors import FieldError
from atoll.model.ids import parse_name
from atoll.model.job import IMAGE_INPUT, Job, JobState, Priority
from atoll.model.modelspec import AdapterUse
from atoll.model.quote import TimeLimits, Verdict
from atoll.model.shape import Precision

if TYPE_CHECKING:
    from atoll.client import Client, JobRequest

E = TypeVar("E", bound=StrEnum)

# More from one command line are a mistake of a script; the SDK takes any number.
_COUNT_MAX: Final = 100_000
_WHAT: Final = "What to make"
_WHEN: Final = "When"
_WHERE: Final = "Where"
_RESULT: Final = "Result"


ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a model; see 'atoll models list'.")]
PromptOption = Annotated[str, typer.Option("--prompt", "-p", rich_help_panel=_WHAT, show_default=False, help="What it should show.")]
NegativeOption = Annotated[str, typer.Option("--negative", rich_help_panel=_WHAT, show_default=False, help="What it should not.")]
SeedOption = Annotated[
    str | None,
    typer.Option(
        "--seed", metavar="N", rich_help_panel=_WHAT, help="Same seed, same pixels; with --count they go on from it; drawn by default."
    ),
]
SizeOption = Annotated[str | None, typer.Option("--size", metavar="WxH", rich_help_panel=_WHAT, help="Pixels, such as 1280x720.")]
FramesOption = Annotated[str | None, typer.Option("--frames", metavar="N", rich_help_panel=_WHAT, help="Frames of a film.")]
StepsOption = Annotated[str | None, typer.Option("--steps", metavar="N", rich_help_panel=_WHAT, help="Denoising steps.")]
CfgOption = Annotated[
    str | None, typer.Option("--cfg", metavar="N", rich_help_panel=_WHAT, help="Passes of the denoiser a step (2: with guidance).")
]
GuidanceOption = Annotated[str | None, typer.Option("--guidance", metavar="X", rich_help_panel=_WHAT, help="Guidance scale.")]
BatchOption = Annotated[str | None, typer.Option("--batch", metavar="N", rich_help_panel=_WHAT, help="Results of one job.")]
PrecisionOption = Annotated[
    str | None,
    typer.Option("--precision", metavar="|".join(Precision), rich_help_panel=_WHAT, help="Of the denoiser's arithmetic."),
]
CountOption = Annotated[str, typer.Option("--count", metavar="N", rich_help_panel=_WHAT, help="So many jobs, each with its own seed.")]
PriorityOption = Annotated[str, typer.Option("--priority", metavar="|".join(Priority), rich_help_panel=_WHEN, help="Who goes first.")]
DeadlineOption = Annotated[
    str | None, typer.Option("--deadline", metavar="DURATION", rich_help_panel=_WHEN, help="Expire when not done by then.")
]
StartTimeoutOption = Annotated[
    str | None, typer.Option("--start-timeout", metavar="DURATION", rich_help_panel=_WHEN, help="Expire when not begun by then.")
]
SiteOption = Annotated[
    list[str] | None,
    typer.Option("--site", metavar="SITE", rich_help_panel=_WHERE, help="Only at these sites: A,B, or repeated."),
]
RegionOption = Annotated[
    list[str] | None,
    typer.Option("--region", metavar="REGION", rich_help_panel=_WHERE, help="Only in these regions: A,B, or repeated."),
]
GpuOption = Annotated[
    list[str] | None,
    typer.Option("--gpu", metavar="TYPE", rich_help_panel=_WHERE, help="Only on these GPU types: A,B, or repeated."),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="NAME[:SCALE]", rich_help_panel=_WHAT, help="With this LoRA, at a scale (1); may be repeated."),
]
ImageOption = Annotated[
    str | None, typer.Option("--image", metavar="FILE", rich_help_panel=_WHAT, help="Begin with this picture, a PNG or JPEG.")
]
StrengthOption = Annotated[
    str | None, typer.Option("--strength", metavar="X", rich_help_panel=_WHAT, help="How much of --image is made anew, up to 1 (0.6).")
]
GpusOption = Annotated[
    str | None, typer.Option("--gpus", metavar="N", rich_help_panel=_WHERE, help="On 2, 4 or 8 GPUs of one node at once, all or nothing.")
]
MaxPriceOption = Annotated[
    str | None, typer.Option("--max-price", metavar="USD", rich_help_panel=_WHERE, help="At most so many dollars a job.")
]
OriginOption = Annotated[
    str,
    typer.Option(
        "--origin", metavar="SITE", rich_help_panel=_WHERE, show_default=False,
        help="The site nearest to you: inputs come from there, results go there. (ATOLL_ORIGIN)",
    ),
]  # fmt: skip
SimulatedOption = Annotated[bool, typer.Option("--simulated", rich_help_panel=_WHERE, help="A rehearsal: twins only, no files.")]
TenantOption = Annotated[str, typer.Option("--tenant", metavar="NAME", rich_help_panel=_WHEN, show_default=False, help="On whose behalf.")]
KeyOption = Annotated[
    str,
    typer.Option("--key", metavar="KEY", rich_help_panel=_WHEN, show_default=False, help="Idempotency key: sent again it is the same job."),
]
WaitOption = Annotated[bool, typer.Option("--wait", "-w", rich_help_panel=_RESULT, help="Follow it until it ends.")]
TimeoutOption = Annotated[
    str | None, typer.Option("--timeout", metavar="DURATION", rich_help_panel=_RESULT, help="Stop waiting then (exit code 7).")
]
OutOption = Annotated[
    str | None,
    typer.Option("--out", metavar="PATH", rich_help_panel=_RESULT, help="Wait, and put the result there: a file or a folder."),
]


def register(root: typer.Typer) -> None:
    """Add the verb to the command."""
    verb(
        root,
        "submit",
        epilog="""
        atoll submit tiny-image --prompt "a lighthouse" --seed 7 --wait --out lighthouse.png
        atoll submit tiny-video --prompt "waves" --size 96x96 --frames 9 --wait --out waves.mp4
        atoll submit tiny-image --prompt "a lighthouse" --adapter tiny-ink:0.8 --image lighthouse.png --strength 0.6 --out ink.png
        atoll submit flux.1-dev --prompt "a reef" --simulated --count 200 --priority batch
        atoll submit hunyuanvideo-t2v-720p --prompt "a storm" --simulated --gpus 8
        atoll submit tiny-image --prompt "a gull" --deadline 2m --region "N. Virginia" --key gull-1
        """,
    )(submit)


def submit(
    *,
    model: ModelArgument,
    prompt: PromptOption = "",
    negative: NegativeOption = "",
    seed: SeedOption = None,
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
    count: CountOption = "1",
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
    key: KeyOption = "",
    wait: WaitOption = False,
    timeout: TimeoutOption = None,
    out: OutOption = None,
) -> None:
    """Submit a job, or many. Figures that are left out are the model's own. Prints the job's id, which survives everything.

    A job that no place can take now is accepted all the same, with a warning (exit code 0): sites come and go. With --wait, what no site of
    the fleet can ever run as it is ends the waiting with exit code 1, unless --timeout says how long to wait; the job stays queued.

    A --deadline or --start-timeout that the fleet would miss as it is now is accepted too, with a warning that says when it would be done.
    """
    if out is not None and simulated:
        raise CliError("--out is given with --simulated: expected one of them, as a rehearsal makes no files", code=Exit.USAGE)
    if timeout is not None and not (wait or out):
        raise CliError("--timeout is given without --wait", code=Exit.USAGE)
    jobs = arguments.whole("--count", count, 1, _COUNT_MAX)
    timeout_s = arguments.duration_ms("--timeout", timeout) / 1_000 if timeout else None
    form = session().form
    template = request_of(
        model=model, prompt=prompt, negative=negative, size=size, frames=frames, steps=steps, cfg=cfg, guidance=guidance, batch=batch,
        precision=precision, priority=priority, deadline=deadline, start_timeout=start_timeout, tenant=tenant, site=site, region=region,
        gpu=gpu, gpus=gpus, max_price=max_price, simulated=simulated, adapter=adapter, image=image, strength=strength, origin=origin,
    )  # fmt: skip
    first_seed = None if seed is None else arguments.whole("--seed", seed, 0, 2**63 - 1)
    place = None if out is None else results.place_of("--out", out, jobs)
    with session().client() as client, as_options():
        described = template.described()
        if template.file is not None:
            client.upload(template.file, name=IMAGE_INPUT)
        late = _late(client, described)
        job_ids = _submit(client, _numbered(described, jobs, first_seed, key))
        if wait or place is not None:
            _note_all(late)
            _finish(client, job_ids, form, timeout_s, place)
        else:
            _announce(client, job_ids, form)
            _note_all(late)
            _warn(client, job_ids)


def request_of(
    *,
    model: str,
    prompt: str,
    negative: str,
    size: str | None,
    frames: str | None,
    steps: str | None,
    cfg: str | None,
    guidance: str | None,
    batch: str | None,
    precision: str | None,
    priority: str,
    deadline: str | None,
    start_timeout: str | None,
    tenant: str,
    site: list[str] | None,
    region: list[str] | None,
    gpu: list[str] | None,
    gpus: str | None,
    max_price: str | None,
    origin: str,
    simulated: bool,
    adapter: list[str] | None,
    image: str | None,
    strength: str | None,
) -> JobRequest:
    """The job that these options ask for, here and in `atoll quote`; FieldError for the first that cannot be read."""
    from atoll.client import JobRequest

    width, height = arguments.size_px("--size", size) if size is not None else (0, 0)
    return JobRequest(
        model=model,
        prompt=prompt,
        negative_prompt=negative,
        width=width,
        height=height,
        frames=arguments.whole("--frames", frames, 1, limits.FRAMES_MAX),
        steps=arguments.whole("--steps", steps, 1, limits.STEPS_MAX),
        cfg_passes=arguments.whole("--cfg", cfg, 1, limits.CFG_PASSES_MAX),
        batch=arguments.whole("--batch", batch, 1, limits.BATCH_MAX),
        guidance=arguments.decimal("--guidance", guidance, 0, limits.GUIDANCE_MILLI_MAX / 1_000),
        precision=None if precision is None else _member("--precision", precision, Precision),
        priority=_member("--priority", priority, Priority),
        deadline_ms=arguments.duration_ms("--deadline", deadline) if deadline is not None else 0,
        start_timeout_ms=arguments.duration_ms("--start-timeout", start_timeout) if start_timeout is not None else 0,
        tenant=tenant,
        sites=arguments.names(site),
        regions=arguments.labels(region),
        gpu_types=arguments.names(gpu),
        gang_size=arguments.gang_size("--gpus", gpus),
        max_price_usd=arguments.price_limit_usd("--max-price", max_price),
        origin_site=parse_name("--origin", origin) if origin else "",
        simulated=simulated,
        adapters=_adapters(adapter),
        image=None if image is None else Path(image).expanduser(),
        strength=arguments.decimal("--strength", strength, 0, 1),
    )


def _adapters(texts: list[str] | None) -> tuple[AdapterUse, ...]:
    from atoll.client.requests import adapter_use

    if len(texts or ()) > limits.ADAPTERS_MAX:
        raise FieldError("--adapter", f"{len(texts or ())} adapters", f"at most {limits.ADAPTERS_MAX}")
    return tuple(adapter_use("--adapter", text) for text in texts or ())


def _member(option: str, text: str, kind: type[E]) -> E:
    try:
        return kind(text.strip().lower())
    except ValueError:
        raise FieldError(option, text, f"one of {', '.join(kind)}") from None


def _numbered(template: JobRequest, jobs: int, seed: int | None, key: str) -> list[JobRequest]:
    """The template so many times, each with a seed and a key of its own."""
    import uuid
    from dataclasses import replace

    found = []
    for index in range(jobs):
        own_key = uuid.uuid4().hex if not key else key if jobs == 1 else f"{key}-{index + 1}"
        found.append(replace(template, seed=None if seed is None else seed + index, idempotency_key=own_key))
    return found


def _submit(client: Client, requests: list[JobRequest]) -> list[str]:
    if len(requests) == 1:
        return [client.submit_request(requests[0])]
    outcomes = client.submit_many(requests)
    refused = [outcome.error for outcome in outcomes if outcome.error is not None]
    accepted = [outcome.job_id for outcome in outcomes if outcome.job_id is not None]
    if refused:
        if accepted:
            note(f"accepted all the same: {len(accepted)} of {len(outcomes)} jobs")
        raise refused[0]
    return [str(job_id) for job_id in accepted]


def _announce(client: Client, job_ids: list[str], form: Form) -> None:
    if form in {Form.TABLE, Form.NAME}:
        for job_id in job_ids:
            say(f"job/{job_id}")
        if form is Form.TABLE:
            note(f"accepted; 'atoll jobs watch {job_ids[0]}' follows it" if len(job_ids) == 1 else f"{len(job_ids)} jobs accepted")
        return
    _show(form, [client.get(job_id) for job_id in job_ids])


def _late(client: Client, request: JobRequest) -> list[str]:
    """Warnings for the limits of time that the fleet would miss with such a job, by the quote of it. Without limits nothing is asked."""
    from atoll.client import ClientError

    if not (request.deadline_ms or request.start_timeout_ms):
        return []
    try:
        offered = client.quote_request(request)
    except ClientError:
        return []  # a warning only is lost: what is wrong with the job is said by the submit
    if offered.eta is None:
        return []  # no place can take it, which is told by itself
    when = TimeLimits(
        now_us=offered.at_us, asked_us=offered.at_us, deadline_ms=request.deadline_ms, start_timeout_ms=request.start_timeout_ms
    )
    then = f"It should {outlook.when(offered.eta, offered.at_us)}."
    return [f"warning: {progress.lowered(line)} {then}" for line in outlook.missed(offered.eta, when)]


def _note_all(lines: list[str]) -> None:
    for line in lines:
        note(line)


def _warn(client: Client, job_ids: list[str]) -> None:
    """Say so when no place can take what was accepted. All of them are alike; who is not answered has lost a warning only."""
    from atoll.client import ClientError

    try:
        offered = client.explain(job_ids[0]).quote
    except ClientError:
        return
    if offered is None or offered.chosen is not None:
        return
    it = "it waits" if len(job_ids) == 1 else "they wait"
    until = " in vain" if offered.verdict is Verdict.NEVER else " until that changes"
    note(f"warning: {progress.lowered(outlook.nowhere(offered.rejections))} So {it}{until}: 'atoll jobs explain {job_ids[0]}' says more")


def _finish(client: Client, job_ids: list[str], form: Form, timeout_s: float | None, out: Path | None) -> None:
    ended = progress.follow(client, job_ids, timeout_s=timeout_s)
    if out is not None:
        results.make_folder(out)
    paths: list[Path] = []
    for index, job in enumerate(ended, start=1):
        if out is not None and job.state is JobState.SUCCEEDED:
            target = out if len(ended) == 1 or out.is_dir() else progress.numbered(out, index)
            paths.extend(progress.save(client, job, target))
    if form is Form.TABLE and len(ended) == 1:
        say(f"job/{ended[0].job_id} {progress.sentence(ended[0])}")
    else:
        _show(form, list(ended))
    if form in {Form.TABLE, Form.WIDE}:
        for path in paths:
            say(str(path))
    progress.refuse_failures(ended)


def _show(form: Form, jobs: list[Job]) -> None:
    if len(jobs) == 1:
        show_one(form, JOBS, jobs[0])
    else:
        show_list(form, JOBS, jobs)
