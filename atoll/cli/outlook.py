"""What a job is offered, in plain sentences: where it goes and why, how long it waits, when it is done, at what price.

Decides the words. A tired person reads the first sentence and should know enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, assert_never

from atoll.cli import calibrated, costtable
from atoll.cli.costtable import Legend, place, sources, term, time_us
from atoll.cli.figures import count, duration, money, size
from atoll.cli.output import printable, say
from atoll.cli.reasons import advice, meaning
from atoll.model.placement import LASTING, Awaits, Candidate, Claim, Rejection, is_lasting
from atoll.model.quote import Eta, InTime, PlaceView, Quote, TimeLimits, Verdict, prospects

# As the policy resolves ties: below it nobody would call one place better.
_TIE_US: Final = 50_000
_REASONS_NAMED: Final = 2
# A place that is later by less than this part of the time is as good as one that is not.
_SHARE_TOLD: Final = 20
# The rule of a decision that a comparison of costs explains; decisions of older stores do not name theirs.
_BY_COST: Final = frozenset({"", "cost"})
# What would be shown as $0.0000 is not worth a clause.
_WORTH_NAMING_USD_MICROS: Final = 50


def _doing(names: Sequence[str], candidate: Candidate, weights_bytes: int) -> str:
    """What it takes to run there: "fetching 22.0 GB to a/b", "waiting for a/b", "the warm replica at a/b"."""
    if candidate.awaits is Awaits.LOAD:
        return f"waiting for {place(candidate)}, where the model is loading already"
    if candidate.cold:
        of = size(weights_bytes) if weights_bytes else "the model"
        how = f"fetching {of}{_whose(candidate)} to" if term(names, candidate, "fetch") else f"loading {of} from the disk of"
        return f"{how} {place(candidate)}"
    return f"waiting for {place(candidate)}" if candidate.wait_us else f"the warm replica at {place(candidate)}"


def _whose(candidate: Candidate) -> str:
    """Where weights come from that do not come from the origin store."""
    if candidate.fetch_from is None or not candidate.fetch_from.sites:
        return ""
    return f" from the peer site{'s' if len(candidate.fetch_from.sites) > 1 else ''} {sources(candidate.fetch_from)}"


def has(names: Sequence[str], candidate: Candidate, weights_bytes: int, verb: str) -> str:
    """How a place stands, as a clause: "where the model is warm", "which has to fetch 22.0 GB first". `verb`: has or had."""
    be = "was" if verb == "had" else "is"
    if not candidate.cold:
        behind_us = term(names, candidate, "queue")
        if candidate.awaits is Awaits.LOAD:
            behind = f", behind {duration(behind_us)} of that and other work" if behind_us else ""
            return f"where the model {be} loading already{behind}"
        return f"where the model {be} warm" + (f", behind {duration(behind_us)} of other work" if behind_us else "")
    of = size(weights_bytes) if weights_bytes else "the model"
    if term(names, candidate, "fetch"):
        return f"which {verb} to fetch {of}{_whose(candidate)} first"
    return f"which {verb} to load {of} from its disk"


def comparison(
    names: Sequence[str], chosen: Candidate, others: Sequence[Candidate], weights_bytes: int, *, rule: str, turn_us: int = 0
) -> str:
    """How much better the chosen place is than the next best, and by what, once those before it have had their turn."""
    if rule not in _BY_COST:
        return f"chosen by {printable(rule)}, not by cost"
    if not others:
        return "the only place that can take it"
    other = others[0]
    alike = chosen.cold == other.cold and bool(chosen.wait_us) == bool(other.wait_us)
    what = f"{place(other)}, the next best" if alike else _doing(names, other, weights_bytes)
    gain_us = other.total_us - chosen.total_us - turn_us
    sooner_us = time_us(names, other) - time_us(names, chosen) - turn_us
    if gain_us < -_TIE_US and other.wait_us:
        return f"{duration(-gain_us)} of COST more than {what}: those who wait for that already go first there"
    if gain_us <= _TIE_US:
        return f"as good as {what}; of equals {_virtue(names, chosen, other)}"
    if sooner_us < 0 and unhurried(names, chosen):
        return f"{duration(-sooner_us)} later than {what}, but cheaper, and early enough for its deadline"
    if sooner_us < 0:
        return f"{duration(-sooner_us)} later than {what}, but cheaper: prices there count {duration(gain_us - sooner_us)} more"
    if sooner_us * 2 >= gain_us:
        return f"{duration(sooner_us)} sooner than {what}"
    made_of = f"{duration(sooner_us)} of that is time, the rest prices" if sooner_us else "all of that is prices"
    return f"{duration(gain_us)} of COST better than {what}; {made_of}"


def _virtue(names: Sequence[str], chosen: Candidate, other: Candidate) -> str:
    """What decided between places of equal cost: the first virtue, in the order in which they count, by which they differ."""
    if other.cold and not chosen.cold:
        return "the one where it is loaded already goes first"
    if term(names, chosen, "fetch") < term(names, other, "fetch"):
        return "the one with the shorter fetch goes first"
    if term(names, chosen, "evict") < term(names, other, "evict"):
        return "the one that evicts less goes first"
    return "the GPU of the lower price goes first, then the pool with more free slots, then one that is always the same"


def unhurried(names: Sequence[str], candidate: Candidate) -> bool:
    """Whether a job with a deadline is so early there that its delay counts nothing: then the cheapest place is the best."""
    return term(names, candidate, "deadline") < 0


def patient(
    names: Sequence[str], chosen: Candidate, others: Sequence[Candidate], *, rule: str, due_us: int, usd_micros: int = 0, past: bool = False
) -> list[str]:
    """Why a job that is due only later does not go where it would be done soonest; nothing where it does. `usd_micros`: its GPU time."""
    soonest = min(others, key=lambda other: time_us(names, other), default=chosen)
    sooner_us = time_us(names, chosen) - time_us(names, soonest)
    if rule not in _BY_COST or not unhurried(names, chosen) or sooner_us * _SHARE_TOLD < time_us(names, chosen):
        return []
    mine, theirs = (term(names, one, "money") for one in (chosen, soonest))
    dearer = f"but cost {duration(soonest.total_us - chosen.total_us)} more"
    if 0 < mine < theirs and usd_micros:
        dearer = f"for {money(usd_micros * theirs // mine)} of GPU time instead of {money(usd_micros)}"
    elif 0 < mine < theirs:
        dearer = f"for {theirs / mine:.1f} times the price of its GPU time"
    due, went, be = ("was due", "went", "have been") if past else ("is due", "goes", "be")
    there = f"at {place(soonest)} it would {be} done {duration(sooner_us)} sooner, {dearer}"
    return [f"It {due} only in {duration(due_us)} and {went} where it is cheapest: {there}."]


def policy(name: str, rule: str) -> str:
    """A policy's name, and how it chooses if that is not by cost."""
    return name if rule in _BY_COST else f"{name}, which chooses by {printable(rule)}, not by cost"


