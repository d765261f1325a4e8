"""An explanation as text: where a job went and why, what else there was, and how the prediction held.

Decides the order: first what happened and why in plain sentences, then each decision in seconds, then what was left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from atoll.cli import calibrated, costtable, heldback, outlook, overdue
from atoll.cli.costtable import Legend
from atoll.cli.figures import count, duration
from atoll.cli.output import Form, plain, printable, say, show_plain
from atoll.model.attempt import ENDED, RETRIES, Attempt, AttemptState, FailureKind
from atoll.model.job import TERMINAL, Job, JobState
from atoll.model.placement import Awaits, Claim, Deferral
from atoll.model.quote import Eta, PlaceView, Prospects, Quote, TimeLimits, Verdict, prospects

if TYPE_CHECKING:
    from atoll.client import JobExplained
    from orchestrator.explaining import Explained

_IN_VAIN = "It waits in vain: cancel it and ask for what a site can do, or add a site that can do this."
_DOES = {
    AttemptState.LEASED: "was sent to {site}",
    AttemptState.FETCHING: "is at {site}, which fetches the weights or has other work before it",
    AttemptState.LOADING: "is at {site}, which loads the model",
    AttemptState.COMPILING: "is at {site}, which compiles the model",
    AttemptState.RUNNING: "runs at {site}",
    AttemptState.UPLOADING: "ran at {site}, which sends the result",
    AttemptState.STOPPING: "is being stopped at {site}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A job at an instant of fleet time, with its place in the queue (0: not queued) and what it is offered as of then."""

    job: Job
    now_us: int
    queue_position: int = 0
    queue_length: int = 0
    held_until_us: int = 0
    eta: Eta | None = None
    quote: Quote | None = None

    @property
    def limits(self) -> TimeLimits:
        """When it would expire."""
        spec = self.job.spec
        return TimeLimits(
            now_us=self.now_us, asked_us=self.job.accepted_us, deadline_ms=spec.deadline_ms, start_timeout_ms=spec.start_timeout_ms
        )

    @property
    def has_prospects(self) -> bool:
        """Whether it can be said if it keeps its limits: it has an ETA, or no place can take it."""
        waits = self.job.state is JobState.QUEUED and self.quote is not None
        return self.job.state not in TERMINAL and (self.eta is not None or waits)

    @property
    def prospects(self) -> Prospects:
        """Whether it keeps its limits, where that is still to come."""
        return prospects(self.eta, self.limits) if self.has_prospects else Prospects(meets_deadline=None, meets_start_timeout=None)


def answer(form: Form, found: JobExplained | Explained, site_id: str = "") -> None:
    """Print an explanation in the form that was asked for; `site_id`: of what that site offers."""
    moment = Moment(
        job=found.job,
        now_us=found.now_us,
        queue_position=found.queue_position,
        queue_length=found.queue_length,
        held_until_us=found.held_until_us,
        eta=found.eta,
        quote=found.quote,
    )
    match form:
        case Form.JSON | Form.YAML:
            show_plain(form, {**plain(found), **plain(moment.prospects)})
        case Form.NAME:
            say(f"job/{found.job.job_id}")
        case Form.TABLE | Form.WIDE:
            if site_id:
                show_site(moment, site_id, found.places, full=form is Form.WIDE)
            else:
                show(moment, full=form is Form.WIDE)
        case _:
            assert_never(form)


def show(moment: Moment, *, full: bool = False) -> None:
    """Print the explanation of a job; `full`: with what each column is."""
    job, legend = moment.job, Legend(full=full)
    _head(moment)
    never = moment.quote is not None and moment.quote.verdict is Verdict.NEVER
    limits = outlook.in_time(moment.eta, moment.limits, never=never) if moment.has_prospects else ()
    for line in (*limits, *_story(moment)):
        say(f"  {printable(line)}")
    if moment.quote is not None and job.state not in TERMINAL:
        say("")
        outlook.details(moment.quote, "Would make room:", legend)
    heldback.details(job)
    if job.deferral is not None and (job.state is JobState.QUEUED or not job.attempts):
        costtable.stopped(job.deferral.stopped)
    for attempt in reversed(job.attempts):
        say("")
        _attempt(attempt, legend)


