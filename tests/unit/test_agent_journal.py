"""What an agent keeps on disk: complete after any end, for its owner only, of one site and one process."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from agents.core.outputs import AgentRecord, IdentityChanged, OutboxAppended, OutboxTrimmed
from agents.journal import DiskJournal, JournalError, Kept
from atoll.model.attempt import AttemptState
from atoll.model.ids import EventSeq, FleetId, SiteId, Term
from atoll.model.report import AttemptEvent
from tests.unit.agent_core_site import key, manifest

SITE = SiteId("s")


def ended(seq: int) -> OutboxAppended:
    """An end of an attempt."""
    of = key(f"j{seq}")
    return OutboxAppended(event=AttemptEvent(seq=EventSeq(seq), key=of, state=AttemptState.SUCCEEDED, manifest=manifest(of)))


async def keep(folder: Path, *records: AgentRecord) -> None:
    """One life: write and go."""
    journal = DiskJournal(folder, SITE)
    writing = journal.begin(records)
    assert writing is not None
    await writing
    await journal.close()


async def kept(folder: Path) -> Kept:
    """What the next life finds."""
    journal = DiskJournal(folder, SITE)
    found = journal.load()
    await journal.close()
    return found


async def test_the_first_life_finds_nothing(tmp_path: Path) -> None:
    assert await kept(tmp_path / "new") == Kept()


async def test_records_survive_and_numbers_go_on(tmp_path: Path) -> None:
    await keep(tmp_path, IdentityChanged(fleet_id=FleetId("f"), term=Term(3)), ended(1), ended(2), ended(3))
    await keep(tmp_path, OutboxTrimmed(acked_event_seq=EventSeq(2)))
    found = await kept(tmp_path)
    assert [event.key for event in found.outbox] == [key("j3")]
    assert (found.fleet_id, found.term, found.next_event_seq) == ("f", 3, 4)
    await keep(tmp_path, OutboxTrimmed(acked_event_seq=EventSeq(3)))
    found = await kept(tmp_path)
    assert (found.outbox, found.next_event_seq) == ((), 4)


async def test_the_credential_is_kept_where_only_its_owner_reads(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    journal = DiskJournal(folder, SITE)
    await journal.keep_credential("secret")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.name.startswith("agent.sqlite")}
    assert modes
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    await journal.close()
    assert (await kept(folder)).credential == "secret"


async def test_two_agents_never_share_a_folder(tmp_path: Path) -> None:
    journal = DiskJournal(tmp_path, SITE)
    with pytest.raises(JournalError, match="used by another agent that is running"):
        DiskJournal(tmp_path, SITE)
    await journal.close()
    await kept(tmp_path)


async def test_the_folder_of_another_site_is_refused(tmp_path: Path) -> None:
    await kept(tmp_path)
    with pytest.raises(JournalError, match="belongs to site s, this agent is of site other"):
        DiskJournal(tmp_path, SiteId("other"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(JournalError, match=f"state folder {blocked}"):
        DiskJournal(blocked, SITE)


async def test_damage_is_reported_not_guessed_around(tmp_path: Path) -> None:
    await keep(tmp_path, ended(1))
    with sqlite3.connect(tmp_path / "agent.sqlite") as db:
        db.execute("UPDATE outbox SET event = x'ff00ff'")
    db.close()
    journal = DiskJournal(tmp_path, SITE)
    with pytest.raises(JournalError, match="is damaged"):
        journal.load()
    await journal.close()
