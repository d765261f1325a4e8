"""Sessions: what waits for an agent is bounded, the newest that the core speaks to is the current one, logs find their way."""

from __future__ import annotations

import asyncio

import pytest

from atoll.model.assignment import Assignment
from atoll.model.ids import AttemptKey, FleetId, Generation, JobId, Ordinal, SiteId, Term
from orchestrator.refusals import SHUTTING_DOWN, RefusedError
from orchestrator.sessions import OUTBOX_MAX, LogWanted, Session, SessionTable

SITE = SiteId("a")
KEY = AttemptKey(job_id=JobId("j-1"), ordinal=Ordinal(1))


def assignment(generation: int) -> Assignment:
    """One state of a site."""
    return Assignment(fleet_id=FleetId("f"), term=Term(1), generation=Generation(generation))


def current(sessions: SessionTable) -> Session:
    """A session that the core has spoken to."""
    session = sessions.open(SITE)
    sessions.send(session.ref, assignment(1))
    return session


async def test_an_agent_that_does_not_read_is_cut_off_and_nothing_piles_up() -> None:
    sessions = SessionTable()
    session = sessions.open(SITE)
    for generation in range(1, OUTBOX_MAX + 50):
        sessions.send(session.ref, assignment(generation))
    with pytest.raises(RefusedError, match="unread"):
        await session.next()


async def test_the_stream_that_the_core_speaks_to_takes_the_place_of_an_older_one() -> None:
    sessions = SessionTable()
    older = current(sessions)
    newer = sessions.open(SITE)
    assert await older.next() == assignment(1)
    sessions.send(newer.ref, assignment(2))
    with pytest.raises(RefusedError, match="newer stream"):
        await older.next()
    assert await newer.next() == assignment(2)
    # The end of the older one is no end of the newer.
    sessions.closed(older)
    asked = asyncio.create_task(sessions.logs(SITE, KEY, 10, 5.0))
    wanted = await newer.next()
    assert isinstance(wanted, LogWanted)
    sessions.log_arrived(newer, wanted.request + 1, ("not asked for",))
    sessions.log_arrived(newer, wanted.request, ("one", "two"))
    assert await asked == ("one", "two")


async def test_logs_of_a_site_that_is_away_goes_away_or_says_nothing_are_refused() -> None:
    sessions = SessionTable()
    with pytest.raises(RefusedError, match="not connected"):
        await sessions.logs(SITE, KEY, 10, 5.0)
    session = current(sessions)
    with pytest.raises(RefusedError, match="did not send"):
        await sessions.logs(SITE, KEY, 10, 0.01)
    asked = asyncio.create_task(sessions.logs(SITE, KEY, 10, 5.0))
    await asyncio.sleep(0)
    sessions.closed(session)
    with pytest.raises(RefusedError, match="went away"):
        await asked
    assert len(sessions) == 0


async def test_closing_all_lets_what_waits_go_first() -> None:
    sessions = SessionTable()
    session = current(sessions)
    sessions.close_all(SHUTTING_DOWN)
    sessions.send(session.ref, assignment(2))
    assert await session.next() == assignment(1)
    with pytest.raises(RefusedError, match="shutting down"):
        await session.next()