def when(eta: Eta, now_us: int) -> str:
    """When it should begin and be done: "begin in about 2.00s and be done in about 9.10s (9 of 10: within 18.2s)"; of one whose time is
    over: "be done any moment, late by 1.20s (9 of 10: within 3.00s)"."""
    late = late_by(eta, now_us)
    if eta.end_p90_us <= now_us:
        return f"be done by now: it is {late or 'due'}, nine of ten such jobs would have been done {duration(now_us - eta.end_p90_us)} ago"
    most = f"9 of 10 such jobs: within {duration(eta.end_p90_us - now_us)}"
    soon = f"be done any moment, {late}" if late else "be done any moment"
    done = f"be done in about {duration(eta.end_p50_us - now_us)}" if eta.end_p50_us > now_us else soon
    if not eta.begin_p50_us or eta.begin_p50_us <= now_us:
        return f"{done} ({most})"
    return f"begin in about {duration(eta.begin_p50_us - now_us)} and {done} ({most})"


def late_by(eta: Eta, now_us: int) -> str:
    """By how much it takes longer than half of such jobs do: "late by 1.20s"; "" while it does not."""
    late_us = now_us - eta.end_p50_us
    return f"late by {duration(late_us)}" if late_us >= _TIE_US else ""


def in_time(eta: Eta | None, limits: TimeLimits, *, never: bool = False) -> list[str]:
    """Whether it keeps its limits of time, a sentence for each that it has and has not met yet. `eta` None: no place can take it now, or
    `never`."""
    found, lines = prospects(eta, limits), []
    if found.meets_deadline is not None:
        quantiles = (eta.end_p50_us, eta.end_p90_us) if eta is not None else None
        lines.append(_kept(found.meets_deadline, "deadline", "are done", limits.deadline_ms, limits, quantiles, never=never))
    if found.meets_start_timeout is not None and (eta is None or eta.begin_p50_us):
        quantiles = (eta.begin_p50_us, eta.begin_p90_us) if eta is not None else None
        kept = found.meets_start_timeout
        lines.append(_kept(kept, "start timeout", "begin", limits.start_timeout_ms, limits, quantiles, never=never))
    return lines