def show_site(moment: Moment, site_id: str, places: Sequence[PlaceView], *, full: bool = False) -> None:
    """Print why a job is not at one site, or is; `full`: with what each column is."""
    job = moment.job
    _head(moment)
    again = "as of now" if job.state is JobState.QUEUED else "as of now, as if it were submitted again"
    say(f"  What {site_id} offers it, {again}:")
    outlook.show_site(site_id, places, moment.quote, Legend(full=full))


def _head(moment: Moment) -> None:
    job = moment.job
    say(f"job/{job.job_id} {_standing(moment)}")
    say(f"  {job.spec.model_id}, {_shape(job)}, seed {job.spec.seed}, {job.spec.priority} priority, tenant {job.spec.tenant}{_extras(job)}")


def _standing(moment: Moment) -> str:
    job = moment.job
    if job.state in TERMINAL:
        return f"{job.state}, {duration(job.ended_us - job.accepted_us)} after it was accepted"
    age = f"accepted {duration(max(moment.now_us - job.accepted_us, 0))} ago"
    if moment.queue_position:
        return f"{job.state}, number {moment.queue_position} of {moment.queue_length} in the queue, {age}"
    return f"{job.state}, {age}"


def _shape(job: Job) -> str:
    shape = job.spec.shape
    frames = f", {shape.frames} frames" if shape.frames > 1 else ""
    results = f", {count(shape.batch, 'result')}" if shape.batch > 1 else ""
    return f"{shape.width}x{shape.height}{frames}, {count(shape.steps, 'step')}{results}"


def _extras(job: Job) -> str:
    found = []
    where = job.spec.constraints
    for title, names in (("sites", where.sites), ("regions", where.regions), ("GPUs", where.gpu_types)):
        if names:
            found.append(f"only {title} {', '.join(names)}")
    if where.max_price_usd_micros:
        found.append(f"at most ${f'{where.max_price_usd_micros / 1_000_000:.6f}'.rstrip('0').rstrip('.')}")
    if job.spec.adapters:
        found.append(f"with {', '.join(f'{use.adapter_id} at {use.scale_milli / 1_000:g}' for use in job.spec.adapters)}")
    if job.spec.image is not None:
        found.append(f"begins with a picture, {job.spec.strength_milli / 1_000:g} of it made anew")
    if job.spec.gang_size > 1:
        found.append(f"{job.spec.gang_size} GPUs at once")
    if job.spec.deadline_ms:
        found.append(f"deadline {duration(job.spec.deadline_ms * 1_000)} after acceptance")
    if job.spec.start_timeout_ms:
        found.append(f"to begin within {duration(job.spec.start_timeout_ms * 1_000)}")
    if job.spec.origin_site is not None:
        found.append(f"asked from near {job.spec.origin_site}")
    if job.spec.simulated:
        found.append("a rehearsal: twins only")
    return "".join(f"; {extra}" for extra in found)


# --- what happened, in sentences ------------------------------------------------------------------------------------------------


def _story(moment: Moment) -> list[str]:
    job = moment.job
    last = job.attempts[-1] if job.attempts else None
    match job.state:
        case JobState.QUEUED:
            return _queued(moment, last)
        case JobState.PLACED | JobState.RUNNING if last is not None:
            return [*_live(moment, last), *_patient(job, last), *_before(job.attempts[:-1])]
        case JobState.SUCCEEDED if last is not None:
            return [_went(last), *_patient(job, last), *overdue.took(last), *_retold(last), *_before(job.attempts[:-1])]
        case _:
            return [_ended_badly(job, last), *heldback.story(job), *_expired(job, last), *_before(job.attempts[:-1])]