def missed(eta: Eta, limits: TimeLimits) -> list[str]:
    """Sentences for the limits of time that such a job would miss, by what half of them take."""
    found = prospects(eta, limits)
    told = []
    for one, deadline_ms, start_timeout_ms in (
        (found.meets_deadline, limits.deadline_ms, 0),
        (found.meets_start_timeout, 0, limits.start_timeout_ms),
    ):
        if one is InTime.NO:
            told += in_time(eta, replace(limits, deadline_ms=deadline_ms, start_timeout_ms=start_timeout_ms))
    return told


def _kept(meets: InTime, what: str, do: str, limit_ms: int, limits: TimeLimits, quantiles: tuple[int, int] | None, *, never: bool) -> str:
    asked_us, now_us = limits.asked_us, limits.now_us
    left_us = asked_us + limit_ms * 1_000 - now_us
    limit = f"its {what} of {duration(limit_ms * 1_000)}" + (f" ({duration(left_us)} from now)" if asked_us < now_us else "")
    if quantiles is None:
        return f"It would miss {limit} and expire{'' if never else ', unless a place can take it before that'}."
    p50, p90 = (_within(us - now_us) for us in quantiles)
    match meets:
        case InTime.YES:
            return f"It should meet {limit}: 9 of 10 such jobs {do} {p90}."
        case InTime.LIKELY if quantiles[1] < now_us:
            return f"It may miss {limit}: it is overdue."
        case InTime.LIKELY:
            return f"It may miss {limit}: half of such jobs {do} {p50}, 9 of 10 {p90}."
        case InTime.NO:
            return f"It would miss {limit} and expire: half of such jobs {do} only after {duration(max(quantiles[0] - now_us, 0))}."
    assert_never(meets)


def _within(left_us: int) -> str:
    return f"within {duration(left_us)}" if left_us > 0 else "at once"


def awaited(candidate: Candidate, left_us: int) -> str:
    """The place that is waited for, and what it is that comes: "a/b, free in about 2.00s"."""
    if candidate.awaits is Awaits.FETCH:
        return f"{place(candidate)}, where another node fetches the model and has it in about {duration(left_us)}"
    if candidate.awaits is Awaits.GANG:
        kept = "where idle GPUs are kept for a job that needs several at once"
        return f"{place(candidate)}, {kept} and should be done with them in about {duration(left_us)}"
    loading = ", where the model is loading already" if candidate.awaits is Awaits.LOAD else ""
    return f"{place(candidate)}{loading}, free in about {duration(left_us)}"


def waiting(quote: Quote, limits: TimeLimits | None = None) -> str:
    """What a job with these limits waits for, and why that is better than anything that could be had at once."""
    chosen = quote.chosen
    assert chosen is not None, "what is waited for is a place"
    at_once = [other for other in quote.others if not other.wait_us]
    rest = "no place can take it at once"
    later = bool(at_once) and time_us(quote.term_names, chosen) > time_us(quote.term_names, at_once[0])
    if later and limits is not None and limits.deadline_ms and quote.rule in _BY_COST and unhurried(quote.term_names, chosen):
        rest = _slack(quote, chosen, at_once[0], limits)
    elif at_once:
        that_is = "that is " if quote.rule in _BY_COST else ""
        rest = that_is + comparison(quote.term_names, chosen, at_once[:1], quote.weights_bytes, rule=quote.rule, turn_us=quote.turn_us)
    return f"{awaited(chosen, calibrated.told_us(quote, chosen.wait_us))}{_behind(quote)}: {rest}"


def kept(claim: Claim, quote: Quote) -> str:
    """A gang's block that is kept for jobs like this one, for which it waits; the times are those of its quote."""
    chosen = quote.chosen
    assert chosen is not None, "what is waited for is a place"
    first, last = claim.first, claim.first + claim.slots - 1
    free = f"the last of them should be free in about {duration(calibrated.told_us(quote, chosen.wait_us))}"
    if not quote.turn_us:
        return f"slots {first} to {last} of {claim.node_id} at {place(chosen)}. They are kept for it, and {free}"
    block = f"slots {first} to {last} of {claim.node_id} are kept for the first of those like it"
    return f"{place(chosen)}, where {block}: {free}{_behind(quote)}"


def _behind(quote: Quote) -> str:
    if not quote.turn_us:
        return ""
    return f", and {count(quote.ahead, 'job')} before it for {duration(calibrated.told_us(quote, quote.turn_us))} more"


def _slack(quote: Quote, chosen: Candidate, other: Candidate, limits: TimeLimits) -> str:
    """Why a job that is due only later waits for a place rather than go to another one at once."""
    due = duration(limits.asked_us + limits.deadline_ms * 1_000 - limits.now_us)
    mine, theirs = (term(quote.term_names, one, "money") for one in (chosen, other))
    cheaper = f"{duration(other.total_us - chosen.total_us)} of COST less"
    if 0 < mine < theirs:
        # Prices count by the same rate everywhere, so they are to each other as dollars are.
        cheaper = f"{money(quote.gpu_usd_micros)} of GPU time instead of {money(quote.gpu_usd_micros * theirs // mine)}"
    return f"it is due only in {due}, and that is cheaper than {place(other)}, which it could have at once: {cheaper}"


def nowhere(found: Sequence[Rejection], when: str = "can take it now") -> str:
    """A sentence: what keeps places from it that may take it yet, or why none of the fleet ever can."""
    if is_lasting(found):
        return f"No site of this fleet can ever run it as it is: {_reasons(found)}."
    passing = [one for one in found if one.reason not in LASTING]
    never = sum(one.pools for one in found) - sum(one.pools for one in passing)
    others = f"; {count(never, 'other pool')} never can" if never else ""
    return f"No place {when}: {_reasons(passing)}{others}."


def _reasons(found: Sequence[Rejection]) -> str:
    """Why pools do not take it, the most frequent reasons first."""
    ordered = sorted(found, key=lambda rejection: (-rejection.pools, rejection.reason.value))
    named = [f"{meaning(one.reason)} ({count(one.pools, 'pool')})" for one in ordered[:_REASONS_NAMED]]
    more = f", and {count(len(ordered) - _REASONS_NAMED, 'other reason')}" if len(ordered) > _REASONS_NAMED else ""
    return ", ".join(named) + more if named else "the fleet has no pools"


def patient_offer(quote: Quote, limits: TimeLimits | None) -> list[str]:
    """As `patient`, of what a job with these limits is offered."""
    if quote.chosen is None or limits is None or not limits.deadline_ms:
        return []
    due_us = limits.asked_us + limits.deadline_ms * 1_000 - limits.now_us
    return patient(quote.term_names, quote.chosen, quote.others, rule=quote.rule, due_us=due_us, usd_micros=quote.gpu_usd_micros)