def _queued(moment: Moment, last: Attempt | None) -> list[str]:
    job, quote = moment.job, moment.quote
    claim = job.deferral.claim if job.deferral is not None else None
    lines = []
    if last is not None and last.failure is not None:
        lines.append(f"Its last attempt, at {last.site_id}, ended without a result: {last.failure.words}.")
    if moment.held_until_us > moment.now_us:
        lines.append(f"It is tried again in {duration(moment.held_until_us - moment.now_us)}, elsewhere if there is another place.")
    elif claim is not None and (quote is None or quote.chosen is None):
        lines.append(_claimed(claim, moment.now_us))
    elif quote is None:
        lines.append(_deferred(job.deferral, moment.now_us) if job.deferral else "It is about to be placed.")
    elif quote.chosen is None:
        lines.append(outlook.nowhere(quote.rejections))
        lines.append(_IN_VAIN if quote.verdict is Verdict.NEVER else "It is placed as soon as that changes.")
    elif quote.verdict is Verdict.NOW:
        better = outlook.comparison(quote.term_names, quote.chosen, quote.others, quote.weights_bytes, rule=quote.rule)
        lines.append(f"It is about to go to {costtable.place(quote.chosen)}: {better}.")
        lines += outlook.patient_offer(quote, moment.limits)
    elif claim is not None and (claim.site_id, claim.pool_id) == (quote.chosen.site_id, quote.chosen.pool_id):
        lines.append(f"It waits for {outlook.kept(claim, quote)}.")
    else:
        lines.append(f"It waits for {outlook.waiting(quote, moment.limits)}.")
    placeless = quote is not None and quote.chosen is None
    if moment.queue_position > 1 and not placeless and (quote is None or not quote.turn_us):
        lines.append(f"{count(moment.queue_position - 1, 'job')} may go before it, for this place or for others.")
    if moment.eta is not None:
        lines.append(f"It should {outlook.when(moment.eta, moment.now_us)}.")
        lines += calibrated.corrected(quote) if quote is not None else []
    return lines


def _deferred(deferral: Deferral, now_us: int) -> str:
    best = deferral.waits_for
    if best is None:
        return outlook.nowhere(deferral.rejections, "could take it when it was last looked at")
    left_us = max(deferral.since_us + best.wait_us - now_us, 0)
    return f"It waits for {outlook.awaited(best, left_us)}."


def _claimed(claim: Claim, now_us: int) -> str:
    """The block that is kept for a gang, and when the last of its slots should be free."""
    block = f"slots {claim.first} to {claim.first + claim.slots - 1} of {claim.node_id} at {claim.site_id}/{claim.pool_id}"
    left_us = claim.begins_us - now_us
    if left_us <= 0:
        return f"It waits for {block}. They are kept for it: nothing else begins there until it has."
    return f"It waits for {block}. They are kept for it, and the last of them should be free in about {duration(left_us)}."


def _live(moment: Moment, last: Attempt) -> list[str]:
    step = f", step {last.steps_done} of {moment.job.spec.shape.steps}" if last.state is AttemptState.RUNNING and last.steps_done else ""
    does = _DOES.get(last.state, "is at {site}").format(site=last.site_id)
    soon = f"; it should {outlook.when(moment.eta, moment.now_us)}" if moment.eta is not None else ""
    return [f"It {does}{step}{soon}.", _went(last), *_retold(last)]


def _went(last: Attempt) -> str:
    told = last.explanation
    if told is None:
        return f"It went to {last.site_id}."
    went = f"After {duration(told.queued_us)} in the queue it went" if told.queued_us else "It went"
    better = outlook.comparison(told.term_names, told.chosen, told.others, told.weights_bytes, rule=told.rule)
    stood = outlook.has(told.term_names, told.chosen, told.weights_bytes, "had")
    return f"{went} to {costtable.place(told.chosen)}, {stood}: {better}."


def _patient(job: Job, last: Attempt) -> list[str]:
    """Why it did not go where it would have been done soonest, where its deadline left time."""
    told = last.explanation
    if told is None or not job.spec.deadline_ms:
        return []
    due_us = job.accepted_us + job.spec.deadline_ms * 1_000 - told.decided_us
    return outlook.patient(told.term_names, told.chosen, told.others, rule=told.rule, due_us=due_us, past=True)