def show_quote(model: str, quote: Quote, *, origin: str = "", limits: TimeLimits | None = None, full: bool = False) -> None:
    """Print what a job with these limits, asked from near this site, would be offered; `full`: with what each column is."""
    near = f", asked from near {origin}" if origin else ""
    say(f"quote for {model}{near}, {count(quote.queue_length, 'job')} in the queue")
    for line in in_time(quote.eta, limits, never=quote.verdict is Verdict.NEVER) if limits is not None else ():
        say(f"  {line}")
    if quote.chosen is None:
        then = "It would wait in vain." if quote.verdict is Verdict.NEVER else "It would wait until that changes."
        say(f"  {nowhere(quote.rejections)} {then}")
    elif quote.verdict is Verdict.NOW:
        better = comparison(quote.term_names, quote.chosen, quote.others, quote.weights_bytes, rule=quote.rule)
        stands = has(quote.term_names, quote.chosen, quote.weights_bytes, "has")
        say(f"  It would go to {place(quote.chosen)} at once, {stands}: {better}.")
        for line in patient_offer(quote, limits):
            say(f"  {line}")
    else:
        say(f"  It would wait for {waiting(quote, limits)}.")
    if quote.eta is not None:
        leaving = quote.egress_usd_micros >= _WORTH_NAMING_USD_MICROS
        leave = f" and {money(quote.egress_usd_micros)} for the result to leave" if leaving else ""
        say(f"  It should {when(quote.eta, quote.at_us)}, for {money(quote.gpu_usd_micros)} of GPU time{leave}.")
        for line in calibrated.corrected(quote):
            say(f"  {line}")
    if quote.refusal:
        again = f"; try again in {duration(quote.retry_after_ms * 1_000)}" if quote.retry_after_ms else ""
        say(f"  A submit would be refused just now: {printable(quote.refusal)}{again}.")
    details(quote, "Would make room:", Legend(full=full))


def details(quote: Quote, room: str, legend: Legend) -> None:
    """The places with their terms, what makes room, and what was left out."""
    if quote.chosen is not None:
        say(f"  Places as of now. Policy: {policy(quote.policy, quote.rule)}")
        costtable.candidates(quote.term_names, [quote.chosen, *quote.others], legend)
        if quote.turn_us:
            costtable.before_it(quote.term_names, quote.chosen, quote.turn_us, quote.ahead)
    costtable.made_room(quote.evicted, room)
    listed = [quote.chosen, *quote.others] if quote.chosen is not None else []
    costtable.rejections(quote.rejections, "Not possible:" if quote.verdict is Verdict.NEVER else "Not possible now:", listed, quote)


def show_site(site_id: str, places: Sequence[PlaceView], quote: Quote | None, legend: Legend) -> None:
    """Print what one site offers as of now, pool by pool, beside where the job would go."""
    if not places:
        say(f"  {site_id} has no pools.")
    names = quote.term_names if quote is not None else ()
    best = quote.chosen if quote is not None else None
    found = [candidate for one in places for candidate in one.candidates]
    for one in places:
        where = f"{site_id}/{one.pool_id} ({one.gpu_type})"
        cheapest = min(one.candidates, key=lambda candidate: candidate.total_us, default=None)
        if cheapest is None:
            why = f"{meaning(one.reason)}. To change that: {advice(one.reason, quote)}" if one.reason else "it offers nothing"
            say(f"  {where} cannot take it: {why}.")
        elif best is not None and (best.site_id, best.pool_id, best.cold) == (cheapest.site_id, cheapest.pool_id, cheapest.cold):
            say(f"  {where} is where it would go now.")
        else:
            more = f", {duration(cheapest.total_us - best.total_us)} more than {place(best)}, where it would go now" if best else ""
            say(f"  {where} would cost {duration(cheapest.total_us)}{more}.")
    if found:
        marked = [best, *[one for one in found if one != best]] if best is not None else found
        costtable.candidates(names, marked, legend, marked=best is not None)