def _retold(last: Attempt) -> list[str]:
    return calibrated.recorrected(last.explanation, last.predicted_us) if last.explanation is not None else []


def _ended_badly(job: Job, last: Attempt | None) -> str:
    where = f"while it waited in the queue{heldback.standing(job)}"
    if last is not None and _was_there(job, last):
        where = f"while it {'ran' if last.running_us else 'was'} at {last.site_id}"
    match job.state:
        case JobState.CANCELLED:
            return f"It was cancelled {where}, {f'with the reason: {job.cancel_reason}' if job.cancel_reason else 'without a reason'}."
        case JobState.EXPIRED:
            return f"It expired {where}: its {job.cancel_reason or 'time was over'}."
        case _ if job.failure is not None:
            rule = RETRIES[job.failure.kind]
            tries = f"such a failure is tried again {count(rule.budget, 'time')}" if rule.budget else "the same would happen anywhere"
            when = f"after {count(len(job.attempts), 'attempt')}" if job.attempts else "before any attempt"
            return f"It failed for good {when}: {job.failure.words} ({tries})."
        case _:
            return f"It ended {where}."


def _was_there(job: Job, last: Attempt) -> bool:
    """Whether a job ended while it was at a site. An attempt that is stopped for it ends a moment after the job."""
    return last.state not in ENDED or last.ended_us >= job.ended_us


def _expired(job: Job, last: Attempt | None) -> list[str]:
    return overdue.expired(job, last) if job.state is JobState.EXPIRED and last is not None and _was_there(job, last) else []


def _before(attempts: Sequence[Attempt]) -> list[str]:
    """What had been tried before the attempt that the story is about."""
    if not attempts:
        return []
    told = [f"at {one.site_id} ({_why_over(one)})" for one in attempts[-3:]]
    more = f" and {len(attempts) - 3} before them" if len(attempts) > 3 else ""
    return [f"Before that it had been tried {', '.join(told)}{more}."]


def _why_over(attempt: Attempt) -> str:
    """What ended an attempt without a result; of a move also what it was for, as that tells why the job is where it is."""
    if attempt.failure is None:
        return attempt.state.value
    return attempt.failure.words if attempt.failure.kind is FailureKind.MOVED else attempt.failure.kind.words


# --- each decision, in seconds --------------------------------------------------------------------------------------------------


def _attempt(attempt: Attempt, legend: Legend) -> None:
    told = attempt.explanation
    temperature = "cold: the model had to be loaded" if attempt.cold else "warm: the model was there"
    if told is not None and told.chosen.awaits is Awaits.LOAD:
        temperature = "the model was loading there already"
    slot = f"{attempt.slot.node_id} slot {attempt.slot.index}"
    say(f"Attempt {attempt.key.ordinal} at {attempt.site_id}, {slot} ({temperature}): {attempt.state}")
    if attempt.failure:
        say(f"  {printable(attempt.failure.words)}")
    if told is None:
        return
    deferred = f", after {count(told.deferrals, 'deferral')}" if told.deferrals else ""
    say(f"  Places when it was decided{deferred}. Policy: {outlook.policy(told.policy, told.rule)}")
    costtable.candidates(told.term_names, [told.chosen, *told.others], legend)
    costtable.brought(told.term_names, told.chosen)
    costtable.made_room(told.evicted, "Made room:")
    costtable.stopped(told.stopped)
    if attempt.ended_us and attempt.state in (AttemptState.SUCCEEDED, AttemptState.FAILED):
        costtable.phases(attempt, told)
    elif attempt.ended_us:
        took = duration(attempt.ended_us - attempt.leased_us)
        say(f"  Ended {took} after the decision; {duration(attempt.predicted_us)} had been predicted to the result")
    costtable.rejections(told.rejections, "Not possible then:", [told.chosen, *told.others], too_small=told.too_small)
